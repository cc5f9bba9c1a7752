"""What a shell sees of the programs: completions, colours, the examples of `--help`, the manual pages."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest

from pmm_cached.main import command as pmm_cached
from pmm_shm.errors import DaemonAbsentError
from pmm_shm.folds.registry import BUILT_IN_NAMES
from pmm_shm.instance.paths import Instance
from pmm_shm.wire.endpoints import find_endpoints
from pmm_shm_cli.commands.completion import VARIABLE
from pmm_shm_cli.examples import EXAMPLES
from pmm_shm_cli.main import cli
from pmm_shm_client.autostart import is_running
from pmm_shm_terminal.answer_names import NAMES
from tests.support import daemons, ledgers

TOOL = ledgers.ROOT / "tools" / "man_pages.py"
SHELLS = ("bash", "zsh", "fish")
ESCAPE = "\x1b"


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, str]:
    """An environment in which a shell finds this checkout's `pmm-shm` and `pmm-cached`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, module in (("pmm-shm", "pmm_shm_cli"), ("pmm-cached", "pmm_cached")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return daemons.environment(PATH=f"{folder}:{os.environ['PATH']}")


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")


def output_of(
    words: list[str], env: Mapping[str, str], cwd: Path | None = None, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, env=env, cwd=cwd, input=stdin or "", capture_output=True, text=True, timeout=120, check=False
    )


# Completions.


def completed_by_bash(line: str, env: Mapping[str, str], cwd: Path) -> list[str]:
    """What bash offers after `line`, through the script that `pmm-shm completion bash` prints."""
    script = """
source <(pmm-shm completion bash) || exit 1
read -ra COMP_WORDS <<< "$LINE"
[[ $LINE == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
compopt() { local IFS=' '; echo "compopt $*"; }
_pmm_shm_completion pmm-shm
printf '%s\\n' "${COMPREPLY[@]}"
"""
    ran = output_of(["bash", "--norc", "-c", script], {**env, "LINE": line}, cwd)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return ran.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("pmm-shm re", ["read", "recall", "replay", "restore"]),
        ("pmm-shm log agent.db --kind commitment_o", ["commitment_open"]),
        ("pmm-shm explain ", ["compopt -o default", ""]),
        ("pmm-shm read agent.db ", list(NAMES)),
        ("pmm-shm replay agent.db me", ["metrics"]),
        ("pmm-shm read agent.db metrics ", [""]),
        ("pmm-shm read ", ["compopt -o default", ""]),
        ("pmm-shm status ", ["compopt -o default", ""]),
        ("pmm-shm restore backup.db ", ["compopt -o default", ""]),
        ("pmm-shm backup agent.db ", ["compopt -o default", ""]),
        ("pmm-shm backup agent.db backup.db ", [""]),
        ("pmm-shm verify agent.db --fold ", sorted(BUILT_IN_NAMES)),
        ("pmm-shm read --consistency ", ["exact", "snapshot", "wait", "global"]),
        ("pmm-shm verify --no-", ["--no-chain"]),
        ("pmm-shm search agent.db --model wo", ["wordllama"]),
        ("pmm-shm append agent.db commitment_o", ["commitment_open"]),
        ("pmm-shm explain agent.db ", ["identity.name", "commitment", "trait", "directive", "metrics"]),
        ("pmm-shm completion ", list(SHELLS)),
    ],
)
def test_what_bash_offers(line: str, offered: list[str], programs: dict[str, str], tmp_path: Path) -> None:
    assert completed_by_bash(line, programs, tmp_path) == offered


def test_with_a_ledger_in_the_environment_the_answer_may_stand_alone(programs: dict[str, str], tmp_path: Path) -> None:
    offered = completed_by_bash("pmm-shm read me", {**programs, "PMM_DB": "agent.db"}, tmp_path)
    assert offered == ["compopt -o default", "metrics"]


def test_what_fish_offers(programs: dict[str, str], tmp_path: Path) -> None:
    needs("fish")
    (tmp_path / "agent.db").touch()
    for line, offered in (
        ("pmm-shm re", {"read", "restore", "replay"}),
        ("pmm-shm read agent.db me", {"metrics"}),
        ("pmm-shm status age", {"agent.db"}),
    ):
        script = f"pmm-shm completion fish | source; complete --do-complete '{line}'"
        ran = output_of(["fish", "--no-config", "-c", script], {**programs, "HOME": str(tmp_path)}, tmp_path)
        assert (ran.returncode, {word.split("\t")[0] for word in ran.stdout.splitlines()}) == (0, offered), line


