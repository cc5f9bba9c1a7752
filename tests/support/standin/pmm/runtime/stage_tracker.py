"""The stage of development, from the telemetry of the last ticks and reflections."""

from pmm.work import whole


class StageTracker:
    WINDOW = 10

    @staticmethod
    def infer_stage(events):
        """`(stage, {"IAS_mean", "GAS_mean", "count", "window"})`."""
        pairs = {"autonomy_tick": [], "reflection": []}
        for event in whole("infer_stage", events):
            if event["kind"] in pairs:
                telemetry = (event.get("meta") or {}).get("telemetry")
                if isinstance(telemetry, dict) and "IAS" in telemetry and "GAS" in telemetry:
                    try:
                        pairs[event["kind"]].append((float(telemetry["IAS"]), float(telemetry["GAS"])))
                    except (TypeError, ValueError, OverflowError):
                        pass
        window = StageTracker.WINDOW
        used = pairs["autonomy_tick"][-window:]
        missing = window - len(used)
        if missing > 0:
            used = used + pairs["reflection"][-missing:]
        ias = 0.0
        gas = 0.0
        for one_ias, one_gas in used:
            ias += one_ias
            gas += one_gas
        if used:
            ias /= float(len(used))
            gas /= float(len(used))
        if ias >= 0.85 and gas >= 0.75:
            stage = "S4"
        elif 0.70 <= ias < 0.85 and 0.55 <= gas < 0.75:
            stage = "S3"
        elif 0.50 <= ias < 0.70 and 0.35 <= gas < 0.55:
            stage = "S2"
        elif 0.35 <= ias < 0.50 and 0.20 <= gas < 0.35:
            stage = "S1"
        else:
            stage = "S0"
        return stage, {"IAS_mean": ias, "GAS_mean": gas, "count": len(used), "window": window}
