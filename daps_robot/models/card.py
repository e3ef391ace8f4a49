"""The README.md of a saved model: what it is, as far as its configuration and its training run say."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from daps_robot.config import load_json
from daps_robot.data.files import shown
from daps_robot.errors import ConfigError

TITLES = {
    "policy": "Latent policy: observations → codes → action chunk, with the tokenizer whose codes it predicts",
    "tokenizer": "Tokenizer: data → short discrete codes → data",
    "bins": "Tokenizer of action chunks: uniform bins",
    "fast": "Tokenizer of action chunks: FAST",
    "prior": "Prior over the codes of a tokenizer",
    "regression": "Policy: observations → action chunk by regression",
    "diffusion": "Policy: observations → action chunk by denoising",
    "bc-rnn-gmm": "Policy: observations → action by a recurrent network with a mixture of Gaussians",
}


def model_card(module: nn.Module, config: Any, kind: str, directory: Path) -> str:
    """Markdown, with the metadata at its head that the Hugging Face hub reads."""
    try:
        made_by = f"daps_robot {version('daps-robot')}"
    except PackageNotFoundError:
        made_by = "daps_robot"
    facts = [*_facts(module, config), *_dataset(directory), ("saved by", made_by)]
    of_actions = [] if kind == "prior" else ["robotics"] if getattr(module, "action_dim", None) else []
    return "\n".join(
        [
            "---",
            "library_name: daps_robot",
            f"tags: [{', '.join(['daps_robot', *of_actions])}]",
            "---",
            "",
            f"# {TITLES.get(kind, kind)}",
            "",
            *(f"- {name}: {value}" for name, value in facts),
            "",
            "```python",
            *_use(module),
            "```",
            "",
        ]
    )


def _facts(module: Any, config: Any) -> Iterator[tuple[str, str]]:
    """What the configuration says, in the order in which a reader asks."""
    acts = hasattr(module, "execute")
    if acts:
        keys = ", ".join(_quoted(key) for key in module.obs_keys)
        yield "observes", f"the last {module.history} steps of {module.observation_dim} numbers: {keys}"
        yield "plans", f"{module.horizon} steps of {module.action_dim} numbers, of which {module.execute} are executed by default"
    elif shape := getattr(getattr(config, "front_end", None), "shape", None):
        yield "encodes", " × ".join(map(str, shape))
    elif hasattr(module, "horizon"):
        yield "encodes", f"{module.horizon} × {module.action_dim}"
    if codes := getattr(config, "codes", None):
        bits = getattr(getattr(module, "tokenizer", module), "bits", codes.bits)
        yield "codes", f"{codes.positions} of {codes.vocabulary} values, {bits:.4g} bits"
    if decoding := getattr(config, "decoding", None):
        yield "decoding", decoding.method
    yield "weights", f"{sum(parameter.numel() for parameter in module.parameters()):,}"


def _dataset(directory: Path) -> Iterator[tuple[str, str]]:
    """What the run that the model lies in was trained on, if it lies in one."""
    try:
        run = load_json(directory.resolve().parent / "config.json")
    except ConfigError:
        return
    dataset = run.get("dataset") if isinstance(run, dict) else None
    if isinstance(dataset, dict) and isinstance(dataset.get("path"), str):
        digest = f", SHA-256 {_quoted(dataset['sha256'])}" if isinstance(dataset.get("sha256"), str) else ""
        yield "trained on", f"{_quoted(Path(dataset['path']).name)}{digest}"


def _use(module: Any) -> list[str]:
    where = '"owner/name"  # this directory, or its id on the Hugging Face hub'
    if hasattr(module, "execute"):
        return [
            "from daps_robot import load_policy",
            "",
            f"source = {where}",
            "policy = load_policy(source)",
            "policy.reset()",
            "action = policy.act(observation)  # {key: array}, at every step",
        ]
    name = type(module).__name__
    return [f"from {type(module).__module__} import {name}", "", f"source = {where}", f"model = {name}.from_pretrained(source)"]


def _quoted(text: str) -> str:
    """As code: a key of a foreign file may hold anything."""
    return f"`{shown(text).replace('`', chr(39))}`"
