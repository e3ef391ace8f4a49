"""Planning in a thread: the same actions however long a plan takes, as long as it is in time; what happens when it is not."""

import threading
import time
from typing import ClassVar

import numpy as np
import pytest

from daps_robot.errors import ConfigError, ControlError, DataError
from daps_robot.plan_ahead import PlanAhead
from daps_robot.types import PlanRequest


class Slow:
    """Plans (100 · what it saw + step of the plan) once it is let; the first plan at once."""

    kind, obs_keys, needs_expert = "slow", ("x",), False
    cameras, picture_size = (), None
    observation_dim, action_dim, history, horizon, execute = 1, 1, 1, 8, 3
    obs_dims: ClassVar = {}

    def __init__(self, pause=0.0, gated=False):
        self.pause, self.gate, self.made, self.threads = pause, threading.Semaphore(0) if gated else None, 0, set()

    def plan(self, request: PlanRequest):
        self.threads.add(threading.current_thread().name)
        if self.gate and self.made:
            self.gate.acquire()
        time.sleep(self.pause)
        self.made += 1
        return (100 * request.observations[:, -1:] + np.arange(self.horizon)[None, :, None]).astype(np.float32)


def planned(observations, delay, execute=3):
    """What ought to be done: (what was seen, step of the plan) of every step."""
    steps = []
    for t in range(len(observations)):
        asked = max(0, (t - delay) // execute * execute)
        steps.append(100 * observations[asked] + t - asked)
    return steps


def settle(controller):
    """Wait for the plan under way, if any."""
    if controller._pending is not None:
        controller._pending.exception()


@pytest.mark.parametrize("delay", [1, 2, 3])
@pytest.mark.parametrize("pause", [0.0, 0.003])
def test_plans_take_over_after_the_delay_however_early_they_are_there(delay, pause):
    observations = list(range(1, 15))
    with PlanAhead(Slow(pause), delay) as controller:
        given = []
        for x in observations:
            settle(controller)
            given.append(float(controller.act([x])[0]))
        assert given == planned(observations, delay)
        assert controller.counts.late == controller.counts.held == 0
        controller.reset()
        assert controller.act([5.0])[0] == 500


def test_act_returns_while_a_plan_is_made():
    policy = Slow(gated=True)
    with PlanAhead(policy, 2) as controller:
        given = [float(controller.act([x])[0]) for x in range(5)]  # the plan of step 3 cannot be there before it is let
        assert given == [0, 1, 2, 3, 4] and policy.made == 1
        policy.gate.release()
        settle(controller)
        assert controller.act([5.0])[0] == 302  # the first two steps of the plan are past
        assert controller.counts.late == 0
        policy.gate.release()


def test_late_plans_are_waited_for_with_the_plan_before():
    policy = Slow(gated=True)
    with PlanAhead(policy, 1) as controller:
        given = [float(controller.act([x])[0]) for x in range(6)]
        assert given == [0, 1, 2, 3, 4, 5] and controller.counts.late == 2  # due at step 4
        policy.gate.release()
        settle(controller)
        assert controller.act([6.0])[0] == 303  # asked at step 3, so this is its fourth; and the next is due at once
        policy.gate.release()
        settle(controller)
        assert controller.act([7.0])[0] == 601
        policy.gate.release(9)


@pytest.mark.parametrize("on_late", ["raise", "hold"])
def test_at_the_end_of_the_plan_before_a_late_one_is_an_error_or_held_for(on_late):
    policy = Slow(gated=True)
    with PlanAhead(policy, 1, on_late=on_late) as controller:
        assert [float(controller.act([x])[0]) for x in range(8)] == list(range(8))
        for x in (8, 9):
            if on_late == "raise":
                with pytest.raises(ControlError, match="no plan after 5 steps"):
                    controller.act([x])
            else:
                assert controller.act([x])[0] == 7
        assert controller.counts.late == 6 and controller.counts.held == (2 if on_late == "hold" else 0)
        policy.gate.release()
        settle(controller)
        assert controller.act([10.0])[0] == 305  # where the other one ended
        assert controller.counts.plans == 2
        policy.gate.release(9)


def overflow(request):
    raise DataError("row 0 overflows")


def test_what_the_policy_raises_comes_out_of_act():
    policy = Slow()
    with PlanAhead(policy, 2) as controller:
        plan, policy.plan = policy.plan, lambda request: 1 / 0
        with pytest.raises(ZeroDivisionError):
            controller.act([0.0])
        policy.plan = plan
        assert [float(controller.act([x])[0]) for x in range(3)] == [0, 1, 2]
        policy.plan = lambda request: 1 / 0
        assert controller.act([3.0])[0] == 3
        settle(controller)
        with pytest.raises(ZeroDivisionError):
            controller.act([4.0])
        policy.plan = overflow
        controller.act([4.0])
        settle(controller)
        with pytest.raises(ControlError, match="1 steps ago failed: row 0 overflows"):
            controller.act([4.0])
        policy.plan = plan
        assert controller.act([5.0])[0] == 5  # asks again
        settle(controller)
        assert [float(controller.act([x])[0]) for x in (6, 7)] == [6, 502]


@pytest.mark.parametrize("on_late", ["raise", "hold"])
def test_after_a_failure_it_takes_what_comes_too_late_for_the_delay(on_late):
    """Of the plan before, fewer steps are left than the delay has: the new one takes over as soon as there is none left."""
    policy = Slow()
    policy.execute = 4
    with PlanAhead(policy, 4, on_late=on_late) as controller:
        assert [float(controller.act([x])[0]) for x in range(4)] == [0, 1, 2, 3]
        plan, policy.plan = policy.plan, overflow
        controller.act([4.0])
        settle(controller)
        with pytest.raises(ControlError, match="row 0 overflows"):
            controller.act([5.0])
        policy.plan = plan
        assert [float(controller.act([x])[0]) for x in (5, 6, 7)] == [5, 6, 7]  # asks again at the first of them
        settle(controller)
        assert [float(controller.act([x])[0]) for x in (8, 9)] == [503, 504]


def test_a_reset_throws_the_plan_under_way_away():
    policy = Slow(gated=True)
    with PlanAhead(policy, 1) as controller:
        for x in range(4):
            controller.act([x])
        controller.reset()
        policy.gate.release(2)
        assert [float(controller.act([x])[0]) for x in (7, 8)] == [700, 701]
        assert controller.counts.plans == 1


def test_one_thread_which_ends():
    before = set(threading.enumerate())
    policy = Slow()
    with PlanAhead(policy, 1) as controller:
        for x in range(12):
            settle(controller)
            controller.act([x])
        assert len(set(threading.enumerate()) - before) == 1
    assert set(threading.enumerate()) <= before and len(policy.threads) == 1
    for _ in range(2):  # in the middle of an episode, too
        with pytest.raises(ControlError, match="closed"):
            controller.act([0.0]), controller.act([0.0]), controller.act([0.0])
        controller.reset()
    forgotten = PlanAhead(Slow(), 1)
    forgotten.act([0.0])
    del forgotten
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before


def test_a_bad_observation_stops_the_clock():
    with PlanAhead(Slow(), 1, on_bad_observation="hold") as controller:
        given = []
        for x in [1, np.nan, 2, 3, 4, np.nan, 5]:
            settle(controller)
            given.append(float(controller.act([x])[0]))
        assert given == [100, 100, 101, 102, 103, 103, 401]
        assert controller.counts.bad_observations == 2


def test_delays_that_plans_are_too_short_for():
    for delay, execute in ((0, None), (4, 3), (3, 6)):
        with pytest.raises(ConfigError, match="delay"):
            PlanAhead(Slow(), delay, execute=execute)
