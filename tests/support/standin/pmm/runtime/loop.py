"""The agent: one message, one tick."""

# The order is that of PMM.
# ruff: noqa: I001

import hashlib
import threading

from pmm.storage.eventlog import EventLog
from pmm.storage.projection import (
    build_directives,
    build_directives_active_set,
    build_identity,
    build_self_model,
    build_self_model_cached,
)
from pmm.runtime.metrics import compute_ias_gas, get_or_compute_ias_gas
from pmm.commitments.tracker import CommitmentTracker
from pmm.commitments.restructuring import CommitmentRestructurer
from pmm.runtime.recall import suggest_recall
from pmm.runtime.scene_compactor import maybe_compact
from pmm.runtime.stage_tracker import StageTracker
from pmm.runtime.embeddings import compute_embedding
from pmm.runtime.snapshot import LedgerSnapshot
from pmm.runtime.memegraph import MemeGraphProjection
from pmm.work import walked, whole


class EchoChat:
    """A model that says what it was told."""

    def generate(self, messages):
        return f"Noted: {messages[-1]['content']}"


class Runtime:
    def __init__(self, eventlog: EventLog):
        self.eventlog = eventlog
        self.chat = EchoChat()
        self._snapshot_cache = None
        self._snapshot_lock = threading.RLock()
        self._ngram_repeat_directive_cache = None
        eventlog.register_append_listener(self._on_append)
        self.memegraph = MemeGraphProjection(eventlog)
        self.tracker = CommitmentTracker(eventlog, memegraph=self.memegraph)

    def _on_append(self, event):
        with self._snapshot_lock:
            self._snapshot_cache = None

    def _get_snapshot(self):
        with self._snapshot_lock:
            if self._snapshot_cache is None:
                events = list(self.eventlog.read_all())
                ias, gas = compute_ias_gas(events)
                stage, stage_snapshot = StageTracker.infer_stage(events)
                self._snapshot_cache = LedgerSnapshot(
                    events=events,
                    identity=build_identity(events),
                    self_model=build_self_model(events),
                    ias=ias,
                    gas=gas,
                    stage=stage,
                    stage_snapshot=stage_snapshot,
                    last_event_id=events[-1]["id"] if events else 0,
                )
            return self._snapshot_cache

    def _ngram_repeat_telemetry_enabled(self):
        """What the last directive of that name said."""
        events = self.eventlog.read_all()
        last_id = events[-1]["id"] if events else 0
        cached = getattr(self, "_ngram_repeat_directive_cache", None)
        if cached is not None and cached[0] == last_id:
            return cached[1]
        enabled = False
        for event in whole("_ngram_repeat_telemetry_enabled", events):
            meta = event.get("meta") or {}
            if event["kind"] != "directive" or str(meta.get("name") or "").strip().lower() != "ngram_repeat_telemetry":
                continue
            value = str(meta.get("value") or meta.get("state") or event.get("content") or "").strip().lower()
            if value in ("on", "true", "1", "enable", "enabled", "yes"):
                enabled = True
            elif value in ("off", "false", "0", "disable", "disabled", "no"):
                enabled = False
        self._ngram_repeat_directive_cache = (last_id, enabled)
        return enabled

    def handle_user(self, text):
        """The reply to one message."""
        snapshot = self._get_snapshot()
        events = list(snapshot.events)
        messages = [{"role": "system", "content": self._prompt(snapshot, events)}, {"role": "user", "content": text}]

        user_id = self.eventlog.append(kind="user", content=text, meta={"source": "handle_user"})
        snapshot = self._get_snapshot()
        is_indexed = any(
            event["kind"] == "embedding_indexed" and (event.get("meta") or {}).get("eid") == user_id
            for event in walked("handle_user", snapshot.events)
        )
        if not is_indexed:
            digest = hashlib.sha1(str(compute_embedding(text)).encode("ascii")).hexdigest()[:8]
            self.eventlog.append(kind="embedding_indexed", content="", meta={"eid": user_id, "digest": digest})

        live = self.eventlog.read_all()
        before = len(live)
        self.eventlog.append(kind="turn", content="", meta={"ias": snapshot.ias, "gas": snapshot.gas})
        self.eventlog.append(kind="turn", content="", meta={"stage": snapshot.stage, "at": snapshot.last_event_id})
        grown = {"kinds": [event["kind"] for event in live[before:]], "events": len(live)}

        reply = self.chat.generate(messages)
        self.eventlog.append(kind="response", content=reply, meta={"grown": grown})
        identity = build_identity(self.eventlog.read_all())
        identity["_recent_adopt"] = False
        reflections = 0
        for event in walked("handle_user", reversed(self.eventlog.read_all())):
            if event["kind"] == "reflection":
                reflections += 1
            elif event["kind"] == "identity_adopt":
                identity["_recent_adopt"] = True

        words = set(text.lower().split())
        seeds = [
            event["id"]
            for event in self.eventlog.read_all()[-200:]
            if event["kind"] in ("user", "response") and words & set((event.get("content") or "").lower().split())
        ]
        recalled = suggest_recall(self.eventlog.read_all(), text, semantic_seeds=seeds[-10:] or None)
        self.eventlog.append(kind="recall", content="", meta={"rows": recalled, "reflections": reflections})
        self.tracker.close_reflection_on_next(reply)
        self.tracker.process_evidence(reply)
        if "I will" in reply:
            self.tracker.add_commitment(reply.split("I will", 1)[1].strip(), source="reply")

        if self._ngram_repeat_telemetry_enabled():
            self.eventlog.append(kind="ngram_repeat_telemetry", content="", meta={"words": len(reply.split())})
        if "identity" in text:
            self.eventlog.append(
                kind="graph", content="", meta={"rows": self.memegraph.graph_slice("identity", limit=3)}
            )
        scene = maybe_compact(self.eventlog.read_all())
        if scene is not None:
            self.eventlog.append(
                kind="scene_compact",
                content=scene["content"],
                meta={"source_ids": scene["source_ids"], "window": scene["window"]},
            )
        model = build_self_model(self.eventlog.read_all())
        self.eventlog.append(
            kind="identity_checkpoint",
            content="",
            meta={"commitments": model["commitments"], "identity": identity},
        )
        return reply

    def _prompt(self, snapshot, events):
        lines = [f"You are {snapshot.identity['name'] or 'Unknown'}."]
        for event in walked("_prompt", reversed(events)):
            if event["kind"] == "autonomy_tick":
                lines.append(f"tick {event['id']}: {(event.get('meta') or {}).get('telemetry')}")
                break
        open_ = snapshot.self_model["commitments"]["open"]
        lines.extend(f"- {open_[cid]['text']}" for cid in sorted(open_, key=str)[:5])
        for kinds, limit in ((("reflection",), 3), (("user", "response"), 6)):
            found = []
            for event in walked("_prompt", reversed(events)):
                if event["kind"] in kinds and (event.get("content") or "").strip():
                    found.append(f"{event['kind']}: {event['content']}")
                    if len(found) == limit:
                        break
            lines.extend(reversed(found))
        return "\n".join(lines)


