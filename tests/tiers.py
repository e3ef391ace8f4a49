"""python -m tests.tiers core vq oldest …: each tier of dependencies in an environment of its own, as `make tiers` runs them.

The sdist, and from it the wheel, are built first. A tier installs the wheel and runs tests of the unpacked sdist, so that nothing
comes from the checkout:

    package   the wheel alone: every module imports, and README's commands for own demonstrations make their page
    core      the same, with tests; those that need an extra skip
    <extra>   one extra on top of core, with its tests; none may skip that needs no other extra
    oldest    the lowest versions that pyproject.toml allows
    newest    the highest, which constraints.txt may hold back

torch is the one of constraints.txt in all of them: on Linux, the package index has none without CUDA, and where another index
has it, it is left as it is.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PINNED = ROOT / "constraints.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]

CORE = [
    "tests/data",
    "tests/models/test_tokenizer.py",
    "tests/models/test_policy.py",
    "tests/rollout/test_rollout_evaluate.py",
    "tests/report/test_report_page.py",
    "tests/training/test_commands.py",
    "tests/test_control.py",
]
"""Between them they use every package that core needs."""

TESTS = {
    "sim": ["tests/envs/test_tasks.py", "tests/envs/test_collect.py", "tests/rollout/test_rollout_video.py"],
    "robomimic": ["tests/models/test_bc_rnn.py", "tests/data/test_demos.py"],
    "diffusion": ["tests/models/test_diffusion.py"],
    "vq": ["tests/models/test_rivals.py", "tests/estimators/test_all_estimators.py"],
    "fast": ["tests/models/test_fast.py", "tests/training/test_fitted.py"],
    "fid": ["tests/report/test_fid.py"],
    "lerobot": ["tests/data/test_lerobot.py"],
    "lerobot-video": ["tests/data/test_lerobot_pictures.py"],
    "pusht": ["tests/envs/test_pusht.py"],
    "hub": ["tests/models/test_pretrained.py"],
    "export": ["tests/models/test_export.py"],
    "wandb": ["tests/training/test_wandb.py"],
}
"""Extra → what it is needed for."""

OLDEST = [extra for extra in TESTS if extra not in ("robomimic", "fid")]  # whose torchvision must fit torch
NEWEST = [extra for extra in OLDEST if extra not in ("sim", "pusht")]  # which hold NumPy back

ABSENT = r"is not there|OpenGL|rendered here|would end this very process"
"""Reasons to skip that have to do with no package: data sets, and a GL library."""

MISSING = r"not installed|could not import|cannot be had here"

IMPORT_ALL = """
import importlib, pkgutil, daps_robot
[getattr(daps_robot, name) for name in daps_robot.__all__]
for module in pkgutil.walk_packages(daps_robot.__path__, "daps_robot."):
    importlib.import_module(module.name)
"""

WRITE_DEMOS = """
import h5py, numpy as np
with h5py.File("my_task.hdf5", "w") as file:
    for i in range(12):
        walk = np.cumsum(np.random.default_rng(i).normal(size=(60, 26)), axis=0)
        file[f"data/demo_{i}/actions"] = np.sin(walk / 5)
        file[f"data/demo_{i}/obs/joints"] = walk
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiers", nargs="*", metavar="tier", default=["package", "core", *TESTS, "oldest", "newest"])
    parser.add_argument("--place", type=Path, default=ROOT / "build" / "tiers", help="of the environments, while they are needed")
    given = parser.parse_args()
    if unknown := set(given.tiers) - {"package", "core", *TESTS, "oldest", "newest"}:
        parser.error(f"no such tier: {', '.join(unknown)}")
    place = given.place.absolute()
    wheel, sources = build(place)
    base = None if {"oldest", "newest"} >= set(given.tiers) else environment(place / "base", PINNED, wheel)
    verdicts = {tier: verdict(tier, place, wheel, sources, base) for tier in given.tiers}
    shutil.rmtree(place)
    print(*(f"{tier:10}{text}" for tier, text in verdicts.items()), sep="\n")
    return int(any("FAILED" in text for text in verdicts.values()))