def test_what_zsh_offers(programs: dict[str, str], tmp_path: Path) -> None:
    """Its own functions need a terminal with a line editor: here, what the script hands to them."""
    needs("zsh")
    script = """
compdef() { : }
compadd() { print -l -- $completions }
_describe() { print -l -- $completions_with_descriptions }
_path_files() { print -- files }
source <(pmm-shm completion zsh)
words=(${(z)LINE} "") CURRENT=$#words
_pmm_shm_completion
"""
    for line, offered in (
        ("pmm-shm completion", {"bash", "zsh", "fish"}),
        ("pmm-shm status", {"files"}),
        ("pmm-shm read agent.db", set(NAMES)),
    ):
        ran = output_of(["zsh", "-f", "-c", script], {**programs, "LINE": line}, tmp_path)
        assert (ran.returncode, ran.stderr) == (0, ""), line
        assert {word.split(":")[0] for word in ran.stdout.splitlines() if word} == offered, line


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_for_its_shell(shell: str, programs: dict[str, str], tmp_path: Path) -> None:
    ran = output_of(["pmm-shm", "completion", shell], programs)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert VARIABLE in ran.stdout
    needs(shell)
    script = tmp_path / "script"
    script.write_text(ran.stdout, encoding="utf-8")
    checked = output_of([shell, "-n", str(script)], programs)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_to_complete_opens_no_ledger(programs: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "agent.db").mkdir()
    assert completed_by_bash("pmm-shm read agent.db m", programs, tmp_path) == ["metrics"]
    assert {path.name for path in tmp_path.iterdir()} == {"agent.db", "bin"}


# Colours.


