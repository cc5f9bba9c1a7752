"""The pages in docs: their blocks run, and everything they name exists."""

from __future__ import annotations

import ast
import contextlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

import pmm_shm_client
from pmm_cached import main as daemon_main
from pmm_cached import prometheus
from pmm_shm import errors
from pmm_shm.folds import contract as fold_contract
from pmm_shm.vectors import embedder as embedder_contract
from pmm_shm_cli.main import cli
from tests.support import daemons, ledgers, pages, postgres, program_logs, standin_package
from tests.support.pages import DOCS, README, Workplace

TROUBLESHOOTING = DOCS / "TROUBLESHOOTING.md"
GUIDES = [DOCS / name for name in ("TUTORIAL.md", "LIBRARY.md", "COMMANDS.md", "DAEMON.md", "SHAPES.md")]
RUN = [*GUIDES, TROUBLESHOOTING, *sorted((DOCS / "howto").glob("*.md"))]
SHOWN_ONLY = (
    "pmm-shm top agent.db",
    "pmm-cached agent.db --metrics-port 9464",
    "pmm-shm run uvicorn pmm.api.server:app --workers 3",
    "pmm-shm run gunicorn --preload -k uvicorn.workers.UvicornWorker -w 3 pmm.api.server:app",
    # Of a page that has no PMM beside it.
    "pmm-shm run --ledger agent.db -m pmm.cli.chat",
    "pmm-shm run uvicorn pmm.api.server:app --workers 2",
    "pmm-shm run worker.py",
    "pmm-shm web agent.db --open",
    # Of a page whose assistant is not beside it.
    "pmm-shm mcp /home/me/agent.db --write user_message,assistant_message,reflection",
    "pmm-shm mcp /home/me/agent.db --write-protected commitment_open,evidence_candidate,commitment_close",
    "pmm-shm mcp agent.db --http 8765 --token-file ~/.config/pmm-token",
    # Of a program that is not beside it.
    'pmm-cached "$(llm logs path)" --shape llm --folds llm_tokens:Tokens --word-kinds turn',
    'pmm-shm read "$(llm logs path)" llm_tokens',
    'pmm-shm search "$(llm logs path)" "flat tyre"',
    # Of a page whose server is not beside it.
    "pmm-cached agent.db",
    "pmm-shm embed agent.db",
    'pmm-shm search agent.db "Why is my wife angry with me?"',
    "pmm-shm cluster forks agent.db",
    "pmm-shm cluster forks agent.db --append-again agent.db.lost-TIME.jsonl",
)
"""The commands of ours that pages show and tests do not run: they need a screen, a port, or a failover."""
DATABASES = (
    "postgresql://db.example/agents",
    "postgresql://standby.example/agents",
    "postgresql://db.example,standby.example/agents",
)
"""The databases of the pages: a primary, its standby, and both."""

NEEDED = {
    "any-log": ["matplotlib"],
    "datasette": ["datasette"],
    "web": ["jinja2", "starlette", "uvicorn"],
    "fastapi": ["fastapi", "uvicorn"],
    "flask": ["flask", "gunicorn"],
    "jupyter": ["ipykernel", "pandas"],
    "mcp": ["mcp"],
}
"""What pages use beside the product."""


@pytest.fixture
def workplace() -> Iterator[Workplace]:
    place = Workplace()
    yield place
    place.close()


def run_page(text: str, place: Workplace) -> None:
    for block in pages.parsed(text):
        place.run(block)


# A page runs dozens of programs, one after the other.
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_blocks_run_and_print_what_they_show(page: Path, workplace: Workplace) -> None:
    text = page.read_text(encoding="utf-8")
    for module in NEEDED.get(page.stem, ()):
        pytest.importorskip(module)
    if page.stem == "any-log":
        workplace.install(program_logs.package("eventsourcing"))
    if page.stem == "pmm":
        # As in a checkout of PMM.
        shutil.copytree(standin_package.ROOT, workplace.directory, dirs_exist_ok=True)
    if any("curl " in body for body in pages.blocks(text, "sh")) and shutil.which("curl") is None:
        pytest.skip("no curl")
    with databases_of(page) as found:
        for name, dsn in found.items():
            text = text.replace(name, dsn)
        run_page(text, workplace)


