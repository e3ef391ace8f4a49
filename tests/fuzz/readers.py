"""Every reader of files: how a small valid input is made, how it is read whole, and what must hold of what was read."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import torch
from lerobot_folder import write_films, write_lerobot
from lightning_fabric import Fabric
from PIL import Image
from tiny import make_imitation, make_policy, make_tokenizer
from training.toy_objective import ToyData, ToyObjective, config

from daps_robot.checkpoints import load_tensors
from daps_robot.commands.distill_policy import command_of, run_description
from daps_robot.commands.evaluate import stage_seconds
from daps_robot.commands.leaderboard import row
from daps_robot.commands.one_run import BUDGETS, OneRun
from daps_robot.commands.policy_run import Learning, PolicyJob, PolicyRun, RolloutJob, TokenizerJob, run_policy
from daps_robot.commands.train_action_vae import ChunkTokenizerConfig
from daps_robot.commands.train_policy import TrainPolicy
from daps_robot.config import differences, from_json, load_json, save_json
from daps_robot.data import cifar10, mnist
from daps_robot.data.chunks import ChunkDataset
from daps_robot.data.codes import CodesFile, CodesHeader, write_codes
from daps_robot.data.decode import PictureDecoder
from daps_robot.data.demo_writer import DemoWriter, Episode
from daps_robot.data.demos import DemoSet, read_demos
from daps_robot.data.env_args import env_differences
from daps_robot.data.motion import FPS, LAYOUT, read_motion
from daps_robot.data.picture_files import FolderPictures, JpegPictures
from daps_robot.data.tar_files import TarPictures
from daps_robot.errors import DataError, SimulationError
from daps_robot.exported import ExportedPolicy
from daps_robot.models.action_tokenizer import load_tokenizer
from daps_robot.models.bins import BinsTokenizer, BinsTokenizerConfig
from daps_robot.models.export import export_policy
from daps_robot.models.fast import FASTTokenizer, FASTTokenizerConfig
from daps_robot.models.policies import load_policy
from daps_robot.models.tokenizer import Tokenizer
from daps_robot.report.run import read_run
from daps_robot.report.standings import standings
from daps_robot.training.logger import MetricLogger, read_rows
from daps_robot.training.loop import Training
from daps_robot.types import PlanRequest

from .damage import change_json, change_json_lines, damage_file
from .structure import (
    change_hdf5,
    change_mp4,
    change_npz,
    change_parquet,
    change_png,
    change_safetensors,
    change_state,
    change_tar,
)

Change = Callable[[Random, Path], None]


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    Attributes:
        build: writes a valid input into an empty folder.
        read: reads it whole, asserts what must hold of it, and returns what it says, to be compared.
        changes: of its structure; without any, bytes alone are damaged.
        damaged: whether bytes are.
        exact: whether a checksum covers every byte, so that damaged bytes are refused or change nothing.
        needs: packages, without which it is left out.
    """

    build: Callable[[Path], object]
    read: Callable[[Path], Any]
    changes: tuple[Change, ...] = ()
    damaged: bool = True
    exact: bool = False
    needs: tuple[str, ...] = ()

    def change(self, rng: Random, folder: Path) -> bool:
        """Spoil the input; whether only bytes were damaged."""
        if self.damaged and (not self.changes or rng.random() < 0.5):
            damage_file(rng, folder)
            return True
        rng.choice(self.changes)(rng, folder)
        return False

    @property
    def there(self) -> bool:
        return all(importlib.util.find_spec(name) for name in self.needs)


# -- demonstrations ----------------------------------------------------------------------------------------------------------


def episode(i: int, steps: int) -> Episode:
    rng = np.random.default_rng(i)
    observations = {"robot0_eef_quat": rng.normal(size=(steps + 1, 4)), "object": rng.normal(size=(steps + 1, 3))}
    actions = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
    return Episode(actions, observations, rng.normal(size=(steps, 5)), np.zeros(steps), np.zeros(steps, np.int64), i, "<mujoco/>")


