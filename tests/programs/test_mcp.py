"""`pmm-shm mcp` as assistants start it: several servers and a writer at once, over streams and over HTTP."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from pmm_shm.errors import ConfigError
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_mcp.serving import RepairedLines
from pmm_shm_terminal.tokens import token_in
from tests.conftest import StartDaemon
from tests.support import command, daemons
from tests.support.forking import in_child

ROUNDS = 12


@contextlib.asynccontextmanager
async def server(ledger: str, *options: str) -> AsyncIterator[Client]:
    """A client of a server of its own, as an assistant has it."""
    arguments = ["-m", "pmm_shm_cli", "mcp", ledger, "--no-autostart", *options]
    parameters = StdioServerParameters(command=sys.executable, args=arguments, env=daemons.environment())
    async with Client(stdio_client(parameters)) as client:
        yield client


async def answer(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert isinstance(result.structured_content, dict)
    return result.structured_content


def keep_writing(ledger: str) -> None:
    """Append until killed."""
    with EventLog(ledger) as log:
        for number in range(10_000):
            log.append("user", f"something else, number {number}")
            time.sleep(0.01)


# Several at once.


@pytest.mark.parametrize("with_daemon", [True, False])
def test_two_servers_and_a_writer(ledger: str, start_daemon: StartDaemon, with_daemon: bool) -> None:
    if with_daemon:
        start_daemon(ledger)
    writer = in_child(keep_writing, ledger)

    async def talk() -> None:
        async with server(ledger, "--write", "user,note") as first, server(ledger, "--write", "user") as second:
            for number in range(ROUNDS):
                writes, reads = (first, second) if number % 2 else (second, first)
                text = f"The secret of box {number} is zebra{number}quagga."
                event_id = (await answer(writes, "append", kind="user", content=text))["id"]
                found = await answer(reads, "recall", query=text, limit=3)
                assert found["as_of"] >= event_id
                assert found["is_complete"] is True
                assert found["hits"][0]["content"] == text
                listed = await answer(reads, "events", after=event_id - 1, before=event_id + 1)
                assert [one["content"] for one in listed["events"]] == [text]

    try:
        anyio.run(talk)
    finally:
        writer.kill()
        writer.join()
    with EventLog(ledger, create=False) as log:
        assert sum("zebra" in event.content for event in log.events(limit=None)) == ROUNDS


def test_a_server_outlives_the_daemon(ledger: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger)

    async def talk() -> None:
        async with server(ledger, "--write", "user") as client:
            await answer(client, "append", kind="user", content="before")
            daemon.kill()
            await answer(client, "append", kind="user", content="after the daemon")
            hits = (await answer(client, "recall", query="after the daemon", limit=1))["hits"]
            assert [hit["content"] for hit in hits] == ["after the daemon"]

    anyio.run(talk)


# Standard streams.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_server_whose_client_is_silent(ledger: str, number: signal.Signals) -> None:
    with started(ledger) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n')
        process.stdin.flush()
        assert b'"id":1' in process.stdout.readline()
        process.send_signal(number)
        assert process.wait(10) == 128 + number


def test_a_signal_ends_a_server_whose_append_waits_for_the_ledger(ledger: str) -> None:
    with started(ledger, "--write", "note", "--timeout", "60") as process, sqlite3.connect(ledger) as other:
        other.execute("BEGIN IMMEDIATE")
        send(process, 0, "initialize", HELLO)
        send(process, 1, "tools/call", {"name": "append", "arguments": {"kind": "note", "content": "never"}}, False)
        # Answered after the append has begun to wait.
        send(process, 2, "tools/call", {"name": "events", "arguments": {}})
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
        other.rollback()
    with EventLog(ledger, create=False) as log:
        assert not log.events()


def test_calls_that_run_when_stdin_ends_are_answered(ledger: str) -> None:
    """A script writes its requests and closes stdin. Only the call that it cancelled has no answer."""
    with started(ledger, "--write", "note") as process, sqlite3.connect(ledger) as other:
        other.execute("BEGIN IMMEDIATE")
        send(process, 0, "initialize", HELLO)
        for request_id, content in ((1, "first"), (2, "cancelled"), (3, "second")):
            arguments = {"kind": "note", "content": content}
            send(process, request_id, "tools/call", {"name": "append", "arguments": arguments}, False)
        assert process.stdin is not None
        cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 2}}
        process.stdin.write(json.dumps(cancelled).encode() + b"\n")
        # Answered after the first append has begun to wait, and the second is cancelled.
        send(process, 4, "tools/call", {"name": "events", "arguments": {}})
        process.stdin.close()
        process.stdin = None
        other.rollback()
        out, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, b"")
    answers = {found["id"]: found["result"]["structuredContent"]["id"] for found in map(json.loads, out.splitlines())}
    assert answers == {1: 1, 3: 2}
    with EventLog(ledger, create=False) as log:
        assert [event.content for event in log.events()] == ["first", "second"]


@pytest.mark.parametrize(
    "line", [b"nonsense", b"[]", b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": 7}']
)
def test_a_line_that_is_no_message_gets_an_error(ledger: str, line: bytes) -> None:
    with started(ledger) as process:
        out, err = process.communicate(line + b'\n{"jsonrpc": "2.0", "id": 2, "method": "ping"}\n', timeout=30)
        assert (process.returncode, err) == (0, b"")
    unreadable, ping = map(json.loads, out.splitlines())
    assert (unreadable["id"], unreadable["error"]["code"]) == (None, -32700)
    assert ping["id"] == 2


def test_a_client_that_is_gone_is_no_error(ledger: str) -> None:
    with started(ledger) as process:
        send(process, 0, "initialize", HELLO)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        send(process, 1, "ping", None, False)
        send(process, 2, "ping", None, False)
        # Its end of stdin is still open in a process that it has started.
        assert process.wait(20) == 1
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("stream", "said"),
    [("stdin", "[Errno 9] Bad file descriptor"), ("stdout", "[Errno 28] No space left on device")],
)
def test_a_stream_that_fails_is_told_in_one_line(ledger: str, stream: str, said: str) -> None:
    arguments = [sys.executable, "-m", "pmm_shm_mcp", ledger, "--no-autostart"]
    # Neither can stdin be read, nor is there room on stdout.
    with open("/dev/full", "wb") as full:
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, stream: full}
        process = subprocess.Popen(arguments, env=daemons.environment(), stderr=subprocess.PIPE, **streams)
    _, err = process.communicate(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n' if stream == "stdout" else None, 30)
    assert err.decode() == f"pmm-shm: stdin or stdout: {said}\n"
    assert process.returncode == 1


def test_it_ends_with_its_client_and_says_nothing_of_its_own(ledger: str) -> None:
    with started(ledger) as process:
        out, err = process.communicate(b"this is no message\n", timeout=30)
        assert process.returncode == 0
    for line in out.splitlines():
        assert line.startswith(b'{"jsonrpc"')
    assert b"Traceback" not in err


def test_half_an_emoji_is_answered(ledger: str) -> None:
    """JavaScript writes a lone surrogate as an escape; the SDK would drop the line."""
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "js", "version": "1"}}
    begin = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello}
    ask = {"jsonrpc": "2.0", "method": "tools/call"}
    content = "\\ud83d \ud83d\ude00 half \ud83d, low \ude00"
    append = {**ask, "id": 1, "params": {"name": "append", "arguments": {"kind": "note", "content": content}}}
    recall = {**ask, "id": 2, "params": {"name": "recall", "arguments": {"query": "\udc00 half"}}}
    with started(ledger, "--write", "note") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for request in (begin, append, recall):
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            found = json.loads(process.stdout.readline())
            assert found["id"] == request["id"]
            assert not found["result"].get("isError")
    with EventLog(ledger, create=False) as log:
        assert log.read_after_id(after_id=0)[0]["content"] == "\\ud83d \U0001f600 half \ufffd, low \ufffd"


def test_the_time_for_a_long_line_grows_with_its_length() -> None:
    """A model's whole file as an argument, which the tool then refuses."""
    line = b"x" * 40_000_000 + b"\n"
    began_s = time.process_time()
    read = io.BufferedReader(RepairedLines(io.BytesIO(line))).readline()
    # With a copy of the rest for each buffer of 8 kB it is half a minute.
    assert time.process_time() - began_s < 5
    assert read == line


HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


def send(process: subprocess.Popen[bytes], request_id: int, method: str, params: Any, is_answered: bool = True) -> None:
    """Send a request, and read the answer to it."""
    assert process.stdin is not None
    assert process.stdout is not None
    request = {"jsonrpc": "2.0", "id": request_id, "method": method, **({"params": params} if params else {})}
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    if is_answered:
        assert json.loads(process.stdout.readline())["id"] == request_id


@contextlib.contextmanager
def started(ledger: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "pmm_shm_mcp", ledger, "--no-autostart", *options],
        env=daemons.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# HTTP.


@contextlib.contextmanager
def started_over_http(ledger: str, file: str, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server and its address."""
    with started(ledger, "--http", "0", "--token-file", file, *options) as process:
        assert process.stderr is not None
        said = process.stderr.readline().decode()
        found = re.search(r"http://127\.0\.0\.1:\d+/mcp", said)
        assert found is not None, said
        yield process, found[0]


@pytest.fixture
def address(ledger: str, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The address of a server, and its token."""
    file = str(tmp_path / "token")
    with started_over_http(ledger, file, "--write", "user") as (process, url):
        yield url, token_in(file)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert process.wait(10) == 128 + signal.SIGTERM
        rest = process.stderr.read()
        assert b"Bearer" not in rest
        assert b"ERROR" not in rest


def test_clients_over_http(address: tuple[str, str]) -> None:
    url, token = address

    async def talk() -> None:
        async with contextlib.AsyncExitStack() as stack:
            clients = []
            for _ in range(2):
                http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"})
                await stack.enter_async_context(http)
                transport = streamable_http_client(url, http_client=http)
                clients.append(await stack.enter_async_context(Client(transport)))
            event_id = (await answer(clients[0], "append", kind="user", content="The key is under the mat."))["id"]
            hits = (await answer(clients[1], "recall", query="Where is the key?"))["hits"]
            assert hits[0]["id"] == event_id
            (identity,) = (await clients[1].read_resource("pmm://identity")).contents
            assert '"as_of": 1' in identity.text  # type: ignore[union-attr]

    anyio.run(talk)


def test_nobody_without_the_token(address: tuple[str, str], ledger: str) -> None:
    url, token = address
    call = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "append", "arguments": {"kind": "user", "content": "intruder"}},
    }
    sent = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    allowed = {**sent, "Authorization": f"Bearer {token}"}
    with httpx2.Client() as client:
        for value in (
            None,
            "",
            "Bearer",
            "Bearer x" + token[1:],
            f"Basic {token}",
            token,
            f"Bearer {token}x",
        ):
            headers = sent if value is None else {**sent, "Authorization": value}
            for method in ("POST", "GET", "DELETE"):
                answered = client.request(method, url, headers=headers, json=call)
                assert answered.status_code == 401
                assert answered.headers["www-authenticate"] == "Bearer"
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        assert client.get(url, headers={**upgrade, "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}).status_code == 401
        # A page in a browser that has learnt the token, and a name that leads here.
        assert client.post(url, headers={**allowed, "Origin": "https://evil.example"}, json=call).status_code == 403
        assert client.post(url, headers={**allowed, "Host": "evil.example"}, json=call).status_code == 421
    with EventLog(ledger, create=False) as log:
        assert not log.events()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_server_over_http_whose_requests_do_not_end(ledger: str, tmp_path: Path, number: int) -> None:
    file = str(tmp_path / "token")
    options = ["--http", "0", "--token-file", file, "--write", "user", "--timeout", "60"]
    with started(ledger, *options) as process, sqlite3.connect(ledger) as other, contextlib.ExitStack() as stack:
        assert process.stderr is not None
        found = re.search(r":(\d+)/mcp", process.stderr.readline().decode())
        assert found is not None
        server = "127.0.0.1", int(found[1])
        head = f"POST /mcp HTTP/1.1\r\nHost: {server[0]}:{server[1]}\r\nAuthorization: Bearer {token_in(file)}\r\n"
        head += "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n"
        other.execute("BEGIN IMMEDIATE")
        arguments = {"kind": "user", "content": "never"}
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "append", "arguments": arguments}}
        body = json.dumps(call)
        waiting, part = (stack.enter_context(socket.create_connection(server)) for _ in range(2))
        waiting.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        # The beginning of the answer comes before the call ends.
        assert b"200" in waiting.recv(100)
        part.sendall(f"{head}Content-Length: 100\r\nExpect: 100-continue\r\n\r\n{{".encode())
        # The server begins to read.
        assert b"100" in part.recv(100)
        process.send_signal(number)
        assert process.wait(20) == 128 + number
        assert b"Traceback" not in process.stderr.read()
        other.rollback()
    with EventLog(ledger, create=False) as log:
        assert not log.events()


