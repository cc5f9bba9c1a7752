"""What a search must find, from the ledger's raw rows and the specification alone; and embedders that tests can steer.

Nothing of `pmm_shm.vectors` takes part in the oracle.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmm_shm.instance.paths import Instance
from pmm_shm.store.environment import close, open_reader
from pmm_shm.vectors.event_table import EventTableRecord, EventTableView, table_key, table_records
from pmm_shm.wire import protocol
from pmm_shm_client import commands
from tests.support import ledgers

KINDS = ("user", "response", "user_message", "assistant_message", "reflection")
Vectors = dict[int, tuple[float, ...]]
Embed = Callable[[str], Any]


def bow(text: str) -> list[float]:
    """The default embedding, word by word of the specification."""
    return list(_bow(text))


@functools.lru_cache(2_000)
def _bow(text: str) -> tuple[float, ...]:
    counts = [0.0] * 64
    for token in re.split("[^a-z0-9]+", text.lower()):
        if token:
            counts[int(hashlib.sha1(token.encode()).hexdigest()[:8], 16) % 64] += 1.0
    length = _norm(counts)
    counts = [count / length for count in counts]
    noise = [byte / 255.0 for byte in hashlib.sha1(text.encode("utf-8", "surrogatepass")).digest()]
    mix = [0.9 * word + 0.1 * more for word, more in zip(counts[:32], (noise + noise)[:32], strict=True)]
    length = _norm(mix)
    return tuple(value / length for value in mix)


def _norm(values: list[float]) -> float:
    total = 0.0
    for value in values:
        total += value * value
    return math.sqrt(total) or 1.0


def digest(text: str) -> str:
    return hashlib.sha1(str(bow(text)).encode()).hexdigest()[:8]


def blob(*values: float) -> bytes:
    """A vector as `event_embeddings` has it."""
    return struct.pack(f"<{len(values)}f", *values)


def expected(
    path: str | os.PathLike[str],
    model: str = "local-bow",
    kinds: Iterable[str] = KINDS,
    embed: Embed = bow,
    until: int | None = None,
    takes_empty: bool = True,
) -> Vectors:
    """Event id to the float32 vector that it must have in a model's table; of events up to `until`."""
    connection = ledgers.connect(path)
    connection.text_factory = bytes
    try:
        rows = connection.execute(
            "SELECT id, typeof(kind), kind, typeof(content), content, typeof(meta), meta FROM events ORDER BY id"
        ).fetchall()
        # A table, and not a view of this name.
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        columns = {row[1] for row in connection.execute("PRAGMA table_info(event_embeddings)")}
        columns = columns if b"event_embeddings" in tables else set()
        imported = (
            connection.execute("SELECT eid, typeof(embedding), embedding FROM event_embeddings").fetchall()
            if {b"eid", b"embedding"} <= columns
            else []
        )
    finally:
        connection.close()
    rows = [row for row in rows if until is None or row[0] <= until]
    texts = {row[0]: _text(*row[3:5]) for row in rows}
    found: dict[int, Any] = {}
    if model.startswith("imported-"):
        kinds = ()
    for event_id, kind_type, kind, *_ in rows:
        is_embedded = kind_type == b"text" and kind.decode("utf-8", "replace") in kinds
        if is_embedded and _is_short(texts[event_id]) and (texts[event_id] or takes_empty):
            found[event_id] = embed(texts[event_id])
    if model == "local-bow":
        for event_id, kind_type, kind, _, _, meta_type, meta in rows:
            if (kind_type, kind) == (b"text", b"embedding_indexed"):
                named, claimed = _named(meta_type, meta)
                is_earlier = type(named) is int and named < event_id and named in texts
                if is_earlier and _is_short(texts[named]) and claimed == digest(texts[named]):
                    found[named] = bow(texts[named])
    for event_id, value_type, value in imported:
        if event_id in texts and value_type == b"blob" and len(value) % 4 == 0 and 4 <= len(value) <= 4 * 8_192:
            vector = np.frombuffer(value, "<f4")
            if np.isfinite(vector).all() and model == _imported_model(len(vector)):
                found[event_id] = vector
    return {event_id: tuple(np.array(found[event_id], np.float32).tolist()) for event_id in sorted(found)}


def _imported_model(dimension: int) -> str:
    return "local-bow" if dimension == 32 else f"imported-{dimension}"


def _text(value_type: bytes, value: Any) -> str:
    if value_type != b"text":
        return ""
    try:
        return str(value.decode("utf-8"))
    except UnicodeDecodeError:
        return ""


def _is_short(text: str) -> bool:
    return len(text) <= 1 << 20


def _named(meta_type: bytes, meta: Any) -> tuple[Any, Any]:
    try:
        parsed = json.loads(meta.decode("utf-8")) if meta_type == b"text" else {}
        return parsed.get("eid"), parsed.get("digest")
    except (ValueError, RecursionError, AttributeError):
        return None, None


