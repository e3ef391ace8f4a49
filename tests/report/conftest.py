"""A finished run for the tests of its page."""

from pathlib import Path

import pytest
from small_run import SmallRun, make_run


@pytest.fixture
def small(tmp_path: Path) -> SmallRun:
    """A complete run."""
    return make_run(tmp_path)
