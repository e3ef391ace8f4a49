"""The commands of `scripts/` without a checkout: `daps-robot train_action_vae --dataset …`, or `python -m daps_robot …`."""

from __future__ import annotations

import ast
import runpy
import sys
from importlib import import_module
from pathlib import Path

from daps_robot.commands.cli import errors_for_a_person
from daps_robot.registry import unknown_name


def main() -> None:
    """Run the script that the first argument names, with the rest; an unknown name exits with status 2."""
    scripts = {path.stem: path for path in sorted(Path(import_module("daps_robot.scripts").__path__[0]).glob("[!_]*.py"))}
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: daps-robot <command> [options]; daps-robot <command> --help shows the options\n")
        print("\n".join(f"  {name:23}{summary(path)}" for name, path in scripts.items()))
        return
    with errors_for_a_person():
        if name not in scripts:
            raise unknown_name("command", name, list(scripts))
    del sys.argv[1]  # run_path puts the script in the place of the program, as `python scripts/…` has it
    runpy.run_path(str(scripts[name]), run_name="__main__")


def summary(path: Path) -> str:
    """What a script's docstring says that it does, before its example."""
    text = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
    return text.split(": python")[0].removesuffix("; see --help.").rstrip(".")


if __name__ == "__main__":
    main()
