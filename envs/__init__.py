"""MuJoCo tasks as Gymnasium environments over robosuite, scripted experts for them, and demonstration collection.

Importing this package registers the tasks with Gymnasium (`daps_robot/Lift-v0`, `daps_robot/Can-v0`, `daps_robot/Square-v0`)
and loads neither robosuite nor MuJoCo:

    import gymnasium, daps_robot.envs
    env = gymnasium.make("daps_robot/Lift-v0")
"""

from daps_robot.envs.registration import register_envs

register_envs()

__all__ = ["register_envs"]
