"""What a policy with cameras is shown: the pictures of the steps that it sees the numbers of, and no others drawn."""

from __future__ import annotations

import numpy as np
import pytest
from point_env import SEEN, PointPolicy, SeeingPointEnv, SeeingPolicy, seen_from

from daps_robot.errors import SimulationError
from daps_robot.rollout.evaluate import evaluate
from daps_robot.rollout.latency import plan_latency

SEEING, OPEN_EYED = "test/SeeingPoint-v0", "test/OpenEyedPoint-v0"


def play(env_id: str, policy: PointPolicy, **settings: object):
    given = {"first_seed": 100, "progress": False, "workers": 1, "episodes": 7, "slots": 3, "max_steps": 20, "execute": 4}
    return evaluate(env_id, policy, **{**given, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("env_id", [SEEING, OPEN_EYED])
@pytest.mark.parametrize("history", [1, 3, 6])
def test_pictures_are_of_the_observed_steps(env_id: str, history: int) -> None:
    policy = SeeingPolicy(history=history)
    found = play(env_id, policy)
    assert {(each.images.shape, each.images.dtype.name) for each in policy.requests} == {((3, history, 2, *SEEN, 3), "uint8")}
    assert len(found.images) == len(found.observations) > 10  # of the slots that were really planned for
    for images, numbers in zip(found.images, found.observations, strict=True):
        for seen, values in zip(images, numbers, strict=True):
            expected = np.stack([seen_from(camera, values[2:]) for camera in policy.cameras])  # the position is its second key
            assert abs(seen.astype(int) - expected).max() <= 1  # float32 against the float64 that was drawn
    assert plan_latency(policy, found.observations, images=found.images, n=2, warmup=0).calls == 2
    np.testing.assert_array_equal(policy.requests[-1].images, found.images[[1]])


def test_pictures_change_nothing_else_and_workers_change_nothing() -> None:
    plain = play("test/Point-v0", PointPolicy())
    requests = []
    for workers in (1, 2):
        policy = SeeingPolicy()
        assert play(SEEING, policy, workers=workers).records == plain.records
        requests.append([each.images.tobytes() for each in policy.requests])
    assert requests[0] == requests[1]


@pytest.mark.parametrize("history", [1, 2, 4])
def test_only_what_is_seen_is_drawn(history: int) -> None:
    SeeingPointEnv.drawn = 0
    policy = SeeingPolicy(history=history, noise=5.0)
    found = play(SEEING, policy, episodes=2, slots=2)
    assert [record.success for record in found.records] == [False, False]
    assert SeeingPointEnv.drawn == 2 * (1 + 4 * history)  # after the reset, and before each further one of the five plans


def test_a_policy_of_numbers_has_nothing_drawn() -> None:
    SeeingPointEnv.drawn = 0
    policy = PointPolicy()
    assert play(SEEING, policy).images is None
    assert SeeingPointEnv.drawn == 0 and policy.requests[0].images is None


def test_what_cannot_be_seen_is_refused() -> None:
    with pytest.raises(SimulationError, match="test/Point-v0 has no pictures of right, left, which the policy needs"):
        play("test/Point-v0", SeeingPolicy())
    larger = SeeingPolicy()
    larger.picture_size = (84, 84)
    with pytest.raises(SimulationError, match=r"made for pictures of \(84, 84\) pixels, but .* gives \(24, 28\) from right"):
        play(SEEING, larger)
    with pytest.raises(SimulationError, match="no GL here"):
        play(SEEING, SeeingPolicy(), env_kwargs={"blind": True})
