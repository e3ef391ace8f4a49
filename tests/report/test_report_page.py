"""The page as a browser and a reader find it."""

import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote

import pytest
from small_run import ACTIONS, HORIZON, OBSERVATIONS, SmallRun

from daps_robot.errors import RunDirectoryError
from daps_robot.models.imitation import ImitationConfig
from daps_robot.models.regression import RegressionPolicy, RegressionSettings
from daps_robot.report import sections
from daps_robot.report.page import main, save_figures, write_page

HEADLINE = [
    "success_rate",
    "successes",
    "episodes",
    "ci95.0",
    "ci95.1",
    "tokenizer_ceiling",
    "tokenizer_ceiling_ci95.0",
    "other_codes_ceiling",
    "replay_success.tokenized",
    "replay_success.plain",
    "bits_per_chunk",
    "code_perplexity",
    "policy_latency_ms.p50",
    "policy_latency_ms.p99",
    "rollouts.overhead",
    "rollouts.clipped_action_values",
    "reconstruction_rmse.0",
    "reconstruction_rmse_sample.1",
    "other_codes_rmse.2",
    "seconds.tokenizer",
]


class Page(HTMLParser):
    """What is on a page: its elements, its words, the numbers that it takes from the report, its notices."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.numbers: list[tuple[str, float, str]] = []
        self.notices: list[str] = []
        self.words: list[str] = []
        self._into: list[Any] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append((tag, given))
        self._into = [tag, given]
        if given.get("class") == "missing":
            self.notices.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        tag, given = self._into or ("", {})
        if tag == "style":
            return
        self.words.append(data)
        if tag == "data" and data.strip():
            self.numbers.append((given["data-key"], float(given["value"]), data))
        if given.get("class") == "missing":
            self.notices[-1] += data
        self._into = []

    def attributes(self, *names: str) -> list[str]:
        return [given[name] for _, given in self.tags for name in names if name in given]


def page_of(small: SmallRun) -> Page:
    small.save()
    return Page(write_page(small.out, small.policy, small.demos).read_text(encoding="utf-8"))


def looked_up(report: Any, key: str) -> Any:
    for part in key.split("."):
        report = report[int(part)] if isinstance(report, list) else report[part]
    return report


def test_needs_nothing_but_itself(small: SmallRun) -> None:
    path = write_page(small.out, small.policy, small.demos)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert path == small.out / "report.html"
    assert not re.search(r"(https?:)?//\w+\.", text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "embed", "base"})
    for target in page.attributes("src", "href", "xlink:href", "poster", "data", "srcset"):
        assert target.startswith(("data:", "#"))
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert not list(small.out.glob("*.tmp"))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    inside = [target[1:] for target in page.attributes("href") if target.startswith("#")] + re.findall(r"url\(#([^)]*)\)", text)
    assert inside and set(inside) <= set(ids)


def test_numbers_are_those_of_the_report(small: SmallRun) -> None:
    page = page_of(small)
    for key, value, _ in page.numbers:
        assert value == looked_up(small.report, key), key
    shown = {key: text for key, _, text in page.numbers}
    assert set(HEADLINE) <= set(shown)
    assert shown["success_rate"] == "87.5%"
    assert shown["ci95.0"] == "52.9%"
    assert shown["tokenizer_ceiling"] == "98%"
    assert shown["policy_latency_ms.p99"] == "7.9"
    assert shown["other_codes_rmse.2"] == "1.130"
    assert "7 of 8 unseen starts solved" in page.text
    assert "92 points of success" in page.text  # 98% with the right codes, 6% with others


def test_scores_come_first_where_the_environment_has_them(small: SmallRun) -> None:
    assert "ean score" not in page_of(small).text
    for record in small.report["rollouts"]["records"]:
        record["score"] = 1.0 if record["success"] else 0.25
    small.report |= {
        "mean_score": 0.90625,
        "score_ci95": [0.6543, 0.98765],
        "replay_score": {"tokenized": 0.8123, "plain": 0.9465},
    }
    page = page_of(small)
    shown = {key: text for key, _, text in page.numbers}
    assert "mean score 0.906 on 8 unseen starts" in page.text and "Success rate 87.5%" in page.text
    assert (shown["score_ci95.0"], shown["score_ci95.1"]) == ("0.654", "0.988")
    assert "0.812 against 0.947" in page.text
    for key, value, _ in page.numbers:
        assert value == looked_up(small.report, key), key
    assert page.notices == []


def test_a_complete_run_misses_nothing(small: SmallRun) -> None:
    page = page_of(small)
    assert page.notices == []
    films = [given["src"] for tag, given in page.tags if tag == "video"]
    assert len(films) == 2 and all(film.startswith("data:video/mp4;base64,") for film in films)
    assert page.text.count("Good:") >= 15
    assert "episode 3 start seed 1000000003, 40 steps" in page.text


def test_large_videos_are_linked_relatively(small: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "MAX_VIDEO_BYTES", 20)
    films = [given["src"] for tag, given in page_of(small).tags if tag == "video"]
    assert len(films) == 2
    assert all((small.out / unquote(film)).is_file() for film in films)


ROLLOUT_KEYS = [
    "success_rate",
    "successes",
    "episodes",
    "ci95",
    "policy_latency_ms",
    "rollouts",
    "tokenizer_ceiling",
    "tokenizer_ceiling_ci95",
    "other_codes_ceiling",
    "ceiling_in_short_episodes",
    "replay_success",
]


def without_rollouts(small: SmallRun) -> None:
    for key in ROLLOUT_KEYS:
        del small.report[key]


def without_ceilings(small: SmallRun) -> None:
    for key in ROLLOUT_KEYS[6:]:
        del small.report[key]


def without_everything(small: SmallRun) -> None:
    small.report.clear()
    for name in ("tokenizer", "policy", "videos"):
        shutil.rmtree(small.out / name)


def of_a_quantiser(small: SmallRun) -> None:
    """Its metrics know no samples and no β; the last line was cut short by a crash. Nothing was played either."""
    without_rollouts(small)
    (small.out / "tokenizer" / "metrics.jsonl").write_text(
        '{"step": 5, "split": "train", "reconstruction": 3.0}\n{"step": 5, "split": "valid", "reconstruction": 3.1}\n{"st'
    )


def without_validation_and_films(small: SmallRun) -> None:
    small.demos = replace(small.demos, valid=())
    small.report["rollouts"].update(videos=[], video_note="no videos: no EGL")


def without_this_and_that(small: SmallRun) -> None:
    without_ceilings(small)
    (small.out / "videos" / "episode_000_success.mp4").unlink()
    small.report["rollouts"]["videos"].append("ü" * 5000)  # longer than a file name may be
    (small.out / "policy" / "metrics.jsonl").unlink()
    small.report["dataset"]["sha256"] = "0"
    del small.report["other_codes_rmse"]


@pytest.mark.parametrize(
    ("break_it", "notices"),
    [
        (without_everything, ["the tokenizer's metrics are", "the policy's metrics are", "no times", "no versions", "no config"]),
        (
            of_a_quantiser,
            [
                "there is no success rate on this page",
                "No videos",
                "No episodes were played",
                "Effective sample size (ESS), Distinct samples, Temperature η",
            ],
        ),
        (
            without_validation_and_films,
            ["no validation demonstrations to show", "no validation demonstrations to encode", "No videos: no EGL."],
        ),
        (
            without_this_and_that,
            [
                "without an expert's episodes",
                "episode_000_success.mp4",
                "üüü",
                "the policy's metrics are not at",
                "has changed since the report",
                "Not in the report: codes of another chunk",
            ],
        ),
    ],
)
def test_what_is_missing_is_announced(small: SmallRun, break_it: Any, notices: list[str]) -> None:
    break_it(small)
    page = page_of(small)
    announced = " ".join(page.notices)
    for notice in notices:
        assert notice in announced


def test_without_rollouts_the_held_out_error_leads(small: SmallRun) -> None:
    without_rollouts(small)
    page = page_of(small)
    assert "plans miss 31.4% of the actions' variance" in page.text
    assert "without a policy, 2.7% is lost" in page.text
    assert {key for key, _, _ in page.numbers} >= {"policy_error", "reconstruction_error", "policy_rmse.2"}


@pytest.mark.parametrize("played", [True, False])
def test_a_policy_without_a_tokenizer_has_a_page_without_codes(small: SmallRun, played: bool) -> None:
    settings = RegressionSettings(horizon=HORIZON, width=16, layers=1, style=0)
    policy = RegressionPolicy(ImitationConfig(("state",), OBSERVATIONS, ACTIONS, settings)).eval()
    shutil.rmtree(small.out / "policy")
    shutil.rmtree(small.out / "tokenizer")
    policy.save_pretrained(small.out / "model")
    (small.out / "metrics.jsonl").write_text(
        '{"step": 5, "split": "train", "loss": 3.0}\n{"step": 5, "split": "valid", "chunk_error": 0.4}\n'
    )
    if not played:
        without_rollouts(small)
    of_codes = ("bits_per_chunk", "code_perplexity", "reconstruction_rmse", "reconstruction_error", "other_codes_rmse")
    for key in (*of_codes, *ROLLOUT_KEYS[6:]):
        small.report.pop(key, None)
    small.report |= {"policy_kind": "regression", "chunk_error": 0.4321, "policy_rmse": [0.11, 0.12, 0.13]}
    small.report["configuration"] = {"evaluate": {"policy": "gone"}, "policy": {}, "tokenizer": None}
    small.report["seconds"] = {"policy": 5.0}
    small.policy = policy
    page = page_of(small)
    shown = {key: text for key, _, text in page.numbers}
    assert shown["chunk_error"] == "0.432" and shown["policy_rmse.2"] == "0.130"
    assert {"Loss", "Error of the planned chunk"} <= set(page.words)
    shown_text = page.text.split("full configuration")[0].lower()
    assert not [word for word in ("tokenizer", "codes", "perplexity", "replay") if word in shown_text]
    assert not [notice for notice in page.notices if "not at" in notice]
    saved = save_figures(small.out, policy, small.demos, small.out / "figures")
    assert {"chunks", "errors"} <= {path.stem for path in saved}
    assert "code_usage" not in {path.stem for path in saved}
    assert main([str(small.out)]) == 0  # finds the policy where the report is


def test_names_are_escaped(small: SmallRun) -> None:
    evil = "<script>alert('x')</script><img src=x>\"&amp;"
    small.demos = replace(
        small.demos, demos=tuple(replace(demo, name=demo.name + evil) for demo in small.demos.demos), valid=("demo_4" + evil,)
    )
    small.report["rollouts"] |= {
        "env_id": f"a/{evil}-v0",
        "video_note": evil,
        "videos": [f"{evil}.mp4"],
    }
    small.report["dataset"]["path"] = small.report["versions"][evil] = small.report["configuration"]["evaluate"]["x"] = evil
    small.report["seconds"][evil] = 1.0
    page = page_of(small)
    assert {"script", "img"}.isdisjoint(tag for tag, _ in page.tags)
    assert page.text.count(evil) >= 5
    assert any(evil in label for label in page.attributes("aria-label"))


def test_a_moved_run_finds_its_metrics(small: SmallRun) -> None:
    small.report["configuration"]["policy"]["tokenizer"] = "no/longer/there"
    small.report["configuration"]["evaluate"]["policy"] = None
    assert page_of(small).notices == []


def test_no_report(small: SmallRun) -> None:
    (small.out / "report.json").unlink()
    with pytest.raises(RunDirectoryError, match=r"report\.json does not exist.*evaluate\.py"):
        write_page(small.out, small.policy, small.demos)


def test_command_line_writes_the_same_page_again(small: SmallRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(small.out), "--figures", str(small.out / "figures")]) == 0
    first = (small.out / "report.html").read_bytes()
    assert (small.out / "figures" / "chunks.png").is_file()
    assert main([str(small.out)]) == 0
    assert (small.out / "report.html").read_bytes() == first
    capsys.readouterr()
    assert main([str(small.out / "nothing")]) == 2
    assert "report.json does not exist" in capsys.readouterr().err


def test_figures_for_a_readme(small: SmallRun) -> None:
    saved = save_figures(small.out, small.policy, small.demos, small.out / "figures")
    names = {path.stem for path in saved}
    assert names == {"chunks", "code_usage", "reconstruction", "perplexity", "policy_nll", "errors", "episode_lengths"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in saved)
