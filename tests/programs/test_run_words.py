"""The words of `pmm-shm run`: read twice, quickly and with all messages, and to the same effect."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from pmm_shm_pmm import command, launching
from pmm_shm_pmm.launching import command_line, plain_options

LINES = [
    "-m pmm.cli.chat",
    "-m pmm.cli.chat --ledger x -m y --report",
    "--ledger a.db -m x",
    "--no-daemon --report --elect-autonomy --ledger a.db --report-to f -m x -- y",
    "script.py --no-daemon",
    "--report program -m y --report",
    "program",
    "program --",
]
UNUSUAL = [
    "", "-m", "--ledger", "--ledger a.db", "--help", "-h", "-mx", "--ledger=a.db x", "--no-daemo x", "-- x", "--report",
    "--ledgr x y", "--report-to",
]  # fmt: skip


@pytest.fixture
def clicked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The arguments of `become` by way of click; the error where there are none."""
    found: dict[str, Any] = {}

    def become(*words: Any) -> None:
        names = ("target", "module", "ledger", "no_daemon", "report", "report_to", "elect_autonomy")
        found.update(zip(names, words, strict=True))

    monkeypatch.setattr(command, "become", become)

    def parse(line: str) -> dict[str, Any]:
        found.clear()
        command.run.main(line.split(), standalone_mode=False)
        return {name: value for name, value in found.items() if value not in (None, False)}

    return parse


@pytest.mark.parametrize("line", LINES)
def test_both_ways_agree(line: str, clicked: Any) -> None:
    quick = plain_options(line.split())
    assert quick is not None
    assert clicked(line) == quick


@pytest.mark.parametrize("line", UNUSUAL)
def test_what_is_unusual_is_left_to_click(line: str, clicked: Any) -> None:
    assert plain_options(line.split()) is None
    if line in ("-mx", "--ledger=a.db x", "-- x"):
        assert clicked(line)["target" if line != "-mx" else "module"] in (["x"], "x")
    elif "-h" not in line:
        with pytest.raises(click.UsageError):
            clicked(line)


def test_both_know_the_same_options() -> None:
    options = {name: one for one in command.run.params if isinstance(one, click.Option) for name in one.opts}
    assert {name for name, one in options.items() if one.is_flag} == set(launching.FLAGS)
    assert {name for name, one in options.items() if not one.is_flag} == {*launching.WITH_VALUE, "-m"}


def test_what_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "application").mkdir()
    (tmp_path / "application" / "__main__.py").touch()
    for script in ("x.py", "X.PYZ", "no/such.py", "application"):
        assert command_line([script, "-a"]) == [sys.executable, script, "-a"]
    for program in ("sh", "./tool", "/bin/sh", "no-such-program"):
        assert command_line([program, "-a"]) == [program, "-a"]


def test_a_program_on_the_path_comes_before_one_beside_this_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, on_path = tmp_path / "beside", tmp_path / "path"
    for folder in (beside, on_path):
        folder.mkdir()
        (folder / "server").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(beside / "python"))
    monkeypatch.setenv("PATH", os.pathsep.join(["/nowhere", str(on_path)]))
    assert command_line(["server"]) == ["server"]
    (on_path / "server").chmod(0o644)
    assert command_line(["server", "-x"]) == [str(beside / "server"), "-x"]
    assert command_line(["./server"]) == ["./server"]
