"""Leaderboards and sweeps from demonstrations to page, with tiny trainings on the point environment, all in this process."""

import csv
import importlib
import json
import shutil
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "rollout"))
from point_env import PointEnv, PointExpert

from daps_robot.commands.leaderboard import Leaderboard
from daps_robot.commands.leaderboard import run as rank
from daps_robot.commands.policy_run import Learning
from daps_robot.commands.sweep import Sweep, plans
from daps_robot.commands.sweep import run as sweep
from daps_robot.commands.train_action_vae import ChunkTokenizerConfig
from daps_robot.config import save_json
from daps_robot.data.demo_writer import DemoWriter, Episode
from daps_robot.data.demos import EVAL_SEED_START
from daps_robot.errors import ConfigError, DapsRobotError, DataError
from daps_robot.models.policies import load_policy
from daps_robot.models.policy import DecodingConfig
from daps_robot.rollout.evaluate import evaluate

if "test/Point-v0" not in gym.registry:
    gym.register("test/Point-v0", entry_point="point_env:PointEnv")

SIZE = ChunkTokenizerConfig(horizon=8, positions=2, vocabulary=16, width=16, layers=1)
COMMON = {"dataset": "point.hdf5", "episodes": 6, "ceiling_episodes": 2, "max_steps": 24, "budget": 0.004, "workers": 1}


def write_point_demos(path, count=10, steps=24):
    """The scripted expert's, of a constant length."""
    writer = DemoWriter(path, {})
    for i in range(count):
        env, expert = PointEnv(), PointExpert(noise=0.1, seed=i)
        seen, actions = [{key: value.copy() for key, value in env.reset(seed=i)[0].items()}], []
        for _ in range(steps):
            actions.append(expert.act(seen[-1]))
            seen.append({key: value.copy() for key, value in env.step(actions[-1])[0].items()})
        rows = {key: np.stack([each[key] for each in seen]).astype(np.float32) for key in ("goal", "position")}
        zeros = np.zeros(steps)
        writer.add(i, Episode(np.stack(actions), rows, np.zeros((steps, 4)), zeros, zeros.astype(np.int64), i, "<mujoco/>"))
    writer.finish(count, 0.2, env_args={"gymnasium_id": "test/Point-v0"})


class Started:
    """In place of `start_process`: the same, in this process; and what was run."""

    def __init__(self):
        self.pieces = []

    def __call__(self, function, folder, job, *arguments):
        folder.mkdir(parents=True, exist_ok=True)
        save_json(job, folder / "job.json")
        self.pieces.append("/".join(folder.parts[-2:]))
        module, _, name = function.partition(":")
        getattr(importlib.import_module(module), name)(str(folder), *arguments)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    write_point_demos(place / "point.hdf5")
    return place


@pytest.fixture
def started(place, monkeypatch):
    """What runs from here on, in the folder of the demonstrations."""
    found = Started()
    monkeypatch.chdir(place)
    for module in ("pieces", "leaderboard"):
        monkeypatch.setattr(f"daps_robot.commands.{module}.start_process", found)
    return found


BOARD = Leaderboard(**COMMON, policies=("fsq", "regression"), seeds=2, last=2, tokenizer=SIZE)


@pytest.fixture(scope="module")
def ranked(place):
    """A leaderboard from the first piece to the page."""
    found = Started()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("daps_robot.commands.policy_pieces.LATENCY_CALLS", 3)
        for module in ("pieces", "leaderboard"):
            patch.setattr(f"daps_robot.commands.{module}.start_process", found)
        return rank(BOARD), found.pieces, place / "runs" / "leaderboard" / "point"


def test_every_piece_is_run_once(ranked):
    _, pieces, out = ranked
    of_fsq = [f"fsq-0/{piece}" for piece in ("tokenizer", "policy", "best-n6", "step-5-n6", "step-6-n6", "ceiling-n2")]
    of_regression = [f"regression-0/{piece}" for piece in ("policy", "best-n6", "step-5-n6", "step-6-n6")]
    assert pieces[: len(of_fsq) + len(of_regression) + 1] == [*of_fsq, *of_regression, "point/latency"]
    assert len(pieces) == len(set(pieces)) == 2 * 10 + 1
    assert (out / "index.html").is_file()


