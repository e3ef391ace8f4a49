"""Where saved models are found, and what is written beside them."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from tiny import make_imitation, make_policy, make_tokenizer

import daps_robot
from daps_robot.commands.distill_policy import fingerprint
from daps_robot.errors import CheckpointError, ConfigError
from daps_robot.models.bins import BinsTokenizer, BinsTokenizerConfig
from daps_robot.models.pretrained import find_model


def test_the_public_names_load_when_they_are_asked_for():
    code = "import sys, daps_robot; daps_robot.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    for name in daps_robot.__all__:
        assert getattr(daps_robot, name).__name__ == name
    assert daps_robot.__version__ == version("daps-robot")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = daps_robot.nothing


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("kind", ["latent", "regression", "tokenizer", "bins"])
def test_a_model_is_found_in_its_directory_and_in_its_run(kind, tmp_path, monkeypatch):
    model = {
        "latent": make_policy,
        "regression": lambda: make_imitation("regression")[0],
        "tokenizer": make_tokenizer,
        "bins": lambda: BinsTokenizer(BinsTokenizerConfig(8, 3, knots=4)),
    }[kind]()
    model.save_pretrained(tmp_path / "runs" / "policy" / "model")
    (tmp_path / "runs" / "policy" / "config.json").write_text(json.dumps({"command": {}}))  # as a training writes it
    load = daps_robot.load_policy if kind in ("latent", "regression") else daps_robot.load_tokenizer
    monkeypatch.chdir(tmp_path)
    for source in ("runs/policy", "runs/policy/model", Path("runs/policy"), tmp_path / "runs" / "policy" / "model"):
        assert same(load(source), model)
        assert same(type(model).from_pretrained(source), model)


def test_a_model_of_its_own_comes_before_one_in_a_folder(tmp_path):
    own, other = make_tokenizer(), make_tokenizer()
    own.save_pretrained(tmp_path)
    other.save_pretrained(tmp_path / "model")
    assert find_model(tmp_path) == tmp_path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that holds one policy; the arguments that it is asked with."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    make_policy().save_pretrained(tmp_path / "hub")
    asked = []

    def snapshot_download(*args, **kwargs):
        asked.append((args, kwargs))
        if args[0] != "lab/lift":
            raise OSError("404 Client Error")
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    return asked


def test_what_is_not_here_is_looked_for_on_the_hub(hub, tmp_path):
    for source, revision in (("lab/lift", None), ("lab/lift@v1.0", "v1.0"), ("lab/lift@refs/pr/1", "refs/pr/1")):
        hub.clear()
        assert daps_robot.load_policy(source).horizon == 8
        assert hub == [(("lab/lift",), {"revision": revision, "allow_patterns": ["config.json", "model.safetensors"]})]
    hub.clear()
    assert daps_robot.LatentPolicy.from_pretrained("lab/lift").horizon == 8 and len(hub) == 1
    with pytest.raises(CheckpointError, match=r"lab/other is no directory here.*at revision main: 404"):
        daps_robot.load_policy("lab/other@main")


def test_a_directory_comes_first_and_a_path_never_leads_to_the_hub(hub, tmp_path):
    make_policy().save_pretrained(tmp_path / "lab" / "lift")
    daps_robot.load_policy("lab/lift")
    for source in (Path("lab/missing"), "missing", "runs/lift/missing", "../lab/missing", "https://lab/missing", "lab/lift@"):
        with pytest.raises(CheckpointError, match="no saved model"):
            daps_robot.load_policy(source)
    assert hub == []


def test_the_hub_is_asked_over_https_alone(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ConfigError, match="over https alone"):
        find_model("someone/lift")


def test_a_name_longer_than_names_may_be_is_refused():
    with pytest.raises(CheckpointError, match="cannot be the name"):
        find_model("a" * 5000)


def test_without_the_hub_client_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no directory lab/lift here.*daps-robot\[hub\]"):
        daps_robot.load_policy("lab/lift")


def test_the_card_says_what_the_configuration_says(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"dataset": {"path": "/home/me/lift.hdf5", "sha256": "5f"}}))
    policy = make_policy()
    policy.save_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    count = sum(parameter.numel() for parameter in policy.parameters())
    for fact in (
        "the last 2 steps of 5 numbers: `state`",
        "8 steps of 3 numbers, of which 4 are",
        "4 of 16 values, 16 bits",
        "decoding: greedy",
        f"weights: {count:,}",
        "trained on: `lift.hdf5`, SHA-256 `5f`",
        f"daps_robot {version('daps-robot')}",
    ):
        assert fact in card, card
    assert "/home/me" not in card
    use = card.split("```python\n")[1].split("```")[0].replace('"owner/name"', repr(str(tmp_path / "model")))
    exec(use, {"observation": {"state": torch.zeros(5)}})


def test_cards_of_other_models(tmp_path):
    make_tokenizer().save_pretrained(tmp_path / "a" / "b")
    card = (tmp_path / "a" / "b" / "README.md").read_text()
    assert "encodes: 8 × 3" in card and "trained on" not in card
    use = card.split("```python\n")[1].split("```")[0].replace('"owner/name"', repr(str(tmp_path / "a" / "b")))
    exec(use, {})
    BinsTokenizer(BinsTokenizerConfig(8, 3, knots=4)).save_pretrained(tmp_path / "c")
    assert "12 of 256 values, 96 bits" in (tmp_path / "c" / "README.md").read_text()
    make_imitation("regression")[0].save_pretrained(tmp_path / "d")
    assert "codes" not in (tmp_path / "d" / "README.md").read_text().split("```")[0]


def test_a_key_cannot_write_into_the_card(tmp_path):
    policy = make_policy()
    policy.obs_keys = ("a`\n# b", "c")
    policy.save_pretrained(tmp_path)
    assert "\n# b" not in (tmp_path / "README.md").read_text()


def test_the_card_is_no_part_of_what_a_model_is_known_by(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    before = fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    assert fingerprint(tmp_path) == before
