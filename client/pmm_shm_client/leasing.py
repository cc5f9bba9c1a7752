"""Computing texts that nobody has embedded yet, each by one worker: the client's side of the leases.

The daemon helps and is never needed: without an answer of use, a vector is computed here. Only what the embedder raises
is raised.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import get_ident
from time import monotonic
from typing import Any, TypeVar

import numpy as np
import zmq

from pmm_shm import limits
from pmm_shm.errors import CommandError, DaemonAbsentError, DaemonError, DaemonTimeoutError
from pmm_shm.instance.paths import Instance
from pmm_shm.vectors.embedder import Embedder, embedded
from pmm_shm.vectors.text_table import model_tag, text_vector_key
from pmm_shm.vectors.text_table_reader import TextTableReader
from pmm_shm.wire import protocol
from pmm_shm_client.commands import Line, call

FLOAT = np.dtype("<f4")
_ANSWER_S = 2.0
_QUIET_S = 5.0
_ENTRY_BYTES = 64
_ENVELOPE_BYTES = 1_024
_NO_HELP = (DaemonError, OSError, zmq.ZMQError)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Model:
    """An embedder, with what is looked up for each of its texts.

    Attributes:
        prefix: of the keys of its vectors.
        size_bytes: of a vector.
    """

    embedder: Embedder
    prefix: bytes
    size_bytes: int

    @classmethod
    def of(cls, embedder: Embedder) -> Model:
        return cls(embedder, text_vector_key(model_tag(embedder.name), b""), embedder.dimension * FLOAT.itemsize)


class _Answer:
    """The daemon's answer to a lease, checked."""

    def __init__(self, result: Any, keys: Sequence[bytes]) -> None:
        try:
            self.tokens = {keys[index]: int(token) for index, token in result["granted"]}
            self.ready = [keys[index] for index in result["ready"]]
            self.held = [keys[index] for index in result["held"]]
            self.failed = [keys[index] for index in result["failed"]]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DaemonError(f"an answer to lease that is none: {error!r}") from None


