"""Leaderboards and sweeps as a reader finds them: who is first, what is bold, what is drawn."""

import re
from pathlib import Path

import numpy as np
import pytest

from daps_robot.report.leaderboard import write_leaderboard
from daps_robot.report.standings import Standing, clear_first, outcomes, standings
from daps_robot.report.sweep import lines_of, write_sweep
from daps_robot.rollout.across_seeds import mean_over_seeds, paired_difference

RATES = {"bins": 0.3, "daps": 0.95, "fsq": 0.9, "diffusion": 0.6}
EPISODES = 60


def played(rate, seed, graded=False, episodes=EPISODES):
    """What a rollout piece leaves; start states are as hard for every policy."""
    hard = np.random.default_rng(0).random(episodes) + 0.02 * np.random.default_rng(seed).normal(size=episodes)
    success = hard < rate
    return {"success": success.tolist(), "score": np.where(success | ~np.bool_(graded), success, 0.5).tolist()}


def made_run(policy, seed, graded=False, last=2, ceiling=True):
    of_codes = policy not in ("diffusion",)
    rate = RATES[policy]
    return {
        "policy": policy,
        "seed": seed,
        "bits": 64.0 if of_codes else None,
        "parameters": 1000,
        "horizon": 16,
        "execute": 4,
        "method": {"diffusion": None, "bins": "consensus"}.get(policy, "expected"),
        "history": 2,
        "obs_rotation": "as-recorded",
        "seconds": {"policy": 60.0, **({"tokenizer": 120.0} if of_codes else {})},
        "best": played(rate, seed, graded),
        "last": {str(step): played(rate - 0.1 * step, 10 * seed + step, graded) for step in range(last)},
        "ceiling": played(0.99, seed, episodes=20) if of_codes and ceiling else None,
    }


def made_runs(**settings):
    return [made_run(policy, seed, **settings) for seed in range(3) for policy in RATES]


def by_name(places):
    return {place.policy: place for place in places}


def test_means_differences_and_ceilings_are_those_of_the_statistics():
    runs = made_runs()
    places = standings(runs, "daps", {"daps": {"p50": 3.0, "p99": 4.0}})
    assert [place.policy for place in places] == ["daps", "fsq", "diffusion", "bins"]
    daps, fsq = (outcomes([r for r in runs if r["policy"] == name], "last", "success") for name in ("daps", "fsq"))
    assert daps.shape == (3, EPISODES) and set(np.unique(daps)) <= {0.0, 0.5, 1.0}
    first, second = places[0], by_name(places)["fsq"]
    assert first.figures["success.last"].interval == mean_over_seeds(daps)
    assert first.figures["success.last"].by_seed == pytest.approx(tuple(daps.mean(1)))
    assert first.figures["success.last"].difference is None
    assert second.figures["success.last"].difference == paired_difference(fsq, daps)
    assert first.seconds == 180 and by_name(places)["diffusion"].seconds == 60
    assert first.ceiling is not None and first.ceiling.mean > 0.9 and by_name(places)["diffusion"].ceiling is None
    assert first.latency == {"p50": 3.0, "p99": 4.0} and second.latency == {}


def test_scores_decide_where_there_are_such(tmp_path):
    runs = made_runs(graded=True)
    for run in runs:  # one that never succeeds, and always nearly does
        if run["policy"] == "bins":
            for played in (run["best"], *run["last"].values()):
                played |= {"success": [False] * EPISODES, "score": [0.99] * EPISODES}
    places, text = page(tmp_path, runs, {name: {"p50": 2.0, "p99": 9.0} for name in RATES})
    assert places[0].policy == "bins" and "Score against the time of a decision" in text


def test_only_a_clear_difference_to_every_other_makes_a_first():
    rng = np.random.default_rng(1)
    good, equal, bad = (rng.random((3, 100)) < rate for rate in (0.9, 0.9, 0.4))
    values = {"good": good.astype(float), "bad": bad.astype(float)}
    assert clear_first(values) == "good"
    assert clear_first({**values, "equal": equal.astype(float)}) is None
    assert clear_first({"good": values["good"]}) is None


def test_scores_are_shown_where_a_task_has_them():
    assert not any("score" in name for name in standings(made_runs(), "daps", {})[0].figures)
    graded = standings(made_runs(graded=True), "daps", {})
    assert set(graded[0].figures) == {"success.best", "success.last", "score.best", "score.last"}
    assert graded[-1].figures["score.best"].interval.mean > graded[-1].figures["success.best"].interval.mean


