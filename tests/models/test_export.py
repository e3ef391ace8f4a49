"""Exported policies plan as the saved ones do, and say what they are; files that are not theirs are refused."""

import copy
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import make_imitation, make_policy, tokenizer_config

from daps_robot.control import Controller
from daps_robot.data.normalize import Scaler
from daps_robot.errors import CheckpointError, ConfigError, DataError
from daps_robot.exported import METADATA, ExportedPolicy, sealed
from daps_robot.models.bins import BinsTokenizerConfig
from daps_robot.models.export import export_policy
from daps_robot.models.frontends import ObservationFrontEndConfig
from daps_robot.models.policy import DecodingConfig, LatentPolicy, PolicyConfig
from daps_robot.types import PlanRequest, SizedPolicy

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

RUN = {"dataset": {"path": "lift.hdf5"}, "command": {"env": None}}


def scaled(policy):
    """With scalers that do something."""
    policy.scaler.shift.normal_(), policy.scaler.scale.uniform_(0.5, 2)
    policy.tokenizer.scaler.shift.normal_(), policy.tokenizer.scaler.scale.uniform_(0.5, 2)
    return policy


def rotated():
    """Sees a quaternion as six numbers, has an offset head and a decoder that is conditioned on the observation."""
    policy = make_policy(observation=7, positions=2)
    tokenizer = tokenizer_config(positions=2, observation=5, obs_keys=("state",))
    config = replace(
        policy.config,
        tokenizer=tokenizer,
        front_end=ObservationFrontEndConfig(2, 7, 2, 16, policy.config.front_end.transformer),
        quaternions=(1,),
        offset_head=True,
    )
    policy = LatentPolicy(config).eval()
    policy.tokenizer.obs_scaler = Scaler.identity(5)
    torch.nn.init.normal_(policy.offset.layers[-1].weight)
    return policy


