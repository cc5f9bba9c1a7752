"""Commitments: opened, proved, closed, expired and put into projects."""

import re
from uuid import uuid4

from pmm.runtime.embeddings import compute_embedding as _emb
from pmm.runtime.embeddings import cosine_similarity as _cos
from pmm.storage.eventlog import EventLog
from pmm.storage.projection import build_self_model
from pmm.work import walked, whole

_STOP_WORDS = frozenset(
    re.findall("[a-z]+", "a an and for i in is it of on or our the this to we will with finish write")
)


class CommitmentTracker:
    def __init__(self, eventlog: EventLog, memegraph=None):
        self.eventlog = eventlog
        self.memegraph = memegraph

    @staticmethod
    def _normalize_text(text):
        return " ".join(str(text).strip().lower().split())

    @staticmethod
    def _auto_project_id(text):
        """The first two telling words of a text, without their plural, or None."""
        words = [word for word in re.findall("[a-z]+", str(text or "").lower()) if word not in _STOP_WORDS]
        words = [word[:-1] if len(word) > 4 and word.endswith("s") else word for word in words if len(word) > 2]
        return "-".join(words[:2]) or None

    def _open(self):
        return build_self_model(self.eventlog.read_all())["commitments"]["open"]

    def find_evidence(self, events, open_commitments, recent_window=20):
        """`[(cid, score, snippet)]`, best first."""
        texts = []
        for event in walked("find_evidence", reversed(events)):
            if event["kind"] in ("response", "user", "reflection"):
                texts.append(str(event.get("content") or ""))
                if len(texts) >= max(1, recent_window):
                    break
        corpus = "\n".join(reversed(texts))
        corpus_norm = self._normalize_text(corpus)
        corpus_stems = set(_stems(corpus))
        corpus_vector = _emb(corpus_norm)
        found = []
        for item in open_commitments:
            cid = str(item.get("cid"))
            text = self._normalize_text(str(item.get("text") or ""))
            if not cid or not text:
                continue
            scores = [0.0]
            is_literal = text in corpus_norm
            if is_literal:
                scores.append(0.6)
            vector = _emb(text)
            if corpus_vector is not None and vector is not None:
                scores.append(_cos(corpus_vector, vector))
            stems = _stems(text)
            if stems:
                matched = sum(any(_is_near(stem, other) for other in corpus_stems) for stem in stems)
                scores.append(matched / len(stems))
            score = max(0.0, min(1.0, max(scores)))
            snippet = ""
            if is_literal:
                start = max(0, corpus.lower().find(text))
                snippet = corpus[max(0, start - 40) : start + len(text) + 40]
            found.append((cid, score, (snippet or text)[:160]))
        return sorted(found, key=lambda row: (-row[1], row[0]))

    def process_evidence(self, text):
        """The cid that a text closes, in a list."""
        if not text:
            return []
        open_ = self._open()
        if not open_:
            return []
        items = [{"cid": cid, "text": entry.get("text")} for cid, entry in open_.items()]
        found = self.find_evidence([{"kind": "response", "content": text}], items)
        if not found or found[0][1] < 0.70:
            return []
        cid, score, snippet = found[0]
        events = self.eventlog.read_all()
        known = False
        for event in whole("process_evidence", events):
            meta = event.get("meta") or {}
            if event["kind"] == "evidence_candidate" and meta.get("cid") == cid and meta.get("snippet") == snippet:
                known = True
        reflected = False
        for event in events[-50:]:
            meta = event.get("meta") or {}
            if event["kind"] == "commitment_close" and meta.get("cid") == cid and meta.get("source") == "reflection":
                reflected = True
        if not known and not reflected:
            self.eventlog.append(
                kind="evidence_candidate", content="", meta={"cid": cid, "score": score, "snippet": snippet}
            )
        return [cid] if self.close_with_evidence(cid, evidence_type="done", description=text, artifact=None) else []

    def close_with_evidence(self, cid, evidence_type, description, artifact=None):
        """Whether an open commitment was closed."""
        import pmm.config

        if evidence_type != "done":
            return False
        given = [isinstance(value, str) and bool(value.strip()) for value in (description, artifact)]
        enough = all if getattr(pmm.config, "require_artifact_evidence", False) else any
        if not enough(given) or cid not in self._open():
            return False
        project = self._resolve_project_for_cid(cid)
        meta = {"cid": cid, "evidence_type": evidence_type, "description": description, "clean": True}
        if artifact is not None:
            meta["artifact"] = artifact
        if project:
            meta["project_id"] = project
        self.eventlog.append(kind="commitment_close", content=f"Commitment closed: {cid}", meta=meta)
        try:
            from pmm.runtime.metrics import compute_ias_gas

            ias, gas = compute_ias_gas(self.eventlog.read_all())
            self.eventlog.append(
                kind="metrics_update", content="", meta={"IAS": ias, "GAS": gas, "reason": "live_update"}
            )
        except Exception:
            pass
        try:
            if project and project not in self._open_projects() and not self._has("project_close", project):
                self.eventlog.append(kind="project_close", content=f"Project: {project}", meta={"project_id": project})
        except Exception:
            pass
        return True

    def _open_projects(self):
        assigned = {}
        for event in whole("_open_projects", self.eventlog.read_all()):
            if event["kind"] == "project_assign":
                meta = event.get("meta") or {}
                assigned[str(meta.get("cid") or "")] = str(meta.get("project_id") or "")
        return {entry.get("project_id") or assigned.get(str(cid), "") for cid, entry in self._open().items()}

    def _has(self, kind, project_id):
        for event in walked("_has", self.eventlog.read_all()):
            if event["kind"] == kind and (event.get("meta") or {}).get("project_id") == project_id:
                return True
        return False

    def _resolve_project_for_cid(self, cid):
        try:
            project = (self._open().get(cid) or {}).get("project_id")
            if isinstance(project, str) and project:
                return project
            for event in walked("_resolve_project_for_cid", reversed(self.eventlog.read_all())):
                meta = event.get("meta") or {}
                if event["kind"] == "project_assign" and str(meta.get("cid")) == str(cid):
                    project = meta.get("project_id")
                    if isinstance(project, str) and project:
                        return project
        except Exception:
            pass
        return None

    def _ensure_project_open(self, project_id):
        try:
            if project_id and not self._has("project_open", project_id):
                self.eventlog.append(
                    kind="project_open", content=f"Project: {project_id}", meta={"project_id": project_id}
                )
        except Exception:
            pass

    def _assign_project_if_needed(self, cid, project_id):
        try:
            if not cid or not project_id:
                return
            entry = self._open().get(cid)
            if entry is None or entry.get("project_id") == project_id:
                return
            for event in walked("_assign_project_if_needed", self.eventlog.read_all()):
                meta = event.get("meta") or {}
                if (
                    event["kind"] == "project_assign"
                    and str(meta.get("cid")) == str(cid)
                    and str(meta.get("project_id")) == project_id
                ):
                    return
            self._ensure_project_open(project_id)
            self.eventlog.append(kind="project_assign", content="", meta={"cid": str(cid), "project_id": project_id})
        except Exception:
            pass

    def _recent_open_cids(self, n):
        """`[(cid, id of its newest opening)]`, newest first."""
        open_ = self._open()
        newest = {}
        for event in whole("_recent_open_cids", self.eventlog.read_all()):
            if event["kind"] == "commitment_open":
                cid = (event.get("meta") or {}).get("cid")
                if isinstance(cid, (str, int)) and cid in open_:
                    newest[cid] = event["id"]
        return sorted(newest.items(), key=lambda pair: -pair[1])[: max(0, n)]

    def _is_duplicate_of_recent_open(self, text):
        open_ = self._open()
        wanted = self._normalize_text(text or "")
        return any(
            self._normalize_text(str(open_[cid].get("text") or "")) == wanted for cid, _ in self._recent_open_cids(5)
        )

    def add_commitment(self, text, source=None, extra_meta=None, project=None):
        """The new commitment's id, or "" for one that was opened just before."""
        if self._is_duplicate_of_recent_open(text):
            return ""
        cid = uuid4().hex
        meta = {"cid": cid, "text": text}
        if source is not None:
            meta["source"] = source
        if isinstance(extra_meta, dict):
            for key, value in extra_meta.items():
                meta.setdefault(key, value)
        project_id = ""
        if isinstance(project, str) and project:
            project_id = project.strip()
        elif isinstance(meta.get("project_id"), str):
            project_id = meta["project_id"].strip()
        if not project_id:
            tag = self._auto_project_id(text)
            if tag:
                alike = [
                    other for other, entry in self._open().items() if self._auto_project_id(entry.get("text")) == tag
                ]
                if alike:
                    project_id = tag
                    for other in alike:
                        self._assign_project_if_needed(other, tag)
        if project_id:
            meta["project_id"] = project_id
            self._ensure_project_open(project_id)
        self.eventlog.append(kind="commitment_open", content=f"Commitment opened: {text}", meta=meta)
        return cid

    def close_reflection_on_next(self, reply):
        for cid, entry in self._open().items():
            if str(entry.get("reason") or "") == "reflection":
                self.eventlog.append(
                    kind="commitment_close",
                    content="",
                    meta={
                        "cid": cid,
                        "evidence_type": "done",
                        "description": reply,
                        "source": "reflection",
                        "clean": True,
                        "snippet": (reply or "").strip()[:240],
                    },
                )

    def sweep_for_expired(self, events, ttl_ticks=10):
        """`[{"cid", "reason"}]` of those that were open for so many ticks; the ticks are counted for each anew."""
        opened_at = {}
        gone = set()
        snoozed = {}
        for event in whole("sweep_for_expired", events):
            meta = event.get("meta") or {}
            cid = meta.get("cid")
            if event["kind"] == "commitment_open":
                # Only a text is found here again, so any other cid begins anew.
                if not isinstance(cid, str) or cid not in opened_at:
                    opened_at[str(cid)] = event["id"]
            elif event["kind"] in ("commitment_close", "commitment_expire") and cid:
                gone.add(str(cid))
            elif event["kind"] == "commitment_snooze":
                try:
                    until = int(meta.get("until_tick") or 0)
                except (TypeError, ValueError, OverflowError):
                    until = 0
                snoozed[str(cid)] = max(snoozed.get(str(cid), until), until)
        now = sum(event["kind"] == "autonomy_tick" for event in events)
        expired = []
        for cid, event_id in opened_at.items():
            if cid in gone:
                continue
            opened = 0
            for event in whole("sweep_for_expired", events):
                if event["kind"] == "autonomy_tick" and event["id"] < event_id:
                    opened += 1
            if cid in snoozed and now <= snoozed[cid]:
                continue
            if now - opened >= int(ttl_ticks):
                expired.append({"cid": cid, "reason": "timeout"})
        return expired


def _stems(text):
    return [_stem(token) for token in re.split("[^a-z0-9]+", text.lower()) if token]


def _stem(token):
    if token == "wrote":
        return "write"
    for ending, longer_than in (("ing", 5), ("ed", 4), ("es", 5), ("s", 4)):
        if token.endswith(ending) and len(token) > longer_than:
            return token[: -len(ending)]
    return token


def _is_near(first, second):
    """Whether one insertion, deletion or substitution at most makes one of the other."""
    if len(first) > len(second):
        first, second = second, first
    if len(second) - len(first) > 1:
        return False
    for place, letter in enumerate(first):
        if letter != second[place]:
            rest = first[place + 1 :] if len(first) == len(second) else first[place:]
            return rest == second[place + 1 :]
    return True