def test_nobody_waits_for_messages_that_the_server_never_sends(address: tuple[str, str]) -> None:
    """Some clients begin so, and go on without; an open answer would hold up the end of the server."""
    url, token = address
    headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {token}"}
    for method in ("GET", "DELETE", "PUT", "HEAD"):
        answered = httpx2.request(method, url, headers=headers)
        assert (answered.status_code, answered.headers["allow"]) == (405, "POST")
    assert httpx2.get(url, headers=headers).json()["error"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_server_over_http_whose_append_waits(
    ledger: str, tmp_path: Path, number: signal.Signals
) -> None:
    file = str(tmp_path / "token")
    options = ("--write", "user", "--timeout", "60")
    with started_over_http(ledger, file, *options) as (process, url), sqlite3.connect(ledger) as other:
        other.execute("BEGIN IMMEDIATE")
        accepted = {"Accept": "application/json, text/event-stream", "Authorization": f"Bearer {token_in(file)}"}

        def call(tool: str, **arguments: Any) -> dict[str, Any]:
            return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}

        append = call("append", kind="user", content="never")
        # The headers come at once, the answer when the append has ended.
        with httpx2.Client(headers=accepted) as client, client.stream("POST", url, json=append):
            assert client.post(url, json=call("events")).status_code == 200
            process.send_signal(number)
            assert process.wait(20) == 128 + number
        other.rollback()
    with EventLog(ledger, create=False) as log:
        assert not log.events()


