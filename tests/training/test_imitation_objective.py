"""Training policies without a tokenizer: the error of their plans, learning by heart, the same twice."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import SETTINGS, demonstrations, make_imitation

from daps_robot.data.chunks import ChunkDataset
from daps_robot.models.policies import load_policy
from daps_robot.training.imitation import ImitationObjective, action_scale, planning_error
from daps_robot.training.objective import TrainerConfig
from daps_robot.training.optimizer import OptimizerConfig
from daps_robot.training.trainer import Trainer

STEPS = {"regression": 100, "diffusion": 200, "bc-rnn-gmm": 80}


class ConstantPolicy:
    """Plans the same action always."""

    obs_keys, history, horizon, needs_expert = ("state",), 2, 8, False

    def __init__(self, action):
        self.action = np.array(action, np.float32)

    def plan(self, request):
        return np.tile(self.action, (len(request.keys), self.horizon, 1))


def test_the_error_of_plans_counts_demonstrated_steps_only():
    windows = ChunkDataset(demonstrations(2, 20), ("state",), 8, 2)
    scale = torch.tensor([2.0, 4.0, 1.0])
    found = planning_error(ConstantPolicy([200, 150, 0]), windows, scale)
    squares, steps = np.zeros(3), 0
    for demo in demonstrations(2, 20):
        for t in range(20):
            chunk = demo.actions[t : t + 8].astype(np.float64)
            squares += ((chunk - [200, 150, 0]) ** 2).sum(0)
            steps += len(chunk)
    np.testing.assert_allclose([found[f"rmse/{i}"] for i in range(3)], np.sqrt(squares / steps), rtol=1e-6)
    np.testing.assert_allclose(found["chunk_error"], (squares / steps / scale.numpy() ** 2).mean(), rtol=1e-6)


def test_the_scale_is_shared_by_continuous_dimensions():
    windows = ChunkDataset(demonstrations(), ("state",), 8, 2)
    scale = action_scale(windows, None)
    assert scale[0] == scale[1]
    torch.testing.assert_close(scale[0].square(), windows.actions[:, :2].var(0, correction=0).mean())
    assert scale[2] == 2  # from −1 to 1


def test_dimensions_of_different_units_have_a_scale_each():
    windows = ChunkDataset(demonstrations(), ("state",), 8, 2)
    found = action_scale(windows, ("m", "rad", "m"))
    torch.testing.assert_close(found[:2], windows.actions[:, :2].std(0, correction=0))
    assert found[2] == 2


def objective_of(kind, demos):
    policy, windows = make_imitation(kind, demos=demos)
    return ImitationObjective(policy, windows, action_scale(windows, None)), policy.windows(windows)


@pytest.mark.parametrize("kind", sorted(SETTINGS))
def test_a_few_demonstrations_are_learned_by_heart(kind, tmp_path):
    objective, data = objective_of(kind, demonstrations(2))
    before = objective.evaluate()["chunk_error"]
    optimizer = OptimizerConfig(lr=1e-2, clip="norm", decay_fraction=0.5)
    config = TrainerConfig(max_steps=STEPS[kind], batch_size=20, eval_every=0, tensorboard=False, optimizer=optimizer)
    metrics = Trainer(config, tmp_path / "run").fit(objective, data)
    assert metrics["chunk_error"] < 0.5 * min(before, float((objective.valid.actions.std(0) / objective.scale).square().mean()))
    saved = load_policy(tmp_path / "run" / "model")
    again = planning_error(saved, objective.valid, objective.scale)
    assert again["chunk_error"] == metrics["chunk_error"]


@pytest.mark.parametrize("kind", sorted(SETTINGS))
def test_the_held_out_loss_is_that_of_training(kind):
    objective, data = objective_of(kind, demonstrations(2))
    objective.eval()
    torch.manual_seed(5)
    found = objective.evaluate()["loss"]
    assert not objective.policy.training
    objective.policy.train()
    torch.manual_seed(5)
    with torch.no_grad():
        expected = objective(data.gather(torch.arange(len(data))), 0).value
    assert found == pytest.approx(float(expected), rel=1e-5)
    assert objective.criterion in objective.evaluate()


def test_the_same_noise_twice(tmp_path):
    models = []
    for name in ("one", "other"):
        objective, data = objective_of("regression", demonstrations(2))
        config = TrainerConfig(max_steps=3, batch_size=4, eval_every=0, tensorboard=False)
        Trainer(replace(config), tmp_path / name).fit(objective, data)
        models.append(objective.policy.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