@contextlib.contextmanager
def databases_of(page: Path) -> Iterator[dict[str, str]]:
    """What the databases' names on the page stand for."""
    if page.stem != "many-machines":
        yield {}
        return
    if (postgres.programs() is None or shutil.which("psql") is None) and not os.environ.get("CI"):
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    with postgres.running() as server:
        standby = postgres.Postgres(server.folder.parent / "standby", standby_of=server)
        try:
            hosts = [f"127.0.0.1:{one.port}" for one in (server, standby)]
            dsns = [f"postgresql://owner@{where}/postgres" for where in (*hosts, ",".join(hosts))]
            yield dict(zip(DATABASES, dsns, strict=True))
        finally:
            standby.close()


@pytest.mark.parametrize(
    "text",
    [
        "```sh\necho one\nfalse\necho two\n```\n",
        "```sh\nno-such-command\n```\n",
        "```sh\necho one\n```\n\n```text\ntwo\n```\n",
        "```sh\necho one two\n```\n\n```text\none\n```\n",
        "```python\nraise SystemExit(0)\n```\n",
        "```python\nprint(1)\n```\n\n```text\n2\n```\n",
        "```python first\na = 1\n```\n\n```python second\nprint(a)\n```\n",
        "```console\n$ printf 'you › '; read -r line; printf \"no $line\\n\"\nyou › one\nyes one\n```\n",  # noqa: RUF001
        "```python notebook\n1 / 0\n```\n",
        "```python notebook\n1 + 1\n```\n\n```text\n3\n```\n",
        "```ruby\nputs 1\n```\n",
        "```text\nan output of nothing\n```\n",
    ],
)
def test_a_page_that_is_wrong_fails(text: str, workplace: Workplace) -> None:
    with pytest.raises(AssertionError):
        run_page(text, workplace)


def test_a_page_that_is_right_passes(workplace: Workplace) -> None:
    text = (
        "```sh\nexport NAME=Ana\n```\n\n```sh\necho $NAME and more\n```\n\n```text\nAna and ...\n```\n\n"
        "```python\na = 1\n```\n\n```python\nprint(a + 1)\n```\n\n```text\n2\n```\n\n"
        "```python notebook\na = 2\n```\n\n```python notebook\nprint(a)\na + 1\n```\n\n```text\n2\n3\n```\n\n"
        "```console\n$ printf 'you › '; read -r line; printf \"yes $line\\n\"\nyou › one\nyes one\n```\n"  # noqa: RUF001
    )
    run_page(text, workplace)


def test_nothing_that_runs_is_left_behind(workplace: Workplace) -> None:
    run_page("```sh\npmm-shm append a.db note --create\npmm-cached a.db 2> log &\n```\n", workplace)
    ledger = str(workplace.directory / "a.db")
    daemons.until(lambda: any(workplace.directory.glob("a.db-cache/endpoints.json")), "the daemon runs")
    workplace.close()
    assert daemons.serving(ledger) == []
    assert list(pages._at_work_in(workplace.directory)) == []


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_our_own_commands_are_run(page: Path) -> None:
    shown = [line for line in pages.indented(page.read_text(encoding="utf-8")) if line.startswith("pmm-")]
    assert set(shown) <= set(SHOWN_ONLY)


@pytest.mark.parametrize("page", [README, *RUN], ids=lambda page: page.stem)
def test_commands_and_options_exist(page: Path) -> None:
    daemon = next(value for value in vars(daemon_main).values() if isinstance(value, click.Command))
    known = set().union(*map(pages.option_names, [daemon, *cli.commands.values()]))
    found = 0
    for code in pages.code_in(page.read_text(encoding="utf-8")):
        if re.match(r"--[a-z-]+$", code):
            assert code in known, code
        for program, command, options in pages.commands_named(code):
            found += 1
            if command:
                assert command in cli.commands, code
            kind = daemon if program == "pmm-cached" else cli.commands.get(command, cli)
            assert set(options) <= pages.option_names(kind), code
    assert found


