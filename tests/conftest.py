"""Shared by all tests; its place also makes the builders of `tiny.py` importable."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def reference():
    """Numbers computed by the method's public implementation on random inputs."""
    with np.load(Path(__file__).parent / "fixtures" / "reference_numbers.npz") as file:
        return {key: file[key] for key in file.files}
