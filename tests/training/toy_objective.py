"""A regression with what a resumed run must find again: noise, dropped-out units, a parameter with a rate of its own."""

import os
import signal
from pathlib import Path

import torch
from torch import nn

from daps_robot.checkpoints import save_tensors
from daps_robot.estimators.base import Loss
from daps_robot.training.objective import Objective, TrainerConfig
from daps_robot.training.optimizer import OptimizerConfig
from daps_robot.training.trainer import Trainer


class ToyData:
    """y = x·w, gathered by index."""

    def __init__(self, examples=37):
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(examples, 6, generator=generator)
        self.y = self.x @ torch.linspace(-1, 1, 6)
        self.gathered = []

    def __len__(self):
        return len(self.x)

    def gather(self, index):
        self.gathered.append(index.tolist())
        return self.x[index], self.y[index]


class ToyObjective(Objective):
    """`at` maps a step to what happens there: "stop" sends this process a signal, "crash" raises, "nan" (" offset") spoils it."""

    def __init__(self, at=None, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))
        self.offset = nn.Parameter(torch.zeros(()))
        self.at = at or {}
        self.steps_seen = []
        self.validations = []

    def own_learning_rates(self):
        return {"offset": 0.05}

    def forward(self, batch, step):
        self.steps_seen.append(step)
        x, y = batch
        happens = self.at.get(step)
        if happens == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        elif happens == "crash":
            raise RuntimeError("the machine stops here")
        noise = 0.1 * torch.randn(len(x))
        loss = (self.net(x)[:, 0] + self.offset + noise - y).square().mean()
        if happens == "nan":
            # the gradient of one tensor alone is spoilt
            loss = loss + (self.net[3].weight * float("nan")).sum() * 0
        elif happens == "nan offset":
            loss = loss + 0 * (self.offset - self.offset.detach()).sqrt()  # whose slope at 0 is infinite
        return Loss(loss, {"noise": noise.mean(), **({"even": noise.mean()} if step % 2 == 0 else {})})

    @torch.no_grad()
    def evaluate(self):
        data = ToyData()
        noise = 0.1 * torch.randn(len(data))
        error = float((self.net(data.x)[:, 0] + self.offset + noise - data.y).square().mean())
        self.validations.append(error)
        return {"loss": error, "probe": float(torch.rand(()))}

    def save(self, directory):
        directory.mkdir(exist_ok=True)
        save_tensors(self.state_dict(), directory / "model.safetensors")


def config(**changes):
    optimizer = changes.pop("optimizer", OptimizerConfig(lr=0.01, warmup_steps=3, decay_fraction=0.5, ema=0.9))
    settings = {"max_steps": 20, "batch_size": 8, "device": "cpu", "eval_every": 6, "log_every": 5, "tensorboard": False}
    return TrainerConfig(**{**settings, **changes}, optimizer=optimizer)


def train(directory: Path, objective=None, resume=False, overwrite=False, data=None, **changes):
    """Run the trainer on the toy; returns the objective and the best metrics."""
    objective = objective or ToyObjective()
    metrics = Trainer(config(**changes), Path(directory)).fit(objective, data or ToyData(), resume, overwrite)
    return objective, metrics
