"""The fold behind the lazy graph: its open commitments, and the policy updates that name an event.

State:
    cell `count` (the next ordinal);
    tables `seen` (text of a cid to [ordinal, digest] at first sight), `open` (text of a cid to the fields of `Node`),
    `policies` (id of an event to a list of ids).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha1
from typing import Any, ClassVar, NamedTuple

from pmm_shm.folds.fields import to_int
from pmm_shm.folds.state import State, Touched
from pmm_shm.frozen import frozen
from pmm_shm.ledger.new_events import canonical_json
from pmm_shm.ledger.rows import Event
from pmm_shm_pmm.handler_fold import META, Columns, Handler, HandlerFold, loaded, next_ordinal, patched_rows


class Node(NamedTuple):
    """A commitment whose newest event opens it; `digest` is that of its node, made at first sight."""

    ordinal: int
    digest: str
    text: Any
    last_event_id: int


class Graph(NamedTuple):
    """Text of a cid to its node (in the order of `Node.ordinal`); event id to the policy updates that name it."""

    open: Mapping[str, Node]
    policies: Mapping[int, Sequence[int]]


def sha(value: Any) -> str:
    """SHA-1 in hex of a value as JSON: sorted keys, no spaces, ASCII."""
    return sha1(canonical_json(value).encode(), usedforsecurity=False).hexdigest()


def _graph_commitment(event: Event, state: State) -> None:
    key, text = str(event.meta.get("cid") or ""), event.meta.get("text") or ""
    if not key:
        return
    seen, opened = state.table("seen"), state.table("open")
    first = seen.get(key)
    if first is None:
        digest = sha({"label": "commitment", "attrs": {"cid": key, "text": text}})
        first = seen[key] = [next_ordinal(state), digest]
    if event.kind == "commitment_open":
        opened[key] = [*first, text, event.id]
    elif key in opened:
        del opened[key]


def _graph_policy(event: Event, state: State) -> None:
    source = to_int(event.meta.get("src_id") or event.meta.get("source_event_id"))
    if source is not None and source < event.id:
        policies = state.table("policies")
        policies[source] = [*policies.get(source, ()), event.id]


class GraphFold(HandlerFold):
    """Computes `Graph`."""

    name = "pmm_graph"
    kinds: Mapping[str, Columns] = {
        "commitment_open": META,
        "commitment_close": META,
        "commitment_expire": META,
        "policy_update": META,
    }
    handlers: ClassVar[Mapping[str, Handler]] = {
        "commitment_open": _graph_commitment,
        "commitment_close": _graph_commitment,
        "commitment_expire": _graph_commitment,
        "policy_update": _graph_policy,
    }

    def view(self, state: State) -> Graph:
        return Graph(loaded(state.table("open"), _node), loaded(state.table("policies"), tuple))

    def patch(self, view: Graph, state: State, touched: Touched) -> Graph:
        nodes, policies = touched.tables.get("open"), touched.tables.get("policies")
        return Graph(
            patched_rows(view.open, nodes, state.table("open").get, _node) if nodes else view.open,
            patched_rows(view.policies, policies, state.table("policies").get, tuple) if policies else view.policies,
        )


def _node(row: list[Any]) -> Node:
    return Node(row[0], row[1], frozen(row[2]), row[3])
