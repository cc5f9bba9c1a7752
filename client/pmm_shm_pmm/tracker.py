"""`CommitmentTracker`: ten of its functions, on folds in place of walks over the log.

Each one first computes, and may fall back; then it appends, and what fails from there on leaves it. An append that
depends on what was read is checked again within the write transaction: two workers never close one commitment twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pmm_shm_pmm.fallback import Fallback, passing_errors
from pmm_shm_pmm.log import log_of
from pmm_shm_pmm.opens import Opens, snippet_digest
from pmm_shm_pmm.projects import Meta, ProjectFunctions, meta_of
from pmm_shm_pmm.sweep import sweep_for_expired

if TYPE_CHECKING:
    from pmm_shm_pmm.patching import Patcher

_SCORE_MIN = 0.70
_REFLECTED_EVENTS = 50
_DUPLICATES_OF = 5
_SNIPPET_CHARS_MAX = 240


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


class _Functions(ProjectFunctions):
    """The functions about commitments, and those about their projects."""

    def process_evidence(self, tracker: Any, text: Any) -> list[str]:
        if not text:
            return []
        log = log_of(tracker.eventlog)
        opened = self.opened(tracker)
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
        if cid not in self.opened(tracker):
            return False
        with passing_errors():
            project = tracker._resolve_project_for_cid(cid)
        meta = {"cid": cid, "evidence_type": evidence_type, "description": description, "clean": True}
        if artifact is not None:
            meta["artifact"] = artifact
        if project:
            meta["project_id"] = project
        with passing_errors():
            closed = log.append_checked(
                "commitment_close", f"Commitment closed: {cid}", meta, lambda: cid in self.opened(tracker)
            )
            if closed is None:
                # Another worker was faster.
                return False
            try:
                self._append_metrics(tracker)
            except Exception:
                pass
            try:
                self.close_project(log, tracker, project)
            except Exception:
                pass
            return True

    def recent_open_cids(self, tracker: Any, n: int) -> list[tuple[Any, int]]:
        if type(n) is not int:
            raise Fallback("arguments of another type")
        log = log_of(tracker.eventlog)
        opened = self.opened(tracker)
        opens: Opens = log.fold("pmm_opens")
        if opens.is_odd:
            raise Fallback("a cid that is neither text nor a number")
        newest = [(cid, opens.current[cid].event_id) for cid in opened if cid in opens.current]
        return sorted(newest, key=lambda one: -one[1])[: max(0, n)]

    def is_duplicate_of_recent_open(self, tracker: Any, text: Any) -> bool:
        log_of(tracker.eventlog)
        opened = self.opened(tracker)
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
                project_id, alike = self.project_by_tag(tracker, text)
        with passing_errors():
            for other in alike:
                tracker._assign_project_if_needed(other, project_id)
            if project_id:
                meta["project_id"] = project_id
                tracker._ensure_project_open(project_id)
            content = f"Commitment opened: {text}"
            opened = log.append_checked(
                "commitment_open",
                content,
                meta,
                lambda: not tracker._is_duplicate_of_recent_open(text),
            )
            return "" if opened is None else cid

    def close_reflection_on_next(self, tracker: Any, reply: Any) -> None:
        log = log_of(tracker.eventlog)
        cids = [cid for cid, entry in self.opened(tracker).items() if str(entry.get("reason") or "") == "reflection"]
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
                log.append_checked("commitment_close", "", meta, lambda cid=cid: cid in self.opened(tracker))  # type: ignore[misc]

    def _is_known(self, log: Any, cid: Any, snippet: Any) -> bool:
        """Whether this was evidence before."""
        opens: Opens = log.fold("pmm_opens")
        if type(cid) is str and type(snippet) is str and cid in opens.current:
            return snippet_digest(snippet) in opens.evidence.get(cid, ())
        metas = map(meta_of, log.events_of("evidence_candidate"))
        return any(meta.get("cid") == cid and meta.get("snippet") == snippet for meta in metas)

    def _append_metrics(self, tracker: Any) -> None:
        metrics = import_module(f"{self._package}.runtime.metrics")
        ias, gas = metrics.compute_ias_gas(tracker.eventlog.read_all())
        meta = {"IAS": ias, "GAS": gas, "reason": "live_update"}
        tracker.eventlog.append(kind="metrics_update", content="", meta=meta)


def _is_reflected(eventlog: Any, cid: Any) -> bool:
    """Whether a reflection closed the commitment lately."""
    return any(
        event["kind"] == "commitment_close"
        and meta_of(event).get("cid") == cid
        and meta_of(event).get("source") == "reflection"
        for event in eventlog.read_tail(limit=_REFLECTED_EVENTS)
    )


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
    functions = _Functions(module, getattr(find, "__func__", find))
    for name in _METHODS:
        method = getattr(functions, name.lstrip("_"))
        patcher.replace(module, f"CommitmentTracker.{name}", _unbound(method))
    patcher.replace(module, "CommitmentTracker.sweep_for_expired", sweep_for_expired)


def _unbound(method: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose first argument is the tracker."""

    def function(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **kwargs)

    return function
