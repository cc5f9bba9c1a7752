"""`CommitmentTracker`'s functions about projects: which one a commitment is in; open, assign, close them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from pmm_shm_pmm.fallback import passing_errors
from pmm_shm_pmm.opens import NOT_ASSIGNED, Opens, Projects
from pmm_shm_pmm.shared_log import log_of

_TAGS_MAX = 20_000
Meta = dict[str, Any]


def meta_of(event: Any) -> Any:
    return event.get("meta") or {}


class ProjectFunctions:
    """The functions that replace PMM's; they look up PMM's helpers in the patched module, or on the tracker.

    Parameters:
        module: `pmm.commitments.tracker`, or a module with its names.
        auto_project_id: PMM's own helper, whose answers are remembered; another one's are not.
    """

    def __init__(self, module: ModuleType, auto_project_id: Callable[..., Any] | None) -> None:
        self._module = module
        self._package = module.__name__.partition(".")[0]
        self._auto_project_id = auto_project_id
        self._tags: dict[str, Any] = {}

    def resolve_project_for_cid(self, tracker: Any, cid: Any) -> str | None:
        log = log_of(tracker.eventlog)
        key = str(cid)
        entry = self._opened(tracker).get(cid)
        project = None if entry is None else entry.get("project_id")
        if isinstance(project, str) and project:
            return project
        opens: Opens = log.fold("pmm_opens")
        if key in opens.current:
            return opens.assigned.get(key, NOT_ASSIGNED).resolved or None
        for event in log.events_of("project_assign", newest_first=True):
            project = meta_of(event).get("project_id")
            if str(meta_of(event).get("cid")) == key and isinstance(project, str) and project:
                return project
        return None

    def ensure_project_open(self, tracker: Any, project_id: Any) -> None:
        if not project_id:
            return
        log = log_of(tracker.eventlog)
        if has_project(log, "project_open", project_id):
            return
        meta, content = {"project_id": project_id}, f"Project: {project_id}"
        with passing_errors():
            try:
                log.append_checked(
                    "project_open", content, meta, lambda: not has_project(log, "project_open", project_id)
                )
            except Exception:
                pass

    def assign_project_if_needed(self, tracker: Any, cid: Any, project_id: Any) -> None:
        if not cid or not project_id:
            return
        log = log_of(tracker.eventlog)
        entry = self._opened(tracker).get(cid)
        if entry is None or entry.get("project_id") == project_id:
            return
        key = str(cid)
        opens: Opens = log.fold("pmm_opens")
        if key in opens.current:
            known = project_id in opens.assigned.get(key, NOT_ASSIGNED).all
        else:
            metas = map(meta_of, log.events_of("project_assign"))
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

    # Helpers of the other functions.

    def opened(self, tracker: Any) -> Mapping[Any, Any]:
        """Cid to entry of what is open, by PMM's function of that name."""
        with passing_errors():
            return self._opened(tracker)

    def _opened(self, tracker: Any) -> Mapping[Any, Any]:
        """The same where PMM's function swallows its errors: there they lead to that one."""
        entries: Mapping[Any, Any] = self._module.build_self_model(tracker.eventlog.read_all())["commitments"]["open"]
        return entries

    def close_project(self, log: Any, tracker: Any, project: Any) -> None:
        """Close a project in which nothing is open any more."""
        if not project:
            return

        def is_done() -> bool:
            entries = self.opened(tracker)
            try:
                return _is_done(log, entries, project)
            except Exception:
                # Its last commitment is closed already: nobody would look again.
                return _is_done_in(tracker.eventlog.read_all(), entries, project)

        if is_done():
            meta = {"project_id": project}
            log.append_checked("project_close", f"Project: {project}", meta, is_done)

    def project_by_tag(self, tracker: Any, text: Any) -> tuple[str, list[Any]]:
        """The project of the open commitments with the same tag, and their cids; "" where there are none."""
        tag = self._tag(tracker, text)
        if not tag:
            return "", []
        alike = [cid for cid, entry in self.opened(tracker).items() if self._tag(tracker, entry.get("text")) == tag]
        return (tag if alike else ""), alike

    def _tag(self, tracker: Any, text: Any) -> Any:
        find = tracker._auto_project_id
        if type(text) is not str or getattr(find, "__func__", find) is not self._auto_project_id:
            return find(text)
        # Other threads may clear it.
        tag = self._tags.get(text, self)
        if tag is self:
            tag = find(text)
            if len(self._tags) >= _TAGS_MAX:
                self._tags.clear()
            self._tags[text] = tag
        return tag


def _is_done(log: Any, entries: Mapping[Any, Any], project: Any) -> bool:
    """Whether no open entry is in the project, and it was never closed."""
    opens: Opens = log.fold("pmm_opens")
    assigned: dict[str, str] | None = None
    for cid, entry in entries.items():
        own = entry.get("project_id")
        if not own and cid in opens.current and type(cid) is str:
            own = opens.assigned.get(cid, NOT_ASSIGNED).newest
        elif not own:
            assigned = _assigned(log.events_of("project_assign")) if assigned is None else assigned
            own = assigned.get(str(cid), "")
        if own == project:
            return False
    return not has_project(log, "project_close", project)


def _is_done_in(events: Sequence[Any], entries: Mapping[Any, Any], project: Any) -> bool:
    """The same by a walk over all events."""
    assigned = _assigned(event for event in events if event["kind"] == "project_assign")
    in_use = {entry.get("project_id") or assigned.get(str(cid), "") for cid, entry in entries.items()}
    closes = (meta_of(event) for event in events if event["kind"] == "project_close")
    return project not in in_use and all(meta.get("project_id") != project for meta in closes)


def _assigned(events: Iterable[Any]) -> dict[str, str]:
    """Text of a cid to the project of its newest assignment."""
    metas = map(meta_of, events)
    return {str(meta.get("cid") or ""): str(meta.get("project_id") or "") for meta in metas}


def has_project(log: Any, kind: str, project: Any) -> bool:
    """Whether there is such an event of this project."""
    if type(project) is str:
        projects: Projects = log.fold("pmm_projects")
        return project in (projects.opened if kind == "project_open" else projects.closed)
    return any(meta_of(event).get("project_id") == project for event in log.events_of(kind))
