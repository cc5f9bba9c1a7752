"""IAS and GAS over all events, from the first on."""

from pmm.work import walked, whole

_global_metrics_cache = None

_AGEING = frozenset(
    {
        "commitment_open",
        "commitment_close",
        "commitment_expire",
        "identity_adopt",
        "reflection",
        "invariant_violation",
        "autonomy_tick",
    }
)


def compute_ias_gas(events):
    """`(ias, gas)`; where the log has a confidence or details of another type, the error of that."""
    from pmm.storage.projection import build_self_model

    events = list(events)
    # The traits were meant to be factors; they are read and not used.
    build_self_model(events)["identity"]["traits"]
    ias = 0.0
    gas = 0.0
    tick = 0
    confident_tick = None
    last_tick = None
    last_name = ""
    opened = []
    violations = set()
    for event in whole("compute_ias_gas", events):
        kind = event["kind"]
        meta = event.get("meta") or {}
        content = str(event.get("content") or "")
        text = content.strip().lower()
        if kind == "autonomy_tick":
            tick += 1
            ias *= 0.9995
            gas *= 0.9995
            if confident_tick is not None and tick > confident_tick and (tick - confident_tick) % 5 == 0:
                ias += 0.03
        elif kind == "identity_adopt":
            name = str(meta.get("sanitized") or meta.get("name") or content or "").strip()
            confidence = float(meta.get("confidence", 0.0))
            if name and confidence >= 0.9:
                confident_tick = tick
            if last_tick is not None:
                since = tick - last_tick
                if last_name and name and since <= 5 and name.lower() != last_name.lower():
                    ias -= 0.08
                if since >= 5:
                    ias += float(since // 5) * 0.03
            last_tick = tick
            last_name = name
        elif kind == "commitment_open" and text:
            opened = [(then, other) for then, other in opened if tick - then <= 20]
            if text not in {other for _, other in opened}:
                gas += 0.07 * (1.0 + (0.5 - 0.5) * 0.2)
            opened.append((tick, text))
        elif kind == "commitment_close":
            gas += 0.12 * (1.0 + (0.5 - 0.5) * 0.3)
        elif kind == "reflection" and text:
            if ("identity" in text and len(text) > 20) or "my name" in text:
                ias += 0.01
        elif kind == "invariant_violation":
            details = meta.get("details") or {}
            commitment = details.get("commitment_id")
            key = (str(meta.get("code") or ""), "" if commitment is None else str(commitment))
            if key not in violations:
                violations.add(key)
                ias -= 0.005
                gas -= 0.005
    ias_feedback = (ias - 0.5) * 0.1
    gas_feedback = (gas - 0.5) * 0.05
    gas = gas + ias_feedback
    ias = ias + gas_feedback
    return (max(0.0, min(ias, 1.0)), max(0.0, min(gas, 1.0)))


def get_or_compute_ias_gas(eventlog):
    """The pair of the newest `metrics_update` if nothing has changed it since; else computed and appended."""
    from pmm.config import USE_METRICS_CACHE

    global _global_metrics_cache
    if USE_METRICS_CACHE:
        if _global_metrics_cache is None:
            from pmm.runtime.metrics_cache import MetricsCache

            _global_metrics_cache = MetricsCache()
        return _global_metrics_cache.get_metrics(eventlog)
    events = eventlog.read_all()
    for event in walked("get_or_compute_ias_gas", reversed(events)):
        if event["kind"] in _AGEING:
            break
        if event["kind"] == "metrics_update":
            meta = event.get("meta") or {}
            try:
                return (float(meta.get("IAS", 0.0)), float(meta.get("GAS", 0.0)))
            except (TypeError, ValueError, OverflowError):
                break
    ias, gas = compute_ias_gas(events)
    try:
        eventlog.append(
            kind="metrics_update",
            content="",
            meta={"IAS": ias, "GAS": gas, "reason": "recomputed", "component": "metrics_system"},
        )
    except Exception:
        pass
    return (ias, gas)
