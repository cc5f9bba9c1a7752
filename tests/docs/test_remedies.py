"""The table of remedies: each command parses as printed, and none of them can lose anything."""

from __future__ import annotations

import ast
import re
import shlex
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from pmm_cached import main as daemon
from pmm_shm import errors
from pmm_shm.remedies import TEMPLATES, Remedy, remedy, remedy_for
from pmm_shm_cli.main import cli
from tests.support.ledgers import PACKAGES, ROOT

LEDGER = "/a folder/agent's.db"
SAMPLE = {
    "ledger": LEDGER, "directory": "/a folder/agent's.db-cache", "daemon": 4_711, "pid": 77, "file": "/x y",
    "mode": "600", "group": "staff", "user": "ann", "unit": "pmm-cached@a.service", "name": "PMM_X", "near": "PMM_Y",
    "requirement": "lmdb>=1.5", "setting": "fs.inotify.max_user_watches", "value": 5, "shm_dir": "/run/p m",
}  # fmt: skip
# Said by SQLite, the system, or in a sentence that is put together.
FOREIGN_WORDS = {
    "no space left", "disk is full", "malformed", "disk image", "not a database", "permission denied", "busy for",
    "is wrong: ", "is not installed", "^the source .* (was not confirmed", "is not followed)",
}  # fmt: skip
COMMANDS: dict[str, click.Command] = {
    "pmm-cached": next(value for value in vars(daemon).values() if isinstance(value, click.Command)),
    **{f"pmm-shm {name}": command for name, command in cli.commands.items()},
}


def programs(line: str) -> Iterator[list[str]]:
    """Each program of a line for a shell with its arguments, those in the comment included."""
    code, _, comment = line.partition("  # ")
    for part in (code, *comment.split(": ")[1:]):
        words: list[str] = []
        lexer = shlex.shlex(part, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for word in [*lexer, ";"]:
            if word in ("&&", ";", "&", "|", "||"):
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def parsed(words: list[str]) -> dict[str, Any]:
    """The arguments as our command takes them; click's error if it does not."""
    name, rest = ("pmm-cached", words[1:]) if words[0] == "pmm-cached" else (" ".join(words[:2]), words[2:])
    command = COMMANDS[name]
    if isinstance(command, click.Group):
        command, *rest = command.commands[rest[0]], *rest[1:]
    params = command.make_context(name, rest).params
    if "words" in params:
        params["ledger"], *params["rest"] = params["words"]
    return params


@pytest.mark.parametrize("key", TEMPLATES)
@pytest.mark.parametrize("values", [SAMPLE, {}], ids=["filled", "empty"])
def test_our_programs_take_each_command(key: str, values: dict[str, Any]) -> None:
    for words in programs(remedy(key, **values).command):
        if words[0] in ("pmm-shm", "pmm-cached"):
            params = parsed(words)
            if "dsn" in params:
                assert params["dsn"] == "DSN"
                continue
            # Or what the command before it has made.
            assert params["ledger"] == (LEDGER if values else "LEDGER") or words[1:] == ["verify", "FILE"], words
            if words[1] == "restore":
                assert params["backup"] == "BACKUP"
            if words[1] == "backup":
                assert params["rest"] == ["FILE"]


def test_no_command_loses_anything() -> None:
    """No copy behind SQLite's back, no file overwritten; removed are caches, sockets, and leftovers by their names."""
    seen = set()
    for key in TEMPLATES:
        for words in programs(remedy(key, **SAMPLE).command):
            seen.add(words[0])
            assert words[0] not in ("cp", "rsync", "dd", "tee"), key
            assert words[0] != "sqlite3" or (words[2].startswith("PRAGMA ") and words[1] == LEDGER)
            assert not any(">" in word for word in words if "lmdb" not in word), key
            if words[0] == "mv":
                assert words[1] == "--backup=numbered"
            if words[0] == "rm":
                assert words[-1] in (SAMPLE["file"], SAMPLE["directory"])
                of_words = {"remake-words", "remake-words-of-daemon", "remake-words-of-service"}
                assert key in {"remove-copy", "remove-stage", "remove-foreign", "remove-socket", *of_words}
    assert {"mv", "rm", "pmm-shm", "pmm-cached", "kill", "sqlite3"} <= seen


def test_every_remedy_advises_and_every_error_of_a_ledger_has_one() -> None:
    for key, template in TEMPLATES.items():
        assert template.advice, key
        re.compile(template.words)
        assert ("{pid}" in template.command) >= ("?P<pid>" in template.words), key
    kinds = [errors.LedgerError]
    for kind in kinds:
        kinds += kind.__subclasses__()
        found = remedy_for(kind("nothing that is known"), ledger=LEDGER)
        assert isinstance(found, Remedy), kind
    assert len(kinds) > 10
    assert remedy_for("nothing that is known", ledger=LEDGER) is None
    assert remedy_for(errors.StoreError("nothing that is known"), ledger=LEDGER) is None


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for folder in PACKAGES.values():
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_words_are_those_that_the_code_says() -> None:
    """A message that changes must not lose its remedy."""
    said = set()
    for path, tree in sources():
        if path.name != "remedies.py":
            docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, (ast.JoinedStr, ast.Constant)) and id(node) not in docstrings:
                    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                    said.add(
                        "".join(str(p.value) if isinstance(p, ast.Constant) else "7" for p in parts)
                        .lower()
                        .removeprefix("7: ")
                    )
    for key, template in TEMPLATES.items():
        for words in template.words.split("|") if template.words else ():
            # "7" stands for what an f-string inserts, which may be the process with its number.
            inserted = words.replace(r"process (?P<pid>\d+)", "7")
            if words not in FOREIGN_WORDS:
                assert any(re.search(f"{words}|{inserted}", text, re.IGNORECASE) for text in said), (key, words)


def test_every_call_names_an_entry_and_fills_its_places() -> None:
    used: set[str] = set()
    for path, tree in sources():
        for node in ast.walk(tree):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "remedy"
            if not is_call or path.name == "remedies.py":
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in TEMPLATES:
                    used.add(node.value)
                continue
            assert isinstance(node, ast.Call)
            if not isinstance(node.args[0], ast.Constant):
                continue
            template = TEMPLATES[node.args[0].value]
            places = {
                name for text in template[:2] for _, name, _, _ in string.Formatter().parse(text) if name is not None
            }
            given = {keyword.arg for keyword in node.keywords}
            if None not in given:
                assert places - {"wal", "shm", "folder"} <= given, (path.name, node.lineno, places)
    assert [key for key, one in TEMPLATES.items() if key not in used and not one.words and not one.errors] == []


def test_words_of_paths_and_events_choose_no_remedy() -> None:
    path = "/srv/embedder/no permission.db"
    assert remedy_for(f"{path}: disk I/O error", ledger=path) is None
    quoted = (
        "verification failed: fold recent: table 't', key 'process 1 still has the file open' differs from the replay"
    )
    found = remedy_for(quoted, ledger=path)
    assert found is not None
    assert "kill" not in found.command
    held = remedy_for(f"{path}: process 7 still has the file open that this one replaced; stop it", ledger=path)
    assert held is not None
    assert held.command.startswith("kill 7")
