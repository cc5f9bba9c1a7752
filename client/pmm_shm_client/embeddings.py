"""Texts to vectors: from shared memory, from this process's own memory, or computed once for all workers.

Imported with the first text that is embedded, because numpy is slow to import.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from pmm_shm import flags, limits
from pmm_shm.errors import EmbedderError, InvalidTextError, UnknownModelError
from pmm_shm.instance.paths import Instance
from pmm_shm.names import checked_model_name
from pmm_shm.vectors import local_bow
from pmm_shm.vectors.embedder import Embedder, checked_embedder, checked_text, text_key
from pmm_shm.vectors.registry import AUTO, find_embedder
from pmm_shm.vectors.text_table_reader import TextTableReader
from pmm_shm_client.leasing import FLOAT, LeasedModel, Leasing, Outcomes, computed
from pmm_shm_client.reads import ReadCounter
from pmm_shm_client.reporting import Reporter

if TYPE_CHECKING:
    from pmm_shm.vectors.embedder import Matrix, Vector

_REMEDY = "the mode hybrid waits longer, and says what is wrong"


class Embeddings:
    """The vectors of a cache's texts. Thread-safe; usable on both sides of a fork.

    Parameters:
        embedder: the default model, or its name; None for `PMM_EMBEDDER`.
        shared: the text table; None to compute everything, without look-ups.
        reporter: reports to the daemon after a miss.
        counter: counts hits and misses.
        timeout_s: how long to wait for the daemon's answer, at most.
        restart: as for `Leasing`.
    """

    def __init__(
        self,
        instance: Instance,
        embedder: Embedder | str | None,
        shared: TextTableReader | None,
        reporter: Reporter,
        counter: ReadCounter,
        timeout_s: float,
        restart: Callable[[], bool],
    ) -> None:
        self._counter = counter
        self._reporter = reporter
        self._default = embedder
        self.names_default = (flags.embedder() if embedder is None else embedder) not in (None, AUTO)
        """Whether a default model was named, by parameter or environment; `auto` names none."""
        self._shared = shared
        self._leasing = None if shared is None else Leasing(instance, shared, timeout_s, restart)
        self._models: dict[str | None, LeasedModel] = {}
        self.wrap: Callable[[Embedder], Embedder] | None = None
        """Makes the embedder that computes of the one that was found."""
        self.local = LocalVectors()
        self._overdue = _Overdue()

    def embed(self, text: str | None, model: str | None = None, deadline: float | None = None) -> Vector:
        """The vector of a text, (dimension,) float32; the caller may change it.

        Parameters:
            deadline: until when an embedder on the network is waited for, on the monotonic clock; None: as long as it
                takes.

        Raises:
            InvalidTextError: not a text, too long, or empty and the embedder has no vector for it.
            UnknownModelError: no embedder has this name.
            EmbedderError: the embedder failed, or the deadline has passed.
        """
        vector = self.known(text, model)
        return self.embed_many((text,), model, deadline)[0] if vector is None else vector

    def known(self, text: str | None, model: str | None = None) -> Vector | None:
        """The vector if it is known already; None if it would have to be computed. Raises as `embed`."""
        shared = self._shared
        if shared is None:
            return None
        try:
            found = self._models.get(model)
        except TypeError:
            found = None
        if found is None:
            found = self._found(model)
        key = found.prefix + text_key(checked_text(text, found.embedder))
        data = shared.get(key)
        if data is None or len(data) != found.size_bytes:
            data = self.local.get(key)
            if data is None or len(data) != found.size_bytes:
                return None
        self._counter.hits += 1
        # An array over bytes would be read-only, and copying the array costs more.
        return np.frombuffer(bytearray(data), FLOAT)

    def embed_many(
        self, texts: Iterable[str | None], model: str | None = None, deadline: float | None = None
    ) -> Matrix:
        """The vectors of texts, (n, dimension) float32, each different text looked up and computed once.

        Raises:
            InvalidTextError, UnknownModelError, EmbedderError: as `embed`.
        """
        found = self._found(model)
        checked = [checked_text(text, found.embedder) for text in _checked_texts(texts)]
        keys, vectors, refused = self._vectors(found, checked, deadline)
        if refused:
            raise next(refused[key] for key in keys if key in refused)
        rows = bytearray().join([vectors[key] for key in keys])
        return np.frombuffer(rows, FLOAT).reshape(len(keys), found.embedder.dimension)

    def embed_each(
        self, texts: Iterable[str], model: str | None = None, deadline: float | None = None
    ) -> list[Vector | None]:
        """The vector of each text, (dimension,) float32; None for a text that has none.

        Raises:
            UnknownModelError, EmbedderError: as `embed`.
        """
        keys, vectors, _ = self._vectors(self._found(model), list(texts), deadline)
        return [np.frombuffer(vectors[key], FLOAT) if key in vectors else None for key in keys]

    def _vectors(
        self, model: LeasedModel, texts: list[str], deadline: float | None
    ) -> tuple[list[bytes], dict[bytes, bytes], dict[bytes, InvalidTextError]]:
        """The keys of checked texts in order, the vectors by key, and why the others have none."""
        keys = [text_key(text) for text in texts]
        wanted = dict(zip(keys, texts, strict=True))
        vectors = {} if self._shared is None else self._look_up(self._shared, model, wanted)
        missing = {key: text for key, text in wanted.items() if key not in vectors}
        self._counter.hits += len(vectors)
        self._counter.misses += len(missing)
        refused: dict[bytes, InvalidTextError] = {}
        if missing:
            for key, outcome in self._computed(model, missing, deadline).items():
                if isinstance(outcome, InvalidTextError):
                    refused[key] = outcome
                else:
                    vectors[key] = outcome
            if monotonic() >= self._reporter.due:
                self._reporter.report()
        return keys, vectors, refused

    def _look_up(self, shared: TextTableReader, model: LeasedModel, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        vectors = {}
        for key in keys:
            for table in (shared, self.local):
                data = table.get(model.prefix + key)
                if data is not None and len(data) == model.size_bytes:
                    vectors[key] = data
                    break
        return vectors

    def _computed(self, model: LeasedModel, texts: dict[bytes, str], deadline: float | None) -> Outcomes:
        # Only those on the network may be called in another thread, and may take long.
        if deadline is None or model.embedder.requests_max == 1:
            return self._outcomes(model, texts)
        return self._overdue.outcomes(model.embedder.name, partial(self._outcomes, model, texts), deadline)

    def _outcomes(self, model: LeasedModel, texts: dict[bytes, str]) -> Outcomes:
        if self._leasing is None:
            return computed(model, texts)
        outcomes = self._leasing.outcomes(model, texts)
        for key, data in outcomes.items():
            if isinstance(data, bytes):
                self.local.put(model.prefix + key, data)
        return outcomes

    def _found(self, name: Any) -> LeasedModel:
        """The model of this name, or the default one."""
        if name is not None:
            checked_model_name(name)
        model = self._models.get(name)
        if model is None:
            embedder = checked_embedder(self._embedder(name))
            if self.wrap is not None and embedder.name != local_bow.NAME:
                # The built-in one takes less time than a question to a server.
                embedder = self.wrap(embedder)
            model = self._models[name] = LeasedModel.of(embedder)
        return model

    def embedder(self, name: str | None) -> Embedder | None:
        """The embedder of this name, or the default one; None if no embedder has this name."""
        try:
            return self._found(name).embedder
        except UnknownModelError:
            return None

    def _embedder(self, name: str | None) -> Embedder:
        own = self._default
        if isinstance(own, Embedder):
            return own if name is None or name == own.name else find_embedder(name)
        if name is None:
            return find_embedder(own or flags.embedder() or local_bow.NAME)
        try:
            return find_embedder(name)
        except UnknownModelError:
            # The default embedder may have another name than the one that finds it.
            default = self._found(None).embedder
            if default.name != name:
                raise
            return default


class _Overdue:
    """Computations that took longer than their callers could wait; each goes on in its own thread. Thread-safe.

    An endpoint that still loads its model would begin again if its request were broken off. The vectors are stored when
    they arrive, for a later search.
    """

    def __init__(self) -> None:
        self._threads: dict[str, threading.Thread] = {}

    def outcomes(self, name: str, compute: Callable[[], Outcomes], deadline: float) -> Outcomes:
        """The result of `compute`, unless one of the same name is overdue.

        Raises:
            EmbedderError: the embedder failed, or one was or is overdue.
        """
        overdue = self._threads.get(name)
        if overdue is not None and overdue.is_alive():
            raise EmbedderError(f"embedder {name!r}: still no answer to an earlier search; {_REMEDY}")
        results: list[Outcomes | BaseException] = []
        has_ended = threading.Event()

        def run() -> None:
            try:
                results.append(compute())
            except BaseException as error:
                results.append(error)
            has_ended.set()

        thread = threading.Thread(target=run, name="embedder", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # No more threads.
            return compute()
        try:
            # Not `join`: after an exception of a signal handler there, the thread counts as ended.
            has_ended.wait(max(0.0, deadline - monotonic()))
        finally:
            if not has_ended.is_set():
                self._threads[name] = thread
        if not results:
            raise EmbedderError(f"embedder {name!r}: no answer within {limits.SEARCH_EMBEDDER_S:g} s; {_REMEDY}")
        if isinstance(results[0], BaseException):
            raise results[0]
        return results[0]


class LocalVectors:
    """The vectors that this process used last, for lack of a text table. Thread-safe, without a lock."""

    def __init__(self) -> None:
        self._vectors: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._vectors)

    def get(self, key: bytes) -> bytes | None:
        """The vector of a key, or None."""
        data = self._vectors.get(key)
        if data is not None:
            try:
                self._vectors.move_to_end(key)
            except KeyError:
                # Evicted meanwhile by another thread.
                pass
        return data

    def put(self, key: bytes, vector: bytes) -> None:
        """Keep a vector, and evict those used least recently."""
        self._vectors[key] = vector
        while len(self._vectors) > limits.LOCAL_TEXT_VECTORS_MAX:
            try:
                self._vectors.popitem(last=False)
            except KeyError:
                return


def _checked_texts(texts: Any) -> list[Any]:
    if not isinstance(texts, (str, bytes)):
        try:
            return list(texts)
        except TypeError:
            pass
    raise InvalidTextError(f"texts: expected several texts, got {type(texts).__name__}")
