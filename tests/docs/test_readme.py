"""README and docs: what they show is run, and what they name exists.

The Python blocks run in order in one process with one namespace, in an empty directory; then, in the same directory,
the `pmm-shm` commands of the shell blocks, each in a process of its own. The fold of the README is installed as its
`pyproject.toml` snippet says. `make`, `pip` and `systemctl` are not run, and `pmm-shm demo` has a test of its own.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmm_shm import flags
from pmm_shm.errors import DaemonAbsentError
from pmm_shm.instance.paths import Instance
from pmm_shm.wire.endpoints import find_endpoints
from pmm_shm_client import results
from pmm_shm_client.autostart import is_running
from pmm_shm_client.cache import Cache
from tests.support import daemons, ledgers, pages

EXAMPLE = ledgers.ROOT / "docs" / "examples" / "tool_use.py"
PAGES = sorted([*ledgers.ROOT.glob("*.md"), *(ledgers.ROOT / "docs").rglob("*.md")])
TEXT = pages.README.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return pages.blocks(TEXT, language)


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def shell_commands() -> list[list[str]]:
    return [shlex.split(line) for block in blocks("sh") for line in block.splitlines() if line.strip()]


def help_of(module: str, *words: str) -> str:
    return run(ledgers.ROOT, "-m", module, *words, "--help").stdout


def run(
    directory: Path, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=environment or daemons.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=daemons.DEADLINE_S * 2,
        check=False,
    )


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Path]:
    """An empty directory; the daemon that the README starts there ends with the test."""
    directory = tmp_path / "work"
    directory.mkdir()
    yield directory
    instance = Instance.of(directory / "agent.db")
    with contextlib.suppress(DaemonAbsentError):
        daemons.end(find_endpoints(instance).pid)


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which the README's fold is installed as its snippet says."""
    (snippet,) = blocks("toml")
    site = tmp_path / "site"
    site.mkdir()
    (site / EXAMPLE.name).write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    pages.install_folds(site, snippet)
    return daemons.with_path(site)


def test_the_blocks_and_commands_run(workplace: Path, installed: dict[str, str]) -> None:
    script = workplace.parent / "readme.py"
    script.write_text("\n".join(blocks("python")), encoding="utf-8")
    ran = run(workplace, str(script), environment=installed)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    lines = ran.stdout.splitlines()
    assert lines[0].startswith("Echo 0.5 ")
    assert "close_without_evidence c2 6" in lines
    assert "{'calls': {'search': 2}, 'last': 'search'}" in lines
    for command in shell_commands():
        assert command[0] == "pmm-shm"
        ran = run(workplace, "-m", "pmm_shm_cli", *command[1:], environment=installed)
        assert ran.returncode == 0, (command, ran.stderr)
        assert ran.stdout