def page(tmp_path: Path, runs, latency) -> tuple[list[Standing], str]:
    places = standings(runs, "daps", latency)
    return places, write_leaderboard(tmp_path, places, runs, "can", "daps_robot/Can-v0").read_text()


def test_the_leaderboards_page(tmp_path):
    runs = made_runs(graded=True)
    places, text = page(tmp_path, runs, {name: {"p50": 2.0 + i, "p99": 9.0} for i, name in enumerate(RATES)})
    assert "http" not in text.replace("http://www.w3.org", "") and text.count("<svg") == 5
    tables = re.findall(r"<table>.*?</table>", text, re.DOTALL)
    assert len(tables) == 3  # success, score, cost
    for table in tables:
        assert re.findall(r"<tr><th>([^<]+)</th>", table) == [place.policy for place in places]
    best = by_name(places)["bins"].figures["success.best"]
    assert (
        f"{100 * best.interval.mean:.1f}% <small>({100 * best.interval.low:.1f} to {100 * best.interval.high:.1f})" in tables[0]
    )
    for place in places:  # bold where the interval is clear, and nowhere else
        row = re.search(rf"<tr><th>{place.policy}</th>(.*?)</tr>", tables[0])[1]
        clear = [
            f.first or (f.difference is not None and f.difference.clear_of_zero) for n, f in place.figures.items() if "succ" in n
        ]
        assert row.count("<b>") == sum(clear)
    assert "3 times" in text and "mean over the models of the last 2 of 10" in text
    assert "tokenizer ceiling" in text and "2.00" in tables[2] and "120" not in tables[2]


def test_a_page_of_one_policy_and_one_seed_says_what_it_does_not_know(tmp_path):
    runs = [made_run("daps", 0, last=0, ceiling=False)]
    _, text = page(tmp_path, runs, {})
    assert "One training says nothing of the next" in text and text.count("<svg") == 1
    assert "last models" not in text and "difference to" not in text


def test_a_missing_ceiling_is_a_dash(tmp_path):
    runs = [{**run, "ceiling": {"missing": "no expert"}} for run in made_runs()]
    places, text = page(tmp_path, runs, {})
    assert all(place.ceiling is None for place in places) and "tokenizer ceiling</text>" not in text


def swept(vary, labels=("daps", "fsq"), graded=False):
    runs = []
    for seed in range(3):
        for label in labels:
            for value in (4, 16, 64):
                run = made_run(label, seed)
                run |= {"line": label, "value": value, "bits": 8 * np.log2(value), "last": {}}
                runs.append({**run, "best": played(RATES[label] * value / 64, seed, graded)})
    return lines_of(runs, vary)


def test_lines_of_a_sweep_and_their_page(tmp_path):
    lines = swept("vocabulary")
    assert [line.label for line in lines] == ["daps", "fsq"]
    assert [point.x for point in lines[0].points] == [16, 32, 48] and [point.value for point in lines[0].points] == [4, 16, 64]
    assert lines[0].points[0].differences == {} and lines[1].points[2].differences["success"].mean < 0
    assert lines[0].points[2].means["success"].mean > lines[0].points[0].means["success"].mean
    text = write_sweep(tmp_path, lines, made_runs(), "vocabulary", "can", "daps_robot/Can-v0").read_text()
    assert "Codes are chosen by consensus (bins) and expected (daps, fsq). Every policy sees 2 observations." in text
    turned = [{**run, "obs_rotation": "6d"} for run in made_runs()]
    text = write_sweep(tmp_path, lines, turned, "vocabulary", "can", "daps_robot/Can-v0").read_text()
    assert "Every policy sees 2 observations and quaternions as 6-D rotations." in text
    assert "can: success against bits per chunk" in text and text.count("<svg") == 1
    assert re.findall(r"<tr><th>(\d+)</th><td>(\d+)</td>", text) == [("4", "16"), ("16", "32"), ("64", "48")]
    assert text.count("<th>ceiling</th>") == 2 and "difference to daps" in text
    assert [point.x for point in swept("demonstrations")[0].points] == [4, 16, 64]
    scored = swept("vocabulary", graded=True)
    assert scored[1].points[2].differences.keys() == {"success", "score"}
    text = write_sweep(tmp_path, scored, made_runs(), "vocabulary", "pusht", "daps_robot/PushT-v0").read_text()
    assert "pusht: score against bits per chunk" in text and text.count("difference to daps") == 2
