"""Past events that share words with a text."""

import re

from pmm.work import whole

_STOP_WORDS = frozenset(
    re.findall("[a-z]+", "i we you the a an to and of for on in it is are will shall can could should would today now")
)


def suggest_recall(events, current_text, *, max_items=3, semantic_seeds=None):
    """`[{"eid", "snippet"}]`, those with the most words in common first."""
    wanted = set(_tokens(str(current_text or "")))
    newest = max((event["id"] for event in events), default=0)
    seeds = None
    if semantic_seeds is not None:
        try:
            seeds = {int(seed) for seed in semantic_seeds}
        except (TypeError, ValueError, OverflowError):
            seeds = set()
    scored = []
    for event in whole("suggest_recall", events):
        content = event.get("content")
        if event["id"] >= newest or not str(content or ""):
            continue
        if seeds is not None and event["id"] not in seeds:
            continue
        tokens = _tokens(str(content))
        if event["kind"] == "commitment_open" and isinstance((event.get("meta") or {}).get("text"), str):
            tokens = tokens + _tokens(event["meta"]["text"])
        overlap = sum(token in wanted for token in tokens)
        if overlap > 0:
            scored.append((-overlap, event["id"], str(content)[:100]))
    rows = []
    taken = set()
    for _, event_id, snippet in sorted(scored):
        if event_id not in taken and len(rows) < max(1, max_items):
            taken.add(event_id)
            rows.append({"eid": event_id, "snippet": snippet})
    return rows


def _tokens(text):
    return [token for token in re.split("[^a-z0-9]+", text.lower()) if token and token not in _STOP_WORDS]
