"""The folds behind the tracker and the consolidation: openings, evidence and projects of commitments.

State of `pmm_opens`:
    cells `count` (the next ordinal), `odd` (whether a cid is neither text nor an integer);
    tables `first` (cid to its ordinal), `current` (cid to the fields of `Opening`; only cids without a later close),
    `evidence` (cid that is text to a list of digests), `assigned` (text of a cid to the fields of `Assigned`).
State of `pmm_projects`: tables `opened`, `closed` (project to True).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pmm_shm.folds.fields import is_cid
from pmm_shm.folds.state import State, Touched
from pmm_shm.frozen import FrozenDict, frozen
from pmm_shm.ledger.rows import Event
from pmm_shm_pmm.handler_fold import BOTH, META, Columns, Handler, HandlerFold, loaded, next_ordinal, patched_rows

if TYPE_CHECKING:
    from pmm_shm.folds.self_model import Cid


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
        ordinal = first[cid] = next_ordinal(state)
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


class OpensFold(HandlerFold):
    """Computes `Opens`."""

    name = "pmm_opens"
    kinds: Mapping[str, Columns] = {
        "commitment_open": BOTH,
        "commitment_close": META,
        "evidence_candidate": META,
        "project_assign": META,
    }
    handlers: ClassVar[Mapping[str, Handler]] = {
        "commitment_open": _opens_open,
        "commitment_close": _opens_close,
        "evidence_candidate": _opens_evidence,
        "project_assign": _opens_assign,
    }

    def view(self, state: State) -> Opens:
        current = loaded(state.table("current"), _opening)
        return _opens_view(Opens(current, FrozenDict(), FrozenDict(), False), state, current)

    def patch(self, view: Opens, state: State, touched: Touched) -> Opens:
        keys = touched.tables.get("current")
        if keys:
            view = view._replace(current=patched_rows(view.current, keys, state.table("current").get, _opening))
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
        patched_rows(view.evidence, keys, lambda cid: evidence.get(cid) if cid in current else None, frozenset),
        patched_rows(view.assigned, keys, lambda cid: assigned.get(cid) if cid in current else None, _assigned),
        state.get("odd", False),
    )


class Projects(NamedTuple):
    """Projects that were ever opened, and that were ever closed."""

    opened: frozenset[str]
    closed: frozenset[str]


def _project_event(table: str) -> Handler:
    def note(event: Event, state: State) -> None:
        project = event.meta.get("project_id")
        if type(project) is str and project not in state.table(table):
            state.table(table)[project] = True

    return note


class ProjectsFold(HandlerFold):
    """Computes `Projects`."""

    name = "pmm_projects"
    kinds: Mapping[str, Columns] = {"project_open": META, "project_close": META}
    handlers: ClassVar[Mapping[str, Handler]] = {
        "project_open": _project_event("opened"),
        "project_close": _project_event("closed"),
    }

    def view(self, state: State) -> Projects:
        return self.patch(
            Projects(frozenset(), frozenset()),
            state,
            Touched(tables={name: {key for key, _ in state.table(name).items()} for name in Projects._fields}),
        )

    def patch(self, view: Projects, state: State, touched: Touched) -> Projects:
        opened, closed = (frozenset(map(str, touched.tables.get(name, ()))) for name in Projects._fields)
        return Projects(view.opened | opened, view.closed | closed)
