"""Computing the vectors of events in small pieces, so that neither the follower nor new events wait long.

Workers compute vectors, too, and a provider may charge for each. So a vector in the text table is used as it is, and
the texts of new events are computed under the same leases as those of workers.

A local embedder gets one small batch at a time, because it takes the CPU time of this process. An embedder on the
network takes little of it, and gets several batches at the same time.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pmm_cached.commands import CommandServer
from pmm_shm import limits
from pmm_shm.errors import InvalidTextError
from pmm_shm.store.writer import StoreWriter
from pmm_shm.vectors.embedder import Embedder, embedded_each, text_key
from pmm_shm.vectors.event_table import VectorRows
from pmm_shm.vectors.events import EventText
from pmm_shm.vectors.in_flight import InFlight
from pmm_shm.vectors.local_bow import LocalBow
from pmm_shm.vectors.text_table import TextVector, model_tag, text_vector_key

STEP_S = 0.25
"""About how long one step of indexing takes."""

_BATCH_S = 1.0
_WAIT_FOR_WORKERS_S = 5.0
_POLL_S = 0.02
_BATCHES_PER_CALL = 16
_Vector = Sequence[float] | NDArray[np.float32]
_Outcome = _Vector | InvalidTextError
_Outcomes = dict[str, _Outcome]
"""Text to its vector, or to the reason why it has none."""
Pause = Callable[[], None]
"""Called between small pieces of work: lets the follower go first; raises to give up."""


class EventVectors(NamedTuple):
    """The vectors of the first events of a list.

    Attributes:
        rows: of those that have a vector.
        done: the number of these first events.
        refused: (event id, reason) of those that never get a vector from this embedder.
    """

    rows: VectorRows
    done: int
    refused: list[tuple[int, str]]


def _started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name="embedding", daemon=True)
    thread.start()
    return thread


class EventEmbedder:
    """Vectors of events from one embedder.

    Parameters:
        store: with the text table.
        pause: called between small pieces of work.
        server: has the leases on texts, which are shared with the workers.
    """

    def __init__(self, store: StoreWriter, embedder: Embedder, pause: Pause, server: CommandServer) -> None:
        self._store = store
        self._embedder = embedder
        self._pause = pause
        self._server = server
        self._tag = model_tag(embedder.name)
        # The default embedder is faster than looking up its vectors.
        self._is_shared = not isinstance(embedder, LocalBow)
        self._batch = 1
        # Of an endpoint: how long a request takes, however few texts it has.
        self._latency_s = 0.0
        # Outcomes for texts behind one that failed: they may have cost money.
        self._ahead: dict[str, _Outcome] = {}
        if embedder.requests_max > 1:
            embedder.in_flight = InFlight(embedder.requests_max)

    @property
    def texts_at_once(self) -> int:
        """How many texts are computed between two pauses, at most."""
        return self._batch * self._calls * (1 if self._embedder.in_flight is None else _BATCHES_PER_CALL)

    def vectors(self, texts: list[EventText], *, are_new: bool) -> EventVectors:
        """The vectors of the first events: of all, unless computing takes longer than `STEP_S` or fails at a later one.
        Vectors that were computed are never discarded.

        Parameters:
            are_new: whether workers may be computing the same texts.

        Raises:
            EmbedderError, StoreError: at the first text.
        """
        outcomes: list[_Outcome] = []
        deadline = time.monotonic() + STEP_S
        while len(outcomes) < len(texts) and (not outcomes or time.monotonic() < deadline):
            try:
                self._pause()
                outcomes += self._outcomes(texts[len(outcomes) : len(outcomes) + self.texts_at_once], are_new=are_new)
            except Exception:
                # One text may be to blame: the next step begins with it alone, and raises the error.
                self._batch = 1
                if not outcomes:
                    raise
                break
        refused: list[tuple[int, str]] = []
        found: list[tuple[EventText, _Vector]] = []
        for text, outcome in zip(texts, outcomes, strict=False):
            if isinstance(outcome, InvalidTextError):
                refused.append((text.event_id, str(outcome)))
            else:
                found.append((text, outcome))
        rows = VectorRows(
            np.array([text.event_id for text, _ in found], np.int64),
            np.array([text.source for text, _ in found], np.uint8),
            np.array([vector for _, vector in found], np.float32).reshape(len(found), self._embedder.dimension),
        )
        return EventVectors(rows, len(outcomes), refused)

    def _outcomes(self, texts: list[EventText], *, are_new: bool) -> list[_Outcome]:
        """The outcomes for the first events. Raises the failure of the first, if it failed."""
        known: _Outcomes = {}
        for one in texts:
            outcome = self._ahead.pop(one.text, None) if one.vector is None else one.vector
            outcome = self._stored(one.text) if outcome is None else outcome
            if outcome is not None:
                known[one.text] = outcome
        missing = list(dict.fromkeys(one.text for one in texts if one.text not in known))
        failure = None
        if missing:
            compute = self._computed_with_workers if are_new and self._is_shared else self._computed
            found, failure = compute(missing)
            known.update(found)
        first = list(itertools.takewhile(lambda one: one.text in known, texts))
        self._ahead.update((one.text, known[one.text]) for one in texts[len(first) :] if one.text in known)
        if failure is not None:
            self._batch = 1
            if not first:
                raise failure
        return [known[one.text] for one in first]

    def _computed_with_workers(self, texts: list[str]) -> tuple[_Outcomes, BaseException | None]:
        """The outcomes for new texts, each computed once by this process or a worker; and the first failure."""
        found: _Outcomes = {}
        left, deadline = texts, time.monotonic() + _WAIT_FOR_WORKERS_S
        while left and time.monotonic() < deadline:
            # Repeated: a worker may give up, and a vector may be evicted before it is read here.
            computed, failure = self._computed_under_leases(left)
            found |= computed
            if failure is not None:
                return found, failure
            found |= {text: vector for text in left if text not in found and (vector := self._stored(text)) is not None}
            left = [text for text in left if text not in found]
            if left:
                self._pause()
                time.sleep(_POLL_S)
        computed, failure = self._computed(left)
        return found | computed, failure

    def _computed_under_leases(self, texts: list[str]) -> tuple[_Outcomes, BaseException | None]:
        """The outcomes for those texts that have no vector and no other holder; and the first failure."""
        keys = {text_key(text): text for text in texts}
        taken = self._server.acquire_leases(self._embedder.name, list(keys))
        stored: list[TextVector] = []
        try:
            found, failure = self._computed([keys[key] for key in taken])
            stored = [
                TextVector(self._embedder.name, text_key(text), np.asarray(outcome, "<f4").tobytes())
                for text, outcome in found.items()
                if not isinstance(outcome, InvalidTextError)
            ]
        finally:
            self._server.finish_leases(self._embedder.name, taken, stored)
        return found, failure

    def _computed(self, texts: list[str]) -> tuple[_Outcomes, BaseException | None]:
        """The outcomes for the first texts, computed in as many calls at a time as the embedder allows, for about
        `_BATCH_S`; and the first failure.
        """
        outcomes: _Outcomes = {}
        failures: list[BaseException] = []
        threads: list[threading.Thread] = []
        lock = threading.Lock()
        left, deadline = collections.deque(texts), time.monotonic() + _BATCH_S

        def work() -> None:
            while True:
                with lock:
                    if not left or failures or (outcomes and time.monotonic() >= deadline):
                        return
                    batch = [left.popleft() for _ in range(min(self._batch, len(left)))]
                    if left and len(threads) + 1 < self._calls:
                        # More calls are allowed by now. Without more threads, those that run do all of the work.
                        with contextlib.suppress(RuntimeError):
                            threads.append(_started(work))
                try:
                    found = self._called(batch)
                except BaseException as failure:
                    failures.append(failure)
                else:
                    outcomes.update(zip(batch, found, strict=True))

        work()
        for thread in threads:
            thread.join()
        return outcomes, failures[0] if failures else None

    def _called(self, texts: list[str]) -> Sequence[_Outcome]:
        """The outcomes of one call of the embedder, which also chooses the size of the next batch."""
        in_flight = self._embedder.in_flight
        cpu_began, began = time.thread_time(), time.monotonic()
        try:
            found = embedded_each(self._embedder, texts)
        except BaseException:
            if in_flight is not None:
                in_flight.overloaded(began)
            raise
        cpu_s, elapsed_s = time.thread_time() - cpu_began, time.monotonic() - began
        if in_flight is None:
            self._adapt(len(texts), cpu_s / limits.INDEX_SLICE_S, elapsed_s / _BATCH_S)
            return found
        in_flight.answered()
        # After an overload, the call has waited longer than it took. A smaller batch would not shorten the latency.
        self._latency_s = elapsed_s if len(texts) == 1 else min(elapsed_s, self._latency_s)
        took_s = 0.0 if in_flight.was_overloaded(began) else elapsed_s - self._latency_s
        self._adapt(len(texts), cpu_s / limits.INDEX_REQUEST_CPU_S, took_s / limits.INDEX_REQUEST_S)
        return found

    @property
    def _calls(self) -> int:
        """How many calls of the embedder may run at the same time."""
        return 1 if self._embedder.in_flight is None else self._embedder.in_flight.limit

    def _stored(self, text: str) -> _Vector | None:
        """The vector in the text table."""
        if not self._is_shared:
            return None
        data = self._store.environment.get(text_vector_key(self._tag, text_key(text)))
        return None if data is None else np.frombuffer(data, "<f4")

    def _adapt(self, count: int, *shares: float) -> None:
        """Choose the size of a batch by what one of `count` texts took, as shares of what it should take: CPU time, so
        that the follower waits no longer, and time, so that new events do not wait long for a backlog.
        """
        if count < self._batch and max(shares) <= 1:
            # The last texts of a list say little.
            return
        sizes = [int(count / share) for share in shares if share > 0]
        self._batch = max(1, min(*sizes, 2 * count, self._embedder.batch_max))
