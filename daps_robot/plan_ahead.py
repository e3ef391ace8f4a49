"""Planning in a thread of its own, while the loop executes what is left of the plan before.

With a delay of d steps, and e steps executed of every plan:

    step           s               s+d             s+e             s+e+d
    observation    o_s ─► plan A                   o_{s+e} ─► plan B
    executed       … the plan before | A[d] …        A[e] …      A[e+d-1] | B[d] …

A plan that is made from the observation at step s takes over at step s + d, where its first d actions are past: so a plan has
to hold h ≥ e + d steps. It takes over at that step, not before, however early it is there: as long as no plan is late, the
actions are a function of the observations alone, and do not depend on the machine.

A plan that is not there at step s + d is late. The plan before it then goes on for as long as it has actions (until h steps after
its own observation), and the late one takes over as soon as it is there, its past actions skipped. Where the plan before ends
first, `act` raises, or gives the last action again until the late plan comes, which then goes on where the other one ended.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from numpy.typing import ArrayLike

from daps_robot.control import Controller, OnTrouble, check_trouble
from daps_robot.errors import ConfigError, ControlError, DataError
from daps_robot.types import SizedPolicy


class PlanAhead(Controller):
    """A `Controller` whose `act` returns at once: it waits for the first plan of an episode alone.

    All plans are made in one thread, which `close` ends; use it as a context manager.
    """

    def __init__(
        self,
        policy: SizedPolicy,
        delay: int = 1,
        *,
        execute: int | None = None,
        bounds: tuple[ArrayLike, ArrayLike] | None = None,
        on_bad_observation: OnTrouble = "raise",
        on_late: OnTrouble = "raise",
    ) -> None:
        """As a `Controller`.

        Args:
            policy, execute, bounds, on_bad_observation: as of `Controller`.
            delay: d, the steps that a plan may take: its time over that of a step, rounded up.
            on_late: where a plan is late and the one before it at its end: raise ControlError, or give the last action again.

        Raises:
            ConfigError: settings that cannot work.
        """
        self._pending: Future[Any] | None = None
        self._asked_at = 0
        super().__init__(policy, execute=execute, bounds=bounds, on_bad_observation=on_bad_observation)
        if not 1 <= delay <= self.execute or self.execute + delay > policy.horizon:
            raise ConfigError(
                f"delay={delay} with execute={self.execute} does not fit plans of {policy.horizon} steps: "
                "take 1 ≤ delay ≤ execute and execute + delay ≤ h"
            )
        check_trouble("on_late", on_late)
        self.delay, self.on_late = delay, on_late
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="daps_robot-plan")

    def reset(self, seed: int = 0) -> None:
        """Begin an episode; a plan under way is thrown away, and the next one waits for its end."""
        super().reset(seed)
        if self._pending is not None:
            self._pending.cancel()
        self._pending = None

    def close(self) -> None:
        """End the thread, after the plan that is under way; `act` cannot plan afterwards."""
        self._thread.shutdown(cancel_futures=True)
        self._pending = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _has_plan(self) -> bool:
        """Raises what the policy raised in the thread, at the first call after it did; the next call asks it again."""
        if self._plan is None:
            self._ask()
            self._take(wait=True)
        elif self._pending is not None and self._pending.done() and self._pending.exception() is not None:
            self._take()
        elif self._pending is not None and (self._step - self._asked_at >= self.delay or not self._left()):
            if self._pending.done():
                self._take()
            else:
                self.counts.late += 1
        if self._pending is None and self._step - self._planned_at >= self.execute:
            self._ask()
        left = self._left()
        if not left and self.on_late == "raise":
            raise ControlError(
                f"no plan after {self._step - self._asked_at} steps, and none left of the one before: "
                f"raise the delay of {self.delay} steps, or execute fewer than {self.execute} of a plan"
            )
        return left > 0

    def _left(self) -> int:
        """Actions left of the plan that is executed."""
        return self._planned_at + self.policy.horizon - self._step

    def _ask(self) -> None:
        try:
            self._pending = self._thread.submit(self.policy.plan, self._request())
        except RuntimeError as error:
            raise ControlError("this controller has been closed: make another") from error
        self._asked_at = self._step

    def _take(self, wait: bool = False) -> None:
        pending, self._pending = self._pending, None
        assert pending is not None and (wait or pending.done())
        try:
            plans = pending.result()
        except DataError as error:
            raise ControlError(
                f"the plan from the observation {self._step - self._asked_at} steps ago failed: {error}"
            ) from error
        self._adopt(plans, self._asked_at)
