"""Tasks as Gymnasium environments: MuJoCo ones over robosuite with scripted experts and their demonstrations, and Push-T.

Importing this package registers the tasks with Gymnasium (`daps_robot/Lift-v0`, `daps_robot/Can-v0`, `daps_robot/Square-v0`,
`daps_robot/PushT-v0`) and loads no simulator:

    import gymnasium, daps_robot.envs
    env = gymnasium.make("daps_robot/Lift-v0")
"""

from daps_robot.envs.registration import register_envs

register_envs()

__all__ = ["register_envs"]
