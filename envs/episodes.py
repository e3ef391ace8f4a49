"""One recorded episode of a scripted expert. Worker processes import this module, so it imports neither torch nor Gymnasium."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from daps_robot.data.demo_writer import Episode
from daps_robot.envs.expert import CLOSED, OPEN, Expert
from daps_robot.envs.registration import MAX_EPISODE_STEPS

if TYPE_CHECKING:
    from daps_robot.envs.tasks import Observation, RobosuiteEnv

HOLD_STEPS = 5
"""Control steps recorded after the first success (a quarter of a second), so that a policy sees how success is kept."""
STRAY_WITHIN = 80
"""Control steps from the start within which a hand is led astray."""
STRAY_STEPS = (3, 16)
"""Control steps for which it is, from and to (exclusive)."""
SHORTEST = 32
"""Control steps of a record that begins after that; shorter ones are left out, for chunks must fit into demonstrations."""


def record_episode(env: RobosuiteEnv, expert: Expert, seed: int, strays: float = 0.0) -> Episode | None:
    """Lets an expert act until `HOLD_STEPS` after success, from a seeded start or from where the hand was led astray.

    Args:
        env: the bare environment (`env.unwrapped`).
        expert: fresh, with its own noise (some of which has been drawn where the record begins later).
        seed: of the start state, and of whether and how the hand is led astray.
        strays: chance that the record begins after that (see `_lead_astray`).

    Returns:
        The episode, or None where the task was not solved within `MAX_EPISODE_STEPS`, or not any more at the end, or where too
        little was left to record (`SHORTEST`).
    """
    observation, info = env.reset(seed=seed)
    rng = np.random.default_rng((seed, 3))  # not the streams of the start state and of the expert
    if astray := rng.random() < strays:
        observation, info = _lead_astray(env, expert, observation, rng)
        if info["success"]:  # the expert was done before
            astray, (observation, info) = False, env.reset(seed=seed)
    seen, states, actions, solved = [observation], [], [], []
    while len(actions) < MAX_EPISODE_STEPS and sum(solved) <= HOLD_STEPS:
        action = expert.act(observation)
        states.append(env.flat_state())
        observation, _, _, _, info = env.step(action)
        seen.append(observation)
        actions.append(action)
        solved.append(info["success"])
    if sum(solved) <= HOLD_STEPS or not solved[-1] or (astray and len(actions) < SHORTEST):
        return None
    dones = np.array(solved)
    dones[-1] = True
    return Episode(
        actions=np.stack(actions),
        observations={key: np.stack([row[key] for row in seen]) for key in observation},
        states=np.stack(states),
        rewards=np.array(solved, np.float64),
        dones=dones.astype(np.int64),
        seed=seed,
        model_file=env.model_xml,
    )


def _lead_astray(
    env: RobosuiteEnv, expert: Expert, observation: Observation, rng: np.random.Generator
) -> tuple[Observation, dict[str, Any]]:
    """Takes the hand from its work to somewhere else, unrecorded, so that what is recorded shows nothing but the way back.

    The expert acts for a while, then the hand moves straight in a random direction and its fingers open or close at random. The
    hand is not turned: codes that hold little of rotations hardly bring it back (docs/tasks.md).

    It makes a policy's own errors, which an expert never makes. Recorded, they would be taught; disturbances of which the record
    holds the correction alone are the idea of DART (Laskey et al. 2017, arXiv:1703.09327). The state is then started from afresh
    (`reset`), so that the record can be replayed from its first state: with a fresh controller, whose open fingers come
    together by some 2 cm for a moment.

    Returns:
        What is seen there, and `info`.
    """
    for _ in range(rng.integers(STRAY_WITHIN)):
        observation = env.step(expert.act(observation))[0]
    direction = rng.normal(size=3)
    push = rng.uniform(0.3, 1.0) * direction / np.linalg.norm(direction)
    stray = np.array([*push, 0.0, 0.0, 0.0, rng.choice((OPEN, CLOSED))])
    for _ in range(rng.integers(*STRAY_STEPS)):
        env.step(env.from_relative(stray))
    return env.reset(options={"state": env.flat_state()})
