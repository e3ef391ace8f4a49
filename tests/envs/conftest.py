import gymnasium
import pytest

from daps_robot.envs.registration import ENV_CLASSES


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


@pytest.fixture(params=ENV_CLASSES)
def env(request, make_env):
    return make_env(request.param)
