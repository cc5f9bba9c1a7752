"""The configurations for assistants on the page about MCP, as an assistant reads them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from pmm_shm_terminal.tokens import token_in
from tests.support import daemons, pages

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "mcp.md").read_text(encoding="utf-8")
FILES = {block.name: block.body for block in pages.parsed(PAGE)}
HERE = [sys.executable, "-m", "pmm_shm_cli"]
ARGUMENTS = ["mcp", "/home/me/agent.db"]


def memory_of(name: str) -> dict[str, Any]:
    """The one server of a configuration."""
    (servers,) = (json.loads if name.endswith(".json") else tomllib.loads)(FILES[name]).values()
    assert list(servers) == ["memory"]
    return servers["memory"]  # type: ignore[no-any-return]


def test_the_json_starts_a_server(ledger: str) -> None:
    found = memory_of("mcp.json")
    assert (found.pop("command"), found.pop("args"), found) == ("pmm-shm", ARGUMENTS, {})
    arguments = [ledger if one == "/home/me/agent.db" else one for one in ARGUMENTS]
    parameters = StdioServerParameters(command=HERE[0], args=[*HERE[1:], *arguments], env=daemons.environment())
    try:
        assert tools_of(lambda use: use(stdio_client(parameters))) == 5
    finally:
        # A configured server starts a daemon.
        subprocess.run([*HERE, "stop", ledger], env=daemons.environment(), check=True, capture_output=True)


def test_the_other_ways_start_the_same_server() -> None:
    assert memory_of("config.toml") == {"command": "pmm-shm", "args": ARGUMENTS}
    commands = re.findall(r"`((?:\w+) mcp add [^`]*pmm-shm[^`]*)`", PAGE)
    assert [command.split()[0] for command in commands] == ["claude", "copilot", "codex", "gemini", "devin"]
    for command in commands:
        before, started, arguments = command.partition("pmm-shm")
        assert shlex.split(started + arguments) == ["pmm-shm", *ARGUMENTS]
        # What follows the name would be taken for an option of the client, but for `--`; gemini takes it as it is.
        assert before.endswith("memory -- ") or command.startswith("gemini mcp add -s user memory pmm-shm")


def test_the_json_for_http_reaches_a_server(ledger: str, tmp_path: Path) -> None:
    found = memory_of("http.json")
    assert memory_of("http.toml") == {"url": found["url"], "bearer_token_env_var": "PMM_MCP_TOKEN"}
    (shown,) = (line for line in pages.indented(PAGE) if "--http" in line)
    token_file = str(tmp_path / "token")
    stands_for = {"agent.db": ledger, "8765": "0", "~/.config/pmm-token": token_file}
    arguments = [stands_for.get(one, one) for one in shlex.split(shown)[1:]]
    with subprocess.Popen(
        [*HERE, *arguments, "--no-autostart"], env=daemons.environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            said = re.search(r"http://\S+", process.stderr.readline())
            assert said is not None
            assert re.sub(r":\d+/", ":8765/", said[0]) == found["url"]
            headers = {name: value.replace("TOKEN", token_in(token_file)) for name, value in found["headers"].items()}

            async def use(ask: Callable[[Any], Awaitable[int]]) -> int:
                async with httpx2.AsyncClient(headers=headers) as http:
                    return await ask(streamable_http_client(said[0], http_client=http))

            assert tools_of(use) == 5
        finally:
            process.terminate()


def tools_of(connect: Callable[[Callable[[Any], Awaitable[int]]], Awaitable[int]]) -> int:
    """How many tools a client is offered."""

    async def count(transport: Any) -> int:
        async with Client(transport) as client:
            return len((await client.list_tools()).tools)

    return anyio.run(connect, count)


@pytest.mark.parametrize("client", ["Claude Code", "Claude Desktop", "Cursor", "VS Code", "Codex", "Gemini CLI", "Zed"])
def test_the_usual_clients_are_in_both_tables(client: str) -> None:
    assert len(re.findall(rf"^\| {client} \|", PAGE, re.MULTILINE)) == 2
