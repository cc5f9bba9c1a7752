"""`CommitmentTracker`: ten of its functions, on folds in place of walks over the log.

Each one first computes, and may fall back; then it appends, and what fails from there on leaves it. An append that
depends on what was read is checked again within the write transaction: two workers never close one commitment twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pmm_shm.folds.state import State
from pmm_shm.ledger.rows import Event
from pmm_shm_pmm import lists
from pmm_shm_pmm.fallback import Fallback, passing_errors
from pmm_shm_pmm.folds import NOT_ASSIGNED, Lives, LivesFold, Opens, Projects, snippet_digest
from pmm_shm_pmm.log import log_of

if TYPE_CHECKING:
    from pmm_shm_pmm.patching import Patcher

_SCORE_MIN = 0.70
_REFLECTED_EVENTS = 50
_DUPLICATES_OF = 5
_SNIPPET_CHARS_MAX = 240
_TAGS_MAX = 20_000
Meta = dict[str, Any]


def _meta(event: Any) -> Any:
    return event.get("meta") or {}


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def lives_of(events: Any) -> Lives:
    """The lives of commitments in a list of events: from the frame at its end where it is the log, otherwise folded.

    Raises:
        Fallback: not a list of events whose ids rise.
    """
    if not isinstance(events, list):
        raise Fallback("no list")
    try:
        if events:
            view: Lives = lists.frame_of(events).fold("pmm_lives")
            return view
    except Fallback:
        pass
    fold, state = LivesFold(), State()
    before: Any = None
    for event in events:
        if type(event["id"]) is not int or (before is not None and event["id"] <= before):
            raise Fallback("ids that do not rise")
        before = event["id"]
        if event["kind"] in fold.kinds:
            fold.apply(Event(before, "", event["kind"], "", _meta(event)), state)
    return fold.view(state)


def sweep_for_expired(self: Any, events: Any, ttl_ticks: int = 10) -> list[dict[str, str]]:
    lives, ttl = lives_of(events), int(ttl_ticks)
    now = lives.ticks
    kept = [
        (life.ordinal, cid)
        for cid, life in lives.live.items()
        if now - life.opened_at_tick >= ttl and (life.snoozed_until is None or now > life.snoozed_until)
    ]
    return [{"cid": cid, "reason": "timeout"} for _, cid in sorted(kept)]


class _Tracker:
    """The functions that look at names of the patched module.

    Parameters:
        module: `pmm.commitments.tracker`, or a module with its names.
        auto_project_id: PMM's own helper, whose answers are remembered; another one's are not.
    """

    def __init__(self, module: ModuleType, auto_project_id: Callable[..., Any]) -> None:
        self._module = module
        self._package = module.__name__.partition(".")[0]
        self._auto_project_id = auto_project_id
        self._tags: dict[str, Any] = {}

    def process_evidence(self, tracker: Any, text: Any) -> list[str]:
        if not text:
            return []
        log = log_of(tracker.eventlog)
        opened = self._open(tracker)
        if not opened:
            return []
        with passing_errors():
            found = tracker.find_evidence([{"kind": "response", "content": text}], list(opened.values()))
            if not found or found[0][1] < _SCORE_MIN:
                return []
            cid, score, snippet = found[0]
        is_new = not self._is_known(log, cid, snippet) and not _is_reflected(tracker.eventlog, cid)
        with passing_errors():
            if is_new:
                meta = {"cid": cid, "score": score, "snippet": snippet}
                tracker.eventlog.append(kind="evidence_candidate", content="", meta=meta)
            is_closed = tracker.close_with_evidence(cid, evidence_type="done", description=text, artifact=None)
            return [cid] if is_closed else []

    def close_with_evidence(
        self, tracker: Any, cid: Any, evidence_type: Any, description: Any, artifact: Any = None
    ) -> bool:
        if evidence_type != "done":
            return False
        given = [_is_text(description), _is_text(artifact)]
        needs_both = getattr(import_module(f"{self._package}.config"), "require_artifact_evidence", False)
        if not (all(given) if needs_both else any(given)):
            return False
        log = log_of(tracker.eventlog)
        if cid not in self._open(tracker):
            return False
        with passing_errors():
            project = tracker._resolve_project_for_cid(cid)
        meta = {"cid": cid, "evidence_type": evidence_type, "description": description, "clean": True}
        if artifact is not None:
            meta["artifact"] = artifact
        if project:
            meta["project_id"] = project
        with passing_errors():
            closed = _append_if(
                log, tracker, "commitment_close", f"Commitment closed: {cid}", meta, lambda: cid in self._open(tracker)
            )
            if closed is None:
                # Another worker was faster.
                return False
            try:
                self._append_metrics(tracker)
            except Exception:
                pass
            try:
                self._close_project(log, tracker, project)
            except Exception:
                pass
            return True

    def resolve_project_for_cid(self, tracker: Any, cid: Any) -> str | None:
        log = log_of(tracker.eventlog)
        key = str(cid)
        entry = self._open(tracker).get(cid)
        project = None if entry is None else entry.get("project_id")
        if isinstance(project, str) and project:
            return project
        opens: Opens = log.fold("pmm_opens")
        if key in opens.current:
            return opens.assigned.get(key, NOT_ASSIGNED).resolved or None
        for event in log.events_of("project_assign", newest_first=True):
            project = _meta(event).get("project_id")
            if str(_meta(event).get("cid")) == key and isinstance(project, str) and project:
                return project
        return None

    def ensure_project_open(self, tracker: Any, project_id: Any) -> None:
        if not project_id:
            return
        log = log_of(tracker.eventlog)
        if _has_project(log, "project_open", project_id):
            return
        with passing_errors():
            try:
                meta = {"project_id": project_id}
                content = f"Project: {project_id}"
                _append_if(
                    log,
                    tracker,
                    "project_open",
                    content,
                    meta,
                    lambda: not _has_project(log, "project_open", project_id),
                )
            except Exception:
                pass

    def assign_project_if_needed(self, tracker: Any, cid: Any, project_id: Any) -> None:
        if not cid or not project_id:
            return
        log = log_of(tracker.eventlog)
        entry = self._open(tracker).get(cid)
        if entry is None or entry.get("project_id") == project_id:
            return
        key = str(cid)
        opens: Opens = log.fold("pmm_opens")
        if key in opens.current:
            known = project_id in opens.assigned.get(key, NOT_ASSIGNED).all
        else:
            metas = map(_meta, log.events_of("project_assign"))
            known = any(str(meta.get("cid")) == key and str(meta.get("project_id")) == project_id for meta in metas)
        if known:
            return
        with passing_errors():
            try:
                tracker._ensure_project_open(project_id)
                meta = {"cid": key, "project_id": project_id}
                tracker.eventlog.append(kind="project_assign", content="", meta=meta)
            except Exception:
                pass

    def recent_open_cids(self, tracker: Any, n: int) -> list[tuple[Any, int]]:
        if type(n) is not int:
            raise Fallback("arguments of another type")
        log = log_of(tracker.eventlog)
        opened = self._open(tracker)
        opens: Opens = log.fold("pmm_opens")
        if opens.is_odd:
            raise Fallback("a cid that is neither text nor a number")
        newest = [(cid, opens.current[cid].event_id) for cid in opened if cid in opens.current]
        return sorted(newest, key=lambda one: -one[1])[: max(0, n)]

    def is_duplicate_of_recent_open(self, tracker: Any, text: Any) -> bool:
        log_of(tracker.eventlog)
        opened = self._open(tracker)
        with passing_errors():
            wanted = tracker._normalize_text(text or "")
            return any(
                tracker._normalize_text(str(opened[cid].get("text") or "")) == wanted
                for cid, _ in tracker._recent_open_cids(_DUPLICATES_OF)
                if cid in opened
            )

    def add_commitment(
        self, tracker: Any, text: Any, source: Any = None, extra_meta: Any = None, project: Any = None
    ) -> str:
        log = log_of(tracker.eventlog)
        with passing_errors():
            if tracker._is_duplicate_of_recent_open(text):
                return ""
        cid = getattr(self._module, "uuid4", uuid.uuid4)().hex
        meta: Meta = {"cid": cid, "text": text}
        if source is not None:
            meta["source"] = source
        if isinstance(extra_meta, dict):
            meta |= {key: value for key, value in extra_meta.items() if key not in meta}
        given = project if isinstance(project, str) and project else meta.get("project_id")
        project_id = given.strip() if isinstance(given, str) else ""
        alike: list[Any] = []
        if not project_id:
            with passing_errors():
                project_id, alike = self._project_by_tag(tracker, text)
        with passing_errors():
            for other in alike:
                tracker._assign_project_if_needed(other, project_id)
            if project_id:
                meta["project_id"] = project_id
                tracker._ensure_project_open(project_id)
            content = f"Commitment opened: {text}"
            opened = _append_if(
                log,
                tracker,
                "commitment_open",
                content,
                meta,
                lambda: not tracker._is_duplicate_of_recent_open(text),
            )
            return "" if opened is None else cid

    def close_reflection_on_next(self, tracker: Any, reply: Any) -> None:
        log = log_of(tracker.eventlog)
        cids = [cid for cid, entry in self._open(tracker).items() if str(entry.get("reason") or "") == "reflection"]
        snippet = (reply or "").strip()[:_SNIPPET_CHARS_MAX]
        with passing_errors():
            for cid in cids:
                meta = {
                    "cid": cid,
                    "evidence_type": "done",
                    "description": reply,
                    "source": "reflection",
                    "clean": True,
                    "snippet": snippet,
                }
                _append_if(log, tracker, "commitment_close", "", meta, lambda cid=cid: cid in self._open(tracker))  # type: ignore[misc]

    def _open(self, tracker: Any) -> Mapping[Any, Any]:
        """Cid to entry of what is open, by PMM's function of that name."""
        with passing_errors():
            model = self._module.build_self_model(tracker.eventlog.read_all())
            entries: Mapping[Any, Any] = model["commitments"]["open"]
            return entries

    def _is_known(self, log: Any, cid: Any, snippet: Any) -> bool:
        """Whether this was evidence before."""
        opens: Opens = log.fold("pmm_opens")
        if type(cid) is str and type(snippet) is str and cid in opens.current:
            return snippet_digest(snippet) in opens.evidence.get(cid, ())
        metas = map(_meta, log.events_of("evidence_candidate"))
        return any(meta.get("cid") == cid and meta.get("snippet") == snippet for meta in metas)

    def _append_metrics(self, tracker: Any) -> None:
        metrics = import_module(f"{self._package}.runtime.metrics")
        ias, gas = metrics.compute_ias_gas(tracker.eventlog.read_all())
        meta = {"IAS": ias, "GAS": gas, "reason": "live_update"}
        tracker.eventlog.append(kind="metrics_update", content="", meta=meta)

    def _close_project(self, log: Any, tracker: Any, project: Any) -> None:
        """Close a project in which nothing is open any more."""
        if not project:
            return

        def is_done() -> bool:
            entries = self._open(tracker)
            opens: Opens = log.fold("pmm_opens")
            assigned: dict[str, str] | None = None
            for cid, entry in entries.items():
                own = entry.get("project_id")
                if not own and cid in opens.current and type(cid) is str:
                    own = opens.assigned.get(cid, NOT_ASSIGNED).newest
                elif not own:
                    assigned = _assigned(log) if assigned is None else assigned
                    own = assigned.get(str(cid), "")
                if own == project:
                    return False
            return not _has_project(log, "project_close", project)

        if is_done():
            meta = {"project_id": project}
            _append_if(log, tracker, "project_close", f"Project: {project}", meta, is_done)

    def _project_by_tag(self, tracker: Any, text: Any) -> tuple[str, list[Any]]:
        """The project of the open commitments with the same tag, and their cids; "" where there are none."""
        tag = self._tag(tracker, text)
        if not tag:
            return "", []
        alike = [cid for cid, entry in self._open(tracker).items() if self._tag(tracker, entry.get("text")) == tag]
        return (tag if alike else ""), alike

    def _tag(self, tracker: Any, text: Any) -> Any:
        find = tracker._auto_project_id
        if type(text) is not str or getattr(find, "__func__", find) is not self._auto_project_id:
            return find(text)
        if text not in self._tags:
            if len(self._tags) >= _TAGS_MAX:
                self._tags.clear()
            self._tags[text] = find(text)
        return self._tags[text]


