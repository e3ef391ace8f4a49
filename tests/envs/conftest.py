import pytest

pytest.importorskip("robosuite", reason="robosuite (the extra 'sim') is not installed")

import gymnasium

import daps_robot.envs  # noqa: F401 (registers the tasks)

ENV_IDS = ("daps_robot/Lift-v0", "daps_robot/Can-v0", "daps_robot/Square-v0")


@pytest.fixture(scope="session")
def make_env():
    """One environment per task for the whole session: building takes half a second."""
    environments = {}

    def make(env_id):
        if env_id not in environments:
            environments[env_id] = gymnasium.make(env_id).unwrapped
        return environments[env_id]

    yield make
    for environment in environments.values():
        environment.close()


@pytest.fixture(params=ENV_IDS)
def env(request, make_env):
    return make_env(request.param)
