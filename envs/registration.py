"""Registers the tasks with Gymnasium.

`register_envs` runs when `daps_robot.envs` is imported, and it is what the `gymnasium.envs` entry point names. Gymnasium
since 1.0 does not follow entry points by itself, so whoever has only an id loads them, or imports this package. It may run
while Gymnasium is still importing: this module imports nothing but the register function, and robosuite and MuJoCo load
when the first environment is made.
"""

from __future__ import annotations

MAX_EPISODE_STEPS = 400
"""Control steps (at 20 Hz) after which Gymnasium's time limit truncates an episode."""

ENV_CLASSES = {
    "daps_robot/Lift-v0": "LiftEnv",
    "daps_robot/Can-v0": "CanEnv",
    "daps_robot/Square-v0": "SquareEnv",
}
"""Gymnasium id -> name of the class in `daps_robot.envs.tasks`."""


def register_envs() -> None:
    """Makes `gymnasium.make("daps_robot/Lift-v0")`, `…/Can-v0` and `…/Square-v0` work; calling it twice does no harm."""
    from gymnasium.envs.registration import register, registry

    for env_id, class_name in ENV_CLASSES.items():
        if env_id not in registry:
            register(
                id=env_id,
                entry_point=f"daps_robot.envs.tasks:{class_name}",
                max_episode_steps=MAX_EPISODE_STEPS,
                order_enforce=True,
                disable_env_checker=True,
            )
