"""Computing the vectors of events in small pieces, so that neither the follower nor new events wait long.

Workers compute vectors, too, and a provider may charge for each. So a vector in the text table is used as it is, and
the texts of new events are computed under the same leases as those of workers.

A local embedder gets one small batch at a time, because it takes the CPU time of this process. An embedder on the
network takes little of it, and gets several batches at the same time.
"""

from __future__ import annotations

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


class _Batch(threading.Thread):
    """One call of the embedder, in a thread of its own or (by `run`) in the caller's."""

    def __init__(self, embedder: Embedder, texts: list[str]) -> None:
        super().__init__(name="embedding", daemon=True)
        self._embedder = embedder
        self.texts = texts
        self.outcomes: list[_Outcome] = []
        self.failure: BaseException | None = None
        self.cpu_s = self.elapsed_s = 0.0

    def run(self) -> None:
        cpu_began, began = time.thread_time(), time.monotonic()
        in_flight = self._embedder.in_flight
        try:
            self.outcomes = list(embedded_each(self._embedder, self.texts))
        except BaseException as failure:
            self.failure = failure
            if in_flight is not None:
                in_flight.overloaded(began)
        else:
            if in_flight is not None:
                in_flight.answered()
        self.cpu_s, self.elapsed_s = time.thread_time() - cpu_began, time.monotonic() - began


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
        # Outcomes for texts behind one that failed: they may have cost money.
        self._ahead: dict[str, _Outcome] = {}
        if embedder.requests_max > 1:
            embedder.in_flight = InFlight(embedder.requests_max)

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
            in_flight = self._embedder.in_flight
            count = self._batch * (1 if in_flight is None else in_flight.limit)
            try:
                self._pause()
                outcomes += self._outcomes(texts[len(outcomes) : len(outcomes) + count], are_new=are_new)
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
        """The outcomes for texts, computed in as many calls at a time as the embedder allows; and the first failure."""
        if not texts:
            return {}, None
        size = max(1, min(self._batch, self._embedder.batch_max))
        batches = [_Batch(self._embedder, texts[start : start + size]) for start in range(0, len(texts), size)]
        started = []
        for batch in batches[1:] if self._embedder.in_flight is not None else ():
            try:
                batch.start()
                started.append(batch)
            except RuntimeError:
                # No more threads.
                break
        for batch in batches:
            if batch not in started:
                batch.run()
        for batch in started:
            batch.join()
        self._adapt(batches)
        outcomes = {text: one for batch in batches for text, one in zip(batch.texts, batch.outcomes, strict=False)}
        return outcomes, next((batch.failure for batch in batches if batch.failure is not None), None)

    def _stored(self, text: str) -> _Vector | None:
        """The vector in the text table."""
        if not self._is_shared:
            return None
        data = self._store.environment.get(text_vector_key(self._tag, text_key(text)))
        return None if data is None else np.frombuffer(data, "<f4")

    def _adapt(self, batches: list[_Batch]) -> None:
        """Choose the size of a batch by the CPU time, so that the follower waits no longer, and by the time in all, so
        that new events do not wait long for a backlog.
        """
        is_local = self._embedder.in_flight is None
        cpu_s, elapsed_s = (
            (limits.INDEX_SLICE_S, _BATCH_S) if is_local else (limits.INDEX_REQUEST_CPU_S, limits.INDEX_REQUEST_S)
        )
        sizes = [2 * self._batch, self._embedder.batch_max]
        for batch in batches:
            sizes += [int(cpu_s * len(batch.texts) / batch.cpu_s)] if batch.cpu_s > 0 else []
            sizes += [int(elapsed_s * len(batch.texts) / batch.elapsed_s)] if batch.elapsed_s > 0 else []
        self._batch = max(1, min(sizes))