def test_the_daemon_command_runs(workplace: Path) -> None:
    (line,) = re.findall(r"^    pmm-cached (.+)$", TEXT, re.MULTILINE)
    ledger = ledgers.build(workplace / "agent.db")
    process = subprocess.Popen(
        [sys.executable, "-m", "pmm_cached", "--log-format", "json", *shlex.split(line)],
        cwd=workplace,
        env=daemons.environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        daemons.until(lambda: is_running(Instance.of(ledger)), "the daemon answers")
        assert (workplace / "agent.db-cache" / "data.mdb").exists()
        process.terminate()
        _, log = process.communicate(timeout=daemons.DEADLINE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    (sample,) = re.findall(r"^    (\{.+\})$", section("The daemon"), re.MULTILINE)
    promised = {"timestamp", "level", "logger", "event"}
    for record in (sample, *log.splitlines()):
        assert promised <= set(json.loads(record))


def test_it_begins_with_the_demo_and_the_tests() -> None:
    title, about, commands = TEXT.split("\n\n")[:3]
    assert title == "# pmm-shm"
    assert len(re.findall(r"\.(?=\s|$)", about)) == 2
    assert [line.split("#")[0].strip() for line in commands.splitlines()] == ["make demo", "make test"]
    makefile = (ledgers.ROOT / "Makefile").read_text(encoding="utf-8")
    for page in ("README.md", "CONTRIBUTING.md"):
        for verb in re.findall(r"^    make (\w+)", (ledgers.ROOT / page).read_text(encoding="utf-8"), re.MULTILINE):
            assert f"\n{verb}:" in makefile


def test_the_fold_is_the_example() -> None:
    assert EXAMPLE.read_text(encoding="utf-8") in blocks("python")


def test_every_read_method_is_listed() -> None:
    listed = set(re.findall(r"^\| `(\w+)\(.*?\)` \|", section("Quick start"), re.MULTILINE))
    other = {"append", "append_many", "close", "invalidate", "stats", "verify", "wait_for"}
    assert (
        listed == {name for name in dir(Cache) if not name.startswith("_") and callable(getattr(Cache, name))} - other
    )
    for kind, fields in re.findall(r"`([A-Z]\w+)\((.+?)\)` \|$", section("Quick start"), re.MULTILINE):
        assert list(getattr(results, kind)._fields) == fields.split(", ")


def test_commands_options_and_exit_codes_are_those_of_the_help() -> None:
    text = section("Command line")
    overview = help_of("pmm_shm_cli")
    rows = re.findall(r"^\| `([a-z]+)` \| (.+) \|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == re.findall(r"^  ([a-z]+)  ", overview.split("Commands:")[1], re.MULTILINE)
    for name, description in rows:
        shown = help_of("pmm_shm_cli", name)
        assert "--json" in shown or name in ("chat", "completion")
        for option in re.findall(r"`(--[a-z-]+)`", description):
            assert option in shown, (name, option)
    codes = re.findall(r"^\| (\d) \| ([\w ]+)", text, re.MULTILINE)
    told = " ".join(overview.split("Exit codes: ")[1].split("Options:")[0].split())
    assert [code for code, _ in codes] == re.findall(r"\d", told)
    for code, meaning in codes:
        assert f"{code} {meaning.strip()}" in told


def test_the_answers_of_read_are_those_of_the_help() -> None:
    (sentence,) = re.findall(r"^`read` and `replay` answer (.+?)\.$", section("Command line"), re.MULTILINE | re.DOTALL)
    shown = " ".join(help_of("pmm_shm_cli", "read").split())
    assert ", ".join(re.findall(r"`([a-z-]+)`", sentence)) in shown


def test_the_daemons_options_are_those_of_its_help() -> None:
    shown = help_of("pmm_cached")
    listed = re.findall(r"^\| `(--[a-z-]+)` \|", section("The daemon"), re.MULTILINE)
    assert set(listed) | {"--version", "--help"} == set(re.findall(r"(--[a-z-]+)", shown))
    for option, default in re.findall(r"^\| `(--[a-z-]+)` \| `?([a-z\d.]+)`? \|", section("The daemon"), re.MULTILINE):
        described = shown.split(option)[1].split("\n  --")[0]
        assert re.search(rf"default:\s+{default}\b", described), (option, default)


def test_the_environment_variables_are_those_of_the_code() -> None:
    source = Path(flags.__file__).read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(PMM_\w+)` \|", section("Flags and environment"), re.MULTILINE)
    assert set(listed) == set(re.findall(r'"(PMM_\w+)"', source))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        other = page if not name else Path(os.path.normpath(page.parent / name))
        assert other.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_the_code_map_names_every_module() -> None:
    text = (ledgers.ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for package in ("pmm_shm", "server", "client"):
        for module in (ledgers.ROOT / package).rglob("*.py"):
            if module.name not in ("__init__.py", "__main__.py"):
                assert f"`{module.relative_to(ledgers.ROOT / package)}`" in text, module


def test_the_architecture_lists_every_invariant() -> None:
    text = " ".join((ledgers.ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8").split())
    for package in ("pmm_shm", "server", "client"):
        for module in (ledgers.ROOT / package).rglob("*.py"):
            docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
            for part in docstring.split("Invariant: ")[1:]:
                invariant = " ".join(part.split("\n\n")[0].split())
                assert f"Invariant: {invariant}" in text, module.name
