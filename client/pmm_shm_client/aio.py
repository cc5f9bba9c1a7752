"""The asyncio client: what waits is awaited, and reads stay plain calls, for they do not wait."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import zmq
import zmq.asyncio

from pmm_shm import limits
from pmm_shm.errors import DaemonAbsentError, DaemonTimeoutError
from pmm_shm.ledger.freshness import Choice
from pmm_shm.projection.verification import VerifyReport
from pmm_shm.vectors.embedder import Embedder
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import address_of, find_endpoints
from pmm_shm.wire.protocol import Announcement, ProtocolError, Request, unpack_announcement, unpack_reply
from pmm_shm_client import commands
from pmm_shm_client.cache import Cache, checked_event_id, checked_timeout
from pmm_shm_client.commands import checked_wait, report_of, wait_args
from pmm_shm_client.connecting import open_cache
from pmm_shm_client.reads import Consistency

if TYPE_CHECKING:
    from pmm_shm.vectors.embedder import Matrix, Vector
    from pmm_shm_client.context import Context
    from pmm_shm_client.searching import Hit, Hits, Query, Recollection

_ids = itertools.count(1)


class AsyncCache(Cache):
    """A `Cache` whose waiting calls have awaitable twins; made by `connect_async`."""

    async def __aenter__(self) -> AsyncCache:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    async def append_async(self, kind: str, content: str = "", meta: Mapping[str, Any] | None = None) -> int:
        """As `append`, without blocking the event loop while another process holds the ledger."""
        return await asyncio.to_thread(self.append, kind, content, meta)

    async def embed_async(self, text: str | None, model: str | None = None) -> Vector:
        """As `embed`; what has to be computed or waited for runs in a thread."""
        self._check_open()
        vector = self._embeddings.known(text, model) if self._embeddings is not None else None
        return await asyncio.to_thread(self.embed, text, model) if vector is None else vector

    async def embed_many_async(self, texts: Iterable[str | None], model: str | None = None) -> Matrix:
        """As `embed_many`, in a thread."""
        return await asyncio.to_thread(self.embed_many, texts, model)

    async def search_async(
        self, query: Query, k: int = 5, scope: Iterable[int] | None = None, model: str | None = None
    ) -> Hits[Hit]:
        """As `search`, in a thread."""
        return await asyncio.to_thread(self.search, query, k, scope, model)

    async def recall_async(
        self, query: Query, k: int = 5, scope: Iterable[int] | None = None, model: str | None = None
    ) -> Hits[Recollection]:
        """As `recall`, in a thread."""
        return await asyncio.to_thread(self.recall, query, k, scope, model)

    async def context_async(
        self, user_text: str | None = None, reflections: int = 3, recall: int = 0, messages: int = 0
    ) -> Context:
        """As `context`, in a thread."""
        return await asyncio.to_thread(self.context, user_text, reflections, recall, messages)

    async def wait_for_async(self, event_id: int, timeout: float = limits.COMMAND_TIMEOUT_S) -> int:
        """As `wait_for`."""
        checked_event_id(event_id), checked_timeout(timeout)
        published = self._published_as_of()
        if published is not None and published >= event_id:
            return published
        result = await self._call_async(protocol.WAIT, wait_args(event_id, timeout), timeout)
        return checked_wait(result, self.path, event_id, timeout)

    async def verify_async(
        self, fold: str | None = None, timeout: float = limits.LONG_COMMAND_TIMEOUT_S
    ) -> VerifyReport:
        """As `verify`; without a daemon the comparison runs in a thread."""
        try:
            report = report_of(await self._call_async(protocol.VERIFY, {"fold": fold}, timeout))
        except DaemonAbsentError:
            return await asyncio.to_thread(self.verify, fold, timeout)
        self._verifications[report.ok] += 1
        return report

    async def invalidate_async(self, fold: str | None = None, timeout: float = limits.LONG_COMMAND_TIMEOUT_S) -> int:
        """As `invalidate`."""
        return int((await self._call_async(protocol.INVALIDATE, {"fold": fold}, timeout))["as_of"])

    async def stats_async(self) -> dict[str, Any]:
        """As `stats`."""
        return await asyncio.to_thread(self.stats)

    async def announcements(self) -> AsyncIterator[Announcement]:
        """New positions as the daemon announces them; the newest only, where the reader is slow.

        A hint: none may come for a while, and a read is exact without it.

        Raises:
            DaemonAbsentError: no daemon serves this ledger.
        """
        path = find_endpoints(self._instance).announcements
        with _context().socket(zmq.SUB) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.CONFLATE, 1)
            socket.setsockopt(zmq.MAXMSGSIZE, limits.MESSAGE_BYTES_MAX)
            socket.setsockopt(zmq.SUBSCRIBE, b"")
            socket.connect(address_of(path))
            while True:
                data = await socket.recv()
                try:
                    announcement = unpack_announcement(data)
                except ProtocolError:
                    continue
                yield announcement

    async def _call_async(self, command: str, args: Mapping[str, Any], timeout_s: float) -> Any:
        self._check_open()
        deadline = time.monotonic() + timeout_s
        request = Request(next(_ids), command, args)
        with _context().socket(zmq.DEALER) as socket:
            commands.bound(socket)
            address, pid = commands.endpoint_for(self._instance, command)
            socket.connect(address)
            # The first message on a socket has room, whatever the daemon does.
            await socket.send(request.pack())
            while True:
                remaining_s = deadline - time.monotonic()
                if remaining_s < 0:
                    raise DaemonTimeoutError(f"{self.path}: the daemon did not answer {command} within {timeout_s:g} s")
                if not await socket.poll(commands.poll_ms(remaining_s)):
                    if remaining_s > limits.DAEMON_CHECK_S:
                        await asyncio.to_thread(commands.check_alive, self._instance, pid, command)
                    continue
                try:
                    return unpack_reply(await socket.recv(), request.id)
                except ProtocolError:
                    continue


def _context() -> zmq.asyncio.Context:
    return zmq.asyncio.Context(commands.context())


async def connect_async(
    path: str | os.PathLike[str] | None = None,
    *,
    autostart: bool = False,
    consistency: Consistency = "exact",
    timeout: float = limits.LEDGER_TIMEOUT_S,
    freshness: Choice = "auto",
    embedder: Embedder | str | None = None,
) -> AsyncCache:
    """As `connect`, for asyncio: `async with await connect_async("pmm.db") as cache: ...`."""
    return await asyncio.to_thread(
        open_cache,
        AsyncCache,
        path,
        autostart=autostart,
        consistency=consistency,
        timeout=timeout,
        freshness=freshness,
        embedder=embedder,
    )