def on_a_terminal(words: list[str], env: Mapping[str, str]) -> str:
    """What a program writes to a terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the program has ended.
        while part := os.read(master, 65_536):
            shown += part
    os.close(master)
    process.wait(30)
    return shown.decode()


COLOURS: list[tuple[dict[str, str | None], bool, bool]] = [
    ({}, True, True),
    ({}, False, False),
    ({"NO_COLOR": "1"}, True, False),
    ({"NO_COLOR": ""}, True, True),
    ({"FORCE_COLOR": "1"}, False, True),
    ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
    ({"TERM": "dumb"}, True, False),
]


@pytest.mark.parametrize(("variables", "has_terminal", "has_colour"), COLOURS)
@pytest.mark.parametrize("words", [["doctor"], ["verify", "LEDGER"], ["read", "LEDGER", "metrics"]])
def test_colours(
    variables: dict[str, str | None], has_terminal: bool, has_colour: bool, words: list[str], tmp_path: Path
) -> None:
    ledger = ledgers.build(tmp_path / "l.db", 3)
    command = [sys.executable, "-m", "pmm_shm_cli", *(ledger if word == "LEDGER" else word for word in words)]
    env = daemons.environment(**{"NO_COLOR": None, "FORCE_COLOR": None, "TERM": "xterm-256color", **variables})
    shown = on_a_terminal(command, env) if has_terminal else output_of(command, env).stdout
    # What clears a progress bar is no colour.
    assert bool(re.search(r"\x1b\[[\d;]*m", shown)) is has_colour
    assert words[0] != "doctor" or has_colour or ESCAPE not in shown or has_terminal


@pytest.mark.parametrize(("variables", "has_terminal", "has_colour"), COLOURS)
def test_colours_of_the_daemons_log(
    variables: dict[str, str | None], has_terminal: bool, has_colour: bool, tmp_path: Path
) -> None:
    code = "from pmm_cached.logs import configure; configure('text', 'info').info('an event', key='value')"
    env = daemons.environment(**{"NO_COLOR": None, "FORCE_COLOR": None, "TERM": "xterm-256color", **variables})
    words = [sys.executable, "-c", code]
    shown = on_a_terminal(words, env) if has_terminal else output_of(words, env).stderr
    assert "an event" in shown
    assert (ESCAPE in shown) is has_colour


# Examples.


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Path]:
    """A directory in which a daemon may be started; it ends with the test."""
    directory = tmp_path / "work"
    directory.mkdir()
    yield directory
    with contextlib.suppress(DaemonAbsentError):
        daemons.end(find_endpoints(Instance.of(directory / "agent.db")).pid)


# Some fifty programs, one after the other.
@pytest.mark.timeout(300)
def test_the_examples_run(workplace: Path, programs: dict[str, str]) -> None:
    """In their order, with a daemon from the first one on that needs one.

    The demo and `web` have tests of their own, and `run` needs PMM.
    """
    env = {**programs, "PMM_DB": str(workplace / "agent.db")}
    ran_lines = 0
    for name, lines in EXAMPLES.items():
        if name == "plot":
            pytest.importorskip("matplotlib")
        for line in () if name in ("demo", "run", "web") else lines:
            ran = output_of(["bash", "-o", "pipefail", "-c", line], env, workplace, "What did I ask for?\n")
            # The doctor may complain of the machine that the tests run on.
            assert ran.returncode == 0, (line, ran.stderr)
            ran_lines += 1
    assert ran_lines >= len(EXAMPLES) - 3


def test_the_examples_of_the_daemon_run(workplace: Path, programs: dict[str, str]) -> None:
    ledgers.build(workplace / "agent.db", 3)
    assert pmm_cached.epilog is not None
    lines = [line.strip() for line in pmm_cached.epilog.splitlines() if line.startswith("  ")]
    assert lines
    for line in lines:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {line}"], cwd=workplace, env=programs, stderr=subprocess.DEVNULL
        )
        try:
            daemons.until(lambda: is_running(Instance.of(workplace / "agent.db")), "the daemon answers")
        finally:
            process.terminate()
            assert process.wait(daemons.DEADLINE_S) == 0


# Manual pages.


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man")
    env = daemons.environment(SOURCE_DATE_EPOCH="1767225600")
    ran = output_of([sys.executable, str(TOOL), str(folder)], env)
    assert (ran.returncode, ran.stderr) == (0, "")
    return folder


def test_there_is_a_page_for_every_command(pages: Path) -> None:
    assert {page.name for page in pages.iterdir()} == {
        "pmm-shm.1",
        "pmm-cached.1",
        *(f"pmm-shm-{name}.1" for name in cli.commands),
        *(f"pmm-shm-cluster-{name}.1" for name in ("audit", "detach", "forks", "init", "status")),
    }
    for page in pages.iterdir():
        text = page.read_text(encoding="ascii")
        title, _, body = text.partition("\n")
        assert '1 "2026-01-01"' in title
        # Bare, roff makes other characters of them, which cannot be copied into a shell.
        assert not re.search(r"(?<!\\)-|['`^~]", body), page.name
        assert [line for line in text.splitlines() if line.startswith(".SH")][:4] == [
            ".SH NAME",
            ".SH SYNOPSIS",
            ".SH DESCRIPTION",
            ".SH OPTIONS",
        ]


def test_a_page_says_what_the_help_says(pages: Path) -> None:
    for name, command in cli.commands.items():
        text = (pages / f"pmm-shm-{name}.1").read_text(encoding="ascii").replace("\\-", "-").replace("\\(aq", "'")
        for param in command.params:
            if isinstance(param, click.Option):
                assert max(param.opts, key=len) in text, (name, param.name)
        for line in EXAMPLES[name]:
            assert line.replace("~", "\\(ti") in text, (name, line)
    overview = (pages / "pmm-shm.1").read_text(encoding="ascii")
    assert "0 ok, 1 failure, 2 wrong usage, 3 no daemon," in overview


@pytest.mark.parametrize(
    "tool", [["mandoc", "-T", "lint", "-W", "warning"], ["groff", "-man", "-Tutf8", "-wall", "-z"]]
)
def test_the_pages_are_good_roff(pages: Path, tool: list[str]) -> None:
    needs(tool[0])
    for page in sorted(pages.iterdir()):
        ran = output_of([*tool, str(page)], daemons.environment())
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", ""), page.name


def test_what_is_special_to_roff_is_shown_as_it_is(pages: Path) -> None:
    needs("groff")
    shown = output_of(["groff", "-man", "-Tutf8", "-P-cbou", str(pages / "pmm-shm-append.1")], daemons.environment())
    assert """--meta '{"tone": "calm"}'""" in shown.stdout
    assert "pmm-shm append agent.db user 'hello again' --create" in shown.stdout