def _assigned(log: Any) -> dict[str, str]:
    """Text of a cid to the project of its newest assignment."""
    metas = map(_meta, log.events_of("project_assign"))
    return {str(meta.get("cid") or ""): str(meta.get("project_id") or "") for meta in metas}


def _is_reflected(eventlog: Any, cid: Any) -> bool:
    """Whether a reflection closed the commitment lately."""
    return any(
        event["kind"] == "commitment_close"
        and _meta(event).get("cid") == cid
        and _meta(event).get("source") == "reflection"
        for event in eventlog.read_tail(limit=_REFLECTED_EVENTS)
    )


def _has_project(log: Any, kind: str, project: Any) -> bool:
    """Whether there is such an event of this project."""
    if type(project) is str:
        projects: Projects = log.fold("pmm_projects")
        return project in (projects.opened if kind == "project_open" else projects.closed)
    return any(_meta(event).get("project_id") == project for event in log.events_of(kind))


def _append_if(log: Any, tracker: Any, kind: str, content: str, meta: Meta, still: Callable[[], bool]) -> int | None:
    """Append if `still()` holds within the write transaction; None if not."""
    event_id: int | None = log.append_checked(kind, content, meta, still)
    return event_id


_METHODS = (
    "process_evidence",
    "close_with_evidence",
    "_resolve_project_for_cid",
    "_ensure_project_open",
    "_assign_project_if_needed",
    "_recent_open_cids",
    "_is_duplicate_of_recent_open",
    "add_commitment",
    "close_reflection_on_next",
)


def install(patcher: Patcher, module: ModuleType) -> None:
    find = vars(module.CommitmentTracker)["_auto_project_id"]
    functions = _Tracker(module, getattr(find, "__func__", find))
    for name in _METHODS:
        method = getattr(functions, name.lstrip("_"))
        patcher.replace(module, f"CommitmentTracker.{name}", _unbound(method))
    patcher.replace(module, "CommitmentTracker.sweep_for_expired", sweep_for_expired)


def _unbound(method: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose first argument is the tracker."""

    def function(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **kwargs)

    return function
