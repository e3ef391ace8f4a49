"""What the README tells people to type works: its commands, in order, with settings small enough for a test."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from daps_robot.data.catalog import find_file

pytestmark = pytest.mark.timeout(900)  # whole chains of processes, each of which imports everything

ROOT = Path(__file__).parents[1]
TRAIN = ["--overwrite", "--max-steps", "12", "--batch-size", "8", "--eval-every", "6", "--no-tensorboard"]
STUDY = ["--seeds", "1", "--episodes", "2", "--ceiling-episodes", "2", "--max-steps", "16", "--budget", "0.004"]
SMALL = {
    "collect_demos.py": ["--demos", "6"],
    "convert_actions.py": [],
    "render_demos.py": ["--cameras", "agentview", "--size", "24"],
    "train_action_vae.py": [*TRAIN, "--warm-start-steps", "6", "--width", "16", "--layers", "1"],
    "inspect_data.py": [],
    "inspect_codes.py": ["--top", "1", "--videos", "1"],
    "distill_policy.py": [*TRAIN, "--width", "16", "--layers", "1"],
    "train_policy.py": [*TRAIN, "--width", "16", "--layers", "1"],
    "evaluate.py": ["--episodes", "2", "--ceiling-episodes", "2", "--videos", "0", "--max-steps", "16", "--slots", "2"],
    "benchmark.py": ["--steps", "1"],
    "export_policy.py": ["--observations", "4", "--calls", "2"],
    "train_image_tokenizer.py": [*TRAIN, "--warm-start-steps", "6", "--validate-on", "8"],
    "train_image_prior.py": [*TRAIN, "--width", "16", "--layers", "1"],
    "sample_images.py": ["--count", "2"],
    "encode_images.py": [],
    "decode_images.py": [],
    "ablate.py": ["--preset", "test", "--draws", "2", "--seeds", "1", "--max-steps", "5"],
    "compare_codes.py": TRAIN[1:],
    "leaderboard.py": [*STUDY, "--policies", "fsq", "regression", "--last", "1"],
    "sweep.py": [*STUDY, "--policies", "fsq", "--values", "2"],
    "compare_estimators.py": ["--preset", "test", "--seeds", "1", "--estimators", "daps", "fsq"],
}


def blocks(language: str, text: str | None = None) -> list[str]:
    text = (ROOT / "README.md").read_text() if text is None else text
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str | None = None) -> list[list[str]]:
    lines = [line.split("#")[0].strip() for block in blocks("sh", text) for line in block.splitlines()]
    lines = [re.sub(r"^daps-robot (\w+)", r"python scripts/\1.py", line) for line in lines]
    return [shlex.split(line) for line in lines if line.startswith("python scripts/")]


def of_pictures(command: list[str]) -> bool:
    return "image" in Path(command[1]).name


def sections() -> dict[str, list[list[str]]]:
    """Heading → its commands but for those on pictures, where there are any."""
    texts = (ROOT / "README.md").read_text().split("\n## ")[1:]
    found = {text.splitlines()[0]: [c for c in commands(text) if not of_pictures(c)] for text in texts}
    return {heading: those for heading, those in found.items() if those}


def run(command: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=place, capture_output=True, text=True, timeout=400)


def run_small(commands: list[list[str]], place: Path) -> None:
    """Each of the commands, with settings small enough for a test."""
    for command in commands:
        arguments = [argument.replace("compare/lift-small", "compare/lift-test") for argument in command[2:]]  # --preset test
        if any("path/to/my_task.hdf5" in argument for argument in arguments):  # demonstrations and runs of its own
            (place / "path/to").mkdir(parents=True, exist_ok=True)
            shutil.copy(place / "data/lift.hdf5", place / "path/to/my_task.hdf5")
        arguments = [argument.replace("path/to/pictures", "pictures") for argument in arguments]
        done = run([str(ROOT / command[1]), *arguments, *SMALL[Path(command[1]).name]], place)
        if "Rendering needs an OpenGL library" in done.stderr:
            pytest.skip("no OpenGL here to render with")
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"


def test_the_readme_shows_every_script():
    assert {Path(command[1]).name for command in commands()} == {path.name for path in (ROOT / "scripts").glob("[!_]*.py")}


@pytest.mark.slow
def test_the_chain_and_the_python_of_the_readme(tmp_path):
    pytest.importorskip("robosuite")
    run_small(sections()["Step by step"], tmp_path)
    report = json.loads((tmp_path / "runs/lift/report.json").read_text())
    assert 0 <= report["success_rate"] <= 1 and report["episodes"] == 2
    assert set(report["seconds"]) >= {"tokenizer", "policy", "rollouts", "ceiling"}
    assert report["bits_per_chunk"] == 64 and len(report["reconstruction_rmse"]) == 7
    assert (tmp_path / "runs/lift/report.html").stat().st_size > 10_000
    for block in blocks("python"):
        done = run(["-c", block], tmp_path)
        assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("heading", [heading for heading in sections() if heading != "Step by step"])
def test_further_commands_of_the_readme(heading, tmp_path):
    pytest.importorskip("robosuite")
    collect = next(command for command in commands() if command[1].endswith("collect_demos.py"))
    run_small([collect, *sections()[heading]], tmp_path)


@pytest.mark.slow
def test_commands_with_pictures_of_the_readme(tmp_path):
    if find_file("mnist.npz") is None:
        pytest.skip("mnist.npz is not there")
    chance = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(9):
        Image.fromarray(chance.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    run_small(list(filter(of_pictures, commands())), tmp_path)
    assert len(list((tmp_path / "decoded").glob("*.png"))) == 9
    assert (tmp_path / "samples.png").is_file() and (tmp_path / "runs/mnist-quick/tokenizer/report.html").is_file()


def test_the_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^)make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
