"""What `pmm-shm` says to somebody who does not know it yet."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from pmm_shm_cli.commands import memory
from pmm_shm_cli.main import cli
from pmm_shm_client.cache import Cache
from pmm_shm_client.context import MESSAGES_MAX, RECALL_MAX, REFLECTIONS_MAX
from pmm_shm_terminal.answer_names import NAMES
from pmm_shm_terminal.program import run_command
from tests.support import ledgers

Ran = tuple[int, str, str]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`pmm-shm` in this process: its exit code, and what it said on both streams."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr("sys.argv", ["pmm-shm", *arguments])
        code = run_command(cli, "pmm-shm")
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_without_arguments_it_is_the_help(said: Callable[..., Ran]) -> None:
    code, out, err = said()
    assert (code, err) == (0, "")
    assert (code, out, err) == said("--help") == said("-h")


def test_every_command_that_prints_data_prints_json() -> None:
    commands = {name: one for name, one in cli.commands.items() if not isinstance(one, click.Group)}
    for name, group in cli.commands.items():
        if isinstance(group, click.Group):
            commands |= {f"{name} {inner}": one for inner, one in group.commands.items()}
    without = {name for name, one in commands.items() if not any("--json" in option.opts for option in one.params)}
    assert without == {"chat", "completion", "export", "mcp", "run", "web"}


def test_a_search_without_a_model_takes_that_of_the_daemon(said: Callable[..., Ran]) -> None:
    for name in ("search", "recall"):
        assert "or that of the daemon" in " ".join(said(name, "--help")[1].split())


def test_a_command_of_commands_without_arguments_is_its_help(said: Callable[..., Ran]) -> None:
    code, out, err = said("cluster")
    assert (code, err) == (0, "")
    assert (code, out, err) == said("cluster", "--help")


def test_a_subject_without_its_argument_is_not_taken_for_a_slip(said: Callable[..., Ran]) -> None:
    code, _, err = said("explain", "a.db", "trait")
    assert (code, "trait NAME" in err, "did you mean" in err) == (2, True, False)
    assert "did you mean trait?" in said("explain", "a.db", "trais")[2]


def test_commands_are_in_groups_and_each_summary_is_whole_at_80_columns(said: Callable[..., Ran]) -> None:
    _, out, _ = said()
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line in ("Look:", "Write:", "Check:", "Operate:")] == [
        "Look:", "Write:", "Check:", "Operate:",
    ]  # fmt: skip
    listed = lines[lines.index("Look:") :]
    assert "..." not in "".join(listed)
    names = [line.split()[0] for line in listed if line.startswith("  ")]
    assert sorted(names) == sorted(cli.commands)
    for line in listed:
        if line.startswith("  "):
            command = cli.commands[line.split()[0]]
            assert line.split(None, 1)[1] == command.get_short_help_str(200)
            assert line.endswith(".")


@pytest.mark.parametrize(("typed", "meant"), [("stauts", "status"), ("red", "read"), ("exprot", "export")])
def test_a_near_command_is_named(said: Callable[..., Ran], typed: str, meant: str) -> None:
    code, out, err = said(typed)
    assert (code, out) == (2, "")
    assert err == f"pmm-shm: no such command {typed!r}; did you mean {meant}? (see pmm-shm --help)\n"
    assert said("xyzzy")[2] == "pmm-shm: no such command 'xyzzy' (see pmm-shm --help)\n"


@pytest.mark.parametrize("command", ["read", "replay"])
def test_a_missing_answer_is_asked_for_with_what_there_is(
    said: Callable[..., Ran], tmp_path: Path, command: str
) -> None:
    ledger = ledgers.build(tmp_path / "g.db")
    for arguments in ([ledger], [], ["g.db"]):
        code, out, err = said(command, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"pmm-shm: missing WHAT: one of {', '.join(NAMES)}, or the name of a registered fold")
    code, out, err = said(command, ledger, "idenity")
    assert (code, out) == (2, "")
    assert err.startswith("pmm-shm: WHAT: 'idenity' is not one of self-model, identity")
    assert err.endswith("; did you mean identity?\n")
    assert "did you mean" not in said(command, ledger, "xyzzy")[2]


def test_a_missing_ledger_is_asked_for_where_the_answer_is_named(said: Callable[..., Ran]) -> None:
    assert said("read", "identity")[2].startswith("pmm-shm: no ledger: name one, or set PMM_DB")
    assert said("search", "a flat tyre.")[2].startswith("pmm-shm: no ledger: name one, or set PMM_DB")
    assert said("backup", "./a.db")[2].startswith("pmm-shm: missing FILE")


def test_the_ledger_of_the_environment_leaves_one_word(
    said: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMM_DB", ledgers.build(tmp_path / "g.db"))
    assert said("read", "identity", "--json")[0] == 0
    assert said("read", "idenity")[2].endswith("; did you mean identity?\n")
    assert said("read")[2].startswith("pmm-shm: missing WHAT: one of")


def test_limits_that_are_written_twice_are_equal() -> None:
    assert (memory._RECALL_MAX, memory._REFLECTIONS_MAX, memory._MESSAGES_MAX) == (
        RECALL_MAX, REFLECTIONS_MAX, MESSAGES_MAX,
    )  # fmt: skip
    defaults: dict[str, Any] = {param.name: param.default for param in cli.commands["chat"].params if param.name}
    own = {param.name: param.default for param in cli.commands["context"].params}
    for name in ("recall", "reflections", "messages"):
        assert own[name] == defaults[name], "as the example worker"
        assert name in inspect.signature(Cache.context).parameters
