"""Messages of errors, as users read them."""

from __future__ import annotations


def one_line(error: BaseException, *parts: str) -> None:
    text = str(error)
    assert "\n" not in text
    assert len(text) < 500
    for part in parts:
        assert part in text
