"""Views as plain data, for `--json`."""

from __future__ import annotations

from pmm_shm_terminal.output import json_value, printable

# Reading.


def test_plain_takes_any_view() -> None:
    assert json_value({1: (1, {2}), "b": b"\x01", None: frozenset({3}), "o": object}) == {
        "1": [1, [2]],
        "b": "01",
        "None": [3],
        "o": repr(object),
    }
    assert printable("a\nb\x1b\ud800é") == "a\\nb\\x1b\\ud800é"
