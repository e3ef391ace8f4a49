"""The package as its users and their type checkers see it, and that CI does what `make` does."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import daps_robot

PACKAGE = Path(daps_robot.__file__).parent
LAYERS = [PACKAGE, *(PACKAGE / name for name in ("data", "estimators", "models", "rollout", "training"))]


def members(name):
    """The functions of a public name that are of this package: itself, or its public methods and properties."""
    item = getattr(daps_robot, name)
    if not inspect.isclass(item):
        return {name: item}
    ours = [base for base in item.__mro__ if base.__module__.startswith("daps_robot")]
    found = {key: value for base in reversed(ours) for key, value in vars(base).items() if not key.startswith("_")}
    functions = {key: getattr(value, "fget", None) or getattr(value, "__func__", value) for key, value in found.items()}
    return {f"{name}.{key}": value for key, value in functions.items() if inspect.isfunction(value)} | {name: item.__init__}


@pytest.mark.parametrize("name", [name for name in daps_robot.__all__ if not name.endswith("Error")])
def test_public_names_say_what_they_do_and_take(name):
    assert inspect.getdoc(getattr(daps_robot, name))
    for member, function in members(name).items():
        signature = inspect.signature(function)
        untyped = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name not in ("self", "cls")]
        assert not untyped and signature.return_annotation is not signature.empty, (member, untyped)
        assert inspect.getdoc(function) or member == name or member.endswith(".forward"), member


@pytest.mark.parametrize("path", sorted(path for layer in LAYERS for path in layer.glob("*.py")), ids=lambda path: path.stem)
def test_modules_classes_and_functions_have_docstrings(path):
    tree = ast.parse(path.read_text())
    public = [n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and not n.name.startswith("_")]
    assert ast.get_docstring(tree) and not [node.name for node in public if not ast.get_docstring(node)]


def test_types_are_shipped():
    assert (PACKAGE / "py.typed").is_file()


def test_the_command_runs_scripts_and_names_the_near_miss():
    def run(*words):
        return subprocess.run([sys.executable, "-m", "daps_robot", *words], capture_output=True, text=True, timeout=60)

    listed = run().stdout
    scripts = (Path(__file__).parents[1] / "scripts").glob("[!_]*.py")
    assert all(f"\n  {script.stem} " in listed for script in scripts)
    wrong = run("train_action_vea")
    assert wrong.returncode == 2 and "Did you mean 'train_action_vae'?" in wrong.stderr and "Traceback" not in wrong.stderr
    absent = run("inspect_data", "--dataset", "absent.hdf5")
    assert absent.returncode == 2 and absent.stderr.startswith("error: ") and "absent.hdf5" in absent.stderr


def test_every_extra_is_a_tier():
    from tiers import EXTRAS, TESTS

    assert TESTS.keys() == EXTRAS.keys() - {"test", "dev"}
    assert all((Path(__file__).parents[1] / test).exists() for tests in TESTS.values() for test in tests)
