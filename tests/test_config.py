"""Configurations to JSON and back, with every mistake named by its path."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from daps_robot.commands.distill_policy import DistillPolicy, LatentPolicyConfig
from daps_robot.commands.train_action_vae import ChunkTokenizerConfig, TrainActionVAE
from daps_robot.config import differences, from_json, load_json, save_json, to_json
from daps_robot.errors import ConfigError
from daps_robot.estimators import DAPSConfig
from daps_robot.models.blocks import TransformerConfig
from daps_robot.models.code_model import CodeModelConfig
from daps_robot.models.decoders import ChunkDecoderConfig, ConvDecoderConfig, MLPDecoderConfig
from daps_robot.models.frontends import ChunkFrontEndConfig, ObservationFrontEndConfig, PatchFrontEndConfig
from daps_robot.models.likelihoods import LikelihoodConfig
from daps_robot.models.policy import DecodingConfig, PolicyConfig
from daps_robot.models.posteriors import PosteriorConfig
from daps_robot.models.tokenizer import TokenizerConfig
from daps_robot.training.objective import TrainerConfig
from daps_robot.training.optimizer import OptimizerConfig

CONFIGS = [
    TransformerConfig(32, 8, 3, 2),
    CodeModelConfig(5, 17, False, TransformerConfig(32)),
    ChunkFrontEndConfig(8, 3, 4),
    PatchFrontEndConfig(8, 8, 3, 4, 2),
    ObservationFrontEndConfig(3, 11),
    ChunkDecoderConfig(8, 3, 5),
    MLPDecoderConfig(8, 8, 3, (5, 6, 7)),
    MLPDecoderConfig(hidden=()),
    ConvDecoderConfig(),
    LikelihoodConfig("action", 0.3, binary=(6,)),
    LikelihoodConfig("gaussian", "per-dimension"),
    LikelihoodConfig("gaussian", "per-output", 1e-4, 2.0),
    PosteriorConfig("fsq", (8, 6, 5)),
    PosteriorConfig(),
    DecodingConfig("sample", 0.7),
    DecodingConfig("beam", beam_width=7),
    TokenizerConfig(),
    TokenizerConfig(
        front_end=PatchFrontEndConfig(), decoder=MLPDecoderConfig(), posterior=PosteriorConfig(), obs_keys=("object",)
    ),
    TokenizerConfig(front_end=PatchFrontEndConfig(), decoder=ConvDecoderConfig()),
    PolicyConfig(TokenizerConfig(), ("robot0_eef_pos", "object"), decoding=DecodingConfig("beam")),
    DAPSConfig(trust_region="learned", k=16),
    OptimizerConfig(clip="norm"),
    TrainerConfig(max_steps=7, optimizer=OptimizerConfig(ema=0.9)),
    ChunkTokenizerConfig(scaling="per-dimension"),
    TrainActionVAE("can", Path("runs/here"), resume=True, obs_keys=("a", "b")),
    LatentPolicyConfig(history=5),
    DistillPolicy(tokenizer=Path("runs/tokenizer"), codes="most-likely"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_to_json_and_back(config):
    again = from_json(type(config), json.loads(json.dumps(to_json(config))))
    assert again == config
    assert hash(again) == hash(config)  # tuples are tuples again, not lists


def tampered(config, path, value):
    values = to_json(config)
    *parents, last = path.split(".")
    inner = values
    for name in parents:
        inner = inner[name]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return values


@pytest.mark.parametrize(
    "path, value, words",
    [
        ("codes.vocabulary", "256", r"file\.codes\.vocabulary: expected int"),
        ("codes.vocabulary", 2.5, r"file\.codes\.vocabulary: expected int"),
        ("codes.vocabulary", True, r"file\.codes\.vocabulary: expected int"),
        ("codes.vocabulary", None, r"file\.codes\.vocabulary: expected int"),
        ("codes.autoregressive", 1, r"file\.codes\.autoregressive: expected bool"),
        ("codes.transformer", [], r"file\.codes\.transformer: expected the fields of TransformerConfig"),
        ("codes.transformer.widht", 3, r"file\.codes\.transformer: .*'widht'.*Did you mean 'width'"),
        ("decoder.hidden", 64, r"file\.decoder\.hidden: expected a list"),
        ("decoder.hidden", [64, "x"], r"file\.decoder\.hidden\[1\]: expected int"),
        ("decoder._type", "Unheard", r"file\.decoder: expected one of ChunkDecoderConfig"),
        ("codes._type", 8, r"file\.codes: these are fields of 8, where CodeModelConfig is expected"),
        ("likelihood._type", "CodeModelConfig", r"file\.likelihood: these are fields of 'CodeModelConfig', where Likeli"),
        ("decoder", 5, r"file\.decoder: expected one of"),
        ("likelihood.variance", "huge", r"file\.likelihood\.variance"),
        ("likelihood.variance", [], r"file\.likelihood\.variance"),
        ("likelihood.kind", "laplace", "laplace"),
    ],
)
def test_mistakes_are_named_by_their_path(path, value, words):
    config = TokenizerConfig(front_end=PatchFrontEndConfig(), decoder=MLPDecoderConfig())
    with pytest.raises(ConfigError, match=words):
        from_json(TokenizerConfig, tampered(config, path, value), "file")


def test_a_missing_field_is_named_unless_it_has_a_default():
    config = PolicyConfig(TokenizerConfig(), ("object",))
    with pytest.raises(ConfigError, match="file: PolicyConfig lacks obs_keys"):
        from_json(PolicyConfig, tampered(config, "obs_keys", ...), "file")
    assert from_json(PolicyConfig, tampered(config, "decoding", ...)) == config


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Outer:
    choice: Literal["a", "b"] = "a"
    rate: float | Literal["auto"] = 1.0
    inner: Inner | None = None
    names: tuple[str, ...] = ()
    place: Path | None = None
    more: Inner = field(default_factory=Inner)


def test_unions_literals_and_options():
    for config in (Outer(), Outer("b", "auto", Inner(3), ("x",), Path("a/b"), Inner(2)), Outer(rate=2.0)):
        assert from_json(Outer, json.loads(json.dumps(to_json(config)))) == config
    assert from_json(Outer, {"rate": 3}).rate == 3.0
    assert isinstance(from_json(Outer, {"rate": 3}).rate, float)
    for wrong in ({"choice": "c"}, {"rate": "never"}, {"rate": True}, {"inner": 5}, {"names": "x"}, {"place": 5}, {"more": None}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            from_json(Outer, wrong)


def test_differences_name_the_fields():
    old = to_json(TrainActionVAE())
    new = to_json(TrainActionVAE(trainer=TrainerConfig(seed=3), obs_keys=("a",)))
    found = differences(to_json(TrainActionVAE(trainer=TrainerConfig())), new)
    assert found == ["obs_keys: [] → ['a']", "trainer.seed: 0 → 3"]
    assert differences(old, old) == []
    assert differences({"a": 1}, {"b": {"c": 2}}) == ["a: 1 → None", "b: None → {'c': 2}"]


def test_a_field_that_an_earlier_version_did_not_have_had_its_default():
    old = to_json({"command": TrainActionVAE(), "more": 1})
    del old["command"]["trainer"]["keep_last"], old["command"]["demonstrations"], old["command"]["obs_keys"]
    assert differences(old, {"command": TrainActionVAE(), "more": 1}) == []
    newer = {"command": TrainActionVAE(demonstrations=5, trainer=replace(TrainActionVAE().trainer, keep_last=2)), "more": 1}
    assert differences(old, newer) == ["command.demonstrations: None → 5", "command.trainer.keep_last: 0 → 2"]
    assert differences({**old, "command": 3}, {"command": 3, "more": None}) == ["more: 1 → None"]


def test_files(tmp_path):
    path = tmp_path / "config.json"
    save_json(TrainerConfig(), path)
    assert from_json(TrainerConfig, load_json(path)) == TrainerConfig()
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(ConfigError, match="cannot be read"):
        load_json(tmp_path / "absent.json")
    path.write_text('{"a": ')
    with pytest.raises(ConfigError, match="not JSON"):
        load_json(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ConfigError):
        load_json(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_json(path)
    with path.open("wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(ConfigError, match="too large"):
        load_json(path)


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "config.json"
    save_json({"a": 1}, path)
    with pytest.raises(TypeError):
        save_json({"a": object()}, path)
    assert load_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