def build_demos(folder: Path) -> None:
    controller = {"type": "BASIC", "body_parts": {"right": {"type": "OSC_POSE", "kp": 150}}}
    kwargs = {"robots": ["Panda"], "control_freq": 20, "controller_configs": controller}
    env_args = {"env_name": "Lift", "type": 1, "env_version": "1.5.2", "env_kwargs": kwargs, "action_units": ["m", ""]}
    with DemoWriter(folder / "demos.hdf5", {}) as writer:
        for i in range(3):
            writer.add(i, episode(i, 12 + i))
        writer.finish(3, 0.3, env_args)


def read_hdf5(folder: Path) -> Any:
    return said_by(read_demos(folder / "demos.hdf5"))


def said_by(demos: DemoSet) -> Any:
    """What a set of demonstrations says, once it is seen to be fit for training."""
    assert demos.train and set(demos.train) | set(demos.valid) <= {demo.name for demo in demos.demos}
    for demo in demos.demos:
        steps = len(demo)
        assert steps and demo.actions.shape == (steps, demo.actions.shape[1]) and np.isfinite(demo.actions).all()
        for key in demos.obs_keys:
            assert demo.obs[key].shape == (steps, demos.obs_dims[key]) and np.isfinite(demo.obs[key]).all()
        assert demo.states is None or (len(demo.states) == steps and np.isfinite(demo.states).all())
    windows = ChunkDataset(demos.select(demos.train), demos.obs_keys, 1, 2)
    assert windows.gather(torch.arange(len(windows))).actions.isfinite().all()
    told = [demos.rate, demos.action_units, env_differences(demos.env_args), demos.env_id, demos.train, demos.valid]
    return [told, [[demo.name, demo.actions, [demo.obs[key] for key in demos.obs_keys]] for demo in demos.demos]]


def filmed(folder: Path) -> Any:
    demos = read_demos(folder / "set", cameras=("top",), picture_size=(6, 8))
    assert all(demo.images["top"].shape == (len(demo), 6, 8, 3) for demo in demos.demos)
    return [said_by(demos), [demo.images["top"] for demo in demos.demos]]


def build_collection(folder: Path) -> None:
    with DemoWriter(folder / "demos.hdf5", {"noise": 1}) as writer:
        for i in range(2):
            writer.add(i, episode(i, 6))
        writer.add(2, None)


def finish_collection(folder: Path) -> Any:
    with DemoWriter(folder / "demos.hdf5", {"noise": 1}) as writer:
        done = writer.attempts()
        writer.finish(2, 0.5, {})
    return [done, read_hdf5(folder)]


# -- arrays ------------------------------------------------------------------------------------------------------------------


def build_motion(folder: Path) -> None:
    rng = np.random.default_rng(0)
    turns = rng.normal(size=(24, 4))
    frames = [rng.normal(size=(24, 3)), turns / np.linalg.norm(turns, axis=1, keepdims=True), rng.normal(size=(24, 29))]
    said = {"clip": np.array(["walk", "fall", "run"]), "clip_ends": np.array([8, 16, 24]), "fps": FPS, "layout": LAYOUT}
    np.savez(folder / "motion.npz", motion=np.hstack(frames).astype(np.float32), **said)


def motion(folder: Path) -> Any:
    splits = read_motion(folder / "motion.npz", 4, ("fall",))
    found = [split.gather(torch.arange(len(split))) for split in splits]
    assert all(len(each) and each.isfinite().all() for each in found)
    return found


DIGITS = {"train": 6, "test": 2}


