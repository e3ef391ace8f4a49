"""One recorded episode of a scripted expert. Worker processes import this module, so it imports neither torch nor Gymnasium."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from daps_robot.data.demo_writer import Episode
from daps_robot.envs.registration import MAX_EPISODE_STEPS

if TYPE_CHECKING:
    from daps_robot.envs.expert import Expert
    from daps_robot.envs.tasks import RobosuiteEnv

HOLD_STEPS = 5
"""Control steps recorded after the first success (a quarter of a second), so that a policy sees how success is kept."""


def record_episode(env: RobosuiteEnv, expert: Expert, seed: int) -> Episode | None:
    """Lets an expert act from a seeded start until `HOLD_STEPS` after success.

    Args:
        env: the bare environment (`env.unwrapped`).
        expert: fresh, with its own noise.
        seed: of the start state.

    Returns:
        The episode, or None where the task was not solved within `MAX_EPISODE_STEPS`, or not any more at the end.
    """
    observation, info = env.reset(seed=seed)
    seen, states, actions, solved = [observation], [], [], []
    while len(actions) < MAX_EPISODE_STEPS and sum(solved) <= HOLD_STEPS:
        action = expert.act(observation)
        states.append(env.flat_state())
        observation, _, _, _, info = env.step(action)
        seen.append(observation)
        actions.append(action)
        solved.append(info["success"])
    if sum(solved) <= HOLD_STEPS or not solved[-1]:
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
