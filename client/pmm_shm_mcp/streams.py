"""Relays messages between standard streams and the server, so that no request goes without an answer.

The SDK ends with stdin: it answers "Connection closed" to the calls that still run, although an append among them may
be written. It says nothing to a line that it cannot read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from anyio import (
    BrokenResourceError,
    ClosedResourceError,
    Event,
    create_memory_object_stream,
    create_task_group,
    move_on_after,
)
from anyio.abc import ObjectReceiveStream, ObjectSendStream
from mcp.shared.message import ServerMessageMetadata, SessionMessage
from mcp.types import PARSE_ERROR, ErrorData, JSONRPCError, JSONRPCRequest, JSONRPCResponse

_UNREADABLE = "expected one request or notification of JSON-RPC 2.0, as a JSON object on one line"


@asynccontextmanager
async def answered(
    requests: ObjectReceiveStream[SessionMessage | Exception], answers: ObjectSendStream[SessionMessage], wait_s: float
) -> AsyncIterator[tuple[ObjectReceiveStream[SessionMessage | Exception], ObjectSendStream[SessionMessage]]]:
    """The streams for a server: requests end when each has its answer, or `wait_s` after `requests` has ended."""
    unanswered = 0
    settled = Event()

    async def settle() -> None:
        nonlocal unanswered, settled
        unanswered -= 1
        settled.set()
        settled = Event()

    async def relay_requests() -> None:
        nonlocal unanswered
        async with to_server:
            async for one in requests:
                if isinstance(one, Exception):
                    error = ErrorData(code=PARSE_ERROR, message=_UNREADABLE)
                    await answers.send(SessionMessage(JSONRPCError(jsonrpc="2.0", id=None, error=error)))
                    continue
                if isinstance(one.message, JSONRPCRequest):
                    unanswered += 1
                    # One that the client cancels gets no answer.
                    one.metadata = ServerMessageMetadata(on_request_unanswered=settle)
                await to_server.send(one)
            with move_on_after(wait_s):
                while unanswered:
                    await settled.wait()

    async def relay_answers() -> None:
        # Closed by a broken pipe, which ends the server.
        with suppress(BrokenResourceError, ClosedResourceError):
            async with answers, from_server:
                async for one in from_server:
                    await answers.send(one)
                    if isinstance(one.message, (JSONRPCResponse, JSONRPCError)):
                        await settle()

    to_server, server_requests = create_memory_object_stream[SessionMessage | Exception]()
    server_answers, from_server = create_memory_object_stream[SessionMessage]()
    async with create_task_group() as group:
        group.start_soon(relay_requests)
        group.start_soon(relay_answers)
        yield server_requests, server_answers
