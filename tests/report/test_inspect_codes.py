"""The command that looks at codes, its figures against plain loops, and its page."""

import importlib
import json
import math
import re
from collections import Counter
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from tiny import make_tokenizer, tokenizer_config

from daps_robot.commands import inspect_codes
from daps_robot.commands.inspect_codes import InspectCodes, run
from daps_robot.data.cameras import check_hand
from daps_robot.data.chunks import ChunkDataset
from daps_robot.data.demos import read_demos
from daps_robot.data.normalize import Scaler
from daps_robot.errors import CheckpointError, ConfigError, DataError
from daps_robot.estimators import ESTIMATORS
from daps_robot.estimators.fitted import FITTED
from daps_robot.models.bins import BinsTokenizer, BinsTokenizerConfig
from daps_robot.models.tokenizer import Tokenizer
from daps_robot.report import code_meaning
from daps_robot.report.code_meaning import code_groups, encode_windows, phase_counts, phase_entropy, position_uses
from daps_robot.rollout.video import Films
from daps_robot.types import Demo

HORIZON, ACTIONS, DEMOS, STEPS = 8, 3, 12, 14


def write(path, states=False, **env_args):
    """Twelve demonstrations of 14 to 25 steps; the name of one wants escaping."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for i in range(DEMOS):
            steps = STEPS + i
            group = file.create_group(f"data/demo_{i}" if i else "data/<b>0")
            walk = np.cumsum(rng.normal(size=(steps, ACTIONS)), axis=0)
            group["actions"] = np.sin(walk)
            group["obs/state"] = walk[:, :2]
            if states:
                group["states"] = np.full((steps, 4), i) + np.arange(steps)[:, None] / 100
        if env_args:
            file["data"].attrs["env_args"] = json.dumps(env_args)
    return str(path)


@pytest.fixture
def dataset(tmp_path):
    return write(tmp_path / "pushing.hdf5")


def saved(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "runs" / "tokenizer" / "model")
    return tmp_path / "runs" / "tokenizer"


def still(positions=1, dims=1):
    """Two bins of every step, the numbers from 0 to 1."""
    return BinsTokenizer(BinsTokenizerConfig(positions, dims, 2, positions), Scaler.identity(dims))


def test_information_of_codes_that_follow_the_phase_and_of_codes_that_do_not():
    """The first number tells the half of the demonstration, one bit of the log2(10) that tell the tenth; the second nothing."""
    rng = np.random.default_rng(0)
    halves = np.repeat([0.2, 0.8], 10)
    demos = [
        Demo(f"demo_{i}", np.stack([halves, rng.random(20)], 1).astype(np.float32), {"o": np.zeros((20, 1), np.float32)})
        for i in range(60)
    ]
    coded = encode_windows(still(dims=2), demos, ("o",), "here")
    told, noise = position_uses(coded)
    assert phase_entropy(coded) == pytest.approx(math.log2(10)) and told.perplexity == pytest.approx(2)
    assert told.information == pytest.approx(1) and told.entropy == pytest.approx(1) and told.chance < 0.1
    assert noise.information == pytest.approx(noise.chance, abs=0.01) and noise.chance > 0
    assert phase_counts(coded, 0, [1, 0]).tolist() == [[0] * 5 + [120] * 5, [120] * 5 + [0] * 5]
    first, second = code_groups(coded, 0, top=5, nearest=3)
    assert (first.codes, first.windows, second.codes) == ((0,), 600, (1,))
    assert first.mean[0, 0] == pytest.approx(0.2) and first.decoded[0, 0] == 0.25 and first.progress == pytest.approx(0.225)
    assert [place.demo for place in first.nearest] == list(dict.fromkeys(place.demo for place in first.nearest))


def test_codes_of_one_demonstration_tell_nothing_of_the_phase():
    """Turned around in time it is as orderly as before, so that what is found there is all put down to chance."""
    actions = np.repeat([0.2, 0.8], 20).astype(np.float32)[:, None]
    coded = encode_windows(still(), [Demo("demo_0", actions, {"o": actions})], ("o",), "here")
    (use,) = position_uses(coded)
    assert use.information == pytest.approx(1) and use.chance > 0.6


def test_groups_are_what_plain_loops_find(dataset, monkeypatch):
    monkeypatch.setattr(code_meaning, "BATCH", 7)
    torch.manual_seed(0)
    tokenizer, demos = make_tokenizer(vocabulary=4, positions=2), read_demos(dataset)
    tokenizer.scaler.scale.copy_(torch.tensor([0.5, 2.0, 1.0]))
    coded = encode_windows(tokenizer, demos.demos, demos.obs_keys, "here")
    assert len(coded) == sum(len(demo) for demo in demos.demos)
    whole = ChunkDataset(demos.demos, demos.obs_keys, HORIZON)
    codes = tokenizer.encode(whole.ahead(torch.arange(len(whole)))[0])[:, 0].numpy()
    assert np.array_equal(coded.codes, codes)
    decoded = tokenizer.decode(torch.from_numpy(codes).long()[:, None])[:, 0].numpy()
    windows = [(demo, step) for demo in demos.demos for step in range(len(demo))]
    for group in code_groups(coded, 1, top=4, nearest=20):
        own = [i for i in range(len(windows)) if codes[i, 1] == group.codes[0]]
        assert group.windows == len(own)
        chunks = np.full((len(own), HORIZON, ACTIONS), np.nan)
        for row, i in enumerate(own):
            demo, step = windows[i]
            found = demo.actions[step : step + HORIZON]
            chunks[row, : len(found)] = found
        again = np.where(np.isnan(chunks), np.nan, decoded[own])
        np.testing.assert_allclose(group.mean, np.nanmean(chunks, 0), atol=1e-6)
        np.testing.assert_allclose(group.deviation, np.nanstd(chunks, 0), atol=1e-6)
        np.testing.assert_allclose(group.decoded, np.nanmean(again, 0), atol=1e-6)
        np.testing.assert_allclose(group.present, (~np.isnan(chunks[..., 0])).mean(0))
        squares = (chunks - group.mean) ** 2
        squares = np.where(np.isnan(squares), np.nanvar(chunks, 0), squares) / np.array([0.5, 2.0, 1.0]) ** 2
        distances = np.sqrt(squares.mean((1, 2)))
        best = {}
        for row in np.argsort(distances):
            best.setdefault(windows[own[row]][0].name, (windows[own[row]][1], distances[row]))
        assert [(place.demo, place.step) for place in group.nearest] == [(name, step) for name, (step, _) in best.items()]
        np.testing.assert_allclose([place.distance for place in group.nearest], [d for _, d in best.values()], atol=1e-6)
    found = code_meaning.recurring_sequences(coded, top=3, nearest=1)
    counts = Counter(map(tuple, codes.tolist()))
    assert found.distinct == len(counts) and found.recurring == sum(n > 1 for n in counts.values())
    assert found.shared == sum(n for n in counts.values() if n > 1)
    assert [group.windows for group in found.groups] == sorted(counts.values())[::-1][:3]


def untrained(name, dataset):
    demos = read_demos(dataset)
    if name in FITTED:
        windows = ChunkDataset(demos.demos, demos.obs_keys, HORIZON)
        return FITTED[name].fit(windows, FITTED[name].settings(), Scaler.identity(ACTIONS))
    torch.manual_seed(0)
    return Tokenizer(ESTIMATORS[name].tokenizer_config(tokenizer_config(channels=ACTIONS))).eval()


LIBRARIES = {"vq": "vector_quantize_pytorch", "rvq": "vector_quantize_pytorch", "fast": "tokenizers"}


@pytest.mark.parametrize("name", ["daps", "fsq", "vq", "rvq", "quest", "oat", "bins", "fast"])
def test_the_codes_of_every_kind_of_tokenizer(name, dataset, tmp_path, capsys):
    if name in LIBRARIES and importlib.util.find_spec(LIBRARIES[name]) is None:
        pytest.skip(f"{LIBRARIES[name]} is not installed")
    tokenizer = untrained(name, dataset)
    found = run(InspectCodes(saved(tokenizer, tmp_path), dataset, top=1))
    out, folder = capsys.readouterr().out, tmp_path / "runs" / "codes"
    assert json.loads((folder / "codes.json").read_text()) == json.loads(json.dumps(found))
    windows = sum(range(STEPS, STEPS + DEMOS))
    assert (found["format"], found["version"], found["windows"]) == ("daps_robot/codes-inspected", 1, windows)
    assert len(found["positions"]) == tokenizer.config.codes.positions
    for position in found["positions"]:
        assert sum(position["counts"].values()) == windows
        assert position["unused"] == found["vocabulary"] - len(position["counts"])
    assert f"{windows} windows of 12 demonstrations" in out and "no films, or not all" in out
    page = (folder / "index.html").read_text()
    assert "names no simulator" in page and "<video" not in page
    assert page.count("<svg") >= 4 + len(found["codes"]) and "<script" not in page and not re.search(r"https?://", page)
    assert "<b>0" not in page
    assert ("differ in length" in page) == (name == "fast") == (found["ending_code"] == 0)
    assert name != "fast" or [0] not in [code["codes"] for code in found["codes"]]


def test_a_decoder_that_sees_observations(dataset, tmp_path):
    place = saved(make_tokenizer(observation=2, obs_keys=("state",)), tmp_path)
    assert run(InspectCodes(place, dataset, tmp_path / "here", split="valid", top=1))["demonstrations"] == 1
    place = saved(make_tokenizer(observation=5, obs_keys=("state",)), tmp_path)
    with pytest.raises(CheckpointError, match=r"decodes with 5 observed numbers \(state\)"):
        run(InspectCodes(place, dataset))


@pytest.mark.parametrize("wrong", [{"top": 0}, {"position": -1}, {"videos": -1}])
def test_options_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match="one code or more"):
        InspectCodes(**wrong)


def test_tokenizers_and_data_that_do_not_fit(dataset, tmp_path):
    place = saved(make_tokenizer(), tmp_path)
    with pytest.raises(ConfigError, match=r"--position 4: .* has 4 positions, 0 to 3"):
        run(InspectCodes(place, dataset, position=4))
    with pytest.raises(ConfigError, match="pass --dataset"):
        run(InspectCodes(place))
    with pytest.raises(CheckpointError, match=r"actions of 5 dimensions, .*pushing.hdf5 has 3"):
        run(InspectCodes(saved(make_tokenizer(channels=5), tmp_path), dataset))
    with pytest.raises(DataError, match="fewer than a chunk of 20"):
        run(InspectCodes(saved(make_tokenizer(horizon=20), tmp_path), dataset))
    with pytest.raises(CheckpointError, match="vae, which has no codes"):
        run(InspectCodes(saved(untrained("vae", dataset), tmp_path), dataset))


def test_a_position_at_which_all_sequences_are_over(dataset, tmp_path):
    pytest.importorskip("tokenizers")
    tokenizer = untrained("fast", dataset)
    assert tokenizer.config.positions < HORIZON * ACTIONS
    tokenizer.config = replace(tokenizer.config, positions=HORIZON * ACTIONS)
    with pytest.raises(ConfigError, match="have ended by then"):
        run(InspectCodes(saved(tokenizer, tmp_path), dataset, position=HORIZON * ACTIONS - 1))


def test_which_states_are_filmed(tmp_path, monkeypatch, capsys):
    """Those of the nearest windows, with the state that the last action leads to where it was recorded."""
    dataset = write(tmp_path / "pushing.hdf5", states=True, gymnasium_id="some/Where-v0")
    asked = []

    def films(env_id, groups, folder):
        asked.append((env_id, groups))
        (folder / "a.mp4").write_bytes(b"film")
        return Films((folder / "a.mp4",), "the second broke")

    monkeypatch.setattr(inspect_codes, "film_states", films)
    place = saved(make_tokenizer(), tmp_path)
    found = run(InspectCodes(place, dataset, position=3, top=2, videos=3))
    ((env_id, groups),) = asked
    assert env_id == "some/Where-v0" and len(groups) == 2 and found["videos"] == 1
    for clips, code in zip(groups, found["codes"], strict=True):
        assert len(clips) == min(3, len(code["nearest"]))
        for clip, near in zip(clips, code["nearest"], strict=False):
            number = int(re.sub(r"\D", "", near["demo"]))
            frames = min(HORIZON + 1, STEPS + number - near["step"])
            assert clip.start == near["step"] and clip.where.endswith(f": {near['demo']}")
            np.testing.assert_allclose(clip.states[:, 0], number + (near["step"] + np.arange(frames)) / 100)
    page = (tmp_path / "runs" / "codes" / "index.html").read_text()
    assert page.count('src="data:video/mp4;base64,ZmlsbQ=="') == 1 and "the second broke" in page
    assert run(InspectCodes(place, dataset, top=2, videos=0))["video_note"] == "none were asked for"
    plain = write(tmp_path / "plain.hdf5", gymnasium_id="some/Where-v0")
    assert "has no simulator states" in run(InspectCodes(place, plain, top=1))["video_note"]
    assert len(asked) == 1


def test_a_state_of_another_model_is_not_filmed():
    check_hand("here", np.zeros(3), np.full(3, 1e-4))
    with pytest.raises(DataError, match=r"here: its state puts the hand 20\.0 mm"):
        check_hand("here", np.zeros(3), np.array([0, 0.02, 0]))
