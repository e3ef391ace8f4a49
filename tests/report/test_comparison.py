"""The comparison of estimators as a reader finds it: tables in order, every curve inside its frame and named."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from test_report_page import Page

from daps_robot.report import comparison
from daps_robot.report.comparison import heights, look, mean_curve, write_comparison

FINAL = {"vq": 17.0, "daps": 21.0, "gumbel": 20.0, "rws": 11.0, "rws-1": 19.0, "vae": 23.0}


def psnr(name: str, step: int, seed: int) -> float:
    return FINAL[name] - 8 * float(np.exp(-step / 500)) + 0.01 * seed


@pytest.fixture
def results(tmp_path: Path) -> list[dict[str, object]]:
    """Six estimators with three seeds, one of which lost its metrics."""
    found: list[dict[str, object]] = []
    for seed in range(3):
        for name in FINAL:
            folder = tmp_path / f"{name}-{seed}"
            folder.mkdir()
            rows = [
                {"step": s, "split": "valid", "psnr": psnr(name, s, seed), "train_seconds": s / 9} for s in range(100, 2001, 100)
            ]
            if (name, seed) != ("vq", 1):
                (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            end = psnr(name, 2000, seed)
            result = {"estimator": name, "seed": seed, "bits": None if name == "vae" else 64.0}
            for readout in ("steps", "time"):
                result |= {f"{readout}.psnr": end, f"{readout}.ssim": end / 25, f"{readout}.rmse": 10 ** (-end / 20)}
                result |= {f"{readout}.elbo": None if name == "vq" else -20_000 / end}
            found.append({**result, "steps.step": 2000, "time.seconds": 60.2 + seed, "ess": 2.0 if name == "daps" else None})
    return found


def test_tables_have_their_rows_in_order_and_their_columns_once(tmp_path: Path, results: list[dict[str, object]]) -> None:
    text = write_comparison(tmp_path, results, exploratory=False).read_text()
    tables = re.findall(r"<table>.*?</table>", text, re.DOTALL)
    assert len(tables) == 3
    for table in tables[:2]:
        assert re.findall(r"<tr><th>([^<]+)</th>", table) == ["vae", "daps", "gumbel", "rws-1", "vq", "rws"]
        for title in ("PSNR, dB", "SSIM", "RMSE, data units", "ELBO (β=1), nats"):
            assert table.count(f"<th>{title}</th>") == 1
        assert "<b>20.86 " in table and "<b>−958." in table  # of daps, for vae is not ranked
    assert ">ESS</th>" in tables[2] and ">ESS</th>" not in tables[0]
    page = Page(text)
    assert "3 seeds each" in page.text and "Read after 2,000 steps." in page.text and "Read after 60 to 62 seconds." in page.text


def test_every_estimator_has_a_look_of_its_own_and_is_named(tmp_path: Path, results: list[dict[str, object]]) -> None:
    assert len({look(i) for i in range(21)}) == 21
    text = write_comparison(tmp_path, results, exploratory=True).read_text()
    (key,) = re.findall(r'<div class="key">.*?</div>', text)
    assert re.findall(r"</i>(.*?)</span>", key) == list(FINAL)
    plots = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    for i, name in enumerate(FINAL):
        assert look(i)[0] in key and f"stroke: {look(i)[0]}" in plots[0], name
    assert "No run has logged it." in plots[2]


def test_a_curve_is_of_its_own_runs(tmp_path: Path, results: list[dict[str, object]]) -> None:
    assert results
    for name, seeds in (("rws", (0, 1, 2)), ("rws-1", (0, 1, 2)), ("vq", (0, 2))):
        series = mean_curve(tmp_path, name, "step", "psnr")
        assert series is not None and series.shape == (2, 20)
        assert series[1, -1] == pytest.approx(np.mean([psnr(name, 2000, seed) for seed in seeds]))
    assert mean_curve(tmp_path, "absent", "step", "psnr") is None


def test_heights_hold_all_but_the_start() -> None:
    steps = np.arange(1.0, 101.0)
    rises, collapsed = np.stack([steps, -1e6 / steps**4]), np.stack([steps, np.full(100, -50.0)])
    limits = heights([rises, collapsed])
    assert limits is not None
    low, high = limits
    assert -60 < low < -50 and 0 < high < 10
    assert heights([]) is None and heights([np.array([[1.0], [np.nan]])]) is None
    flat = heights([np.array([[1.0, 2.0], [3.0, 3.0]])])
    assert flat is not None and flat[0] < 3 < flat[1]


def test_columns_name_their_units() -> None:
    titles = [column.title for column in (*comparison.AT_READOUT, *comparison.OF_THE_RUN)]
    assert len(set(titles)) == len(titles) and {"PSNR, dB", "memory, GB", "steps/s"} <= set(titles)