def test_extras_are_installed_from_the_checkout() -> None:
    for page in [README, *DOCS.rglob("*.md")]:
        for words in re.findall(r"pip install ([^`\n]*)", page.read_text(encoding="utf-8")):
            assert not words.strip('"').startswith("pmm-shm"), (page, words)


def test_the_reference_is_what_the_code_says() -> None:
    command = [sys.executable, str(ledgers.ROOT / "tools" / "reference.py"), "--check"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=daemons.DEADLINE_S, check=False)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr


@pytest.mark.parametrize("module", [pmm_shm_client, errors, fold_contract, embedder_contract])
def test_the_reference_has_all_that_is_public(module: ModuleType) -> None:
    text = (DOCS / "reference" / "API.md").read_text(encoding="utf-8")
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value))
        if value.__module__ == module.__name__
    ]
    assert len(names) > 1
    for name in names:
        found = getattr(module, name)
        assert f"\n### {name}\n" in text, name
        for method in vars(found) if inspect.isclass(found) else ():
            if not method.startswith("_") and inspect.isfunction(vars(found)[method]):
                assert re.search(rf"^\*\*`(async )?{method}\(", text, re.MULTILINE), (name, method)


def test_the_reference_has_all_commands_and_options() -> None:
    text = (DOCS / "reference" / "CLI.md").read_text(encoding="utf-8")
    for name, command in cli.commands.items():
        section = text.split(f"\n## pmm-shm {name}\n")[1].split("\n## ")[0]
        for option in pages.option_names(command) - {"-h", "--help"}:
            assert f"`{option}`" in section, (name, option)


def test_troubleshooting_has_its_sections_and_every_error() -> None:
    text = TROUBLESHOOTING.read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE)[:7] == [
        "Cache not working",
        "Incorrect results",
        "Memory usage",
        "The daemon does not start",
        "Slow",
        "After an upgrade",
        "After a crash or power loss",
    ]
    rows = dict(re.findall(r"^\| `(\w+Error)` \| (.+) \|$", text, re.MULTILINE))
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value)} - {"PmmShmError"}
    assert set(rows) == classes


def test_the_messages_that_troubleshooting_quotes_are_those_of_the_code() -> None:
    text = TROUBLESHOOTING.read_text(encoding="utf-8").split("\n## The daemon does not start\n")[1].split("\n## ")[0]
    quoted = re.findall(r"^\| `(.+?)`(?:, `(.+?)`)? \|", text, re.MULTILINE)
    assert len(quoted) > 4
    folders = ("pmm_shm", "server")
    sources = [path for one in folders for path in (ledgers.ROOT / one).rglob("*.py")]
    texts = [text for path in sources for text in texts_of(path)]
    for phrase in filter(None, sum(quoted, ())):
        assert any(phrase in text for text in texts), phrase


def texts_of(source: Path) -> list[str]:
    """The text constants of a module, without docstrings: everything it may print."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]


def test_the_metrics_that_are_worth_an_alert_are_those_of_the_daemon() -> None:
    source = Path(prometheus.__file__).read_text(encoding="utf-8")
    text = (DOCS / "howto" / "monitoring.md").read_text(encoding="utf-8")
    names = re.findall(r"`pmm_cached_(\w+?)(?:_total)?[`{]", text)
    assert len(names) == 3
    for name in names:
        assert f'"{name}"' in source or f'"pmm_cached_{name}"' in source, name


def test_the_index_names_every_page() -> None:
    text = (DOCS / "README.md").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        if page.parent.name != "bench":
            name = str(page.relative_to(DOCS))
            assert name == "README.md" or f"({name})" in text, name
    assert "(docs/README.md)" in README.read_text(encoding="utf-8")
