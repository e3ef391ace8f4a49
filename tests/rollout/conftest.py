"""The small environment of these tests, under a Gymnasium id that worker processes find too."""

import sys
from pathlib import Path

import gymnasium as gym
import pytest

sys.path.insert(0, str(Path(__file__).parent))

if "test/Point-v0" not in gym.registry:
    gym.register("test/Point-v0", entry_point="point_env:PointEnv")
    gym.register("test/StatelessPoint-v0", entry_point="point_env:StatelessPointEnv")
    gym.register("test/ShortPoint-v0", entry_point="point_env:PointEnv", max_episode_steps=7)
    gym.register("test/LinePoint-v0", entry_point="point_env:LinePointEnv")
    gym.register("test/SeeingPoint-v0", entry_point="point_env:SeeingPointEnv")
    gym.register("test/BlindPoint-v0", entry_point="point_env:SeeingPointEnv", kwargs={"blind": True})
    gym.register("test/BlindState-v0", entry_point="point_env:PointEnv", kwargs={"no_gl": True})
    gym.register("test/OpenEyedPoint-v0", entry_point="point_env:OpenEyedPointEnv")


@pytest.fixture
def env_id() -> str:
    """A point that is pushed to a goal."""
    return "test/Point-v0"
