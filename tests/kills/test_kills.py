"""Real trainings that are killed or can go no further, few of them. `python -m tests.kills --ranks` does more."""

import subprocess
import sys
from pathlib import Path


def test_killed_runs_come_to_the_same_and_faults_end_clearly():
    command = [sys.executable, "-m", "tests.kills", "--kills", "2", "--faults", "1"]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    assert ended.stdout.count("as it should be") == 4