def check_hits(
    found: Iterable[Any], vectors: Mapping[int, Any], query: Any, k: int, scope: Iterable[int] | None = None
) -> None:
    """`found` are the k best of `vectors`, each with its similarity, best first, ties by ascending id."""
    pairs = [(hit.event_id, hit.similarity) for hit in found]
    inside = set(vectors) if scope is None else set(vectors) & set(scope)
    ids = sorted(inside)
    similarities = _similarities([vectors[event_id] for event_id in ids], query)
    own = dict(zip(ids, similarities, strict=True))
    wanted = sorted(ids, key=lambda event_id: (-own[event_id], event_id))[:k]
    assert len(pairs) == len(wanted)
    assert pairs == sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
    assert len({event_id for event_id, _ in pairs}) == len(pairs)
    for (event_id, found_similarity), wanted_id in zip(pairs, wanted, strict=True):
        assert event_id in inside
        assert found_similarity == pytest.approx(own[event_id], abs=1e-6)
        # Another id in this place only where float64 cannot tell the two apart.
        assert event_id == wanted_id or own[event_id] == pytest.approx(own[wanted_id], abs=1e-12)


def _similarities(rows: list[Any], query: Any) -> list[float]:
    """Cosine by brute force in float64; that of a text is with the float32 of its vector."""
    vector = np.array(query, np.float64) if not isinstance(query, str) else np.float64(np.float32(bow(query)))
    vector = vector / (np.abs(vector).max() or 1.0)
    matrix = np.array(rows, np.float64).reshape(len(rows), len(vector))
    norms = np.sqrt((matrix**2).sum(axis=1) * (vector**2).sum())
    products = (matrix * vector).sum(axis=1)
    found: list[float] = np.divide(products, norms, out=np.zeros(len(rows)), where=norms != 0.0).tolist()
    return found


def index(path: str | os.PathLike[str], timeout_s: float = 30.0) -> dict[str, int]:
    """The command `index`: the tables have come as far as the log when it returns."""
    result: dict[str, int] = commands.call(Instance.of(path), protocol.INDEX, {}, timeout_s)
    return result


def tables(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the daemon says of its tables."""
    numbers: dict[str, Any] = commands.call(Instance.of(path), protocol.STATS, {}, 10.0)["embeddings"]
    return numbers


_MODULE = """
import hashlib, json, os, time
from pmm_shm.errors import InvalidTextError
from pathlib import Path
from pmm_shm.vectors.function import FunctionEmbedder

HERE = Path(__file__).parent
DIMENSION = {dimension}


def vector(text):
    return [byte / 7.0 for byte in hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:DIMENSION]]


def embed(texts):
    assert 0 < len(texts) <= {batch_max}
    with open(HERE / "{name}.begun", "a") as begun:
        begun.write("".join(json.dumps(text) + "\\n" for text in texts))
    if (HERE / "pause").exists():
        time.sleep(float((HERE / "pause").read_text()) * len(texts))
    if any("unspeakable" in text for text in texts):
        raise InvalidTextError("a text without a vector")
    if (HERE / "down").exists() or any("poison" in text and (HERE / "strict").exists() for text in texts):
        raise RuntimeError("the provider is down")
    with open(HERE / "{name}.calls", "a") as calls:
        calls.write("".join(json.dumps(text) + "\\n" for text in texts))
    return [vector(text) for text in texts]


made = FunctionEmbedder("{name}", DIMENSION, embed, {batch_max})
"""


class Steered:
    """An embedder in a module of its own, for the daemon and this process alike; files beside it steer it."""

    def __init__(self, folder: Path, name: str = "counting", dimension: int = 8, batch_max: int = 4) -> None:
        self.folder = folder
        self.name, self.dimension = name, dimension
        module = f"steered_{abs(hash((str(folder), name, dimension)))}"
        (folder / f"{module}.py").write_text(_MODULE.format(name=name, dimension=dimension, batch_max=batch_max))
        importlib.invalidate_caches()
        self.module = importlib.import_module(module)
        self.option = f"{module}:made"
        self.embedder = self.module.made

    def vector(self, text: str) -> Any:
        return self.module.vector(text)

    def calls(self) -> list[str]:
        """The texts that were embedded, by whatever process."""
        path = self.folder / f"{self.name}.calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def begun(self) -> int:
        path = self.folder / f"{self.name}.begun"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def forget_calls(self) -> None:
        (self.folder / f"{self.name}.calls").unlink(missing_ok=True)

    def pause(self, seconds_per_text: float | None) -> None:
        self._flag("pause", seconds_per_text)

    def fail(self, fails: bool) -> None:
        self._flag("down", 1 if fails else None)

    def refuse_poison(self, refuses: bool) -> None:
        self._flag("strict", 1 if refuses else None)

    def _flag(self, name: str, value: float | None) -> None:
        if value is None:
            (self.folder / name).unlink(missing_ok=True)
        else:
            (self.folder / f"{name}.new").write_text(str(value))
            os.replace(self.folder / f"{name}.new", self.folder / name)


def stored(ledger: str) -> dict[str, dict[int, tuple[float, ...]]]:
    """Model to what lies in its table, read as the format says."""
    environment = open_reader(Instance.of(ledger).directory)
    assert environment is not None
    try:
        with environment.read() as records:
            names = [record.name for record in table_records(records)]
        with environment.read_mapped() as mapped:
            result = {}
            for name in names:
                data = mapped.get(table_key(name))
                assert data is not None
                record = EventTableRecord.unpack(bytes(data))
                view, rows = EventTableView(mapped, record), {}
                for part in [*view.blocks(), view.tail()]:
                    dead = set() if part.dead is None else set(part.dead.tolist())
                    for number, event_id in enumerate(part.ids.tolist()):
                        if number not in dead:
                            assert event_id not in rows
                            rows[event_id] = tuple(np.array(part.vectors[number]).tolist())
                assert len(rows) == record.rows
                result[record.name] = dict(sorted(rows.items()))
                del part, view
        return result
    finally:
        close(environment)
