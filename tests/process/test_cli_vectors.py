"""`pmm-shm search`, `embed`, and what `status` shows of them: through the command, with real daemons."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.new_events import now_text
from pmm_shm.vectors import local_bow
from pmm_shm_cli.main import cli
from pmm_shm_cli.synthetic import generate
from pmm_shm_client import connect
from pmm_shm_terminal.program import run_command
from tests.conftest import StartDaemon
from tests.support import daemons, ledgers
from tests.support.command import COMMAND, is_one_line, run
from tests.support.waiting import at_most

LARGE = 10_000_000
HOSTILE = {
    "escapes": b"\x1b[31mred\x1b[0m \x1b]0;title\x07 \xc2\x9b2J [bold]not bold[/bold] [/] :smile:",
    "lines": b"one\ntwo\r\nthree\x00\x08\x7f\xe2\x80\xae\xe2\x80\xa8end",
    "no UTF-8": b"half \xed\xa0\x80 and \xff",
    "large": b"\x1b\n" * (LARGE // 2),
    "\x1b[32mkind\n": b"",
}
Ran = Callable[..., tuple[int, str, str]]
MODULE = """
import time
from pmm_shm.vectors.function import FunctionEmbedder

def slow(texts):
    time.sleep(0.01)
    return [[float(len(text)), 1.0, 2.0] for text in texts]

def stuck(texts):
    time.sleep(60)

def fail(texts):
    raise RuntimeError("the provider\\n is \\x1b[31mdown")