class AutonomyLoop:
    def __init__(self, eventlog: EventLog, runtime):
        self.eventlog = eventlog
        self.runtime = runtime
        self.tracker = CommitmentTracker(eventlog, memegraph=runtime.memegraph)
        self.restructurer = CommitmentRestructurer(eventlog)

    def tick(self):
        """The id of the `autonomy_tick` that says what was counted."""
        snapshot = self.runtime._get_snapshot()
        events = list(snapshot.events)
        ticks = [event["id"] for event in whole("tick", events) if event["kind"] == "autonomy_tick"]
        is_whole = len(events) == len(self.eventlog.read_all())

        expired = self.tracker.sweep_for_expired(events)
        for row in expired:
            self.eventlog.append(kind="commitment_expire", content=f"Commitment expired: {row['cid']}", meta=row)

        last_tick = ticks[-1] if ticks else 0
        until_tick = [event for event in whole("tick", events) if event["id"] <= last_tick]
        half = events[: len(events) // 2]
        directives = [row["content"] for row in build_directives(events[-50:])]
        active = [row["content"] for row in build_directives_active_set(events)]
        try:
            merges = self.restructurer.consolidate_similar()
        except (AttributeError, TypeError):
            merges = []
        is_sound = self.eventlog.verify_chain()
        latest = self.runtime.memegraph.latest_stage()
        if snapshot.stage != latest:
            self.eventlog.append(kind="stage_update", content="", meta={"from": latest, "to": snapshot.stage})
        return self.eventlog.append(
            kind="autonomy_tick",
            content="autonomy heartbeat",
            meta={
                "telemetry": {"IAS": snapshot.ias, "GAS": snapshot.gas},
                "stage": snapshot.stage,
                "ticks": len(ticks),
                "events": len(events),
                "is_whole": is_whole,
                "is_sound": is_sound,
                "expired": len(expired),
                "at_tick": [build_identity(until_tick)["name"], list(compute_ias_gas(until_tick))],
                "at_half": [list(map(str, build_self_model(half)["commitments"]["open"])), *compute_ias_gas(half)],
                "directives": directives,
                "active": active,
                "merges": merges,
                "metrics": list(get_or_compute_ias_gas(self.eventlog)),
                "open": list(map(str, build_self_model_cached(self.eventlog)["commitments"]["open"])),
                "graph_open": list(self.runtime.memegraph.open_commitments_snapshot()),
            },
        )

    def run(self, n):
        """So many ticks in a thread, which is returned."""

        def ticks():
            for _ in range(n):
                self.tick()

        thread = threading.Thread(target=ticks, daemon=True)
        thread.start()
        return thread