class Leasing:
    """Vectors of missing texts. Thread-safe.

    Parameters:
        shared: where the vectors are that others have computed.
    """

    def __init__(self, instance: Instance, shared: TextTableReader) -> None:
        self._instance = instance
        self._shared = shared
        self._quiet_until = 0.0
        # (thread, key in the table) of what is being computed here.
        self._computing: set[tuple[int, bytes]] = set()

    def vectors(self, model: Model, texts: Mapping[bytes, str]) -> dict[bytes, bytes]:
        """The vectors of texts, by their keys.

        Raises:
            EmbedderError: the embedder failed; no lease is held.
        """
        found: dict[bytes, bytes] = {}
        if monotonic() >= self._quiet_until:
            try:
                with Line(self._instance, protocol.LEASE) as line:
                    self._compute_together(line, model, texts, found)
            except _NO_HELP:
                pass
        left = {key: text for key, text in texts.items() if key not in found}
        found.update(computed(model, left))
        return found

    def _compute_together(
        self, line: Line, model: Model, texts: Mapping[bytes, str], found: dict[bytes, bytes]
    ) -> None:
        """Compute what is granted, read what is ready, wait for what is held, until nothing is; all into `found`."""
        batch_max = model.embedder.batch_max
        pending, has_news = list(texts), len(texts) > batch_max
        while pending:
            # To wait for one batch is right only when nothing can be had of the others.
            wait_s = 0.0 if has_news else limits.LEASE_WAIT_S
            has_news, held = False, []
            for keys in _batches(pending, batch_max):
                answer = self._lease(line, model, keys, wait_s)
                wait_s = 0.0
                if answer.tokens:
                    self._compute_granted(line, model, answer.tokens, texts, found)
                for key in answer.ready:
                    self._read(model, key, found)
                if answer.failed:
                    # Who computed them could not. Each tries by itself now, and none waits for another.
                    found.update(computed(model, {key: texts[key] for key in answer.failed}))
                # A signal handler must not wait for what its own thread is in the middle of.
                held += [key for key in answer.held if (get_ident(), model.prefix + key) not in self._computing]
                has_news = has_news or len(answer.held) < len(keys)
            pending = held

    def _lease(self, line: Line, model: Model, keys: Sequence[bytes], wait_s: float) -> _Answer:
        args = {"model": model.embedder.name, "keys": list(keys), "wait_ms": int(wait_s * 1_000)}
        try:
            return _Answer(line.ask(protocol.LEASE, args, max(_ANSWER_S, wait_s + 1.0)), keys)
        except DaemonTimeoutError:
            # Stopped, or worse. To ask it again with each text would be to wait each time.
            self._quiet_until = monotonic() + _QUIET_S
            raise

    def _compute_granted(
        self,
        line: Line,
        model: Model,
        tokens: Mapping[bytes, int],
        texts: Mapping[bytes, str],
        found: dict[bytes, bytes],
    ) -> None:
        computing = {(get_ident(), model.prefix + key) for key in tokens}
        try:
            self._computing |= computing
            with _Renewal(self._instance, list(tokens.values())):
                vectors = computed(model, {key: texts[key] for key in tokens})
                found.update(vectors)
                self._put(line, model, tokens, vectors, found)
        except _NO_HELP:
            raise
        except BaseException:
            try:
                line.ask(protocol.RELEASE, {"tokens": list(tokens.values())}, _ANSWER_S)
            except _NO_HELP:
                pass
            raise
        finally:
            self._computing -= computing

    def _put(
        self,
        line: Line,
        model: Model,
        tokens: Mapping[bytes, int],
        vectors: Mapping[bytes, bytes],
        found: dict[bytes, bytes],
    ) -> None:
        room = (limits.MESSAGE_BYTES_MAX - _ENVELOPE_BYTES) // (model.size_bytes + _ENTRY_BYTES)
        for keys in _batches(list(vectors), room):
            entries = [[key, tokens[key], vectors[key]] for key in keys]
            try:
                result = line.ask(protocol.PUT, {"model": model.embedder.name, "vectors": entries}, _ANSWER_S)
            except CommandError:
                # A full disk, or a model with vectors of another dimension: what was computed is good all the same.
                continue
            if not isinstance(result, dict) or result.get("refused"):
                # Too late: what another worker has stored meanwhile is the vector of the text, for all.
                for key in keys:
                    self._read(model, key, found)

    def _read(self, model: Model, key: bytes, found: dict[bytes, bytes]) -> None:
        """Read what the daemon has just stored; what cannot be read stays missing."""
        data = self._shared.get(model.prefix + key)
        if data is None:
            self._shared.refresh()
            data = self._shared.get(model.prefix + key)
        if data is not None and len(data) == model.size_bytes:
            found[key] = data


class _Renewal:
    """Keeps leases alive while they are used: a thread that ends with the `with` block."""

    def __init__(self, instance: Instance, tokens: list[int]) -> None:
        self._instance = instance
        self._tokens = tokens
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease renewal", daemon=True)

    def __enter__(self) -> None:
        try:
            self._thread.start()
        except RuntimeError:
            # No more threads. Most computations are over long before a lease is.
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
            except _NO_HELP:
                continue


def computed(model: Model, texts: Mapping[bytes, str]) -> dict[bytes, bytes]:
    """The vectors of texts, computed here. Raises `EmbedderError`."""
    vectors: dict[bytes, bytes] = {}
    for keys in _batches(list(texts), model.embedder.batch_max):
        matrix = embedded(model.embedder, [texts[key] for key in keys])
        vectors.update(zip(keys, rows_of(matrix), strict=True))
    return vectors


def rows_of(matrix: np.ndarray[Any, np.dtype[np.float32]]) -> Iterable[bytes]:
    """The rows of a matrix as they are stored."""
    return (row.tobytes() for row in matrix.astype(FLOAT, copy=False))


def _batches(items: Sequence[_T], most: int) -> Iterator[Sequence[_T]]:
    return (items[start : start + most] for start in range(0, len(items), most))