embedder = FunctionEmbedder("[slow]", 3, slow)
stuck_embedder = FunctionEmbedder("stuck", 3, stuck)
failing = FunctionEmbedder("failing", 3, fail)
"""


def environment(folder: Path) -> dict[str, str]:
    """The checkout and the embedders of `MODULE` importable, and no settings."""
    (folder / "own_models.py").write_text(MODULE, encoding="utf-8")
    return {name: value for name, value in daemons.with_path(folder).items() if not name.startswith("PMM_")}


class Served:
    """A ledger with what the tests look for, and its daemon."""

    def __init__(self, folder: Path) -> None:
        self.environment = environment(folder)
        self.ledger = generate(folder / "l.db", 300, 1)
        self.hostile = _add_hostile(self.ledger)
        self.daemon = daemons.Daemon(self.ledger, "--verify-every", "0", env=self.environment)

    def run(self, *arguments: str, **changes: Any) -> tuple[int, str, str]:
        return run(*arguments, env={**self.environment, **changes})

    def json(self, *arguments: str, **changes: Any) -> Any:
        code, out, err = self.run(*arguments, "--json", **changes)
        assert (code, err) == (0, ""), err
        assert out.count("\n") == 1
        return json.loads(out)


def _add_hostile(ledger: str) -> dict[str, int]:
    """Events with hostile content, and their vectors, of three numbers; returns their ids."""
    connection = ledgers.connect(ledger)
    ids: dict[str, int] = {}
    try:
        connection.execute("CREATE TABLE event_embeddings (eid INTEGER PRIMARY KEY, embedding BLOB, created_at REAL)")
        for kind, content in HOSTILE.items():
            sql = "INSERT INTO events (ts, kind, content, meta) VALUES (?, ?, CAST(? AS TEXT), '{}') RETURNING id"
            (ids[kind],) = connection.execute(sql, ("2026-01-01\x1b[2J", kind, content)).fetchone()
            vector = struct.pack("<3f", 1.0, len(ids), 0.0)
            connection.execute("INSERT INTO event_embeddings VALUES (?, ?, ?)", (ids[kind], vector, float(len(ids))))
        connection.execute("INSERT INTO event_embeddings VALUES (1, x'00', 0)")
    finally:
        connection.close()
    return ids


@pytest.fixture(autouse=True)
def _no_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PMM_EMBEDDER", raising=False)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="pmm", dir="/tmp") as folder:
        served = Served(Path(folder))
        try:
            served.daemon.wait_ready()
            served.json("embed", served.ledger)
            yield served
        finally:
            served.daemon.kill()


@pytest.fixture
def ran_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Ran:
    """As `run`, in this process: for many at a time."""
    (tmp_path / "own_models.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    def ran(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pmm-shm", *arguments])
        code = run_command(cli, "pmm-shm")
        return code, *capsys.readouterr()

    return ran


class Terminal:
    """The command on a terminal of its own; with its stdout elsewhere."""

    def __init__(self, *arguments: str, env: dict[str, str]) -> None:
        self.primary, secondary = pty.openpty()
        fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=secondary, env={**env, "TERM": "xterm"}
        )
        os.close(secondary)
        self.shown = ""

    def read(self) -> bool:
        """Read what is there, or comes next; returns whether more may come."""
        try:
            chunk = os.read(self.primary, 4_096)
        except OSError:
            return False
        self.shown += chunk.decode(errors="replace")
        return bool(chunk)

    def end(self) -> tuple[int, str]:
        """Everything to the end: exit code and stdout. What was shown is without escape sequences then."""
        while self.read():
            pass
        os.close(self.primary)
        out, _ = self.process.communicate(timeout=30)
        return self.process.returncode, out.decode()

    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.shown)


# Searching.


def test_search_is_that_of_the_cache(served: Served) -> None:
    text = "Remind me to plan the garden"
    found = served.json("search", served.ledger, text, "-k", "7")
    assert list(found) == ["mode", "model", "as_of", "is_complete", "embedded_here", "problem", "hits"]
    head = ledgers.execute(served.ledger, "SELECT max(id) FROM events")[0][0]
    assert (found["model"], found["as_of"], found["is_complete"], found["embedded_here"]) == (
        "local-bow",
        head,
        True,
        0,
    )
    with connect(served.ledger) as cache:
        expected = cache.recall(text, 7, mode="auto")
        by_meaning = cache.search(text, 7)
    assert found["hits"] == [
        {
            "event_id": hit.event_id,
            "similarity": hit.similarity,
            "word_score": hit.word_score,
            "found_by": hit.found_by,
            **{name: hit.event[name] for name in ("kind", "ts", "content")},
        }
        for hit in expected
    ]
    assert served.json("search", text, PMM_DB=served.ledger)["hits"] == found["hits"][:5]
    ids_only = served.json("search", served.ledger, text, "--no-events", "-k", "2")["hits"]
    assert [hit["event_id"] for hit in ids_only] == [hit.event_id for hit in expected[:2]]
    meaning = ("--mode", "meaning", "--no-events")
    found_so = served.json("search", served.ledger, text, *meaning, "-k", "2")["hits"]
    assert found_so == [hit.to_dict() for hit in by_meaning[:2]]
    scope = [hit.event_id for hit in by_meaning[3:6]]
    within = served.json("search", served.ledger, text, *meaning, "--scope", ",".join(map(str, scope)))["hits"]
    assert [hit["event_id"] for hit in within] == scope
    assert served.json("search", served.ledger, text, "--scope", "")["hits"] == []
    vector = json.dumps([float(number) for number in local_bow.vector(text)])
    by_vector = served.json("search", served.ledger, "--vector", vector)["hits"]
    assert [hit["event_id"] for hit in by_vector] == [hit.event_id for hit in by_meaning[:5]]
    filters = ("--kind", "reflection", "--since", "1", "--until", "5m", "--distinct", "--mode", "words")
    filtered = served.json("search", served.ledger, "the garden", *filters)["hits"]
    assert all(hit["kind"] == "reflection" for hit in filtered)
    today = now_text()[: len("2026-01-31")]
    days = ("--since", "2000-01-01", "--until", today, "--mode", "words")
    assert served.json("search", served.ledger, "the garden", *days)["hits"]
    assert served.run("search", served.ledger, "x", "--since", "yesterday")[0] == 2


def test_search_for_people(served: Served) -> None:
    hit = served.json("search", served.ledger, "the garden", "-k", "1")["hits"][0]
    code, out, err = served.run("search", served.ledger, "the garden", "-k", "1")
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert out.startswith("nearest events by words and local-bow: 1 (as of event ")
    for part in (str(hit["event_id"]), f"{hit['word_score']:.4f}", hit["kind"], hit["ts"][:19], hit["content"][:40]):
        assert f" {part}" in out
    bare = served.run("search", served.ledger, "the garden", "-k", "1", "--no-events")[1]
    assert f"{hit['word_score']:.4f}" in bare
    assert hit["content"][:40] not in bare


def test_a_dash_is_a_text(served: Served) -> None:
    with connect(served.ledger) as cache:
        expected = [hit.event_id for hit in cache.search("-")]
    assert [hit["event_id"] for hit in served.json("search", served.ledger, "-")["hits"]] == expected


def test_hostile_events_reach_neither_terminal_nor_json_raw(served: Served) -> None:
    arguments = ["search", served.ledger, "--vector", "[1, 0, 0]", "--model", "imported-3"]
    hits = {hit["event_id"]: hit for hit in served.json(*arguments)["hits"]}
    assert set(hits) == set(served.hostile.values())
    with EventLog(served.ledger, create=False) as log:
        for kind, event_id in served.hostile.items():
            event = log.get_event(event_id)
            assert event is not None
            assert (hits[event_id]["kind"], hits[event_id]["content"]) == (kind, event["content"])
    assert len(hits[served.hostile["large"]]["content"]) == LARGE
    for encoding in ("utf-8", "ascii"):
        code, out, err = served.run(*arguments, PYTHONIOENCODING=encoding)
        assert (code, err) == (0, "")
        lines = out.splitlines()
        # One row each, beside the frame of the table and its title.
        assert len(lines) == len(HOSTILE) + 5
        assert all(line.isprintable() for line in lines)
        assert len(out) < 10_000
        for part in (
            "\\x1b[31mred",
            "[bold]not bold[/bold] [/] :smile:",
            "one\\ntwo\\r\\nthree\\x00",
            "\\x1b[32mkind\\n",
        ):
            assert part in out
    terminal = Terminal(*arguments, env=served.environment)
    assert terminal.end()[0] == 0
    assert terminal.shown == ""


def test_newer_events_that_do_not_count_are_told(tmp_path: Path, start_daemon: StartDaemon) -> None:
    env = environment(tmp_path)
    ledger = generate(tmp_path / "l.db", 20, 1)
    daemon = start_daemon(ledger, "--embedder", "own_models:embedder", env=env)
    assert run("embed", ledger, env=env)[0] == 0
    daemon.kill()
    with EventLog(ledger) as log:
        for _ in range(3):
            log.append("user", "newer")
    arguments = ["search", ledger, "--vector", "[1, 1, 1]", "--model", "[slow]"]
    code, out, err = run(*arguments, env=env)
    assert (code, err) == (0, "pmm-shm: 3 newer events are not taken into account (as of event 20, head 23)\n")
    assert "(as of event 20)" in out
    code, out, err = run(*arguments, "--json", env=env)
    assert (code, err) == (0, "")
    assert json.loads(out)["is_complete"] is False
    # With the embedder they are.
    code, out, err = run("search", ledger, "newer", "--json", env={**env, "PMM_EMBEDDER": "own_models:embedder"})
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["model"], found["as_of"], found["is_complete"], found["embedded_here"]) == ("[slow]", 23, True, 3)
    assert {hit["event_id"] for hit in found["hits"]} >= {21, 22, 23}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["search"], "TEXT"),
        (["search", "{}", "two", "three"], "TEXT"),
        (["search", "only a text"], "PMM_DB"),
        (["search", "{}", ""], "empty"),
        (["search", "{}", "text", "-k", "0"], "-k"),
        (["search", "{}", "text", "-k", "10001"], "-k"),
        (["search", "{}", "text", "--model", "no such model"], "no such model"),
        (["search", "{}", "text", "--model", ""], "model"),
        (["search", "{}", "text", "--model", "no_such_module:x"], "no_such_module"),
        (["search", "{}", "text", "--model", "imported-3"], "imported-3"),
        (["search", "{}", "text", "--scope", "1,x"], "--scope"),
        (["search", "{}", "text", "--scope", "1,,2"], "--scope"),
        (["search", "{}", "text", "--scope", "9" * 20], "64 bits"),
        (["search", "{}", "text", "--vector", "[1]"], "--vector"),
        (["search", "{}", "--vector", "[1, 2]"], "dimension 2"),
        (["search", "{}", "--vector", "[1, 2]", "--model", "imported-3"], "dimension 2"),
        (["search", "{}", "--vector", "[1, NaN, 2]", "--model", "imported-3"], "NaN"),
        (["search", "{}", "--vector", "[]"], "vector"),
        (["search", "{}", "--vector", "[1" + "0" * 400 + "]"], "vector"),
        (["search", "{}", "--vector", '["1", true]'], "--vector"),
        (["search", "{}", "--vector", '{{"a": 1}}'], "--vector"),
        (["search", "{}", "--vector", "[" * 50_000], "--vector"),
        (["search", "{}", "--vector", "1,2"], "--vector"),
        (["search", "{}", "text", "--timeout", "nan"], "--timeout"),
        (["embed", "{}", "more"], "more"),
        (["embed", "{}", "--model", "local-bow"], "--text"),
        (["embed", "{}", "--text", "x", "--model", "no such model"], "no such model"),
        (["embed", "{}", "--text", "", "--model", "own_models:embedder"], "empty"),
        (["embed"], "PMM_DB"),
    ],
)
def test_wrong_usage_is_2(served: Served, ran_here: Ran, arguments: list[str], word: str) -> None:
    code, out, err = ran_here(*(part.format(served.ledger) for part in arguments))
    assert (code, out) == (2, ""), err
    assert is_one_line(err)
    assert word in err


def test_no_table_is_4_with_a_daemon(served: Served) -> None:
    code, out, err = served.run("search", served.ledger, "--vector", "[1, 2]", "--model", "imported-2")
    assert (code, out) == (4, "")
    assert is_one_line(err)
    assert "imported-2" in err


def test_without_a_daemon_is_3(tmp_path: Path, ran_here: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = generate(tmp_path / "l.db", 20, 1)
    code, out, err = run("embed", ledger, env=environment(tmp_path))
    assert (code, out) == (3, "")
    assert is_one_line(err)
    monkeypatch.setenv("PMM_DB", ledger)
    for arguments in (["embed"], ["embed", "--json"]):
        code, out, err = ran_here(*arguments)
        assert (code, out) == (3, ""), err
        assert is_one_line(err)
    assert ran_here("embed", "--text", "hello", "--json")[0] == 0
    # A search embeds the events itself.
    code, out, err = ran_here("search", "text", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["is_complete"]
    code, out, err = ran_here("search", ledger, "--vector", "[1]", "--model", "imported-1")
    assert (code, out) == (3, "")
    assert is_one_line(err)
    assert not (tmp_path / "l.db-cache").exists()


def test_bad_ledgers_are_1(tmp_path: Path, ran_here: Ran) -> None:
    for path in (tmp_path / "missing.db", tmp_path, tmp_path / "own_models.py"):
        for arguments in (["embed", str(path)], ["embed", str(path), "--text", "x"], ["search", str(path), "x"]):
            code, out, err = ran_here(*arguments)
            assert (code, out) == (1, ""), err
            assert is_one_line(err)
            assert path.name in err


# Embedding.


def test_the_vector_of_a_text(served: Served) -> None:
    for text in ("hello world", "", "half \udcff"):
        found = served.json("embed", served.ledger, "--text", text)
        assert list(found) == ["model", "dimension", "vector", "digest"]
        assert (found["model"], found["dimension"], found["digest"]) == ("local-bow", 32, local_bow.digest(text))
        assert found["vector"] == pytest.approx(local_bow.vector(text), rel=1e-7)
    with connect(served.ledger) as cache:
        expected = cache.embed("hello world").tolist()
    assert served.json("embed", "--text", "hello world", PMM_DB=served.ledger)["vector"] == expected
    other = served.json("embed", served.ledger, "--text", "four", "--model", "own_models:embedder")
    assert other == {"model": "[slow]", "dimension": 3, "vector": [4.0, 1.0, 2.0]}
    code, out, err = served.run("embed", served.ledger, "--text", "hello world")
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    for part in ("local-bow", "32", local_bow.digest("hello world"), ", …"):
        assert part in out


def test_the_tables_come_up_to_date(served: Served) -> None:
    with EventLog(served.ledger) as log:
        event_id = log.append("user", "a moment ago")
    found = served.json("embed", served.ledger)
    assert list(found) == ["ledger", "as_of", "put", "removed", "malformed", "tables"]
    assert (found["ledger"], found["as_of"]) == (served.ledger, event_id)
    assert (found["put"], found["removed"], found["malformed"]) == (0, 0, 1)
    tables = found["tables"]
    expected = {"rows": len(HOSTILE), "dimension": 3, "as_of": event_id, "kinds": [], "is_served": True}
    assert tables["imported-3"] == {**expected, "refused": 0, "last_refusal": None}
    assert tables["local-bow"]["as_of"] == event_id
    assert "user" in tables["local-bow"]["kinds"]
    code, out, err = served.run("embed", served.ledger)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert out.startswith(f"event vectors (as of event {event_id})\n")
    assert out.endswith("rows of event_embeddings: 1 malformed\n")
    for part in ("imported-3", "local-bow", "user_message", str(tables["local-bow"]["rows"])):
        assert part in out


def test_status_shows_the_tables(served: Served) -> None:
    status = served.json("status", served.ledger)["daemon"]["embeddings"]
    assert status["tables"]["imported-3"]["rows"] == len(HOSTILE)
    assert (status["problem"], status["importing"]) == (None, None)
    code, out, err = served.run("status", served.ledger, "--verbose")
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert f"{status['text_vectors']:,} of 100,000" in out
    for model, found in status["tables"].items():
        line = f"{model}: {found['rows']} events of {found['dimension']} numbers, up to event {found['as_of']}"
        assert line in " ".join(out.split())


def test_an_embedder_that_fails_is_1(tmp_path: Path, start_daemon: StartDaemon) -> None:
    env = environment(tmp_path)
    ledger = generate(tmp_path / "l.db", 20, 1)
    start_daemon(ledger, "--embedder", "own_models:failing", env=env)
    for arguments in (["embed", ledger, "--json"], ["embed", ledger, "--text", "x", "--model", "own_models:failing"]):
        code, out, err = run(*arguments, env=env)
        assert (code, out) == (1, "")
        assert is_one_line(err)
        assert "the provider is \\x1b[31mdown" in err
    assert run("search", ledger, "x", "--model", "own_models:failing", env=env)[0] == 1
    terminal = Terminal("embed", ledger, env=env)
    assert terminal.end() == (1, "")
    assert "the provider is \\x1b[31mdown" in terminal.text()
    code, out, err = run("status", ledger, env=env)
    assert (code, err) == (0, "")
    assert "the provider is \\x1b[31mdown" in out
    assert "the provider" in json.loads(run("status", ledger, "--json", env=env)[1])["daemon"]["embeddings"]["problem"]


def test_a_stopped_daemon_is_4(tmp_path: Path, start_daemon: StartDaemon) -> None:
    env = environment(tmp_path)
    ledger = generate(tmp_path / "l.db", 20, 1)
    daemon = start_daemon(ledger, env=env)
    assert run("embed", ledger, env=env)[0] == 0
    daemon.freeze()
    code, out, err = run("embed", ledger, env=env)
    assert (code, out) == (4, "")
    assert is_one_line(err)
    assert run("search", ledger, "text", env=env)[0] == 0
    daemon.thaw()


# The terminal.


def test_progress_moves(tmp_path: Path, start_daemon: StartDaemon) -> None:
    env = environment(tmp_path)
    ledger = generate(tmp_path / "l.db", 6_000, 1)
    start_daemon(ledger, "--embedder", "own_models:embedder", env=env)
    terminal = Terminal("embed", ledger, "--json", env=env)
    code, out = terminal.end()
    assert code == 0, terminal.shown
    tables = json.loads(out)["tables"]
    assert tables["[slow]"]["as_of"] == tables["local-bow"]["as_of"] == 6_000
    assert "\x1b" not in out
    seen = {int(done.replace(",", "")) for done in re.findall(r"\[slow\] .* ([\d,]+)/6,000", terminal.text())}
    assert len(seen) >= 2
    # The bars are gone, and the cursor is back.
    assert terminal.shown.rindex("\x1b[?25h") > terminal.shown.rindex("\x1b[?25l")
    assert terminal.shown.endswith("\x1b[2K")


def test_interrupted_at_once(tmp_path: Path, start_daemon: StartDaemon) -> None:
    env = environment(tmp_path)
    ledger = generate(tmp_path / "l.db", 20, 1)
    start_daemon(ledger, "--embedder", "own_models:stuck_embedder", env=env)
    terminal = Terminal("embed", ledger, env=env)
    while "Indexing" not in terminal.text():
        assert terminal.read()
    with at_most(2.0):
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == (130, "")
    assert "Traceback" not in terminal.shown
    code, out, err = run("embed", ledger, "--timeout", "0.3", env=env)
    assert (code, out) == (4, "")
    assert is_one_line(err)


def test_help_imports_little() -> None:
    code = "import sys; from pmm_shm_cli.main import cli; cli.main(['embed', '--help'], standalone_mode=False);"
    code += "print(sorted({'numpy', 'zmq', 'lmdb', 'rich', 'msgpack'} & sys.modules.keys()))"
    assert daemons.run_python(code, forked=False).stdout.splitlines()[-1] == "[]"
