"""Runs the calls of tools in threads, and makes their answers and errors what a model can read.

Invariant: reading and writing the streams never waits for a call, nor does a read wait for an append.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from inspect import cleandoc, signature
from typing import Any, TypeVar

from anyio import CapacityLimiter, from_thread, to_thread
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceError, ToolError, UnexpectedToolError
from mcp.server.stdio import stdio_server
from mcp.types import CallToolResult, InputRequiredResult, TextContent, ToolAnnotations
from pydantic import ValidationError

from pmm_shm.errors import PmmShmError
from pmm_shm.frozen import json_text
from pmm_shm.projection.replay import Progress
from pmm_shm_mcp.bounds import cut, cut_text
from pmm_shm_mcp.streams import answered

_T = TypeVar("_T")
_Call = TypeVar("_Call", bound=Callable[..., Any])
READS_MAX = 16
"""Reads at work at once, apart from replays."""
REPLAYS_MAX = 1
"""A replay keeps a core busy."""
APPENDS_MAX = 1
"""The ledger takes one at a time; so those of a client are written in the order of its requests."""
ANSWERS_S = 60.0
"""How long the calls that still run when stdin ends have for their answers."""
_PROGRESS_S = 0.5
_ERROR_CHARS_MAX = 2_000
_NAMES_MAX = 10
_NAME_CHARS_MAX = 100


class CallServer(MCPServer[Any]):
    """An MCP server whose tools and resources wait in threads for what they answer."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self._reads = CapacityLimiter(READS_MAX)
        self._replays = CapacityLimiter(REPLAYS_MAX)
        self._appends = CapacityLimiter(APPENDS_MAX)
        self._parameters: dict[str, frozenset[str]] = {}

    def described_tool(self, title: str, annotations: ToolAnnotations, more: str = "") -> Callable[[_Call], _Call]:
        """Add a tool whose description is the docstring of its function, and `more`."""

        def add(call: _Call) -> _Call:
            description = cleandoc(call.__doc__ or "") + more
            self._parameters[call.__name__] = frozenset(signature(call).parameters) - {"context_of_call"}
            return self.tool(title=title, description=description, annotations=annotations)(call)

        return add

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """As in the SDK; says which arguments it did not understand, and its errors are short."""
        try:
            found = await super().call_tool(name, arguments, context)
        except UnexpectedToolError:
            raise
        except ToolError as error:
            raise ToolError(cut_text(_readable(name, error), _ERROR_CHARS_MAX)) from None
        unknown = sorted(arguments.keys() - self._parameters.get(name, arguments.keys()))
        if unknown and isinstance(found, CallToolResult):
            _note_ignored(found, [cut_text(one, _NAME_CHARS_MAX) for one in unknown[:_NAMES_MAX]])
        return found

    async def run_stdio_async(self) -> None:
        """As in the SDK, and answer the calls that still run when stdin ends."""
        server = self._lowlevel_server
        async with stdio_server() as (lines, out), answered(lines, out, ANSWERS_S) as (requests, answers):
            await server.run(requests, answers, server.create_initialization_options())

    async def answer(self, make: Callable[[], dict[str, Any]]) -> CallToolResult:
        """An answer as an object, and as JSON text for clients that read text alone."""
        return _result(await self._read(lambda: _checked(make, ToolError)))

    async def appended(self, make: Callable[[], dict[str, Any]]) -> CallToolResult:
        """As `answer`, of a call that appends."""
        return _result(await to_thread.run_sync(lambda: _checked(make, ToolError), limiter=self._appends))

    async def replayed(self, make: Callable[[Progress], dict[str, Any]], call: Context[Any, Any]) -> CallToolResult:
        """An answer from a replay of the log: tells the client how far it is, and ends if the call is cancelled."""
        next_s = told = 0.0

        def progress(position: Any) -> None:
            nonlocal next_s, told
            from_thread.check_cancelled()
            if time.monotonic() >= next_s and position.as_of > told:
                told = position.as_of
                from_thread.run(call.report_progress, told, None, f"replayed up to event {position.as_of:,}")
                next_s = time.monotonic() + _PROGRESS_S

        def work() -> dict[str, Any]:
            return _checked(lambda: make(progress), ToolError)

        return _result(await to_thread.run_sync(work, limiter=self._replays))

    async def text(self, make: Callable[[], str]) -> CallToolResult:
        """An answer as text alone."""
        text = await self._read(lambda: _checked(make, ToolError))
        return CallToolResult(content=[TextContent(type="text", text=text)])

    async def json_resource(self, make: Callable[[], dict[str, Any]]) -> str:
        """A resource as JSON text."""
        found = await self._read(lambda: _checked(make, ResourceError))
        return json_text({name: cut(value, 1_000) for name, value in found.items()})

    async def _read(self, work: Callable[[], _T]) -> _T:
        return await to_thread.run_sync(work, limiter=self._reads)


def _result(found: dict[str, Any]) -> CallToolResult:
    text = json.dumps(found, ensure_ascii=False)
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=found)


def _checked(make: Callable[[], _T], kind: type[Exception]) -> _T:
    """The answer; an error of the library becomes one whose message the client may read."""
    try:
        return make()
    except PmmShmError as error:
        raise kind(" ".join(str(error).split())) from None


def _readable(name: str, error: ToolError) -> str:
    """The message, without the addresses of web pages that pydantic adds for programmers."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return str(error)
    wrong = cause.errors(include_url=False, include_input=False, include_context=False)[:_NAMES_MAX]
    return f"{name}: " + "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in wrong)


def _note_ignored(result: CallToolResult, names: list[str]) -> None:
    """No error, for clients such as n8n add arguments of their own; but a model must hear of its misspelling."""
    said = f"Ignored, because this tool has no such argument: {', '.join(names)}"
    result.content = [*result.content, TextContent(type="text", text=said)]
    if result.structured_content is not None:
        result.structured_content = {**result.structured_content, "ignored_arguments": names}
