"""A graph of adoptions and commitments, built from all events at first and by each append afterwards."""

import hashlib
import json

from pmm.storage.eventlog import EventLog
from pmm.work import whole


def _sha(value):
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha1(text.encode("ascii")).hexdigest()


class MemeGraphProjection:
    builds = 0
    """How often the whole graph was built in this process."""

    def __init__(self, eventlog: EventLog):
        self.eventlog = eventlog
        self._nodes = {}
        self._edges = []
        self._stages = []
        self._first_sights = {}
        self._lives = {}
        self._policies = []
        self.rebuild()
        eventlog.register_append_listener(self.on_event)

    def rebuild(self):
        """Forget the graph, and build it from the log."""
        type(self).builds += 1
        for part in (
            self._nodes,
            self._edges,
            self._stages,
            self._first_sights,
            self._lives,
            self._policies,
        ):
            part.clear()
        for event in whole("MemeGraphProjection.rebuild", self.eventlog.read_all()):
            self.on_event(event)

    @property
    def node_count(self):
        return len(self._nodes)

    def neighbors(self, event_id):
        """Labels of the edges of one event."""
        return [edge["label"] for edge in self._edges if edge["src_event_id"] == event_id]

    def on_event(self, event):
        kind = event["kind"]
        meta = event.get("meta") or {}
        if event["id"] in self._nodes:
            return
        self._nodes[event["id"]] = _sha({"label": "event", "id": event["id"], "kind": kind})
        if kind == "identity_adopt":
            self._add_adoption(event, meta)
        elif kind in ("commitment_open", "commitment_close", "commitment_expire"):
            self._add_commitment(event, meta)
        elif kind == "stage_update" and meta.get("to"):
            self._stages.append((event["id"], str(meta.get("from") or "") or None, str(meta["to"])))
        elif kind == "policy_update":
            try:
                source = int(meta.get("src_id") or meta.get("source_event_id"))
            except (TypeError, ValueError, OverflowError):
                return
            if source != event["id"] and source in self._nodes:
                self._policies.append((source, event["id"]))

    def _add_adoption(self, event, meta):
        name = meta.get("sanitized") or meta.get("name") or str(event.get("content") or "").strip()
        if not name:
            return
        confidence = 0.5
        attrs = {}
        if meta.get("confidence") is not None:
            try:
                confidence = float(meta["confidence"])
                attrs = {"confidence": confidence}
            except (TypeError, ValueError, OverflowError):
                pass
        self._add_edge(event, "adopts", "identity", {"name": name}, confidence, attrs)

    def _add_commitment(self, event, meta):
        cid = str(meta.get("cid") or "")
        if not cid:
            return
        text = meta.get("text") or ""
        self._first_sights.setdefault(cid, _sha({"label": "commitment", "attrs": {"cid": cid, "text": text}}))
        is_open = event["kind"] == "commitment_open"
        self._lives[cid] = (is_open, text, event["id"])
        label = {"commitment_open": "opens", "commitment_close": "closes"}.get(event["kind"], "expires")
        self._add_edge(event, label, "commitment", {"cid": cid, "text": text}, 0.5, {})

    def _add_edge(self, event, label, dst, dst_attrs, confidence, attrs):
        src_digest = self._nodes[event["id"]]
        dst_digest = _sha({"label": dst, "attrs": dst_attrs})
        self._edges.append(
            {
                "src": "event",
                "src_digest": src_digest,
                "src_event_id": event["id"],
                "label": label,
                "dst": dst,
                "dst_digest": dst_digest,
                "dst_event_id": None,
                "score": confidence,
                "edge_digest": _sha({"label": label, "src": src_digest, "dst": dst_digest, "attrs": attrs}),
            }
        )

    def latest_stage(self):
        return self._stages[-1][2] if self._stages else None

    def stage_history(self):
        return list(self._stages)

    def open_commitments_snapshot(self):
        return {
            cid: {"text": self._lives[cid][1], "digest": digest, "last_event_id": self._lives[cid][2]}
            for cid, digest in self._first_sights.items()
            if self._lives[cid][0]
        }

    def policy_updates_for_reflection(self, reflection_id):
        return [event_id for source, event_id in self._policies if source == reflection_id]

    def graph_slice(self, topic, *, limit=3, min_confidence=0.6, exclude_labels=None, recent_digest_blocklist=None):
        """The edges whose ends fit a topic, those of the greatest score first."""
        topic = (topic or "").strip().lower()
        if not topic:
            return []
        excluded = exclude_labels or ()
        blocked = recent_digest_blocklist or ()
        rows = []
        for edge in whole("graph_slice", self._edges):
            if edge["score"] < min_confidence or edge["label"] in excluded:
                continue
            if any(edge[key] in blocked for key in ("src_digest", "dst_digest", "edge_digest")):
                continue
            ends = (edge["src"], edge["dst"])
            if any(topic in end for end in ends):
                rows.append((edge["score"] + 0.4, edge))
            elif any(word in ends for word in topic.split()):
                rows.append((edge["score"] + 0.2, edge))
        rows.sort(key=lambda row: -row[0])
        return [{**edge, "score": round(score, 3)} for score, edge in rows[:limit]]
