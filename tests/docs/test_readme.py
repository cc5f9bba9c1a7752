"""README and the guides against the code: the blocks run, and everything they name exists.

README's Python block runs in one process, in an empty directory; then its `pmm-shm` commands run there, each in a
process of its own. `test_pages` runs the other pages. `make`, `pip` and `systemctl` are not run, and `pmm-shm demo` has
its own test.
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

EXAMPLE = pages.DOCS / "examples" / "tool_use.py"
PAGES = sorted([*ledgers.ROOT.glob("*.md"), *pages.DOCS.rglob("*.md")])
PRODUCT = ("pmm_shm", "server", "client")
README_LINES_MAX = 150
README_CODE_LINES_MAX = 8
ARCHITECTURE_WORDS_MAX = 4_000


def page(name: str) -> str:
    return (pages.DOCS / name).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def product_modules() -> Iterator[Path]:
    for package in PRODUCT:
        yield from (ledgers.ROOT / package).rglob("*.py")


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


def test_the_readme_runs(workplace: Path) -> None:
    text = pages.README.read_text(encoding="utf-8")
    (code,) = pages.blocks(text, "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= README_CODE_LINES_MAX
    script = workplace.parent / "readme.py"
    script.write_text(code, encoding="utf-8")
    ran = run(workplace, str(script))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("Echo Could you plan the week?\n# Context (layout 1)\nName: Echo\n")
    commands = [shlex.split(line) for block in pages.blocks(text, "sh") for line in block.splitlines()]
    assert commands
    for command in commands:
        assert command[0] == "pmm-shm"
        ran = run(workplace, "-m", "pmm_shm_cli", *command[1:])
        assert ran.returncode == 0, (command, ran.stderr)
        assert ran.stdout


def test_the_daemon_command_runs(workplace: Path) -> None:
    ledger = ledgers.build(workplace / "agent.db")
    process = subprocess.Popen(
        [sys.executable, "-m", "pmm_cached", "--log-format", "json", "agent.db"],
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
    (sample,) = re.findall(r"^    (\{.+\})$", page("DAEMON.md"), re.MULTILINE)
    promised = {"timestamp", "level", "logger", "event"}
    for record in (sample, *log.splitlines()):
        assert promised <= set(json.loads(record))


def test_the_readme_is_short_and_begins_with_the_demo_and_the_tests() -> None:
    text = pages.README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES_MAX
    title, about, commands = text.split("\n\n")[:3]
    assert title == "# pmm-shm"
    assert len(about.splitlines()) <= 5
    for expanded in ("Persistent Mind Model (PMM)", "Identity Autonomy Score (IAS)", "Goal Achievement Score (GAS)"):
        assert expanded in " ".join(about.replace("\n", " ").split())
    assert [line.split("#")[0].strip() for line in commands.splitlines()] == ["make demo", "make test"]
    makefile = (ledgers.ROOT / "Makefile").read_text(encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md"):
        for verb in re.findall(r"^    make ([\w-]+)", (ledgers.ROOT / name).read_text(encoding="utf-8"), re.MULTILINE):
            assert f"\n{verb}:" in makefile, verb


def test_the_fold_is_the_example() -> None:
    text = page("howto/own-fold.md")
    assert f"```python {EXAMPLE.name}\n{EXAMPLE.read_text(encoding='utf-8')}```\n" in text


def test_every_read_method_is_listed() -> None:
    text = page("LIBRARY.md")
    listed = set(re.findall(r"^\| `(\w+)\(.*?\)` \|", text, re.MULTILINE))
    other = {
        "add_fold",
        "append",
        "append_many",
        "close",
        "decide",
        "invalidate",
        "start_daemon",
        "stats",
        "verify",
        "wait_for",
    }
    assert (
        listed == {name for name in dir(Cache) if not name.startswith("_") and callable(getattr(Cache, name))} - other
    )
    records = re.findall(r"`([A-Z]\w+)\((.+?)\)` \|$", text, re.MULTILINE)
    assert len(records) > 3
    for kind, fields in records:
        assert list(getattr(results, kind)._fields) == fields.split(", ")


def test_commands_and_exit_codes_are_those_of_the_help() -> None:
    text = page("COMMANDS.md")
    overview = help_of("pmm_shm_cli")
    rows = re.findall(r"^\| `([a-z]+)` \| (.+) \|$", section(text, "Commands"), re.MULTILINE)
    groups = overview.split("Options:")[1].partition("\n\n")[2]
    assert [name for name, _ in rows] == re.findall(r"^  ([a-z]+)  ", groups, re.MULTILINE)
    titles = re.findall(r"^([A-Z][a-z]+):$", groups, re.MULTILINE)
    assert [title.lower() for title in titles] == re.findall(r"^\| ([a-z]+) \| what it does", text, re.MULTILINE)
    for name, description in rows:
        shown = help_of("pmm_shm_cli", name)
        assert "--json" in shown or name in ("chat", "cluster", "completion", "export", "mcp", "run", "web")
        for option in re.findall(r"`(--[a-z-]+)`", description):
            assert option in shown, (name, option)
    codes = re.findall(r"^\| (\d) \| ([\w ]+)", section(text, "Exit codes"), re.MULTILINE)
    told = " ".join(overview.split("Exit codes: ")[1].split("Options:")[0].split())
    assert [code for code, _ in codes] == re.findall(r"\d", told)
    for code, meaning in codes:
        assert f"{code} {meaning.strip()}" in told


def test_the_answers_of_read_are_those_of_the_help() -> None:
    (sentence,) = re.findall(r"^`read` and `replay` answer (.+?)\.$", page("COMMANDS.md"), re.MULTILINE | re.DOTALL)
    shown = " ".join(help_of("pmm_shm_cli", "read").split())
    assert ", ".join(re.findall(r"`([a-z-]+)`", sentence)) in shown


def test_the_daemons_options_are_those_of_its_help() -> None:
    text = section(page("reference/SETTINGS.md"), "Options of the daemon")
    shown = help_of("pmm_cached")
    rows = re.findall(r"^\| `(--[a-z-]+)`(?:[^|\\]|\\\|)* \| `?([a-z\d.]+)?", text, re.MULTILINE)
    assert {option for option, _ in rows} | {"--version", "--help"} == set(re.findall(r"(--[a-z-]+)", shown))
    with_default = [(option, default) for option, default in rows if re.fullmatch(r"[a-z]+|\d+(\.\d+)?", default)]
    assert len(with_default) > 5
    for option, default in with_default:
        described = shown.split(option)[1].split("\n  --")[0]
        assert option in ("--embed-kinds", "--map-size") or re.search(rf"default:\s+{default}\b", described), option


def test_the_environment_variables_are_those_of_the_code() -> None:
    source = Path(flags.__file__).read_text(encoding="utf-8")
    listed = re.findall(r"^### (PMM_\w+)$", section(page("reference/SETTINGS.md"), "Environment"), re.MULTILINE)
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


def test_the_architecture_is_short_and_names_every_room() -> None:
    text = page("ARCHITECTURE.md")
    assert len(text.split()) <= ARCHITECTURE_WORDS_MAX
    packages = {module.parent.relative_to(ledgers.ROOT) for module in product_modules()}
    rooms = {package for package in packages if len(package.parts) <= 2}
    assert len(rooms) > 10
    rows = dict(re.findall(r"^\| `([\w/]+)/` \| .+ \| (.*) ?\|$", section(text, "Code map"), re.MULTILINE))
    assert {str(room) for room in rooms} <= set(rows)
    for room, files in rows.items():
        assert (ledgers.ROOT / room).is_dir(), room
        for named in re.findall(r"`(\w+\.py)`", files):
            assert (ledgers.ROOT / room / named).exists(), (room, named)


def test_the_list_of_modules_has_every_module_with_its_invariants() -> None:
    text = page("reference/MODULES.md")
    found = 0
    for module in product_modules():
        room = section(text, str(module.parent.relative_to(ledgers.ROOT)))
        if module.name not in ("__init__.py", "__main__.py"):
            assert f"\n- `{module.name}`: " in room, module
        docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
        for part in docstring.split("Invariant: ")[1:]:
            found += 1
            assert f"Invariant: {' '.join(part.split(chr(10) * 2)[0].split())}\n" in room, module
    assert found > 10
