"""A summary of the last events, once there are enough since the one before."""

from pmm.work import walked, whole


def maybe_compact(events, *, threshold=100):
    """`{"content", "source_ids", "window": {"start", "end"}}`, or None."""
    end = 0
    for event in walked("maybe_compact", reversed(events)):
        if event["kind"] == "scene_compact":
            window = (event.get("meta") or {}).get("window") or {}
            try:
                int(window.get("start") or 0)
                end = int(window.get("end") or 0)
            except (AttributeError, TypeError, ValueError, OverflowError):
                end = 0
            break
    newer = [event["id"] for event in whole("maybe_compact", events) if event["id"] > end]
    if len(newer) < threshold:
        return None
    source_ids = newer[-threshold:]
    start, end = source_ids[0], source_ids[-1]
    scene = [
        event
        for event in whole("maybe_compact", events)
        if start <= event["id"] <= end and str(event.get("content") or "").strip()
    ]
    lines = scene[:6]
    if len(scene) > 6:
        lines = lines + scene[-6:]
    content = "\n".join(
        f"[{event['kind']} #{event['id']}] " + " ".join(str(event["content"]).split()[:14]) for event in lines
    )
    return {"content": content[:500], "source_ids": source_ids, "window": {"start": start, "end": end}}