def test_the_results_are_those_of_the_pieces(ranked):
    places, _, out = ranked
    found = json.loads((out / "results.json").read_text())
    assert found["env"] == "test/Point-v0" and found["settings"]["seeds"] == 2
    assert [place["policy"] for place in found["standings"]] == [place.policy for place in places]
    run = next(each for each in found["runs"] if (each["policy"], each["seed"]) == ("fsq", 1))
    assert run["best"] == json.loads((out / "fsq-1" / "best-n6" / "result.json").read_text())
    assert run["bits"] == 8 and run["execute"] == 4 and set(run["last"]) == {"5", "6"} and len(run["ceiling"]["success"]) == 2
    fsq = next(place for place in places if place.policy == "fsq")
    assert fsq.figures["success.best"].by_seed[1] == pytest.approx(np.mean(run["best"]["success"]))
    assert fsq.latency["p99"] >= fsq.latency["p50"] > 0 and fsq.seconds > 0
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["policy"], row["seed"]) for row in rows] == [
        ("fsq", "0"),
        ("regression", "0"),
        ("fsq", "1"),
        ("regression", "1"),
    ]
    assert float(rows[2]["success.best"]) == pytest.approx(np.mean(run["best"]["success"]))
    assert rows[2]["last_steps"] == "5 6" and rows[1]["ceiling"] == rows[1]["seconds.tokenizer"] == ""


def test_what_is_finished_is_not_run_again(ranked, started):
    assert rank(BOARD) == ranked[0] and started.pieces == []


def test_a_lost_piece_is_run_again_to_the_same_for_any_number_of_workers(ranked, started):
    best = ranked[2] / "fsq-0" / "best-n6" / "result.json"
    before = json.loads(best.read_text())
    best.unlink()
    rank(Leaderboard(**{**vars(BOARD), "workers": 2}))
    assert started.pieces == ["fsq-0/best-n6"]
    assert json.loads(best.read_text()) == before


def test_a_leaderboard_grows_but_never_mixes(ranked, started):
    rank(Leaderboard(**{**vars(BOARD), "policies": ("fsq",), "seeds": 1}))
    rank(Leaderboard(**{**vars(BOARD), "policies": ("fsq",), "seeds": 1, "last": 1}))
    assert started.pieces == []
    rank(Leaderboard(**{**vars(BOARD), "policies": ("fsq",), "seeds": 1, "last": 3, "episodes": 5}))
    assert started.pieces == [f"fsq-0/{piece}-n5" for piece in ("best", "step-4", "step-5", "step-6")]
    with pytest.raises(ConfigError, match=r"budget.*choose another --name"):
        rank(Leaderboard(**{**vars(BOARD), "budget": 0.02}))


def test_the_same_data_set_may_lie_elsewhere(ranked, started, tmp_path):
    shutil.copy("point.hdf5", tmp_path / "moved.hdf5")
    rank(Leaderboard(**{**vars(BOARD), "dataset": str(tmp_path / "moved.hdf5"), "name": "point"}))
    assert started.pieces == []


def test_what_another_tokenizer_made_is_not_mixed_in(ranked, started):
    out = ranked[2]
    config = out / "fsq-0" / "tokenizer" / "model" / "config.json"
    before = config.read_text()
    try:
        config.write_text(before + " ")
        with pytest.raises(ConfigError, match="made with another tokenizer than is there now"):
            rank(BOARD)
    finally:
        config.write_text(before)
    policy = out / "regression-0" / "policy" / "model" / "config.json"
    before = policy.read_text()
    try:
        policy.write_text(before + " ")
        with pytest.raises(ConfigError, match="made with another model than is there now"):
            rank(BOARD)
    finally:
        policy.write_text(before)
    assert started.pieces == []


def test_all_are_timed_again_where_one_has_changed(ranked, started):
    path = ranked[2] / "latency.json"
    known = json.loads(path.read_text())
    known["fingerprints"]["fsq"] = "another"
    path.write_text(json.dumps(known))
    rank(BOARD)
    assert started.pieces == ["point/latency"]
    assert json.loads(path.read_text())["milliseconds"].keys() == {"fsq", "regression"}


