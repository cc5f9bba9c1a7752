"""`MemeGraphProjection`, made when it is needed: a few questions are answered without it, any other makes it.

A graph is an instance of `_Lazy`, which reads and registers nothing, until something else is asked of it. Then it
runs PMM's own constructor and becomes an instance of the class that stands for PMM's. It answers the same few questions
after its listener has heard what others have appended.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import wraps
from types import MethodType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from pmm_shm.frozen import thawed
from pmm_shm_pmm.fallback import Counts, Fallback, with_fallback
from pmm_shm_pmm.graph_fold import Graph, sha
from pmm_shm_pmm.shared_log import log_beneath, log_of

if TYPE_CHECKING:
    from pmm_shm_pmm.patching import Patcher

_CLASS = "MemeGraphProjection"
_ADOPTS = "adopts"
_ENDS = ("event", "identity")
_BONUS_WHOLE, _BONUS_WORD = 0.4, 0.2
_CONFIDENCE_UNKNOWN = 0.5
"""Also that of every edge of another label: a slice above it has only adoptions."""
_STAGES_FIRST = 4


class _Edge(NamedTuple):
    """An adoption of a name."""

    event_id: int
    confidence: float
    source: str
    target: str
    digest: str


def latest_stage(graph: Any) -> str | None:
    log = log_beneath(_eventlog(graph))
    count, looked_at = _STAGES_FIRST, -1
    while True:
        updates = log.newest("stage_update", count)
        for update in updates:
            if to := (update["meta"] or {}).get("to"):
                return str(to)
        if len(updates) < count or len(updates) == looked_at:
            return None
        looked_at, count = len(updates), count * 8


def stage_history(graph: Any) -> list[tuple[int, str | None, str]]:
    updates = [(event["id"], event["meta"] or {}) for event in log_beneath(_eventlog(graph)).events_of("stage_update")]
    return [
        (event_id, str(meta.get("from") or "") or None, str(meta["to"])) for event_id, meta in updates if meta.get("to")
    ]


def open_commitments_snapshot(graph: Any) -> dict[str, dict[str, Any]]:
    view: Graph = log_beneath(_eventlog(graph)).fold("pmm_graph")
    nodes = sorted(view.open.items(), key=lambda item: item[1].ordinal)
    return {
        cid: {"text": thawed(node.text), "digest": node.digest, "last_event_id": node.last_event_id}
        for cid, node in nodes
    }


def policy_updates_for_reflection(graph: Any, reflection_id: int) -> list[int]:
    if type(reflection_id) is not int:
        raise Fallback("arguments of another type")
    log = log_beneath(_eventlog(graph))
    view: Graph = log.fold("pmm_graph")
    updates = view.policies.get(reflection_id, ())
    return list(updates) if updates and log.event(reflection_id) is not None else []


def graph_slice(
    graph: Any,
    topic: str,
    *,
    limit: int = 3,
    min_confidence: float = 0.6,
    exclude_labels: Collection[str] | None = None,
    recent_digest_blocklist: Collection[str] | None = None,
) -> list[dict[str, Any]]:
    topic = (topic or "").strip().lower()
    if not topic:
        return []
    if not min_confidence > _CONFIDENCE_UNKNOWN or type(limit) is not int or limit < 0:
        raise Fallback("a slice of the whole graph")
    log = log_beneath(_eventlog(graph))
    if any(topic in end for end in _ENDS):
        bonus = _BONUS_WHOLE
    elif set(topic.split()) & set(_ENDS):
        bonus = _BONUS_WORD
    else:
        return []
    if _ADOPTS in (exclude_labels or ()):
        return []
    blocked = frozenset(recent_digest_blocklist or ())
    edges = [
        edge
        for edge in _edges(graph, log)
        if not edge.confidence < min_confidence and not blocked.intersection(edge[2:])
    ]
    # As a sort, best first, would do it: of equal ones, the first in the log is first.
    best = heapq.nlargest(limit, edges, key=lambda edge: edge.confidence + bonus)
    return [
        {
            "src": "event",
            "src_digest": edge.source,
            "src_event_id": edge.event_id,
            "label": _ADOPTS,
            "dst": "identity",
            "dst_digest": edge.target,
            "dst_event_id": None,
            "score": round(edge.confidence + bonus, 3),
            "edge_digest": edge.digest,
        }
        for edge in best
    ]


def _edges(graph: Any, log: Any) -> list[_Edge]:
    """The adoptions of the log; each is looked at once."""
    newest = log.newest("identity_adopt", 1)
    last, edges = _own(graph, "_shm_edges") or (None, [])
    if last is not None and newest:
        there = newest[0] if newest[0]["id"] == last["id"] else log.event(last["id"])
        if there != last:
            # Another log, after a restore.
            last = None
    if not newest or last is None:
        last, edges = None, []
    if newest and newest[0] != last:
        events = log.events_of("identity_adopt", after=None if last is None else last["id"])
        made = [_edge(event) for event in events]
        last, edges = events[-1], [*edges, *(edge for edge in made if edge is not None)]
        object.__setattr__(graph, "_shm_edges", (last, edges))
    return edges


def _edge(event: Any) -> _Edge | None:
    meta = event["meta"] or {}
    name = meta.get("sanitized") or meta.get("name") or event["content"].strip()
    if not name:
        return None
    confidence, attributes = _CONFIDENCE_UNKNOWN, {}
    try:
        confidence = float(meta["confidence"])
        attributes = {"confidence": confidence}
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    if confidence != confidence:
        raise Fallback("a slice of the whole graph")
    source = sha({"label": "event", "id": event["id"], "kind": event["kind"]})
    target = sha({"label": "identity", "attrs": {"name": name}})
    digest = sha({"label": _ADOPTS, "src": source, "dst": target, "attrs": attributes})
    return _Edge(event["id"], confidence, source, target, digest)


# The lazy graph itself.

_ANSWERS: dict[str, Callable[..., Any]] = {
    answer.__name__: answer
    for answer in (latest_stage, stage_history, open_commitments_snapshot, policy_updates_for_reflection, graph_slice)
}
_OWN = frozenset({*_ANSWERS, "__class__"})


def _own(graph: Any, name: str) -> Any:
    return object.__getattribute__(graph, "__dict__").get(name)


def _eventlog(graph: Any) -> Any:
    return _own(graph, "_shm_eventlog")


def _hand_over_listeners(eventlog: Any, real: Any, graph: Any) -> None:
    """Listeners that are methods of `real` become those of `graph`."""
    listeners = eventlog._append_listeners
    for place, listener in enumerate(listeners):
        if getattr(listener, "__self__", None) is real:
            listeners[place] = MethodType(listener.__func__, graph)


def lazy_class(original: type, counts_of: Callable[[str], Counts], *, strict: bool = False) -> type:
    """A subclass of PMM's class whose instances are lazy; subclasses of it are not.

    Parameters:
        counts_of: the counts of a method, by its name.
    """

    class MemeGraph(original):  # type: ignore[misc]
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return object.__new__(_Lazy if cls is MemeGraph else cls)

    class _Lazy(MemeGraph):
        def __init__(self, eventlog: Any) -> None:
            object.__setattr__(self, "_shm_lock", threading.RLock())
            object.__setattr__(self, "_shm_eventlog", eventlog)
            try:
                log_of(eventlog)
            except Exception:
                # Nothing to answer from.
                made(self)

        def __getattribute__(self, name: str) -> Any:
            if name in _OWN:
                return object.__getattribute__(self, name)
            return getattr(made(self), name)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(made(self), name, value)

        def __delattr__(self, name: str) -> None:
            delattr(made(self), name)

    def made(graph: Any) -> Any:
        """The graph, which is PMM's own from now on."""
        lock, eventlog = _own(graph, "_shm_lock"), _eventlog(graph)
        if lock is None:
            return graph
        with lock:
            if type(graph) is _Lazy:
                # Made beside it: other threads must not meet half a graph.
                real = object.__new__(MemeGraph)
                original.__init__(real, eventlog)  # type: ignore[misc]
                _hand_over_listeners(eventlog, real, graph)
                own = object.__getattribute__(graph, "__dict__")
                own.update(real.__dict__)
                object.__setattr__(graph, "__class__", MemeGraph)
                for name in ("_shm_lock", "_shm_eventlog", "_shm_edges"):
                    own.pop(name, None)
        return graph

    def answering(name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        theirs = getattr(original, name)

        def from_graph(self: Any, *args: Any, **kwargs: Any) -> Any:
            return theirs(made(self), *args, **kwargs)

        from_graph.__name__, from_graph.__qualname__ = theirs.__name__, theirs.__qualname__
        from_graph.__doc__ = theirs.__doc__
        return with_fallback(from_graph, answer, counts_of(name), strict=strict)

    def hearing(name: str) -> Callable[..., Any]:
        theirs = getattr(original, name)

        @wraps(theirs)
        def answer(self: Any, *args: Any, **kwargs: Any) -> Any:
            # A log that cannot be read has nothing to tell.
            with suppress(Exception):
                log_of(_own(self, "eventlog")).read(lambda _: None, lambda: None)
            return theirs(self, *args, **kwargs)

        return answer

    for name, answer in _ANSWERS.items():
        setattr(MemeGraph, name, hearing(name))
        setattr(_Lazy, name, answering(name, answer))
    for kind in (_Lazy, MemeGraph):
        kind.__module__, kind.__name__, kind.__qualname__ = (
            original.__module__,
            original.__name__,
            original.__qualname__,
        )
    return MemeGraph


def install(patcher: Patcher, module: ModuleType) -> None:
    def counts_of(name: str) -> Counts:
        return patcher.counts_of(f"{module.__name__}:{_CLASS}.{name}")

    patcher.replace_class(module, _CLASS, lambda original: lazy_class(original, counts_of, strict=patcher.is_strict))