def test_half_an_emoji_over_http(address: tuple[str, str], ledger: str) -> None:
    url, token = address
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"append","arguments":{"kind":"user",'
    body += b'"content":"half \\ud83d, \\ud83d\\ude00"}}}'
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    with httpx2.Client(headers={**headers, "Authorization": f"Bearer {token}"}) as client:
        # An escape in two parts.
        cut = body.index(b"ud83d") + 2
        assert client.post(url, content=iter([body[:cut], body[cut:]])).status_code == 200
        assert client.post(url, content=b" " * 5_000_000).status_code == 413
    with EventLog(ledger, create=False) as log:
        assert [event.content for event in log.events()] == ["half \ufffd, \U0001f600"]


def test_a_port_that_is_taken(address: tuple[str, str], ledger: str) -> None:
    port = address[0].rpartition(":")[2].removesuffix("/mcp")
    ran = command.run("mcp", ledger, "--no-autostart", "--http", port)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"pmm-shm: --http: cannot listen on port {port}: Address already in use\n"


def test_the_token_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = token_in(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token_in(str(path)) == token != token_in(str(tmp_path / "other"))
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        token_in(str(path))
    path.chmod(0o600)
    path.write_text("short\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="no token"):
        token_in(str(path))
    os.symlink(path, tmp_path / "link")
    with pytest.raises(OSError, match="link"):
        token_in(str(tmp_path / "link"))


# What is refused at once.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--write", "identity_adopt"], "if that is meant, name it in --write-protected"),
        (["--write", "note,commitment_close"], "commitment_close changes the agent's identity"),
        (["--write", "autonomy_directive"], "--write-protected"),
        (["--write", "*"], "'*' is no kind"),
        (["--write", ""], "'' is no kind"),
        (["--write", "note,"], "'' is no kind"),
        (["--write-protected", "note"], "'note' is none of "),
        (["--token-file", "token"], "--token-file is for --http only"),
    ],
)
def test_wrong_usage(ledger: str, options: list[str], said: str) -> None:
    ran = command.run("mcp", ledger, "--no-autostart", *options)
    assert (ran.code, ran.out) == (2, "")
    assert command.is_one_line(ran.err)
    assert said in ran.err


def test_without_the_extra_it_says_what_to_install(ledger: str, tmp_path: Path) -> None:
    (tmp_path / "mcp.py").write_text("raise ImportError('not installed')\n", encoding="utf-8")
    # Before everything else on the path: the fork server has imported nothing of the SDK.
    ran = command.run("mcp", ledger, "--no-autostart", env={"PYTHONPATH": daemons.with_path(tmp_path)["PYTHONPATH"]})
    assert ran.code == 1
    assert "pmm-shm mcp needs the package mcp: " in ran.err


def test_protected_kinds_by_their_own_option(ledger: str) -> None:
    async def talk() -> None:
        async with server(ledger, "--write-protected", "identity_adopt", "--create") as client:
            await answer(client, "append", kind="identity_adopt", content="Echo", meta={"name": "Echo"})
            assert (await client.call_tool("append", {"kind": "identity_clear", "content": ""})).is_error
            assert "Name: Echo" in (await client.call_tool("context", {})).content[0].text  # type: ignore[union-attr]

    anyio.run(talk)
