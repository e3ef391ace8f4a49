"""Trains small tokenizers with several estimators; a test runs it alone and under torchrun. Arguments: folder, accumulate."""

import sys
from pathlib import Path

import torch
from tiny import tokenizer_config

from daps_robot.estimators import ESTIMATORS
from daps_robot.models.tokenizer import Tokenizer
from daps_robot.training import tokenizer as tokenizer_training
from daps_robot.training.objective import TrainerConfig
from daps_robot.training.optimizer import OptimizerConfig
from daps_robot.training.tokenizer import TokenizerObjective
from daps_robot.training.trainer import Trainer

ESTIMATORS_TRIED = {
    "daps": {"warm_start_steps": 3},
    "daps-na": {"warm_start_steps": 0, "trust_region": "solved-per-input", "k": 4, "ess_target": 0.5},
    "daps-published": {},
    "gr-mck-na": {"draws": 3},
    "gumbel": {},
    "fsq": {},
    "ppo": {},
    "vae": {},
}


class Windows:
    """Random chunks."""

    def __init__(self):
        self.x = torch.randn(37, 8, 3, generator=torch.Generator().manual_seed(5))

    def __len__(self):
        return len(self.x)

    def gather(self, index):
        return self.x[index]


def main(out: Path, accumulate: int) -> None:
    torch.set_num_threads(1)
    parts = tokenizer_training.EVAL_POSITIONS
    data = Windows()
    for name, settings in ESTIMATORS_TRIED.items():
        kind = ESTIMATORS[name]
        # each process has several parts of the validation split, but of gumbel's one has none
        tokenizer_training.EVAL_POSITIONS = parts if name == "gumbel" else 8 * 4 * 5
        if accumulate > 1 and not kind.divisible:
            continue
        torch.manual_seed(0)
        tokenizer = Tokenizer(kind.tokenizer_config(tokenizer_config()))
        estimator = kind(tokenizer, kind.configure(**settings), 6)
        config = TrainerConfig(
            max_steps=6, batch_size=8, accumulate=accumulate, eval_every=3, log_every=1, tensorboard=False, device="cpu",
            optimizer=OptimizerConfig(lr=1e-3),
        )  # fmt: skip
        Trainer(config, out / name).fit(TokenizerObjective(tokenizer, estimator, data), data)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
