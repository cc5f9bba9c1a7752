"""A connection to PostgreSQL whose waits end, and which sends several statements in one message.

A server process that is stopped, or a machine that is frozen, keeps its connections open and answers nothing.
`tcp_user_timeout` does not help where the kernel still acknowledges.

psycopg's pipeline sends each statement by itself, and each of these messages wakes the server. An append in two
messages takes less than half as long.
"""

from __future__ import annotations

import math
import select
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result

from pmm_shm import limits
from pmm_shm.ledger.source.statements import Statement

_GOOD = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)


class Answers(NamedTuple):
    """What came back for the statements of one message.

    Attributes:
        results: of the statements that succeeded, in order.
        error: why there are no more; None if all succeeded.
    """

    results: list[pq.abc.PGresult]
    error: psycopg.Error | None


class SourceSession(psycopg.Connection[tuple[Any, ...]]):
    """See the module.

    Attributes:
        deadline_s: when waits end, in monotonic seconds.
        silence_s: for how long the server may send nothing while it is waited for.
        is_pooled: whether a pooler may give each transaction another server process, which knows no prepared statement.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.deadline_s = math.inf
        self.silence_s = limits.SOURCE_SILENCE_S
        self.is_pooled = True
        self._known_names: set[str] = set()

    def send(self, *statements: tuple[Statement, Sequence[object]]) -> Answers:
        """Send different statements with their parameters in one message, and wait for the answers.

        After one that fails the others are not executed. A connection that fails, or does not answer, is closed.
        """
        results: list[pq.abc.PGresult] = []
        error: psycopg.Error | None = None
        with self.lock:
            try:
                self.pgconn.enter_pipeline_mode()
                for result in self._exchange(statements):
                    if result.status in _GOOD:
                        results.append(result)
                    elif error is None and result.status == pq.ExecStatus.FATAL_ERROR:
                        error = error_from_result(result)
                self.pgconn.exit_pipeline_mode()
            except psycopg.Error as lost:
                # A server that ends says why before the connection breaks.
                error = error or lost
                self.pgconn.finish()
            except BaseException:
                self.pgconn.finish()
                raise
        return Answers(results, error)

    def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        """As psycopg's, and it ends."""
        return super().wait(self._ending(gen), *arguments, **options)

    def _ending(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        heard_s, ready = time.monotonic(), None
        while True:
            try:
                wanted = next(gen) if ready is None else gen.send(ready)
            except StopIteration as end:
                return end.value
            ready = yield wanted
            if ready:
                heard_s = time.monotonic()
            elif time.monotonic() >= self._end_s(heard_s):
                self._give_up()

    def _exchange(self, statements: Sequence[tuple[Statement, Sequence[object]]]) -> Iterator[pq.abc.PGresult]:
        """The results of the statements, and the errors of those that could not be prepared."""
        pgconn = self.pgconn
        # For each answer, the name that is known then; None for a statement's.
        names: list[str | None] = []
        for (name, sql), values in statements:
            parameters = [None if value is None else str(value).encode() for value in values]
            if self.is_pooled:
                pgconn.send_query_params(sql.encode(), parameters)
            else:
                if name not in self._known_names:
                    pgconn.send_prepare(name.encode(), sql.encode())
                    names.append(name)
                pgconn.send_query_prepared(name.encode(), parameters)
            names.append(None)
        pgconn.pipeline_sync()
        for known, result in zip(names, self._received(), strict=True):
            if known is None or result.status not in _GOOD:
                yield result
            else:
                self._known_names.add(known)

    def _received(self) -> Iterator[pq.abc.PGresult]:
        """What comes back for one message."""
        pgconn = self.pgconn
        poll = select.poll()
        heard_s = time.monotonic()
        while True:
            while (is_unsent := pgconn.flush()) or pgconn.is_busy():
                poll.register(pgconn.socket, select.POLLIN | (select.POLLOUT if is_unsent else 0))
                left_s = self._end_s(heard_s) - time.monotonic()
                if not (found := poll.poll(max(0.0, left_s) * 1_000)):
                    self._give_up()
                heard_s = time.monotonic()
                if found[0][1] != select.POLLOUT:
                    pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                continue
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                return
            yield result

    def _end_s(self, heard_s: float) -> float:
        return min(self.deadline_s, heard_s + self.silence_s)

    def _give_up(self) -> NoReturn:
        self.pgconn.finish()
        raise psycopg.OperationalError("the server does not answer")