def build_digits(folder: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images = {f"x_{split}": rng.integers(0, 256, (n, 28, 28), np.uint8) for split, n in DIGITS.items()}
    return images | {f"y_{split}": rng.integers(0, 10, n).astype(np.uint8) for split, n in DIGITS.items()}


def build_mnist(folder: Path) -> None:
    np.savez(folder / "mnist.npz", **build_digits(folder))


def build_idx(folder: Path) -> None:
    for name, array in build_digits(folder).items():
        kind = "images" if name[0] == "x" else "labels"
        path = folder / f"{'train' if 'train' in name else 't10k'}-{kind}-idx{array.ndim}-ubyte.gz"
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
        path.write_bytes(gzip.compress(header + array.tobytes()))


def digits(folder: Path) -> Any:
    before, mnist._COUNTS = mnist._COUNTS, DIGITS
    try:
        return [pictures_of(part) for part in mnist.read_mnist(folder)]
    finally:
        mnist._COUNTS = before


def build_cifar(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name in (*cifar10._TRAIN, *cifar10._TEST):
        rows = rng.integers(0, 256, (2, 3073), np.uint8)
        rows[:, 0] %= 10
        (folder / name).write_bytes(rows.tobytes())


def cifar(folder: Path) -> Any:
    before, cifar10._ROWS = cifar10._ROWS, 2
    try:
        return [pictures_of(part) for part in cifar10.read_cifar10(folder)]
    finally:
        cifar10._ROWS = before


# -- pictures ----------------------------------------------------------------------------------------------------------------

DECODER = PictureDecoder(8, "white", enlarge=True)


def encoded(seed: int, kind: str, mode: str = "RGB") -> bytes:
    size = (9, 12) if mode == "L" else (9, 12, len(mode))
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, np.uint8), mode).save(stream, kind)
    return stream.getvalue()


def build_folder(folder: Path) -> None:
    kinds = [("jpg", "JPEG", "RGB"), ("png", "PNG", "RGBA"), ("webp", "WEBP", "RGB"), ("bmp", "BMP", "RGB"), ("png", "PNG", "L")]
    for i, (suffix, kind, mode) in enumerate(kinds):
        place = folder / "pictures" / f"class{i % 2}" / f"{i}.{suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(i, kind, mode))


