"""Latency, and films of the point environment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from point_env import PointEnv, PointPolicy

from daps_robot.errors import ConfigError
from daps_robot.rollout import video
from daps_robot.rollout.evaluate import evaluate
from daps_robot.rollout.latency import plan_latency
from daps_robot.rollout.player import GAP, Clip
from daps_robot.rollout.results import EpisodeRecord
from daps_robot.rollout.video import choose_outcomes

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")


def test_the_first_of_each_outcome() -> None:
    def records(outcomes: str) -> list[EpisodeRecord]:
        return [EpisodeRecord(i, i, o == "+", 1, 1, 0, 1.0) for i, o in enumerate(outcomes)]

    def chosen(outcomes: str, count: int) -> list[int]:
        return [record.index for record in choose_outcomes(records(outcomes), count)]

    assert chosen("++-+-", 2) == [0, 2]
    assert chosen("++-+-", 3) == [0, 1, 2]
    assert chosen("+++", 2) == [0, 1]
    assert chosen("---", 2) == [0, 1]
    assert chosen("-+++", 4) == [0, 1, 2, 3]
    assert chosen("+-", 4) == [0, 1]
    assert chosen("+-", 0) == []


def test_films_of_an_evaluation(env_id: str, tmp_path: Path) -> None:
    found = evaluate(
        env_id,
        PointPolicy(),
        first_seed=100,
        episodes=8,
        max_steps=12,
        workers=2,
        video=tmp_path / "films",
        progress=False,
    )
    assert 0 < found.successes < 8, "the test wants both outcomes"
    assert found.video_note is None
    names = sorted(path.name for path in (tmp_path / "films").iterdir())
    assert [name.split("_")[2] for name in names] in (["success.mp4", "failure.mp4"], ["failure.mp4", "success.mp4"])
    assert list(found.videos) == [str(tmp_path / "films" / name) for name in names]
    index = int(names[0].split("_")[1])
    reader = imageio_ffmpeg.read_frames(found.videos[0])
    meta = next(reader)
    assert meta["size"] == (64, 48) and meta["codec"] == "h264" and meta["pix_fmt"].startswith("yuv420p")
    assert sum(1 for _ in reader) == 1 + found.records[index].length + 10


def test_without_rendering_the_evaluation_goes_on(env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    settings = {
        "first_seed": 0,
        "episodes": 2,
        "max_steps": 8,
        "workers": 1,
        "progress": False,
        "video": tmp_path / "films",
    }
    found = evaluate(env_id, PointPolicy(), **settings, env_kwargs={"no_gl": True})  # type: ignore[arg-type]
    assert found.episodes == 2 and found.videos == ()
    assert found.video_note is not None and "no GL here" in found.video_note and "libosmesa6" in found.video_note
    assert "MUJOCO_GL=egl" in found.video_note and not (tmp_path / "films").exists()
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)
    assert "imageio-ffmpeg is not installed" in (evaluate(env_id, PointPolicy(), **settings).video_note or "")  # type: ignore[arg-type]


def test_films_of_recorded_states(env_id: str, tmp_path: Path) -> None:
    """Side by side, half as fast, a short clip held on its last frame, and every frame that of its state."""
    rng = np.random.default_rng(0)
    long, short = (Clip("a.hdf5: demo_0", 3, rng.uniform(-1, 1, (steps, 4))) for steps in (6, 2))
    films = video.film_states(env_id, [[long, short], [short]], tmp_path)
    assert films.note is None and [path.name for path in films.paths] == ["group_000.mp4", "group_001.mp4"]
    reader = imageio_ffmpeg.read_frames(str(films.paths[0]))
    meta = next(reader)
    assert meta["size"] == (64 + GAP + 64, 48) and meta["fps"] == 10
    frames = [np.frombuffer(data, np.uint8).reshape(48, 64 + GAP + 64, 3).astype(int) for data in reader]
    assert len(frames) == 6 + 5  # half a second on the last one
    for clip, left in ((long, 0), (short, 64 + GAP)):
        drawn = np.stack([drawn_point(state) for state in clip.states])
        for t, frame in enumerate(frames):
            off = np.abs(frame[:, left : left + 64] - drawn).mean((1, 2, 3))  # compression leaves some
            assert off.argmin() == min(t, len(drawn) - 1), (left, t)


def drawn_point(state: np.ndarray) -> np.ndarray:
    env = PointEnv(render_mode="rgb_array")
    env.reset(options={"state": state})
    return env.render().astype(int)


def test_without_rendering_there_are_no_films_of_states(env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [[Clip("a.hdf5: demo_0", 0, np.zeros((2, 4)))]]
    for broken, why in (("test/BlindState-v0", "no GL here"), ("test/Nowhere-v0", "is not to be had")):
        films = video.film_states(broken, clips, tmp_path)
        assert films.paths == () and why in (films.note or "")
    assert "simulation failed in `film_states`" in (
        video.film_states(env_id, [[Clip("", 0, np.zeros((2, 1)))]], tmp_path).note or ""
    )
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)
    assert "imageio-ffmpeg is not installed" in (video.film_states(env_id, clips, tmp_path).note or "")
    assert not list(tmp_path.iterdir())


def test_evaluation_plans_on_the_threads_it_is_told(env_id: str) -> None:
    class Counting(PointPolicy):
        def plan(self, request: object) -> np.ndarray:
            threads.append(torch.get_num_threads())
            return super().plan(request)

    before, threads = torch.get_num_threads(), []
    evaluate(env_id, Counting(), first_seed=0, episodes=1, max_steps=8, workers=1, progress=False)
    evaluate(env_id, Counting(), first_seed=0, episodes=1, max_steps=8, workers=1, progress=False, threads=2)
    assert threads[0] == 1 and threads[-1] == 2 and torch.get_num_threads() == before


def test_latency_runs_on_one_thread_and_restores_it() -> None:
    policy, threads = PointPolicy(), []
    plan = policy.plan
    policy.plan = lambda request: (threads.append(torch.get_num_threads()), plan(request))[1]  # type: ignore[method-assign]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = plan_latency(policy, np.zeros((3, 2, 4), np.float32), n=30, warmup=5)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {1} and len(threads) == 35
    assert 0 < found.p50 <= found.p99 < 100 and found.calls == 30
    assert {request.observations.shape for request in policy.requests} == {(1, 2, 4)}
    assert set(found.to_json()) == {"p50", "p99", "mean", "calls"}
    with pytest.raises(ConfigError, match="0 observations"):
        plan_latency(policy, np.zeros((0, 2, 4), np.float32))
