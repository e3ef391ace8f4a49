"""Recorded demonstrations of the tasks here, whose states can be set again."""

from __future__ import annotations

from daps_robot.data.demos import DemoSet
from daps_robot.data.env_args import env_differences, named_env
from daps_robot.envs.registration import ACTIONS, ENV_CLASSES, env_id_of
from daps_robot.errors import DataError


def recorded_task(demos: DemoSet) -> tuple[str, str]:
    """The id of the task that demonstrations were recorded in, and the way their actions are written down.

    Raises:
        DataError: they are of another environment or another set-up, or have no simulator states.
    """
    known = {env_id_of(task, actions): (task, actions) for task in ENV_CLASSES for actions in ACTIONS}
    named = named_env(demos.env_args)
    if named not in known:
        raise DataError(
            f"{demos.path}: states of {named or 'an unnamed environment'} are not known; those of {', '.join(ENV_CLASSES)} are."
        )
    if differences := env_differences(demos.env_args):
        raise DataError(f"{demos.path} was recorded in another set-up than {named} has here ({'; '.join(differences[:3])}).")
    if lacking := [demo.name for demo in demos.demos if demo.states is None]:
        raise DataError(f"{demos.path}: {lacking[0]} has no simulator states, from which all that is not in the file is made.")
    return known[named]
