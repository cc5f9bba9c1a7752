"""The asyncio client: calls that may block have awaitable twins; reads are synchronous, because they rarely block."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import zmq
import zmq.asyncio

from pmm_shm import limits
from pmm_shm.errors import CommandError, DaemonAbsentError, DaemonTimeoutError, ResourceLimitError
from pmm_shm.ledger.connection import Durability
from pmm_shm.ledger.freshness import Choice
from pmm_shm.ledger.new_events import EventInput
from pmm_shm.ledger.rows import Event
from pmm_shm.projection.verification import VerifyReport
from pmm_shm.resources import shortage_of
from pmm_shm.vectors.embedder import Embedder
from pmm_shm.wire.endpoints import address_of, find_endpoints
from pmm_shm.wire.protocol import Announcement, ProtocolError, unpack_announcement
from pmm_shm_client import commands
from pmm_shm_client.cache import Cache, open_cache
from pmm_shm_client.commands import CommandConnection, DaemonCommand, invalidate_command, verify_command, wait_command
from pmm_shm_client.reads import Consistency

if TYPE_CHECKING:
    from pmm_shm.folds.contract import Fold
    from pmm_shm.ledger.shape import Shape
    from pmm_shm.projection.replay import Progress
    from pmm_shm.vectors.embedder import Matrix, Vector
    from pmm_shm_client.context import Context
    from pmm_shm_client.event_filter import Moment
    from pmm_shm_client.finding import SearchMode, WordMode
    from pmm_shm_client.frame import Frame
    from pmm_shm_client.hits import Hit, Hits, Match, MatchedEvent, Recollection
    from pmm_shm_client.searching import Query
    from pmm_shm_client.stats import Stats

_T = TypeVar("_T")


class AsyncCache(Cache):
    """A `Cache` whose blocking calls have awaitable twins; made by `connect_async`."""

    async def __aenter__(self) -> AsyncCache:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await _in_thread(self.close)
        except ResourceLimitError:
            self.close()

    async def append_async(
        self,
        kind: str,
        content: str = "",
        meta: Mapping[str, Any] | None = None,
        *,
        expected_head: int | Frame | None = None,
        wait: bool = True,
    ) -> int:
        """As `append`, without blocking the event loop while another process holds the ledger."""
        return await _in_thread(self.append, kind, content, meta, expected_head=expected_head, wait=wait)

    async def append_many_async(
        self, events: Iterable[EventInput], *, expected_head: int | Frame | None = None, wait: bool = True
    ) -> list[int]:
        """As `append_many`, without blocking the event loop."""
        return await _in_thread(self.append_many, events, expected_head=expected_head, wait=wait)

    async def decide_async(
        self, decision: Callable[[Frame], Iterable[EventInput] | None], timeout: float | None = None
    ) -> list[int]:
        """As `decide`, in a thread, in which `decision` is called, too."""
        return await _in_thread(self.decide, decision, timeout)

    async def frame_at_async(self, event_id: int, progress: Progress | None = None) -> Frame:
        """As `frame_at`, in a thread, in which `progress` is called, too."""
        return await _in_thread(self.frame_at, event_id, progress)

    async def newest_async(self, kind: str) -> Event | None:
        """As `newest`, in a thread."""
        return await _in_thread(self.newest, kind)

    async def events_async(
        self,
        kind: str | None = None,
        after: int | None = None,
        before: int | None = None,
        limit: int | None = 100,
        newest_first: bool = False,
    ) -> list[Event]:
        """As `events`, in a thread."""
        return await _in_thread(self.events, kind, after, before, limit, newest_first)

    async def embed_async(self, text: str | None, model: str | None = None) -> Vector:
        """As `embed`; a vector that is not at hand is computed or waited for in a thread."""
        self._check_open()
        vector = self._embeddings.known(text, model) if self._embeddings is not None else None
        return await _in_thread(self.embed, text, model) if vector is None else vector

    async def embed_many_async(self, texts: Iterable[str | None], model: str | None = None) -> Matrix:
        """As `embed_many`, in a thread."""
        return await _in_thread(self.embed_many, texts, model)

    @overload
    async def search_async(
        self,
        query: Query,
        k: int = 5,
        scope: Iterable[int] | None = None,
        model: str | None = None,
        *,
        mode: Literal["meaning"] = "meaning",
        kinds: Collection[str] | None = None,
        roles: Collection[str] | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        distinct: bool = False,
    ) -> Hits[Hit]: ...

    @overload
    async def search_async(
        self,
        query: Query,
        k: int = 5,
        scope: Iterable[int] | None = None,
        model: str | None = None,
        *,
        mode: WordMode,
        kinds: Collection[str] | None = None,
        roles: Collection[str] | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        distinct: bool = False,
    ) -> Hits[Match]: ...

    async def search_async(
        self,
        query: Query,
        k: int = 5,
        scope: Iterable[int] | None = None,
        model: str | None = None,
        *,
        mode: SearchMode = "meaning",
        kinds: Collection[str] | None = None,
        roles: Collection[str] | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        distinct: bool = False,
    ) -> Hits[Any]:
        """As `search`, in a thread."""
        chosen: Any = mode
        return await _in_thread(
            self.search,
            query,
            k,
            scope,
            model,
            mode=chosen,
            kinds=kinds,
            roles=roles,
            since=since,
            until=until,
            distinct=distinct,
        )

    @overload
    async def recall_async(
        self,
        query: Query,
        k: int = 5,
        scope: Iterable[int] | None = None,
        model: str | None = None,
        *,
        mode: Literal["meaning"] = "meaning",
        kinds: Collection[str] | None = None,
        roles: Collection[str] | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        distinct: bool = False,
    ) -> Hits[Recollection]: ...

    @overload
    async def recall_async(
        self,
        query: Query,
        k: int = 5,
        scope: Iterable[int] | None = None,
        model: str | None = None,
        *,
        mode: WordMode,
        kinds: Collection[str] | None = None,
        roles: Collection[str] | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        distinct: bool = False,
    ) -> Hits[MatchedEvent]: ...

    async def recall_async(
        self,
        query: Query,
        k: int = 5,
        scope: Iterable[int] | None = None,
        model: str | None = None,
        *,
        mode: SearchMode = "meaning",
        kinds: Collection[str] | None = None,
        roles: Collection[str] | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        distinct: bool = False,
    ) -> Hits[Any]:
        """As `recall`, in a thread."""
        chosen: Any = mode
        return await _in_thread(
            self.recall,
            query,
            k,
            scope,
            model,
            mode=chosen,
            kinds=kinds,
            roles=roles,
            since=since,
            until=until,
            distinct=distinct,
        )

    async def context_async(
        self,
        user_text: str | None = None,
        reflections: int = 3,
        recall: int = 0,
        messages: int = 0,
        *,
        recall_mode: SearchMode = "meaning",
    ) -> Context:
        """As `context`, in a thread."""
        return await _in_thread(self.context, user_text, reflections, recall, messages, recall_mode=recall_mode)

    async def wait_for_async(self, event_id: int, timeout: float = limits.COMMAND_TIMEOUT_S) -> int:
        """As `wait_for`."""
        self._check_open()
        command = wait_command(self.path, event_id, timeout)
        published = self.published_as_of()
        if published is not None and published >= event_id:
            return published
        return await self._give_async(command)

    async def verify_async(
        self, fold: str | None = None, timeout: float = limits.LONG_COMMAND_TIMEOUT_S
    ) -> VerifyReport:
        """As `verify`; without a daemon the comparison runs in a thread."""
        self._check_open()
        command = verify_command(fold, timeout)
        if fold is not None:
            self._know(fold)
        await asyncio.to_thread(self._look_at_ledger)
        try:
            report = await self._give_async(command)
        except DaemonAbsentError:
            return await _in_thread(self.verify, fold, timeout)
        self._verifications[report.ok] += 1
        return report

    async def invalidate_async(self, fold: str | None = None, timeout: float = limits.LONG_COMMAND_TIMEOUT_S) -> int:
        """As `invalidate`."""
        self._check_open()
        return await self._give_async(invalidate_command(fold, timeout))

    async def stats_async(self) -> Stats:
        """As `stats`."""
        return await _in_thread(self.stats)

    async def announcements(self) -> AsyncIterator[Announcement]:
        """New positions as the daemon announces them; a slow reader gets only the newest.

        They are hints: none may arrive for a while, and reads are exact without them.

        Raises:
            DaemonAbsentError: no daemon serves this ledger.
        """
        # The sockets may be of the daemon of another ledger: only the answer to a request tells.
        with contextlib.suppress(CommandError, DaemonTimeoutError):
            await self._give_async(commands.ping_command())
        path = find_endpoints(self._instance).announcements
        with commands.open_socket(self.path, _context, zmq.SUB) as socket:
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

    async def _give_async(self, command: DaemonCommand[_T]) -> _T:
        try:
            return await self._exchange(command)
        except DaemonAbsentError:
            if not await asyncio.to_thread(self._restarted_daemon):
                raise
        return await self._exchange(command)

    async def _exchange(self, command: DaemonCommand[_T]) -> _T:
        with commands.open_socket(self.path, _context, zmq.DEALER) as socket:
            # The same socket twice: the exchange sends and receives without blocking, and only polling is awaited.
            connection = CommandConnection(self._instance, command.name, zmq.Socket(socket))
            exchange = connection.exchange(command.name, command.args, command.timeout_s)
            try:
                timeout_ms, events = next(exchange)
                while True:
                    if await socket.poll(timeout_ms, events):
                        timeout_ms, events = exchange.send(True)
                    else:
                        # In a thread: to look for a stopped daemon may take a second. The exchange never ends here.
                        timeout_ms, events = await _in_thread(exchange.send, False)
            except StopIteration as end:
                return command.read(end.value)


async def _in_thread(function: Callable[..., _T], *args: Any, **options: Any) -> _T:
    """`asyncio.to_thread`; where no thread can be started, that is an error of ours."""
    try:
        return await asyncio.to_thread(function, *args, **options)
    except RuntimeError as error:
        found = shortage_of(error)
        if found is None:
            raise
        raise ResourceLimitError(found) from error


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
    create: bool = False,
    durability: Durability = "default",
    folds: Iterable[Fold | type[Fold]] = (),
    shape: Shape | str | os.PathLike[str] | None = None,
) -> AsyncCache:
    """As `connect`, for asyncio: `async with await connect_async("pmm.db") as cache: ...`."""
    options = {
        "consistency": consistency,
        "timeout": timeout,
        "freshness": freshness,
        "embedder": embedder,
        "create": create,
        "durability": durability,
        "folds": folds,
        "shape": shape,
    }
    return await _in_thread(open_cache, AsyncCache, path, autostart, options)
