"""The page of a picture tokenizer as a browser and a reader find it, pixel by pixel where pictures are concerned."""

import base64
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_report_page import Page

from daps_robot.errors import RunDirectoryError
from daps_robot.report import image_plots
from daps_robot.report.image_page import ImageExamples, write_image_page
from daps_robot.report.image_plots import GAP, enlargement, error_scale, save_examples_png, sheet

FACTS = {
    "psnr": 18.234, "ssim": 0.8123, "rmse": 0.1224, "rfid": 48.651, "bits_per_dimension": 5.1234, "elbo": -100.46,
    "elbo_beta_end": -64.57, "reconstruction": 64.21, "kl": 36.25, "entropy": 8.1, "perplexity": 112.9, "unused_codes": 0.354,
    "bits_used": 51.2, "psnr_sample": 17.9, "ssim_sample": 0.79, "loss": 64.57, "rmse/0": 0.12,
    "estimator": "daps", "dataset": "mnist", "bits": 6.0, "positions": 2, "vocabulary": 8, "shape": [12, 9, 1],
}  # fmt: skip
OF_A_DISTRIBUTION = ("elbo", "elbo_beta_end", "kl", "entropy", "bits_per_dimension", "psnr_sample", "ssim_sample")
USAGE = np.array([[9, 0, 1, 0, 0, 0, 0, 0], [2, 2, 2, 1, 1, 1, 1, 0]])
CONFIG = {"command": {"estimator": "daps", "settings": {"k": 8, "ess_target": 0.33}}}


