"""The answers for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pmm_shm_terminal.answer_names import WHY_NOT_APPLICABLE
from pmm_shm_terminal.output import cell, pairs, table, titled

if TYPE_CHECKING:
    from rich.console import RenderableType

_TEXT_SHOWN = 100
_TS_SHOWN = 20
_POINTS_SHOWN = 20
_RANGES = (("ias_min", "ias_max"), ("gas_min", "gas_max"))


def shown(what: str, answer: Any) -> list[RenderableType]:
    """The answer for people."""
    parts: list[RenderableType]
    if what == "frame" and "self-model" not in answer:
        parts = [pairs("frame", {"as of event": answer["as_of"]})]
        return parts + [one for name, part in answer.items() if name != "as_of" for one in shown(name, part)]
    if what == "frame":
        parts = [pairs("frame", {"as of event": answer["as_of"]})]
        missing = answer.get("not_applicable", ())
        for name, part in answer.items():
            # Both are parts of the self-model.
            if name not in ("as_of", "identity", "commitments", "not_applicable"):
                parts += shown(name, {**part, "not_applicable": [name]} if name in missing else part)
        return parts
    if isinstance(answer, dict) and what in answer.get("not_applicable", ()):
        return [pairs(_title(what, answer), {"does not apply": WHY_NOT_APPLICABLE})]
    return _SHOWN.get(what, _show_any)(what, answer)


def _show_self_model(what: str, answer: Any) -> list[RenderableType]:
    return [*_show_identity("identity", answer["identity"]), *_show_commitments("", answer["commitments"])]


def _show_identity(what: str, answer: Any) -> list[RenderableType]:
    if answer is None:
        return [pairs("identity", {"does not apply": WHY_NOT_APPLICABLE})]
    return [pairs(_title("identity", answer), {"name": answer["name"], **answer["traits"]})]


def _show_commitments(what: str, answer: Any) -> list[RenderableType]:
    running = table("cid", "text", "snoozed until", optional=("snoozed until",))
    for cid, entry in answer["open"].items():
        running.add_row(cell(cid), cell(entry.get("text"), _TEXT_SHOWN), cell(entry.get("snoozed_until")))
    expired = table("cid", "text", "expired at", "reason", optional=("reason", "expired at"))
    for cid, entry in answer["expired"].items():
        expired.add_row(
            cell(cid), cell(entry["text"], _TEXT_SHOWN), cell(entry["expired_at"]), cell(entry["reason"], _TEXT_SHOWN)
        )
    return [
        titled(_title(f"open commitments: {len(answer['open'])}", answer), running),
        titled(f"expired commitments: {len(answer['expired'])}", expired),
    ]


def _show_stage(what: str, answer: Any) -> list[RenderableType]:
    return [pairs(_title("stage", answer), {"stage": answer["stage"], **answer["snapshot"]})]


def _show_rows(what: str, answer: Any) -> list[RenderableType]:
    if not answer:
        return [pairs(what, {"none": None})]
    made = table(*(name.replace("_", " ") for name in answer[0]))
    for row in answer:
        made.add_row(*(cell(value, _TS_SHOWN if name.endswith("_ts") else _TEXT_SHOWN) for name, value in row.items()))
    return [titled(f"{what}: {len(answer)}", made)]


def _show_recent(what: str, answer: Any) -> list[RenderableType]:
    telemetry = answer["telemetry"]
    parts: list[RenderableType] = [pairs(_title("newest telemetry", answer), telemetry or {"none": None})]
    for name in ("reflections", "messages"):
        made = table("id", "time", "kind", "content", optional=("kind", "time"))
        for entry in answer[name]:
            made.add_row(
                cell(entry["id"]), cell(entry["ts"][:19]), cell(entry["kind"]), cell(entry["content"], _TEXT_SHOWN)
            )
        parts.append(titled(f"{name}: {len(answer[name])}", made))
    return parts


def _show_history(what: str, answer: Any) -> list[RenderableType]:
    points = answer["points"]
    numbers = {
        "points": len(points),
        "event ids in each": answer["stride"],
        "from event": points[0]["first_id"] if points else None,
        "stage changes": answer["stage_changes"],
        "name changes": answer["name_changes"],
    }
    columns = ("events", "IAS", "IAS range", "GAS", "GAS range", "stage")
    made = table(*columns, optional=("GAS range", "IAS range"))
    for point in points[-_POINTS_SHOWN:]:
        first, last = point["first_id"], point["last_id"]
        ias_range, gas_range = (f"{point[low]:.4f} to {point[high]:.4f}" for low, high in _RANGES)
        made.add_row(
            cell(str(last) if first == last else f"{first} to {last}"),
            *(cell(f"{point['ias_last']:.4f}"), cell(ias_range), cell(f"{point['gas_last']:.4f}"), cell(gas_range)),
            cell(point["stage"]),
        )
    shown_now = min(len(points), _POINTS_SHOWN)
    parts = [pairs(_title("history", answer), numbers), titled(f"the newest points: {shown_now}", made)]
    for name, changed in (("stages", "stage"), ("names", "name")):
        changes = table("event", changed)
        for change in answer[name][-_POINTS_SHOWN:]:
            changes.add_row(cell(change["event_id"]), cell(change[changed]))
        parts.append(titled(f"the newest {changed} changes: {min(len(answer[name]), _POINTS_SHOWN)}", changes))
    return parts


def _show_any(what: str, answer: Any) -> list[RenderableType]:
    if isinstance(answer, dict):
        named = {name: value for name, value in answer.items() if name != "as_of"}
        return [pairs(_title(what, answer), named)]
    return [pairs(what, {"value": answer})]


def _title(name: str, answer: Mapping[str, Any]) -> str:
    return f"{name} (as of event {answer['as_of']})" if "as_of" in answer else name


_SHOWN: Mapping[str, Callable[[str, Any], list[RenderableType]]] = {
    "self-model": _show_self_model,
    "identity": _show_identity,
    "commitments": _show_commitments,
    "stage": _show_stage,
    "directives": _show_rows,
    "active-directives": _show_rows,
    "recent": _show_recent,
    "history": _show_history,
}