def build_tar(folder: Path) -> None:
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for i in range(3):
            for suffix, data in ((".png", encoded(i, "PNG")), (".cls", str(i % 2).encode())):
                member = tarfile.TarInfo(f"{i}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def build_jpegs(folder: Path) -> None:
    parts = [encoded(i, "JPEG") for i in range(4)]
    with h5py.File(folder / "jpegs.h5", "w") as file:
        file["train/jpeg"] = np.frombuffer(b"".join(parts), np.uint8)
        file["train/offset"] = np.cumsum([0, *map(len, parts)])
        file["train/label"] = np.array([0, 1, 1, 0])
        file.attrs["classes"] = "cat,dog"


def pictures_of(pictures: Any) -> Any:
    pixels = pictures.gather(torch.arange(len(pictures)))
    assert len(pixels) and pixels.dtype == torch.uint8 and pixels.shape[1:] == pictures.shape
    labels = pictures.labels
    assert labels is None or (len(labels) == len(pixels) and 0 <= labels.min() <= labels.max() < len(pictures.classes))
    return [pixels, labels, pictures.classes]


# -- codes, models, states ---------------------------------------------------------------------------------------------------


def build_codes(folder: Path) -> None:
    names = tuple(f"class{i % 2}/{i}" for i in range(20))
    codes = np.random.default_rng(0).integers(0, 100, (20, 6))
    write_codes(folder / "a.codes", CodesHeader("ab" * 32, 6, 100, names), [codes[:13], codes[13:]])


def codes_of(folder: Path) -> Any:
    file = CodesFile(folder / "a.codes")
    codes = file.codes(slice(0, len(file)))
    assert codes.shape == (len(file.header.names), file.header.positions) and (codes < file.header.vocabulary).all()
    return [codes, file.header.names, file.header.tokenizer]


def build_models(folder: Path) -> None:
    torch.manual_seed(0)
    make_tokenizer().save_pretrained(folder / "tokenizer")
    BinsTokenizer(BinsTokenizerConfig(8, 3, 4, 2)).save_pretrained(folder / "bins")
    FASTTokenizer(FASTTokenizerConfig(4, 2, 1.0, -1, 1, 0, 4, 8)).save_pretrained(folder / "fast")


def tokenizers(folder: Path) -> None:
    for name in ("tokenizer", "bins", "fast"):
        tokenizer = load_tokenizer(folder / name)
        size = tokenizer.config.codes
        assert size.positions * size.vocabulary < 10**8
        codes = torch.randint(min(size.vocabulary, 2**31), (2, 1, size.positions))
        finite(tokenizer.decode(codes, torch.zeros(2, 1)))
        if isinstance(tokenizer, Tokenizer):
            chunk = torch.zeros(2, *tokenizer.config.front_end.shape)
            assert tokenizer.encode(chunk).max() < size.vocabulary


def build_policies(folder: Path) -> None:
    torch.manual_seed(0)
    make_policy().save_pretrained(folder / "policy")
    make_imitation("regression")[0].save_pretrained(folder / "regression")


def policies(folder: Path) -> None:
    for name in ("policy", "regression"):
        policy = load_policy(folder / name)
        finite(policy.plan(PlanRequest(np.zeros((2, policy.history, policy.observation_dim), np.float32), np.arange(2))))


def finite(values: Any) -> None:
    """Weights may be finite and yet too large to reckon with; rollouts refuse such actions by `admit_actions`."""
    if not np.isfinite(np.asarray(values)).all():
        raise SimulationError("the actions are not finite")


def build_exported(folder: Path) -> None:
    torch.manual_seed(0)
    export_policy(make_imitation("regression")[0], folder / "policy.onnx", {})


def exported(folder: Path) -> Any:
    policy = ExportedPolicy(folder / "policy.onnx")
    return policy.plan(PlanRequest(np.zeros((1, policy.history, policy.observation_dim), np.float32), np.zeros(1, np.int64)))


def build_weights(folder: Path) -> None:
    torch.manual_seed(0)
    make_tokenizer().save_pretrained(folder)
    (folder / "config.json").unlink()


def weights(folder: Path) -> Any:
    return sorted(load_tensors(folder / "model.safetensors").items())


FABRIC = Fabric(accelerator="cpu", devices=1)


def training(folder: Path) -> Training:
    return Training(config(), folder, FABRIC, ToyObjective())


def build_state(folder: Path) -> None:
    made = training(folder)
    made.logger = MetricLogger(folder, 0, tensorboard=False)
    for _ in range(3):
        made.step(ToyData().gather(torch.arange(8)), slice(0, 8))
        made.progress.step += 1
    made.save()
    made.logger.close()
    (folder / "metrics.jsonl").unlink()


def state(folder: Path) -> Any:
    found = training(folder)
    found.load()
    read = [sorted(found.objective.state_dict().items()), str(found.progress)]
    found.step(ToyData().gather(torch.arange(8)), slice(0, 8))
    found.interval.means(FABRIC.device)
    return read


def build_request(folder: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(folder / "request.npz", observations=rng.normal(size=(2, 2, 5)).astype(np.float32), keys=np.arange(2))


POLICIES: list[Any] = []


def ask(folder: Path) -> None:
    """Of whatever arrays there are, two policies make a plan that is finite, or an error."""
    with np.load(folder / "request.npz") as file:
        arrays = {name: file[name] for name in ("observations", "keys") if name in file.files}
    if not POLICIES:
        POLICIES.extend([make_policy(), make_imitation("regression")[0]])
    for policy in POLICIES:
        request = PlanRequest(arrays.get("observations"), arrays.get("keys"))
        plan = policy.plan(request)
        assert plan.shape == (len(request.keys), policy.horizon, policy.action_dim) and np.isfinite(plan).all()


def change_request(rng: Random, folder: Path) -> None:
    rows = rng.choice((2, 2, 1, 3, 0))
    keys: Any = np.array([rng.choice((0, 1, 2**62, 3)) for _ in range(rows)], np.int64)
    seen: Any = np.random.default_rng(rng.randrange(99)).normal(size=(rows, 2, 5)).astype(np.float32)
    how = rng.choice(("value", "value", "shape", "type", "keys"))
    if how == "value" and seen.size:
        seen.flat[rng.randrange(seen.size)] = rng.choice((np.nan, np.inf, -np.inf, 3e38, 1e30, -1e20, 1e-45, 0.0))
    elif how == "shape":
        seen = np.zeros(rng.choice(((rows, 1, 5), (rows, 2, 4), (rows + 1, 2, 5), (rows, 2), (rows, 2, 5, 1))), np.float32)
    elif how == "type":
        seen = seen.astype(rng.choice(("f8", "f2", "i8", "U3", "c8", "?", ">f4")))
    elif how == "keys":
        keys = rng.choice((keys - 1, keys.astype("f4"), keys.astype("u8"), keys.astype("U5"), keys[None]))
    np.savez(folder / "request.npz", observations=seen, keys=keys)


# -- JSON --------------------------------------------------------------------------------------------------------------------

LEARNING = Learning("ab" * 32, "daps_robot/Lift-v0")
JOBS = {
    "tokenizer": TokenizerJob("daps", 0, LEARNING, ChunkTokenizerConfig()),
    "policy": PolicyJob("daps", 0, LEARNING, "sampled", "cd" * 32, True),
    "rollout": RolloutJob("policy/model", "ef" * 32, "daps_robot/Lift-v0", 2, None, 4),
    "one": OneRun("lift", "daps", "daps", {"beta_end": 0.5}, 0, BUDGETS["test"], ChunkTokenizerConfig()),
    "train": TrainPolicy.default(["--policy", "diffusion"]),
}


def build_configurations(folder: Path) -> None:
    for name, job in JOBS.items():
        save_json(job, folder / f"{name}.json")
    dataset = {"path": "data/lift.hdf5", "sha256": "ab" * 32}
    save_json({"command": JOBS["train"], "dataset": dataset, "tokenizer": str(folder)}, folder / "config.json")
    save_json({"training": 12.5, "report": 1}, folder / "timing.json")


def configurations(folder: Path) -> None:
    for name, job in JOBS.items():
        values = load_json(folder / f"{name}.json")
        again = from_json(type(job), values, name)
        assert type(again) is type(job)
        differences(values, job)
    description = run_description(folder)
    assert isinstance(command_of(folder), dict)
    assert all(isinstance(seconds, int | float) for seconds in stage_seconds(folder, description).values())


def build_results(folder: Path) -> None:
    """A run of a leaderboard that is finished."""
    run = folder / "run"
    (run / "policy" / "model").mkdir(parents=True)
    (run / "policy" / "model" / "model.safetensors").write_bytes(b"weights")
    job = PolicyJob("regression", 0, LEARNING, "sampled", None, False)
    found = {"seconds": 2.0, "best_step": 3, "kept": [], "bits": None, "parameters": 10, "horizon": 8, "execute": 4}
    from daps_robot.commands.distill_policy import fingerprint

    played = RolloutJob("policy/model", fingerprint(run / "policy" / "model"), LEARNING.env, 2, None, 4)
    (run / "best-n2").mkdir()
    outcomes = {"success": [True, False], "length": [10, 20], "score": [1.0, 0.25]}
    for place, of, result in (("policy", job, found), ("best-n2", played, outcomes)):
        save_json(of, run / place / "job.json")
        save_json(result, run / place / "result.json")


def results(folder: Path) -> None:
    run = run_policy(folder / "run", PolicyRun("regression", 0, "lift", LEARNING, episodes=2), None)
    (place,) = standings([run], "regression", {})
    assert 0 <= place.figures["success.best"].interval.mean <= 1
    json.dumps(row(run))


def build_report(folder: Path) -> None:
    for name in ("tokenizer", "policy"):
        (folder / name).mkdir()
        rows = [{"step": i, "split": split, "loss": 1.0 / (i + 1)} for i in range(6) for split in ("train", "valid")]
        (folder / name / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    records = [{"index": i, "success": bool(i % 2), "score": 0.5} for i in range(3)]
    report = {"rollouts": {"records": records, "videos": ["a.mp4"]}, "configuration": {"policy": {"tokenizer": None}}}
    save_json(report, folder / "report.json")


def report(folder: Path) -> None:
    run = read_run(folder)
    assert isinstance(run.graded, bool)
    for metrics in (run.tokenizer, run.policy):
        steps, values = metrics.series("train", "loss")
        assert len(steps) == len(values) and isinstance(metrics.last_step, int)
    MetricLogger(folder / "policy", 3, tensorboard=False).close()
    assert all(each["step"] <= 3 for each in read_rows(folder / "policy" / "metrics.jsonl"))


READERS = {
    "demos": Reader(build_demos, read_hdf5, (change_hdf5,)),
    "collection": Reader(build_collection, finish_collection, (change_hdf5, change_json)),
    "lerobot": Reader(lambda f: write_lerobot(f / "set", (5, 6, 7), 2), lambda f: said_by(read_demos(f / "set")),
                      (change_json, change_parquet, change_parquet), needs=("pyarrow",)),
    "films": Reader(lambda f: write_films(write_lerobot(f / "set", (5, 6, 7), 2), (5, 6, 7)), filmed,
                    (change_mp4, change_mp4, change_json, change_parquet), needs=("pyarrow", "av")),
    "motion": Reader(build_motion, motion, (change_npz,), exact=True),
    "mnist": Reader(build_mnist, digits, (change_npz,), exact=True),
    "idx": Reader(build_idx, digits, exact=True),
    "cifar": Reader(build_cifar, cifar),
    "jpegs": Reader(build_jpegs, lambda f: pictures_of(JpegPictures(f / "jpegs.h5", "train", DECODER)), (change_hdf5,)),
    "folder": Reader(build_folder, lambda f: pictures_of(FolderPictures(f / "pictures", DECODER)), (change_png,)),
    "tar": Reader(build_tar, lambda f: pictures_of(TarPictures([f / "shard.tar"], DECODER)), (change_tar,)),
    "codes": Reader(build_codes, codes_of, exact=True),
    "weights": Reader(build_weights, weights, exact=True),
    "tokenizers": Reader(build_models, tokenizers, (change_json, change_safetensors)),
    "policies": Reader(build_policies, policies, (change_json, change_safetensors)),
    "exported": Reader(build_exported, exported, exact=True, needs=("onnxruntime", "onnxscript")),
    "state": Reader(build_state, state, (change_state,), exact=True),
    "request": Reader(build_request, ask, (change_request,), damaged=False),
    "configurations": Reader(build_configurations, configurations, (change_json,)),
    "results": Reader(build_results, results, (change_json,)),
    "report": Reader(build_report, report, (change_json, change_json_lines)),
}  # fmt: skip


# -- readers that are at fault, to see that it is found ----------------------------------------------------------------------


def build_note(folder: Path) -> None:
    (folder / "note.txt").write_text("valid")


def at_fault(fault: Callable[[bytes], object]) -> Reader:
    """A reader that fails where the note is not what it was."""

    def read(folder: Path) -> bytes:
        note = (folder / "note.txt").read_bytes()
        if note != b"valid":
            fault(note)
        return note

    return Reader(build_note, read, exact=True)


def spin(note: bytes) -> None:
    while True:
        pass


def hog(note: bytes) -> None:
    try:
        bytearray(2**33)
    except MemoryError as error:
        raise DataError("the note is damaged") from error


FAULTS = {
    "crash": at_fault(lambda note: os.abort()),
    "untyped": at_fault(lambda note: {}["note"]),
    "spin": at_fault(spin),
    "hog": at_fault(hog),
    "silent": at_fault(lambda note: None),
}