def examples(channels: int = 1, n: int = 6) -> ImageExamples:
    rng = np.random.default_rng(0)
    x = rng.integers(256, size=(n, 12, 9, channels)) / 255
    return ImageExamples(x, x + 0.1 * rng.normal(size=x.shape), 0.5 * x)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run of DAPS: two steps of warm start, four more."""
    rows: list[dict[str, object]] = []
    for step in (1, 2, 3, 4, 5, 6):
        daps = {"elbo_beta": -9.0, "ess": 2.6, "eta": 9.0 / step} if step > 2 else {}
        rows.append({"step": step, "split": "train", "reconstruction": 9.0 - step, **daps})
        valid = {"reconstruction": 9.5 - step, "perplexity": 3.0, "psnr": 10.0 + step}
        rows.append({"step": step, "split": "valid", **valid, "elbo": -20.0 + step, "kl": 3.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def text_of(out: Path, facts: dict[str, object], shown: ImageExamples | None = None, usage: np.ndarray = USAGE) -> str:
    return write_image_page(out, facts, shown or examples(), usage).read_text(encoding="utf-8")


def pictures(text: str) -> list[np.ndarray]:
    found = re.findall(r'<img[^>]* src="data:image/png;base64,([^"]*)"', text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def test_needs_nothing_but_itself(out: Path) -> None:
    text = text_of(out, FACTS)
    page = Page(text)
    assert not re.search(r"(https?:)?//\w+\.", text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "embed", "base"})
    assert all(target.startswith(("data:", "#")) for target in page.attributes("src", "href"))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert not list(out.glob("*.tmp"))


def test_every_number_is_that_of_the_facts_and_has_its_definition(out: Path) -> None:
    page = Page(text_of(out, FACTS))
    for key, value, _ in page.numbers:
        assert value == FACTS[key], key
    shown = {key: text for key, _, text in page.numbers}
    assert set(FACTS) - set(shown) == {"loss", "rmse/0", "estimator", "dataset", "shape"}
    assert (shown["psnr"], shown["elbo"], shown["unused_codes"]) == ("18.23", "−100.5", "35.4%")
    for words in ("10·log₁₀(1/mse)", "Wang et al. 2004", "own originals", "upper bound", "β = 1", "root of the mean squared"):
        assert words in page.text
    assert "mnist: pictures in 6 bits" in page.text
    assert "0.0556 for each of its 108 numbers" in page.text
    assert page.notices == []


def test_codes_and_curves(out: Path) -> None:
    page = Page(text_of(out, FACTS))
    assert "codes of 10 held-out pictures" in page.text
    assert "7 of the 16 codes of all positions, 43.8%" in page.text
    assert "necessity" not in page.text
    labels = page.attributes("aria-label")
    assert labels[:2] == ["Rank and frequency", "Codes of each position"]
    curves = ["Reconstruction", "Evidence lower bound (ELBO)", "PSNR", "Codes in use (perplexity)", "Information (KL)"]
    assert labels[2:] == [*curves, "Effective sample size (ESS)", "Temperature η"]
    assert "warm start" in page.text and "target" in page.text
    assert '"ess_target": 0.33' in page.text
    assert "necessity" in Page(text_of(out, FACTS, usage=np.eye(2, 8, dtype=int))).text


def test_a_quantiser_has_neither_samples_nor_elbo(out: Path) -> None:
    rows = [{"step": 1, "split": "valid", "reconstruction": 3.0}]
    (out / "metrics.jsonl").write_text(json.dumps(rows[0]) + "\n")
    facts = {key: value for key, value in FACTS.items() if key not in OF_A_DISTRIBUTION} | {"estimator": "fsq"}
    text = text_of(out, facts, examples()._replace(samples=None))
    page = Page(text)
    assert page.notices == ["No ELBO, KL or bits per dimension: this estimator learns codes, but no distribution over them."]
    assert "sample" not in re.findall(r'<div class="rows">(.*?)</div>', text)[0]
    assert page.attributes("aria-label")[2:] == ["Reconstruction"]


def test_a_continuous_code_and_a_run_without_its_files(out: Path) -> None:
    for name in ("metrics.jsonl", "config.json"):
        (out / name).unlink()
    facts = {**FACTS, "bits": math.inf, "perplexity": None, "unused_codes": None, "estimator": "vae"}
    page = Page(text_of(out, facts, usage=np.zeros((2, 8), dtype=int)))
    assert "pictures in continuous latents" in page.text and "inf" not in [text for _, _, text in page.numbers]
    assert "rebuilt from the means of its latents" in page.text and "Nothing limits it" in page.text
    for words in ("most likely code", "capacity", "With only"):
        assert words not in page.text
    announced = " ".join(page.notices)
    for notice in ("no codes to count", "there are no metrics at", "There is no"):
        assert notice in announced


def test_the_lead_says_what_the_data_are(out: Path) -> None:
    known = {**FACTS, "where": "mnist (a <folder>: train)", "held_out": 10_000, "threshold": 127}
    lead = (
        "on mnist (a <folder>: train) , binarised: values of 0 to 255 are 1 above 127 , else 0; everything below is of the 10,000"
    )
    assert lead in Page(text_of(out, known)).text
    plain = Page(text_of(out, {**known, "threshold": None})).text
    assert "binarised" not in plain and "train) ; everything below is of the 10,000" in plain
    older = Page(text_of(out, FACTS)).text
    assert "daps ; everything below is of held-out pictures" in older


def test_few_pictures_limit_what_is_counted_of_the_codes(out: Path) -> None:
    few = Page(text_of(out, {**FACTS, "held_out": 4})).text
    assert "With only 4 held-out pictures, at most log₂(4) = 2 bits at a position, 4 in all." in few
    assert "at most 4 of 8 codes used at a position" in few and few.count("With only") == 3
    assert "With only" not in Page(text_of(out, {**FACTS, "held_out": 8})).text


def test_names_are_escaped(out: Path) -> None:
    evil = "<script>alert('x')</script>"
    (out / "config.json").write_text(json.dumps({"command": {"dataset": evil}}))
    page = Page(text_of(out, {**FACTS, "dataset": evil, "estimator": evil}))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(evil) >= 3


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"cannot write .*report.html"):
        write_image_page(tmp_path / "absent", FACTS, examples(), USAGE)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_shown_pixel_by_pixel(out: Path, channels: int) -> None:
    shown = examples(channels)
    sheets = pictures(text_of(out, {**FACTS, "shape": [12, 9, channels]}, shown))
    factor = enlargement((12, 9))
    assert factor == 10 and [s.shape for s in sheets] == [
        (4 * 120 + 3 * GAP, 4 * 90 + 3 * GAP, 4),
        (4 * 120 + 3 * GAP, 2 * 90 + GAP, 4),
    ]
    for row, expected in enumerate((shown.originals, shown.reconstructions.clip(0, 1), shown.samples)):
        assert expected is not None
        for i in range(6):
            top, left = row * (120 + GAP), (i % 4) * (90 + GAP)
            block = sheets[i // 4][top : top + 120, left : left + 90]
            assert (block[..., 3] == 255).all()
            seen = block.reshape(12, 10, 9, 10, 4)
            assert (seen == seen[:, :1, :, :1]).all()  # enlarged without blur
            assert np.abs(seen[:, 0, :, 0, :3] / 255 - expected[i]).max() <= 0.5 / 255 + 1e-9
    assert (sheets[0][120 : 120 + GAP, :, 3] == 0).all() and (sheets[0][:, 90 : 90 + GAP, 3] == 0).all()


def test_errors_have_one_stated_scale(out: Path) -> None:
    flat = np.full((5, 10, 10, 3), 0.5)
    rebuilt = flat.copy()
    rebuilt[0, 0, :4] += 0.3  # 4 of 500 pixels, less than a hundredth
    rebuilt[1] -= 0.12
    shown = ImageExamples(flat, rebuilt, None)
    scale = error_scale(shown)
    assert scale.top == 0.15 and scale.beyond == pytest.approx(4 / 500)
    colours = sheet(shown, scale.top)[-120:, :, :3].astype(int)
    step = 120 + GAP
    none, some, most = colours[-1, 2 * step], colours[-1, step], colours[0, 0]
    assert none.sum() < 10 and none.sum() < some.sum() < most.sum()
    assert "0.15 and more (0.80% of the pixels lie beyond)" in Page(text_of(out, FACTS, shown)).text
    assert error_scale(ImageExamples(flat, flat, None)) == (0.05, 0.0)
    assert error_scale(ImageExamples(flat * 0, flat + 9, None)) == (1.0, 0.0)


@pytest.mark.parametrize(("size", "factor"), [((28, 28), 4), ((32, 32), 4), ((96, 96), 1), ((256, 256), 1), ((8, 20), 6)])
def test_small_pictures_are_enlarged(size: tuple[int, int], factor: int) -> None:
    assert enlargement(size) == factor


@pytest.mark.parametrize("samples", [True, False])
def test_examples_for_a_readme(tmp_path: Path, samples: bool) -> None:
    shown = examples(3, 20) if samples else examples(3, 20)._replace(samples=None)
    pixels = np.asarray(Image.open(save_examples_png(shown, tmp_path / "examples.png")).convert("RGB"))
    n = 1024 // (90 + GAP)
    rows = sheet(image_plots.first(shown, n), error_scale(image_plots.first(shown, n)).top)
    h, w = rows.shape[:2]
    assert pixels.shape == (h + 2 * GAP, 140 + w + GAP, 3)
    inside = pixels[GAP : GAP + h, 140 : 140 + w]
    assert (inside[rows[..., 3] == 255] == rows[rows[..., 3] == 255][:, :3]).all()
    assert (pixels[:, :140] < 128).any()  # the names


@pytest.mark.parametrize("positions", [1, 64, 1024])
def test_codes_of_few_and_many_positions_can_be_drawn(out: Path, positions: int) -> None:
    usage = np.random.default_rng(0).multinomial(100, np.full(32, 1 / 32), size=positions)
    text = text_of(out, {**FACTS, "positions": positions, "vocabulary": 32, "bits": 5.0 * positions}, usage=usage)
    assert len(text) < 1_000_000
