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

ACTIONS = ("relative", "absolute", "joint")
"""How actions are written down, the default first (see `control.CONTROLLERS`)."""

PUSHT_ID, PUSHT_MAX_EPISODE_STEPS = "daps_robot/PushT-v0", 300
"""Push-T, whose class is in `daps_robot.envs.pusht`, and its time limit: control steps at 10 Hz, as in Diffusion Policy."""


def env_id_of(env_id: str, actions: str) -> str:
    """The id under which a task takes such actions: `daps_robot/Can-v0` the relative ones, `daps_robot/CanJoint-v0` others."""
    return env_id if actions == ACTIONS[0] else env_id.replace("-v", f"{actions.capitalize()}-v")


def register_envs() -> None:
    """Makes `gymnasium.make("daps_robot/Lift-v0")`, `…/Can-v0`, `…/Square-v0` and `…/PushT-v0` work; twice does no harm.

    Each of the first three is there with other actions too: `…/LiftJoint-v0` is `make("…/Lift-v0", actions="joint")` under a name
    that a data set can give.
    """
    _register(PUSHT_ID, "pusht:PushTEnv", PUSHT_MAX_EPISODE_STEPS)
    for task_id, class_name in ENV_CLASSES.items():
        for actions in ACTIONS:
            kwargs = {} if actions == ACTIONS[0] else {"actions": actions}
            _register(env_id_of(task_id, actions), f"tasks:{class_name}", MAX_EPISODE_STEPS, kwargs)


def _register(env_id: str, place: str, limit: int, kwargs: dict[str, str] | None = None) -> None:
    from gymnasium.envs.registration import register, registry

    if env_id not in registry:
        register(
            id=env_id,
            entry_point=f"daps_robot.envs.{place}",
            max_episode_steps=limit,
            order_enforce=True,
            disable_env_checker=True,
            kwargs=kwargs or {},
        )
