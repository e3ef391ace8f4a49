"""A few spoilt inputs for every reader, and that the engine finds readers that are at fault. `python -m tests.fuzz` does more."""

from fuzz.engine import fuzz, lines_of
from fuzz.readers import READERS


def test_spoilt_inputs_are_refused_or_read(tmp_path):
    readers = [name for name, reader in READERS.items() if reader.there]
    tallies = fuzz(readers, 8, 0, tmp_path)
    assert not any(tally.findings for tally in tallies.values()), "\n".join(lines_of(tallies))
    assert all(tally.refused + tally.read == 8 for tally in tallies.values())
    assert sum(tally.refused for tally in tallies.values()) > 40


def test_readers_at_fault_are_found(tmp_path):
    words = {"untyped": "KeyError", "hog": "takes memory", "silent": "something else", "crash": "SIGABRT", "spin": "too long"}
    tallies = fuzz(list(words), 1, 0, tmp_path, seconds=0.3)
    for name, word in words.items():
        assert word in tallies[name].findings[0], tallies[name]
    assert (tmp_path / "untyped-0" / "note.txt").read_bytes() != b"valid"
