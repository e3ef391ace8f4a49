"""Names as messages show them, and errors of the file system as errors for a person."""

import os

import pytest

from daps_robot.data.files import shown, spelt, unreadable_named
from daps_robot.errors import DataError


def test_names_are_spelt_out_where_a_terminal_would_act_on_them():
    assert shown("a b/ü.png") == "a b/ü.png"
    assert shown("a\n\x1b[2J") == r"'a\n\x1b[2J'"
    assert shown(os.fsdecode(b"\xff")) == r"'\udcff'"


def test_messages_keep_their_lines_and_nothing_else_that_is_not_text():
    assert spelt("no ü\nbut \x1b[2J") == "no ü\nbut \\x1b[2J"


def test_what_the_system_refuses_is_named():
    message = r"^/secret/x cannot be read \(Permission denied\); check its permissions.$"
    with pytest.raises(DataError, match=message), unreadable_named():
        raise PermissionError(13, "Permission denied", "/secret/x")
