"""The run directory of a tokenizer that was fitted, not trained: what a training leaves there, from one validation."""

from __future__ import annotations

import torch

from daps_robot import parallel
from daps_robot.checkpoints import owned_directory
from daps_robot.config import save_json
from daps_robot.errors import ConfigError
from daps_robot.models.action_tokenizer import ActionTokenizer
from daps_robot.training.logger import MetricLogger, check_wandb
from daps_robot.training.stream import Batches
from daps_robot.training.tokenizer import evaluate_tokenizer
from daps_robot.training.trainer import Trainer


def save_fitted(tokenizer: ActionTokenizer, valid: Batches, trainer: Trainer, resume: bool, overwrite: bool) -> dict[str, float]:
    """Validate, and write config.json, metrics.jsonl, best.json and model/ as a training would; the metrics.

    Raises:
        RunDirectoryError: the directory is in use, not writable, or holds a run.
        ConfigError: there is nothing to resume, or several processes were started.
    """
    if resume or parallel.launched() > 1:
        raise ConfigError("this tokenizer is fitted in one go, by one process: leave out --resume and torchrun")
    check_wandb(trainer.config.wandb)
    with owned_directory(trainer.directory):
        trainer.claim(resume, overwrite)
        torch.manual_seed(trainer.config.seed)
        metrics = {**evaluate_tokenizer(tokenizer, valid, beta_end=1.0), "step": 0, "train_seconds": 0.0}
        logger = MetricLogger(trainer.directory, 0, trainer.config.tensorboard, trainer.config.wandb)
        logger.log(0, "valid", metrics)
        logger.close()
        tokenizer.save_pretrained(trainer.directory / "model")
        save_json(metrics, trainer.directory / "best.json")
    return metrics
