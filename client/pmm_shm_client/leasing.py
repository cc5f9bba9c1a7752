"""Embeds texts that have no vector yet, each in one worker: the client's side of the leases.

The daemon is never needed: without a usable answer from it, a vector is computed here. Only the embedder's errors are
raised.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import get_ident
from time import monotonic
from typing import NamedTuple, TypeVar

import numpy as np
import zmq

from pmm_shm import limits
from pmm_shm.errors import CommandError, DaemonAbsentError, DaemonError, DaemonTimeoutError, InvalidTextError
from pmm_shm.instance.paths import Instance
from pmm_shm.vectors.embedder import Embedder, embedded_each
from pmm_shm.vectors.text_table import model_tag, text_vector_key
from pmm_shm.vectors.text_table_reader import TextTableReader
from pmm_shm.wire import protocol
from pmm_shm.wire.results import LeaseResult, PutResult, read_result
from pmm_shm_client.commands import CommandConnection, call

FLOAT = np.dtype("<f4")
_ANSWER_S = 2.0
_ANSWER_S_MIN = 0.25
_ASK_AGAIN_S = 5.0
_ENTRY_BYTES = 64
_ENVELOPE_BYTES = 1_024
Outcomes = dict[bytes, bytes | InvalidTextError]
"""Key to its vector, or to the reason why its text has none."""
_NO_DAEMON = (DaemonError, OSError, zmq.ZMQError)
_T = TypeVar("_T")


@dataclass(frozen=True)
class LeasedModel:
    """An embedder, with values that are needed for each of its texts.

    Attributes:
        prefix: of the keys of its vectors in the table.
        size_bytes: size of a vector.
    """

    embedder: Embedder
    prefix: bytes
    size_bytes: int

    @classmethod
    def of(cls, embedder: Embedder) -> LeasedModel:
        return cls(embedder, text_vector_key(model_tag(embedder.name), b""), embedder.dimension * FLOAT.itemsize)


class _LeasedKeys(NamedTuple):
    """A result of `lease`, with keys in place of their indices."""

    tokens: dict[bytes, int]
    ready: list[bytes]
    held: list[bytes]
    failed: list[bytes]

    @classmethod
    def of(cls, result: LeaseResult, keys: Sequence[bytes]) -> _LeasedKeys:
        """Raises `CommandError` if an index is not one of a key."""
        try:
            tokens = {keys[index]: int(token) for index, token in result.granted}
            ready, held, failed = ([keys[index] for index in indices] for indices in result[1:])
        except (TypeError, ValueError, IndexError) as error:
            raise CommandError(f"the daemon's answer to lease is not usable: {error!r}") from None
        return cls(tokens, ready, held, failed)


class Leasing:
    """Computes missing vectors, under leases where the daemon grants them. Thread-safe.

    Parameters:
        shared: the table with the vectors that others have stored.
        timeout_s: how long to wait for the daemon's answer, at most; two seconds suffice for a living one.
        restart: starts a daemon where none runs, if that is wanted; whether one runs now.
    """

    def __init__(
        self, instance: Instance, shared: TextTableReader, timeout_s: float, restart: Callable[[], bool]
    ) -> None:
        self._restart = restart
        self._answer_s = max(_ANSWER_S_MIN, timeout_s)
        self._instance = instance
        self._shared = shared
        # After a time-out the daemon is not asked again until then.
        self._asks_again_at = 0.0
        # (thread, key in the table) of the texts that are being computed here.
        self._computing: set[tuple[int, bytes]] = set()

    def outcomes(self, model: LeasedModel, texts: Mapping[bytes, str]) -> Outcomes:
        """The vectors of texts, by their keys.

        Raises:
            EmbedderError: the embedder failed; no lease is held.
        """
        found: Outcomes = {}
        if monotonic() >= self._asks_again_at:
            try:
                with self._connection() as connection:
                    self._compute_together(connection, model, texts, found)
            except _NO_DAEMON:
                pass
        missing = {key: text for key, text in texts.items() if key not in found}
        found.update(computed(model, missing))
        return found

    def _connection(self) -> CommandConnection:
        try:
            return CommandConnection(self._instance, protocol.LEASE)
        except DaemonAbsentError:
            if not self._restart():
                raise
        return CommandConnection(self._instance, protocol.LEASE)

    def _compute_together(
        self, connection: CommandConnection, model: LeasedModel, texts: Mapping[bytes, str], found: Outcomes
    ) -> None:
        """Compute the granted texts, read the stored ones, and wait while others are held; all into `found`."""
        batch_max = model.embedder.batch_max
        pending, has_progress = list(texts), len(texts) > batch_max
        while pending:
            # Wait for a batch only if nothing can be done for the others.
            wait_s = 0.0 if has_progress else limits.LEASE_WAIT_S
            has_progress, held = False, []
            for keys in _batches(pending, batch_max):
                leased = self._acquire(connection, model, keys, wait_s)
                wait_s = 0.0
                if leased.tokens:
                    self._compute_granted(connection, model, leased.tokens, texts, found)
                for key in leased.ready:
                    self._read(model, key, found)
                if leased.failed:
                    # Their holder could not compute them. Each waiter tries now by itself, and none waits for another.
                    found.update(computed(model, {key: texts[key] for key in leased.failed}))
                # A signal handler must not wait for a text that its own thread is computing.
                held += [key for key in leased.held if (get_ident(), model.prefix + key) not in self._computing]
                has_progress = has_progress or len(leased.held) < len(keys)
            pending = held

    def _acquire(
        self, connection: CommandConnection, model: LeasedModel, keys: Sequence[bytes], wait_s: float
    ) -> _LeasedKeys:
        wait_s = min(wait_s, self._answer_s / 2)
        args = {"model": model.embedder.name, "keys": list(keys), "wait_ms": int(wait_s * 1_000)}
        try:
            result = connection.ask(protocol.LEASE, args, min(self._answer_s, max(_ANSWER_S, wait_s + 1.0)))
        except DaemonTimeoutError:
            # It is stopped, or worse. To ask it again for each text would mean a time-out for each.
            self._asks_again_at = monotonic() + _ASK_AGAIN_S
            raise
        return _LeasedKeys.of(read_result(LeaseResult, result), keys)

    def _compute_granted(
        self,
        connection: CommandConnection,
        model: LeasedModel,
        tokens: Mapping[bytes, int],
        texts: Mapping[bytes, str],
        found: Outcomes,
    ) -> None:
        computing = {(get_ident(), model.prefix + key) for key in tokens}
        try:
            self._computing |= computing
            with _LeaseRenewal(self._instance, list(tokens.values())):
                outcomes = computed(model, {key: texts[key] for key in tokens})
                found.update(outcomes)
                vectors = {key: one for key, one in outcomes.items() if isinstance(one, bytes)}
                self._put(connection, model, tokens, vectors, found)
                if refused := [token for key, token in tokens.items() if key not in vectors]:
                    connection.ask(protocol.RELEASE, {"tokens": refused}, _ANSWER_S)
        except _NO_DAEMON:
            raise
        except BaseException:
            try:
                connection.ask(protocol.RELEASE, {"tokens": list(tokens.values())}, _ANSWER_S)
            except _NO_DAEMON:
                pass
            raise
        finally:
            self._computing -= computing

    def _put(
        self,
        connection: CommandConnection,
        model: LeasedModel,
        tokens: Mapping[bytes, int],
        vectors: Mapping[bytes, bytes],
        found: Outcomes,
    ) -> None:
        room = (limits.MESSAGE_BYTES_MAX - _ENVELOPE_BYTES) // (model.size_bytes + _ENTRY_BYTES)
        for keys in _batches(list(vectors), room):
            entries = [[key, tokens[key], vectors[key]] for key in keys]
            args = {"model": model.embedder.name, "vectors": entries}
            try:
                result = read_result(PutResult, connection.ask(protocol.PUT, args, _ANSWER_S))
            except CommandError:
                # A full disk, or a table with vectors of another dimension: the computed vectors are right all the
                # same.
                continue
            if result.refused:
                # The leases had expired: all workers use the vectors that another worker has stored meanwhile.
                for key in keys:
                    self._read(model, key, found)

    def _read(self, model: LeasedModel, key: bytes, found: Outcomes) -> None:
        """Read a vector that was just stored; if it cannot be read, it stays missing."""
        data = self._shared.get(model.prefix + key)
        if data is None:
            self._shared.refresh()
            data = self._shared.get(model.prefix + key)
        if data is not None and len(data) == model.size_bytes:
            found[key] = data


class _LeaseRenewal:
    """Renews leases in a thread, which ends with the `with` block."""

    def __init__(self, instance: Instance, tokens: list[int]) -> None:
        self._instance = instance
        self._tokens = tokens
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease renewal", daemon=True)

    def __enter__(self) -> None:
        try:
            self._thread.start()
        except RuntimeError:
            # No more threads. Most computations end long before a lease expires.
            self._is_over.set()

    def __exit__(self, *_: object) -> None:
        if not self._is_over.is_set():
            self._is_over.set()
            self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(limits.LEASE_RENEWAL_S):
            try:
                call(self._instance, protocol.RENEW, {"tokens": self._tokens}, limits.LEASE_RENEWAL_S)
            except DaemonAbsentError:
                return
            except _NO_DAEMON:
                continue


def computed(model: LeasedModel, texts: Mapping[bytes, str]) -> Outcomes:
    """The vectors of texts, computed in this process. Raises `EmbedderError`."""
    found = embedded_each(model.embedder, list(texts.values()))
    vectors = (one if isinstance(one, InvalidTextError) else one.astype(FLOAT, copy=False).tobytes() for one in found)
    return dict(zip(texts, vectors, strict=True))


def _batches(items: Sequence[_T], most: int) -> Iterator[Sequence[_T]]:
    return (items[start : start + most] for start in range(0, len(items), most))
