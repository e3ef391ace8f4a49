"""What the codes of a comparison's tokenizers are good for: a policy is distilled for each, the same networks and steps."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from daps_robot.commands import distill_policy
from daps_robot.commands.distill_policy import DistillPolicy, LatentPolicyConfig
from daps_robot.commands.one_run import OneRun, settings_of
from daps_robot.commands.train_action_vae import split
from daps_robot.config import from_json, load_json, save_json
from daps_robot.data.demos import read_demos
from daps_robot.errors import ConfigError
from daps_robot.models.code_model import CodeModel
from daps_robot.models.policy import LatentPolicy
from daps_robot.report.comparison import interval
from daps_robot.training.code_value import action_bound, calibration
from daps_robot.training.distill import CodeSource
from daps_robot.training.objective import TrainerConfig
from daps_robot.types import JSON


@dataclass(frozen=True)
class CompareCodes:
    """Distil a policy for every tokenizer of a comparison of estimators, and measure what its codes tell of the actions.

    Attributes:
        comparison: folder of a comparison on action chunks, such as runs/compare/lift-claim.
        estimators: of those in it, by their labels; all by default.
        codes: learn from codes sampled from q(z|x), or from its most likely ones.
        policy: the networks.
        trainer: how long and on what.
    """

    comparison: Path
    estimators: tuple[str, ...] = ()
    codes: CodeSource = "sampled"
    policy: LatentPolicyConfig = field(default_factory=LatentPolicyConfig)
    trainer: TrainerConfig = field(default_factory=lambda: DistillPolicy().trainer)


COLUMNS = ("bound", "reconstruction", "kl_to_policy", "cross_entropy", "entropy", "policy_rmse", "ess", "spread")


def run(config: CompareCodes) -> list[JSON]:
    """One row a tokenizer, in <comparison>/codes-<source>.json; a finished one is not measured again."""
    rows = []
    for folder in finished_runs(config.comparison, config.estimators):
        print(f"{folder.name}: what its codes are worth", flush=True)
        rows.append(measured(folder, config))
        save_json(rows, config.comparison / f"codes-{config.codes}.json")
    print_table(rows)
    return rows


def finished_runs(comparison: Path, estimators: Sequence[str]) -> list[Path]:
    """The folders of the runs whose tokenizers are trained.

    Raises:
        ConfigError: there is none.
    """
    found = [path.parent for path in sorted(comparison.glob("*/result.json"))]
    wanted = [path for path in found if not estimators or re.sub(r"-\d+$", "", path.name) in estimators]
    if not wanted:
        names = ", ".join(path.name for path in found) or "none"
        raise ConfigError(f"{comparison} has no finished run of {', '.join(estimators) or 'any estimator'} (there: {names})")
    return wanted


def measured(folder: Path, config: CompareCodes) -> JSON:
    """Distil, or take the policy that is there; the row."""
    job = from_json(OneRun, load_json(folder / "job.json"))
    out = folder / f"policy-{config.codes}"
    demos = read_demos(Path(job.dataset))
    command = DistillPolicy(job.dataset, folder, out, out.exists(), codes=config.codes, env=demos.env_id or "none")
    metrics = distill_policy.run(replace(command, policy=config.policy, trainer=config.trainer))
    policy = LatentPolicy.from_pretrained(out / "model")
    _, valid = split(demos, policy.horizon, policy.history)
    errors = [metrics[f"rmse/{i}"] for i in range(policy.action_dim)]
    row: JSON = {
        "estimator": job.label,
        "seed": job.seed,
        "codes": config.codes,
        "policy_rmse": (sum(error**2 for error in errors) / len(errors)) ** 0.5,
        **action_bound(policy, valid),
    }
    if isinstance(policy.tokenizer.posterior, CodeModel):
        row |= calibration(policy, valid, getattr(settings_of(job), "beta_end", 1.0))
    return row


def print_table(rows: Sequence[JSON]) -> None:
    """Means over seeds with 95% t intervals."""
    print(f"{'':>16}" + "".join(f"{name:>18}" for name in COLUMNS))
    for label in dict.fromkeys(row["estimator"] for row in rows):
        cells = []
        for name in COLUMNS:
            values = [row[name] for row in rows if row["estimator"] == label and name in row]
            mean, half = interval(values) if values else (math.nan, math.nan)
            cells.append(f"{f'{mean:.3f} ± {half:.3f}'.removesuffix(' ± nan') if values else '–':>18}")
        print(f"{label:>16}" + "".join(cells))
