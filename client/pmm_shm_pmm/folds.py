"""Folds that only PMM's functions need: `pmm_shm_pmm` registers them, and nobody else pays for them.

Their views hold what is open, so that a patch costs as much as what is open, not as the log.

| fold | state |
| --- | --- |
| `pmm_lives` | cells `ticks`, `count` (the next ordinal); tables `live` (text of a cid to [ordinal, ticks at opening, greatest tick of a snooze or None]; only cids never closed or expired), `ended` (those that were), `snoozed` (cid to that tick, of a cid not opened yet) |
| `pmm_opens` | cells `count`, `odd` (whether a cid is neither text nor an integer); tables `first` (cid to its ordinal), `current` (cid to [ordinal, id, text] of its newest opening; only cids without a later close), `evidence` (cid to digests of snippets), `assigned` (text of a cid to the fields of `Assigned`) |
| `pmm_projects` | tables `opened`, `closed` (project to True) |
| `pmm_graph` | cell `count`; tables `seen` (text of a cid to [ordinal, digest] at first sight), `open` (text of a cid to the fields of `Node`), `policies` (id of an event to the ids of the policy updates that name it) |
| `pmm_flags` | cell `ngram_repeat` |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from hashlib import blake2b, sha1
from typing import Any, ClassVar, NamedTuple, TypeVar

from pmm_shm.folds.contract import BatchFold, Column
from pmm_shm.folds.fields import is_cid, to_int
from pmm_shm.folds.state import State, Table, Touched
from pmm_shm.frozen import FrozenDict, frozen
from pmm_shm.ledger.chain import canonical_json
from pmm_shm.ledger.rows import Event

_V = TypeVar("_V")
_Handler = Callable[[Event, State], None]
_META: tuple[Column, ...] = ("meta",)
_BOTH: tuple[Column, ...] = ("content", "meta")
Cid = str | int


class _HandlerFold(BatchFold):
    """A fold with one function per kind."""

    version = 1
    checks_values = False
    shares_events = True
    handlers: ClassVar[Mapping[str, _Handler]]

    def apply_batch(self, events: Sequence[Event], state: State) -> None:
        handlers = self.handlers
        for event in events:
            handlers[event.kind](event, state)


def _loaded(table: Table, make: Callable[[Any], _V]) -> Mapping[Any, _V]:
    return FrozenDict((key, make(row)) for key, row in table.items())


def _patched(
    mapping: Mapping[Any, _V], keys: Collection[Any], row_of: Callable[[Any], Any], make: Callable[[Any], _V]
) -> Mapping[Any, _V]:
    """The mapping with the rows of `keys` as they are now; `row_of` gives None for a key that is gone."""
    if not keys:
        return mapping
    patched = FrozenDict(mapping)
    for key in keys:
        row = row_of(key)
        if row is None:
            dict.pop(patched, key, None)
        else:
            dict.__setitem__(patched, key, make(row))
    return patched


def _next_ordinal(state: State) -> int:
    ordinal: int = state.get("count", 0)
    state["count"] = ordinal + 1
    return ordinal


# Lives of commitments, for `sweep_for_expired`.


class Life(NamedTuple):
    """A commitment never closed or expired; `snoozed_until` is the greatest tick of its snoozes, None without one."""

    ordinal: int
    opened_at_tick: int
    snoozed_until: int | None


class Lives(NamedTuple):
    """The number of ticks, and text of a cid to its life; `Life.ordinal` gives the order of first openings."""

    ticks: int
    live: Mapping[str, Life]


def _lives_tick(event: Event, state: State) -> None:
    state["ticks"] = state.get("ticks", 0) + 1


def _lives_open(event: Event, state: State) -> None:
    cid = event.meta.get("cid")
    key = str(cid)
    live = state.table("live")
    known = live.get(key)
    if known is None:
        if key not in state.table("ended"):
            live[key] = [_next_ordinal(state), state.get("ticks", 0), state.table("snoozed").get(key)]
    elif type(cid) is not str:
        # Of a cid that is text the first opening counts, of any other the last.
        live[key] = [known[0], state.get("ticks", 0), known[2]]


def _lives_end(event: Event, state: State) -> None:
    cid = event.meta.get("cid")
    if cid:
        key = str(cid)
        state.table("ended")[key] = True
        if key in state.table("live"):
            del state.table("live")[key]


def _lives_snooze(event: Event, state: State) -> None:
    key = str(event.meta.get("cid"))
    until = to_int(event.meta.get("until_tick") or 0) or 0
    live, snoozed = state.table("live"), state.table("snoozed")
    known = live.get(key)
    if known is not None:
        live[key] = [known[0], known[1], until if known[2] is None else max(known[2], until)]
    elif key not in state.table("ended"):
        before = snoozed.get(key)
        snoozed[key] = until if before is None else max(before, until)


class LivesFold(_HandlerFold):
    """Computes `Lives`."""

    name = "pmm_lives"
    kinds: Mapping[str, tuple[Column, ...]] = {
        "autonomy_tick": (),
        "commitment_open": _META,
        "commitment_close": _META,
        "commitment_expire": _META,
        "commitment_snooze": _META,
    }
    handlers = {
        "autonomy_tick": _lives_tick,
        "commitment_open": _lives_open,
        "commitment_close": _lives_end,
        "commitment_expire": _lives_end,
        "commitment_snooze": _lives_snooze,
    }

    def view(self, state: State) -> Lives:
        return Lives(state.get("ticks", 0), _loaded(state.table("live"), Life._make))

    def patch(self, view: Lives, state: State, touched: Touched) -> Lives:
        live, keys = view.live, touched.tables.get("live")
        if keys:
            live = _patched(live, keys, state.table("live").get, Life._make)
        return Lives(state.get("ticks", 0), live)


# The newest openings, evidence and projects of commitments.


class Opening(NamedTuple):
    """The newest `commitment_open` of a cid: its id, and `meta.text` or the content; `ordinal` is that of the first."""

    ordinal: int
    event_id: int
    text: Any


class Assigned(NamedTuple):
    """What `project_assign`s say about a cid.

    Attributes:
        resolved: the newest project that is text and not empty; "" if there is none.
        newest: the project of the newest one, as text; "" if it has none.
        all: all projects, as text.
    """

    resolved: str
    newest: str
    all: Sequence[str]


NOT_ASSIGNED = Assigned("", "", ())


class Opens(NamedTuple):
    """Commitments that no `commitment_close` came after; an expiry does not count.

    Attributes:
        current: cid to its newest opening.
        evidence: such a cid that is text to digests of the snippets of its `evidence_candidate`s.
        assigned: such a cid that is text to its projects.
        is_odd: whether some event has a cid that is neither text nor an integer.
    """

    current: Mapping[Cid, Opening]
    evidence: Mapping[str, frozenset[bytes]]
    assigned: Mapping[str, Assigned]
    is_odd: bool


def snippet_digest(snippet: str) -> bytes:
    """16 bytes that stand for a snippet."""
    return blake2b(snippet.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _opens_cid(event: Event, state: State) -> Cid | None:
    cid = event.meta.get("cid")
    if not cid:
        return None
    if not is_cid(cid):
        state["odd"] = True
        return None
    return cid  # type: ignore[no-any-return]


def _opens_open(event: Event, state: State) -> None:
    cid = _opens_cid(event, state)
    if cid is None:
        return
    first = state.table("first")
    ordinal = first.get(cid)
    if ordinal is None:
        ordinal = first[cid] = _next_ordinal(state)
    state.table("current")[cid] = [ordinal, event.id, event.meta.get("text") or event.content]


def _opens_close(event: Event, state: State) -> None:
    cid = _opens_cid(event, state)
    if cid is not None and cid in state.table("current"):
        del state.table("current")[cid]


def _opens_evidence(event: Event, state: State) -> None:
    cid, snippet = event.meta.get("cid"), event.meta.get("snippet")
    if type(cid) is str and type(snippet) is str:
        evidence, digest = state.table("evidence"), snippet_digest(snippet)
        known = evidence.get(cid, [])
        if digest not in known:
            evidence[cid] = [*known, digest]


def _opens_assign(event: Event, state: State) -> None:
    cid, project = event.meta.get("cid"), event.meta.get("project_id")
    assigned, key, text = state.table("assigned"), str(cid), str(project)
    resolved, newest, everything = assigned.get(key, NOT_ASSIGNED)
    if type(project) is str and project:
        resolved = project
    if cid:
        newest = str(project or "")
    if text not in everything:
        everything = [*everything, text]
    assigned[key] = [resolved, newest, everything]


class OpensFold(_HandlerFold):
    """Computes `Opens`."""

    name = "pmm_opens"
    kinds: Mapping[str, tuple[Column, ...]] = {
        "commitment_open": _BOTH,
        "commitment_close": _META,
        "evidence_candidate": _META,
        "project_assign": _META,
    }
    handlers = {
        "commitment_open": _opens_open,
        "commitment_close": _opens_close,
        "evidence_candidate": _opens_evidence,
        "project_assign": _opens_assign,
    }

    def view(self, state: State) -> Opens:
        current = _loaded(state.table("current"), _opening)
        return _opens_view(Opens(current, FrozenDict(), FrozenDict(), False), state, current)

    def patch(self, view: Opens, state: State, touched: Touched) -> Opens:
        keys = touched.tables.get("current")
        if keys:
            view = view._replace(current=_patched(view.current, keys, state.table("current").get, _opening))
        touched_keys = (key for name in ("current", "evidence", "assigned") for key in touched.tables.get(name, ()))
        return _opens_view(view, state, touched_keys)


def _opening(row: list[Any]) -> Opening:
    return Opening(row[0], row[1], frozen(row[2]))


def _assigned(row: Sequence[Any]) -> Assigned:
    return Assigned(row[0], row[1], tuple(row[2]))


def _opens_view(view: Opens, state: State, touched: Iterable[Any]) -> Opens:
    """The view with what evidence and projects say about these cids, if they are current and text."""
    current, evidence, assigned = (state.table(name) for name in ("current", "evidence", "assigned"))
    keys = {cid for cid in touched if type(cid) is str}
    return Opens(
        view.current,
        _patched(view.evidence, keys, lambda cid: evidence.get(cid) if cid in current else None, frozenset),
        _patched(view.assigned, keys, lambda cid: assigned.get(cid) if cid in current else None, _assigned),
        state.get("odd", False),
    )


# Projects.


class Projects(NamedTuple):
    """Projects that were ever opened, and that were ever closed."""

    opened: frozenset[str]
    closed: frozenset[str]


def _project_event(table: str) -> _Handler:
    def note(event: Event, state: State) -> None:
        project = event.meta.get("project_id")
        if type(project) is str and project not in state.table(table):
            state.table(table)[project] = True

    return note


class ProjectsFold(_HandlerFold):
    """Computes `Projects`."""

    name = "pmm_projects"
    kinds: Mapping[str, tuple[Column, ...]] = {"project_open": _META, "project_close": _META}
    handlers = {"project_open": _project_event("opened"), "project_close": _project_event("closed")}

    def view(self, state: State) -> Projects:
        return Projects(*(frozenset(key for key, _ in state.table(name).items()) for name in Projects._fields))

    def patch(self, view: Projects, state: State, touched: Touched) -> Projects:
        return Projects(*(getattr(view, name).union(touched.tables.get(name, ())) for name in Projects._fields))


# The graph's commitments and policies.


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
        first = seen[key] = [_next_ordinal(state), digest]
    if event.kind == "commitment_open":
        opened[key] = [*first, text, event.id]
    elif key in opened:
        del opened[key]


def _graph_policy(event: Event, state: State) -> None:
    source = to_int(event.meta.get("src_id") or event.meta.get("source_event_id"))
    if source is not None and source < event.id:
        policies = state.table("policies")
        policies[source] = [*policies.get(source, ()), event.id]


class GraphFold(_HandlerFold):
    """Computes `Graph`."""

    name = "pmm_graph"
    kinds: Mapping[str, tuple[Column, ...]] = {
        "commitment_open": _META,
        "commitment_close": _META,
        "commitment_expire": _META,
        "policy_update": _META,
    }
    handlers = {
        "commitment_open": _graph_commitment,
        "commitment_close": _graph_commitment,
        "commitment_expire": _graph_commitment,
        "policy_update": _graph_policy,
    }

    def view(self, state: State) -> Graph:
        return Graph(_loaded(state.table("open"), _node), _loaded(state.table("policies"), tuple))

    def patch(self, view: Graph, state: State, touched: Touched) -> Graph:
        nodes, policies = touched.tables.get("open"), touched.tables.get("policies")
        return Graph(
            _patched(view.open, nodes, state.table("open").get, _node) if nodes else view.open,
            _patched(view.policies, policies, state.table("policies").get, tuple) if policies else view.policies,
        )


def _node(row: list[Any]) -> Node:
    return Node(row[0], row[1], frozen(row[2]), row[3])


# Directives of the operator.

_FLAG_NAME = "ngram_repeat_telemetry"
_FLAG_WORDS = {word: True for word in ("on", "true", "1", "enable", "enabled", "yes")} | {
    word: False for word in ("off", "false", "0", "disable", "disabled", "no")
}


def _flag(event: Event, state: State) -> None:
    meta = event.meta
    if str(meta.get("name") or "").strip().lower() == _FLAG_NAME:
        value = str(meta.get("value") or meta.get("state") or event.content).strip().lower()
        if value in _FLAG_WORDS:
            state["ngram_repeat"] = _FLAG_WORDS[value]


class FlagsFold(_HandlerFold):
    """Computes whether the telemetry of repeated n-grams is on."""

    name = "pmm_flags"
    kinds: Mapping[str, tuple[Column, ...]] = {"directive": _BOTH}
    handlers = {"directive": _flag}

    def view(self, state: State) -> bool:
        return state.get("ngram_repeat", False)  # type: ignore[no-any-return]


FOLDS: tuple[type[BatchFold], ...] = (LivesFold, OpensFold, ProjectsFold, GraphFold, FlagsFold)
"""All folds of this package; a cache and its daemon must know them."""
