"""Identity, traits, commitments and directives: each call goes through all events from the first on."""

import re

from pmm.work import whole

_TRAITS = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
_TRAIT_KEYS = {**{name: name for name in _TRAITS}, **{name[0]: name for name in _TRAITS}}
_NAME_CHANGED = re.compile(r"Name\s+changed\s+to:\s*([^\n]+)", re.IGNORECASE)

_global_projection_cache = None


class ProjectionInvariantError(ValueError):
    """A strict build met a violation."""


def build_self_model(events, *, strict=False, max_trait_delta=0.05, on_warn=None):
    """`{"identity": ..., "commitments": {"open": ..., "expired": ...}}`.

    Raises:
        ProjectionInvariantError: strict, and a close without evidence or a lost identity.
    """
    name = None
    adopted = False
    traits = dict.fromkeys(_TRAITS, 0.5)
    open_ = {}
    expired = {}
    evidence = set()
    for event in whole("build_self_model", events):
        kind = event["kind"]
        meta = event.get("meta") or {}
        content = event.get("content") or ""
        if kind == "identity_change":
            name = _changed_name(meta, content) or name
        elif kind == "identity_adopt":
            candidate = meta.get("name") or content
            if isinstance(candidate, str) and candidate:
                name = candidate.strip() or None
                adopted = adopted or name is not None
        elif kind == "identity_clear":
            name = None
            adopted = False
        elif kind == "trait_update":
            _update_traits(traits, meta, max_trait_delta if strict else None)
        elif kind == "commitment_open":
            cid = _cid(meta)
            if cid is not None and meta.get("text") is not None:
                open_[cid] = dict(meta)
        elif kind == "evidence_candidate":
            cid = _cid(meta)
            type_ = meta.get("evidence_type") or "done"
            if cid is not None and isinstance(type_, str):
                evidence.add((cid, type_.strip().lower()))
        elif kind == "commitment_close":
            cid = _cid(meta)
            if cid is not None and cid in open_:
                del open_[cid]
                if (cid, "done") not in evidence:
                    text = f"commitment_close without prior evidence_candidate (cid={cid}, eid={event['id']})"
                    if strict:
                        raise ProjectionInvariantError(text)
                    if on_warn is not None:
                        on_warn(text)
        elif kind == "commitment_expire":
            cid = _cid(meta)
            if cid is not None and cid in open_:
                text = open_.pop(cid)["text"]
                expired[cid] = {
                    "text": text,
                    "expired_at": event["id"],
                    "reason": meta.get("reason") or "timeout",
                }
        elif kind == "commitment_snooze":
            cid = _cid(meta)
            if cid is not None and cid in open_:
                open_[cid]["snoozed_until"] = _int(meta.get("until_tick") or 0)
    if strict and adopted and name is None:
        raise ProjectionInvariantError(
            f"identity reverted to None without identity_clear (last_eid={events[-1]['id']})"
        )
    return {
        "identity": {"name": name, "traits": traits},
        "commitments": {"open": open_, "expired": expired},
    }


def build_identity(events):
    """`{"name", "traits"}`: the caller may change it."""
    return build_self_model(events)["identity"]


def build_directives(events):
    """One row for each distinct text of an `autonomy_directive`."""
    rows = {}
    for event in whole("build_directives", events):
        if event["kind"] != "autonomy_directive":
            continue
        meta = event.get("meta") or {}
        content = " ".join((event.get("content") or "").split())
        row = rows.setdefault(
            content,
            {
                "content": content,
                "first_seen_ts": event["ts"],
                "last_seen_ts": event["ts"],
                "first_seen_id": event["id"],
                "last_seen_id": event["id"],
                "seen_count": 0,
                "sources": [],
                "last_origin_eid": None,
            },
        )
        row["last_seen_ts"] = event["ts"]
        row["last_seen_id"] = event["id"]
        row["seen_count"] += 1
        source = str(meta.get("source") or "").strip().lower()
        if source and source not in row["sources"]:
            row["sources"] = sorted([*row["sources"], source])
        if meta.get("origin_eid") is not None:
            try:
                row["last_origin_eid"] = int(meta["origin_eid"])
            except (TypeError, ValueError, OverflowError):
                pass
    return sorted(rows.values(), key=lambda row: (str(row["first_seen_ts"]), row["first_seen_id"]))


def build_directives_active_set(events):
    """The seven directives of the best score, best first."""
    events = whole("build_directives_active_set", events)
    recent = [event for event in events if event["kind"] == "autonomy_directive"][-200:]
    hits = [" ".join((event.get("content") or "").split()) for event in recent]
    rows = []
    for directive in build_directives(events):
        recent_hits = hits.count(directive["content"])
        rows.append(
            {
                "content": directive["content"],
                "seen_count": directive["seen_count"],
                "recent_hits": recent_hits,
                "score": float(directive["seen_count"] + 2.0 * recent_hits),
                "first_seen_id": directive["first_seen_id"],
                "last_seen_id": directive["last_seen_id"],
                "sources": directive["sources"],
            }
        )
    return sorted(rows, key=lambda row: (-row["score"], row["first_seen_id"]))[:7]


def build_self_model_cached(eventlog, *, strict=False, max_trait_delta=0.05, on_warn=None):
    """The self-model of a log, by the process's cache if `pmm.config` says so."""
    from pmm.config import USE_PROJECTION_CACHE

    global _global_projection_cache
    if USE_PROJECTION_CACHE:
        if _global_projection_cache is None:
            from pmm.storage.projection_cache import ProjectionCache

            _global_projection_cache = ProjectionCache(strict=strict, max_trait_delta=max_trait_delta)
        return _global_projection_cache.get_model(eventlog, on_warn=on_warn)
    return build_self_model(eventlog.read_all(), strict=strict, max_trait_delta=max_trait_delta, on_warn=on_warn)


def _cid(meta):
    cid = meta.get("cid")
    return cid if cid and isinstance(cid, (str, int)) and not isinstance(cid, bool) else None


def _changed_name(meta, content):
    if meta.get("name"):
        return meta["name"]
    found = _NAME_CHANGED.search(content)
    return found.group(1).strip() if found else None


def _update_traits(traits, meta, limit):
    delta = meta.get("delta")
    trait = str(meta.get("trait") or "").strip().lower()
    if isinstance(delta, dict) and not trait:
        changes = [(key.lower(), value) for key, value in delta.items()]
    else:
        changes = [(trait, delta)]
    for key, value in changes:
        if key in _TRAIT_KEYS:
            step = _float(value)
            if limit is not None and abs(step) > limit:
                step = limit if step > 0 else -limit
            traits[_TRAIT_KEYS[key]] = max(0.0, min(1.0, traits[_TRAIT_KEYS[key]] + step))


def _float(value):
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _int(value):
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return 0