POLICIES = {
    "expected": lambda: make_policy(DecodingConfig("expected"), positions=2),
    "greedy": rotated,
    "regression": lambda: make_imitation("regression")[0],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Each policy and its file, exported when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def get(name):
        if name not in made:
            torch.manual_seed(0)
            policy = POLICIES[name]()
            if name != "regression":
                scaled(policy)
            export_policy(policy, folder / f"{name}.onnx", RUN)
            made[name] = policy, folder / f"{name}.onnx"
        return made[name]

    return get


def observations(count=12):
    return np.random.default_rng(0).normal(size=(count, 2, 5)).astype(np.float32)


@pytest.mark.parametrize("name", POLICIES)
def test_it_plans_as_the_saved_policy_does(name, files):
    policy, path = files(name)
    exported = ExportedPolicy(path)
    assert isinstance(exported, SizedPolicy)
    for attribute in ("obs_keys", "observation_dim", "obs_dims", "action_dim", "history", "horizon", "execute", "needs_expert"):
        assert getattr(exported, attribute) == getattr(policy, attribute)
    seen, keys = observations(), np.arange(12)
    plans = exported.plan(PlanRequest(seen, keys))
    np.testing.assert_allclose(plans, policy.plan(PlanRequest(seen, keys)), atol=1e-5)
    assert plans.dtype == np.float32
    np.testing.assert_array_equal(exported.plan(PlanRequest(seen[5:6], keys[5:6])), plans[5:6])
    codes, _ = exported.decide(seen[:1])
    if name == "regression":
        assert codes is None and exported.config.decoding == ""
    else:
        np.testing.assert_array_equal(codes, policy.codes(torch.from_numpy(seen[:1])))
        assert exported.config.decoding == policy.config.decoding.method
    assert exported.config.policy == policy.kind and exported.config.run == RUN
    assert exported.config.weights == sum(parameter.numel() for parameter in policy.parameters())
    for observation in seen[:, 0]:
        np.testing.assert_allclose(exported.act(observation), policy.act({"state": observation}), atol=1e-5)


def test_it_acts_without_torch(files, tmp_path):
    _, path = files("greedy")
    code = (
        "import sys, numpy; from daps_robot import Controller, ExportedPolicy; "
        f"Controller(ExportedPolicy({str(path)!r})).act(numpy.zeros(5)); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def edited(path, tmp_path, change):
    model = onnx.load(path)
    change(model)
    return written(model, tmp_path / "edited.onnx")


def written(model, path):
    """With a checksum that fits."""
    path.write_bytes(sealed(model.SerializeToString()))
    return path


def set_metadata(change):
    def edit(model):
        entry = next(each for each in model.metadata_props if each.key == METADATA)
        values = json.loads(entry.value)
        change(values)
        entry.value = json.dumps(values)

    return edit


FOREIGN = {
    "no exported policy": lambda model: model.ClearField("metadata_props"),
    "this version": set_metadata(lambda values: values.update(version=2)),
    "lacks policy": set_metadata(lambda values: values.update(config={})),
    "expected int": set_metadata(lambda values: values["config"].update(horizon="8")),
    "another graph": set_metadata(lambda values: values["config"].update(horizon=9)),
    "holds another graph": set_metadata(lambda values: values["config"].update(execute=9)),
    "not readable|not a readable": lambda model: model.graph.node.pop(),
}


@pytest.mark.parametrize("message", FOREIGN)
def test_a_foreign_file_is_refused(message, files, tmp_path):
    path = edited(files("greedy")[1], tmp_path, FOREIGN[message])
    with pytest.raises(CheckpointError, match=message):
        ExportedPolicy(path)


def test_a_damaged_file_is_refused(files, tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be read: No such file"):
        ExportedPolicy(tmp_path / "missing.onnx")
    content = files("greedy")[1].read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (b"", b"ONNX", content[: len(content) // 2], content[:-1], content + b"\0", bytes(flipped)):
        (tmp_path / "damaged.onnx").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"damaged\.onnx is damaged"):
            ExportedPolicy(tmp_path / "damaged.onnx")


def test_weights_in_another_file_are_not_read(files, tmp_path, monkeypatch):
    """Of a file that ONNX Runtime itself would read, from the folder in which the program runs."""
    monkeypatch.chdir(tmp_path)
    model = onnx.load(files("greedy")[1])
    onnx.save(model, "outside.onnx", save_as_external_data=True, location="secret", size_threshold=1024)
    content = (tmp_path / "outside.onnx").read_bytes()
    onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (tmp_path / "outside.onnx").write_bytes(sealed(content))
    with pytest.raises(CheckpointError, match=r"outside\.onnx is not a readable"):
        ExportedPolicy(tmp_path / "outside.onnx")


def test_nor_by_an_absolute_path(files, tmp_path):
    model = onnx.load(files("greedy")[1])
    onnx.save(model, tmp_path / "outside.onnx", save_as_external_data=True, location="secret", size_threshold=1024)
    model = onnx.load(tmp_path / "outside.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"outside\.onnx is not a readable"):
        ExportedPolicy(written(model, tmp_path / "outside.onnx"))


@pytest.mark.parametrize("name", POLICIES)
def test_what_overflows_is_refused_as_the_saved_policy_does(name, files):
    policy, path = files(name)
    policy, scaled = copy.deepcopy(policy), path.with_name(f"{name}-scaled.onnx")
    policy.scaler.scale.fill_(1e-3)  # by which it is divided
    export_policy(policy, scaled, RUN)
    for value, saved, exported in ((1e30, policy, path), (1e18, policy, scaled)):
        request = PlanRequest(np.full((1, 2, policy.observation_dim), value, np.float32), np.zeros(1, np.int64))
        for each in (saved, ExportedPolicy(exported)):
            with pytest.raises(DataError, match="overflow"):
                each.plan(request)


def test_observations_of_another_shape_are_refused(files):
    exported = ExportedPolicy(files("greedy")[1])
    for wrong in (np.zeros((1, 3, 5), np.float32), np.zeros((2, 2, 5), np.float32), np.zeros((1, 2, 5))):
        with pytest.raises(ConfigError, match=r"plans from float32 of \(1, 2, 5\)"):
            exported.decide(wrong)


def test_the_policy_that_was_exported_is_as_it_was(tmp_path):
    policy = make_imitation("regression")[0].train()
    export_policy(policy, tmp_path / "x.onnx", RUN)
    assert policy.training and all(module.training for module in policy.modules())


def test_what_cannot_be_exported_is_said(tmp_path):
    table = BinsTokenizerConfig(8, 3, knots=4)
    latent = make_policy().config
    of_table = PolicyConfig(table, ("state",), latent.front_end, table.codes, DecodingConfig("greedy"))
    for policy, message in (
        (make_policy(DecodingConfig("consensus")), "--method consensus cannot be exported: take expected or greedy"),
        (LatentPolicy(of_table), r"\(bins, fast\) cannot be exported"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_policy(policy, tmp_path / "x.onnx", RUN)
    with pytest.raises(ConfigError, match="a diffusion policy cannot be exported"):
        export_policy(make_imitation("diffusion")[0], tmp_path / "x.onnx", RUN)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_without_the_packages_they_are_named(missing, files, tmp_path, monkeypatch):
    _, path = files("greedy")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=r"daps-robot\[export\]"):
        export_policy(make_policy(), tmp_path / "x.onnx", RUN)
    if missing == "onnxruntime":
        with pytest.raises(ConfigError, match=r"daps-robot\[export\]"):
            ExportedPolicy(path)


def test_a_controller_runs_it(files):
    policy, path = files("greedy")
    ours, theirs = Controller(policy), Controller(ExportedPolicy(path))
    for observation in observations()[:, 0]:
        np.testing.assert_allclose(ours.act(observation), theirs.act({"state": observation}), atol=1e-5)