def verdict(tier: str, place: Path, wheel: Path, sources: Path, base: Path | None) -> str:
    """Run a tier, and say how it went."""
    started, packages = time.perf_counter(), f"{wheel}[{','.join(['test', *of_tier(tier)])}]"
    try:
        if tier == "package":
            walk_through(base, place / "elsewhere")
        elif tier == "core":
            python = environment(place / tier, PINNED, packages, above=base)
            run_tests(python, sources, ["--collect-only", "tests"], may_skip=MISSING)
            run_tests(python, sources, CORE, may_skip=f"{ABSENT}|{MISSING}")
        elif tier in TESTS:
            for_another = rf"daps-robot\[(?!{tier}\])"
            python = environment(place / tier, PINNED, packages, above=base)
            run_tests(python, sources, TESTS[tier], may_skip=f"{ABSENT}|{for_another}")
        else:
            bounds = place / f"{tier}.txt"
            bounds.write_text("\n".join([pinned("torch"), *(lowest() if tier == "oldest" else [])]))
            tests = [*CORE, *(test for extra in of_tier(tier) for test in TESTS[extra])]
            may_skip = f"{ABSENT}|torchvision|robomimic|robosuite"
            run_tests(environment(place / tier, bounds, packages), sources, tests, may_skip)
        result = "passed"
    except (subprocess.CalledProcessError, RuntimeError) as error:
        result = f"FAILED: {error}"
    shutil.rmtree(place / tier, ignore_errors=True)
    return f"{result} ({time.perf_counter() - started:.0f} s)"


def of_tier(tier: str) -> list[str]:
    """Its extras."""
    return {"core": [], "package": [], "oldest": OLDEST, "newest": NEWEST}.get(tier, [tier])


def build(place: Path) -> tuple[Path, Path]:
    """The wheel, and the sources of the sdist without the package itself: what is tested is the installed one."""
    shutil.rmtree(place, ignore_errors=True)
    python = environment(place / "build", None, "build")
    run(python, "-m", "build", "--outdir", place / "dist", ROOT)
    (sdist,), (wheel,) = (place / "dist").glob("*.tar.gz"), (place / "dist").glob("*.whl")
    with tarfile.open(sdist) as archive:
        archive.extractall(place, filter="data")
    sources = place / sdist.name.removesuffix(".tar.gz")
    shutil.rmtree(sources / "daps_robot")
    return wheel, sources


def environment(place: Path, constraints: Path | None, *packages: str | Path, above: Path | None = None) -> Path:
    """The Python of a fresh virtual environment, which also sees the packages of the one `above` which it lies."""
    run(sys.executable, "-m", "venv", place)
    python = place / "bin" / "python"
    if above is not None:
        (own,), (lower,) = (path.glob("lib/python*/site-packages") for path in (place, above.parents[1]))
        (own / "lower.pth").write_text(f"{lower}\n")
    run(python, "-m", "pip", "install", "--quiet", *(["-c", constraints] if constraints else []), *packages)
    return python


def run_tests(python: Path, sources: Path, tests: list[str], may_skip: str) -> None:
    """Raises RuntimeError where tests skipped for another reason."""
    options = ["-q", "-x", "-rs", "-m", "not slow", "-p", "no:cacheprovider"]
    said = run(python, "-P", "-m", "pytest", *options, *tests, cwd=sources)
    skipped = [line for line in said.splitlines() if line.startswith("SKIPPED") and not re.search(may_skip, line)]
    if skipped:
        raise RuntimeError("; ".join(skipped))


def walk_through(python: Path, place: Path) -> None:
    """What a newcomer does who has a file of 26-D actions, after `pip install`, with fewer steps."""
    place.mkdir()
    run(python, "-c", IMPORT_ALL, cwd=place)
    run(python, "-c", WRITE_DEMOS, cwd=place)
    steps = "--max-steps 12 --eval-every 6"
    short = {"train_action_vae": f"{steps} --warm-start-steps 6", "distill_policy": steps}
    readme = (ROOT / "README.md").read_text().replace("path/to/", "")
    for command, options in re.findall(r"^daps-robot (\w+)([^#\n]*)", readme, re.MULTILINE):
        run(python.with_name("daps-robot"), command, *options.split(), *short.get(command, "").split(), cwd=place)
    if not (place / "runs/my_task/report.html").is_file():
        raise RuntimeError("README's commands for own demonstrations wrote no runs/my_task/report.html")


def lowest() -> list[str]:
    """name==bound of the dependencies that have a lower bound, but torch."""
    wanted = [*PROJECT["dependencies"], *(package for extra in ["test", *OLDEST] for package in EXTRAS[extra])]
    bounds = [re.match(r"([\w-]+)>=([\w.]+)", package) for package in wanted]
    return sorted({f"{bound[1]}=={bound[2]}" for bound in bounds if bound and bound[1] != "torch"})


def pinned(package: str) -> str:
    """Its line of constraints.txt."""
    return next(line for line in PINNED.read_text().splitlines() if line.startswith(f"{package}=="))


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command, showing what it says as it comes; raises CalledProcessError."""
    print("+", *command, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(list(map(str, command)), cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True) as child:
        lines = []
        for line in child.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, [str(word) for word in command[:8]])
    return "".join(lines)


if __name__ == "__main__":
    sys.exit(main())
