"""Tables fit the terminal: long columns are shortened, others are left out, and no column is squeezed."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from pmm_shm_terminal.output import cell, table
from pmm_shm_terminal.tables import COLUMN_MIN


def drawn(width: int, *, optional: tuple[str, ...] = ()) -> list[str]:
    made = table("id", "time", "kind", "content", "cid", optional=optional)
    made.add_row(*map(cell, ("17", "2026-01-02T03:04:05", "commitment_open", "to plan the week " * 6, "c" * 30)))
    out = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    out.print(made)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


def columns_of(lines: list[str]) -> dict[str, int]:
    header = next(line for line in lines if "id" in line)
    return {part.strip(): cell_len(part) - 2 for part in header.strip("┃").split("┃")}


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 100, 120, 200])
def test_no_line_is_too_long_and_no_column_too_narrow(width: int) -> None:
    lines = drawn(width, optional=("time", "kind"))
    assert max(map(cell_len, lines)) <= width
    own = {"id": 2, "time": 19, "kind": 15, "content": 101, "cid": 30}
    for name, columns in columns_of(lines).items():
        assert columns >= min(own[name], COLUMN_MIN), name


def test_what_matters_less_goes_first_and_is_named() -> None:
    everything = ["id", "time", "kind", "content", "cid"]
    assert list(columns_of(drawn(200))) == everything
    # 2 + 19 + 15 + 20 + 20, with borders and padding.
    assert list(columns_of(drawn(92, optional=("time", "kind")))) == everything
    narrow = drawn(91, optional=("time", "kind"))
    assert list(columns_of(narrow)) == ["id", "kind", "content", "cid"]
    assert narrow[-1] == "no room for: time"
    assert list(columns_of(drawn(60, optional=("time", "kind")))) == ["id", "content", "cid"]
    # Of others, those on the right.
    assert list(columns_of(drawn(60))) == ["id", "time", "kind"]


def test_only_the_widest_are_shortened() -> None:
    columns = columns_of(drawn(120))
    assert (columns["id"], columns["time"], columns["kind"], columns["cid"]) == (2, 19, 15, 30)
    assert columns["content"] < 101
