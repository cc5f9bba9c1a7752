"""The peers that the product is compared with, one module each; third-party ones are in the extra `bench`.

A store keeps bytes under a name and gives them back: it does not know whether they are still true, so it does less than
an exact read. The models of an agent's own caches, `naive` and `in_process`, are exact.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from pmm_shm.codec import pack, unpack
from pmm_shm_cli.benchmark import WrongAnswerError
from pmm_shm_client.results import Commitments, Identity, Metrics

Answer = Metrics | Identity | Commitments


class MissingPeerError(Exception):
    """The peer is not installed; the message is one line that says what is missing."""


class Store(Protocol):
    """Bytes by name."""

    name: str

    def put(self, key: str, value: bytes) -> None: ...

    def get(self, key: str) -> bytes | None: ...

    def close(self) -> None: ...


@contextlib.contextmanager
def open_stores(directory: Path) -> Iterator[tuple[list[Store], list[str]]]:
    """Every store that is installed here, and one line for each that is not.

    Parameters:
        directory: an empty one, for their files.
    """
    from bench.peers import disk, memcached, redis_server

    stores: list[Store] = []
    missing: list[str] = []
    with contextlib.ExitStack() as stack:
        for kind in (disk.Disk, memcached.Memcached, redis_server.Redis):
            try:
                made: Store = kind(directory)
            except MissingPeerError as error:
                missing.append(str(error))
                continue
            stack.callback(made.close)
            stores.append(made)
        yield stores, missing


def as_plain(answer: Answer) -> dict[str, Any]:
    """An answer as values that a store can keep: order and types as they are."""
    if isinstance(answer, Metrics):
        return {"ias": answer.ias, "gas": answer.gas, "as_of": answer.as_of}
    if isinstance(answer, Identity):
        return {"name": answer.name, "traits": dict(answer.traits), "as_of": answer.as_of}
    return {
        "open": [[cid, dict(entry)] for cid, entry in answer.open.items()],
        "expired": [[cid, dict(entry)] for cid, entry in answer.expired.items()],
        "as_of": answer.as_of,
    }


def put_answer(store: Store, key: str, answer: Answer) -> None:
    """Keep an answer, and see that it comes back.

    Raises:
        WrongAnswerError: it does not.
    """
    store.put(key, pack(as_plain(answer)))
    require(f"{store.name}, {key}", get_answer(store, key), as_plain(answer))


def get_answer(store: Store, key: str) -> Any:
    """The read of a program that keeps its state in this store."""
    data = store.get(key)
    return None if data is None else unpack(data)


def require(what: str, got: Any, wanted: Any) -> None:
    """Raise `WrongAnswerError` where they differ, in order or in the last bit."""
    if repr(got) != repr(wanted):
        raise WrongAnswerError(f"{what}: {got!r:.200} instead of {wanted!r:.200}")