def test_a_decoding_and_executed_steps_need_no_training(ranked, started, monkeypatch):
    monkeypatch.setattr("daps_robot.commands.policy_pieces.LATENCY_CALLS", 3)
    config = Leaderboard(**{**vars(BOARD), "seeds": 1, "last": 0, "execute": 16, "method": "consensus"})
    rank(config)
    assert started.pieces == [
        *(f"fsq-0/{piece}" for piece in ("best-consensus-e8-n6", "ceiling-e8-n2")),  # of its 8 steps all
        *("regression-0/best-e16-n6", "point/latency"),
    ]
    place = ranked[2]
    played, job = (
        {**json.loads((place / "fsq-0" / "best-consensus-e8-n6" / name).read_text())} for name in ("result.json", "job.json")
    )
    assert job["execute"] == 8 and job["method"] == "consensus"
    policy = load_policy(place / "fsq-0" / "policy" / "model").with_decoding(DecodingConfig("consensus"))
    again = evaluate(
        "test/Point-v0", policy, first_seed=EVAL_SEED_START, episodes=6, max_steps=24, execute=8, slots=25, workers=1
    )
    assert played["score"] == [record.score for record in again.records]
    assert played["length"] == [record.length for record in again.records]
    assert "Codes are chosen by consensus (fsq)." in (place / "index.html").read_text()
    with (place / "results.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["consensus", ""]
    started.pieces.clear()
    rank(config)
    assert started.pieces == []


def test_a_data_set_that_changes_meanwhile_is_refused(place, tmp_path):
    from daps_robot.commands.policy_pieces import tokenizer_piece
    from daps_robot.commands.policy_run import Learning, TokenizerJob

    save_json(TokenizerJob("fsq", 0, Learning("of another file", "test/Point-v0"), SIZE), tmp_path / "job.json")
    with pytest.raises(DataError, match="not what it was when the study began"):
        tokenizer_piece(str(tmp_path), str(place / "point.hdf5"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policies": ("fqs",)}, "Did you mean 'fsq'.*regression"),
        ({"policies": ("vae",)}, "vae has no codes"),
        ({"policies": ()}, "--policies"),
        ({"execute": 0}, "--execute 0"),
        ({"history": 0}, "--history 0"),
        ({"policies": ("fast",), "method": "expected", "tokenizer": ChunkTokenizerConfig()}, "codes of fast have no embeddings"),
        ({"last": 11}, "10 validations"),
        ({"budget": 0.0}, "--budget"),
        ({"dataset": "absent.hdf5"}, "absent"),
        ({"policies": ("bins",)}, "bins has no networks to which --positions"),
        ({"tokenizer": ChunkTokenizerConfig(horizon=32)}, "demo_0 has 24 steps, fewer than a chunk of 32 of fsq"),
        ({"env": "none"}, "ranked by their rollouts"),
        ({"env": "test/Line-v0"}, "test/Line-v0 is not to be had"),
        ({"env": "Pendulum-v1"}, "does not observe 'goal'"),
        ({"workers": -1}, "workers=-1"),
        ({"max_steps": 0}, "--max-steps 0"),
    ],
)
def test_what_cannot_be_ranked_is_refused_at_once(settings, message, started):
    with pytest.raises(DapsRobotError, match=message):
        rank(Leaderboard(**{**vars(BOARD), **settings}))
    assert started.pieces == []


def test_a_policy_that_is_not_installed_is_refused_at_once(started, monkeypatch):
    from daps_robot.models.regression import RegressionPolicy

    def absent():
        raise ConfigError("pip install 'daps-robot[robomimic]'")

    monkeypatch.setattr(RegressionPolicy, "import_extra", absent)
    with pytest.raises(ConfigError, match="robomimic"):
        rank(Leaderboard(**{**vars(BOARD), "name": "another"}))
    assert started.pieces == []


# -- sweeps ------------------------------------------------------------------------------------------------------------------


def test_demonstrations_against_code_sources(place, started, capsys):
    both = ("sampled", "most-likely")
    lines = sweep(Sweep(**COMMON, vary="demonstrations", values=(4, 2), policies=("fsq",), codes=both, seeds=1, tokenizer=SIZE))
    assert started.pieces == [
        f"fsq-demonstrations{count}-0/{piece}"
        for count in (2, 4)
        for piece in ("tokenizer", "policy", "best-n6", "ceiling-n2", "policy-most-likely", "best-most-likely-n6")
    ]
    assert [line.label for line in lines] == ["fsq, sampled codes", "fsq, most-likely codes"]
    assert [point.x for point in lines[0].points] == [2, 4]
    assert "48 windows of 2 demonstrations, 48 of 2 held out" in capsys.readouterr().out
    out = place / "runs" / "sweep" / "point-demonstrations"
    job = json.loads((out / "fsq-demonstrations2-0" / "policy-most-likely" / "job.json").read_text())
    assert job["codes"] == "most-likely" and job["learning"]["demonstrations"] == 2
    assert (out / "index.html").read_text().count("<svg") == 1
    assert len((out / "results.csv").read_text().splitlines()) == 5


def test_executed_steps_need_one_training(place, started):
    swept = Sweep(**COMMON, vary="execute", values=(2, 8), policies=("regression",), seeds=1)
    lines = sweep(swept)
    assert started.pieces == ["regression-0/policy", "regression-0/best-e2-n6", "regression-0/best-e8-n6"]
    assert [point.value for point in lines[0].points] == [2, 8] and lines[0].points[0].ceiling is None
    started.pieces.clear()
    sweep(swept)
    assert started.pieces == []


def test_what_policies_see_and_how_codes_are_chosen_needs_no_other_tokenizer(place, started):
    swept = {**COMMON, "tokenizer": SIZE, "name": "seen", "seeds": 1, "vary": "execute", "policies": ("fsq", "regression")}
    sweep(Sweep(**swept, values=(4,)))
    assert "fsq-0/tokenizer" in started.pieces and "fsq-0/best-n6" in started.pieces  # 4 is what it executes anyway
    started.pieces.clear()
    sweep(Sweep(**swept, values=(2,), history=3, method="greedy"))
    assert started.pieces == [
        *(f"fsq-0/{piece}" for piece in ("policy-h3", "best-h3-greedy-e2-n6", "ceiling-e2-n2")),
        *(f"regression-0/{piece}" for piece in ("policy-h3", "best-h3-e2-n6")),
    ]
    out = place / "runs" / "sweep" / "seen"
    assert [load_policy(out / f"{policy}-0" / "policy-h3" / "model").history for policy in ("fsq", "regression")] == [3, 3]
    assert "Codes are chosen by greedy (fsq). Every policy sees 3 observations." in (out / "index.html").read_text()


def test_what_a_sweep_says_of_policies_reaches_every_run():
    said = {"history": 3, "method": "greedy", "obs_rotation": "6d", "episodes": 7, "max_steps": 9, "ceiling_episodes": 4}
    config = Sweep(**said, tokenizer=SIZE, vary="demonstrations", policies=("fsq", "regression"))
    for _, _, planned in plans(config, "x", Learning("", ""), 0):
        assert {name: getattr(planned, name) for name in said} == said and planned.tokenizer == SIZE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vary": "demonstrations", "values": (9,)}, "8 training demonstrations"),
        ({"vary": "vocabulary", "policies": ("regression",)}, "regression has no tokenizer"),
        ({"vary": "execute", "values": (9,)}, "8 steps to execute"),
        ({"vary": "positions", "values": (3,)}, "--horizon, --positions"),
        ({"vary": "execute", "values": (17,), "policies": ("regression",)}, "chunks of regression have 16 steps"),
        (
            {"vary": "positions", "values": (4,), "policies": ("bins",), "tokenizer": ChunkTokenizerConfig()},
            "bins has no networks",
        ),
        ({"vary": "horizon", "values": (8, 32)}, "demo_0 has 24 steps, fewer than a chunk of 32 of daps"),
        ({"values": (0,)}, "from 1"),
        ({"obs_rotation": "6d"}, "point.hdf5 hold none"),
    ],
)
def test_what_cannot_be_swept_is_refused_at_once(settings, message, started):
    with pytest.raises(DapsRobotError, match=message):
        sweep(Sweep(**{**COMMON, "tokenizer": SIZE, **settings}))
    assert started.pieces == []
