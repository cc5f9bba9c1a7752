"""The answers that a command line can ask for (WHAT), as JSON and for people.

Invariant: `read` and `replay` print the same for the same position.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from pmm_shm.errors import UnknownFoldError
from pmm_shm_terminal.completers import registered_folds
from pmm_shm_terminal.options import did_you_mean
from pmm_shm_terminal.output import cell, json_value, pairs, table, titled

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pmm_shm.folds.contract import Fold
    from pmm_shm.ledger.shape import Shape
    from pmm_shm_client.cache import Cache
    from pmm_shm_client.frame import Frame
    from pmm_shm_client.reads import Consistency
    from pmm_shm_client.replaying import ReplayReading

NAMES = (
    "self-model",
    "identity",
    "commitments",
    "metrics",
    "stage",
    "directives",
    "active-directives",
    "recent",
    "history",
    "frame",
)
"""Every WHAT except the names of registered folds."""

CHOICES = f"one of {', '.join(NAMES)}, or the name of a registered fold (or MODULE:CLASS of another)"
"""What WHAT can be, in words."""

_FRAME = tuple(name for name in NAMES if name not in ("history", "frame"))
"""The parts of `frame`: all except the history, which is long and can be read alone."""

STRICT = frozenset({"self-model", "frame"})
"""The answers for which `--strict` has a meaning."""

WHY_NOT_APPLICABLE = "this is a ledger of PMM 2, which has no adopted name, OCEAN traits, IAS, GAS or stage"
"""Why some answers do not apply to a ledger; `Cache.not_applicable` has their names."""

_TEXT_SHOWN = 100
_TS_SHOWN = 20
_POINTS_SHOWN = 20
_RANGES = (("ias_min", "ias_max"), ("gas_min", "gas_max"))


def checked_what(what: str, ledger: str) -> str:
    """The canonical name, one of `NAMES`, of a registered fold or, for the log of another program, of any.

    Raises:
        UnknownFoldError: neither.
    """
    name = what.replace("_", "-")
    if name in NAMES:
        return name
    try:
        return any_fold(what).name
    except UnknownFoldError:
        from pmm_shm.ledger.connection import recorded_shape

        if recorded_shape(ledger) is not None:
            return what
        near = did_you_mean(name, (*NAMES, *registered_folds()))
        raise UnknownFoldError(f"WHAT: {what!r} is not {CHOICES}{near}") from None


def any_fold(name: str, ledger: str | None = None) -> Fold:
    """The fold of this name, or the one that `package.module:attribute` names. With a ledger, the folds of its shape
    come first.

    Raises:
        UnknownFoldError: there is none.
        ConfigError: there is no such module or attribute.
        FoldError: it does not load, or breaks the contract.
    """
    from pmm_shm.folds.registry import chosen_folds, find_fold, named_fold
    from pmm_shm.ledger.connection import recorded_shape

    if ":" in name:
        return named_fold(name)
    shape = None if ledger is None else recorded_shape(ledger)
    own = () if shape is None else chosen_folds(shape.folds)
    return next((fold for fold in own if fold.name == name), None) or find_fold(name)


def only_fold(ledger: str) -> str | None:
    """The fold that is meant where none is named: on the log of another program its only one; None on a ledger.

    Raises:
        UnknownFoldError: it has none, or several.
    """
    from pmm_shm.folds.registry import chosen_folds
    from pmm_shm.ledger.connection import recorded_shape

    shape = recorded_shape(ledger)
    if shape is None:
        return None
    names = [fold.name for fold in chosen_folds(shape.folds)]
    if len(names) == 1:
        return names[0]
    has = f"one of {', '.join(names)}" if names else "its shape has no folds; name one as MODULE:CLASS"
    raise UnknownFoldError(f"{ledger}: a log of another program needs --fold: {has}")


def folds_for(what: str, limit: float | None, shape: Shape | None = None) -> list[Fold]:
    """New folds for a replay; `limit` is that of trait deltas, None for the default.

    Raises:
        UnknownFoldError: the log of another program has no such fold.
    """
    from pmm_shm.folds.registry import built_in_folds, chosen_folds, find_fold
    from pmm_shm.folds.self_model import SelfModelFold

    if shape is not None:
        own = chosen_folds(shape.folds)
        folds = own if what == "frame" else [fold for fold in own if fold.name == _source(what)]
        if not folds:
            raise UnknownFoldError(f"no fold {what!r} on a log of the shape {shape.name!r}")
        return folds
    folds = built_in_folds() if what == "frame" else [find_fold(_source(what))]
    if limit is not None:
        folds = [SelfModelFold(limit) if fold.name == "self_model" else fold for fold in folds]
    return folds


def answer_of_replay(what: str, reading: ReplayReading, strict: bool = False, shape: Shape | None = None) -> Any:
    """The answer of a replay as a JSON value.

    Raises:
        ProjectionInvariantError: `strict`, and the state violates an invariant.
    """
    from pmm_shm_client.results import NOT_IN_PMM2

    missing = NOT_IN_PMM2 if reading.is_of_pmm2 else ()
    if what == "frame" and shape is not None:
        return {"as_of": reading.as_of, **{fold.name: json_value(reading.view(fold.name)) for fold in reading.folds}}
    if what == "frame":
        return _marked(what, {"as_of": reading.as_of, **{n: _of_replay(n, reading, strict) for n in _FRAME}}, missing)
    return _marked(what, _of_replay(what, reading, strict), missing)


def _of_replay(what: str, reading: ReplayReading, strict: bool) -> Any:
    from pmm_shm_client.results import RESULTS, self_model_dict

    view = reading.view(_source(what))
    if what == "self-model":
        return json_value(self_model_dict(view, strict=strict))
    if what == "directives":
        return json_value(view.rows())
    if what == "active-directives":
        return json_value(view.active())
    return json_value(RESULTS[what](view, reading.as_of) if what in RESULTS else view)


def answer_of_cache(what: str, cache: Cache, consistency: Consistency, strict: bool, limit: float) -> Any:
    """The answer of the shared state as a JSON value.

    Raises:
        ProjectionInvariantError: `strict`, and the state violates an invariant.
        PmmShmError: it cannot be read.
    """
    if what == "frame":
        frame = cache.frame(consistency=consistency)
        if cache.shape is not None:
            return json_value(frame.to_dict())
        answers = {name: _of_methods(name, frame) for name in _FRAME[1:]}
        answer = {"as_of": frame.as_of, "self-model": json_value(frame.self_model(strict, limit)), **answers}
        return _marked(what, answer, frame.not_applicable)
    if what == "self-model":
        answer = json_value(cache.self_model(strict, limit, consistency=consistency))
    elif what in NAMES:
        answer = _of_methods(what, cache, consistency=consistency)
    else:
        answer = json_value(cache.fold(what, consistency=consistency))
    return _marked(what, answer, cache.not_applicable)


def _marked(what: str, answer: Any, missing: Collection[str]) -> Any:
    """The answer with None for everything that does not apply to its ledger, and the names of these parts."""
    from pmm_shm_client.results import applicable

    if not missing:
        return answer
    if what == "frame":
        found = {name: applicable(name.replace("-", "_"), part, missing) for name, part in answer.items()}
        names = [name for name in missing if name in found]
    else:
        found = applicable(what.replace("-", "_"), answer, missing)
        names = [name for name in missing if name == what or (what == "self-model" and name == "identity")]
    return {**found, "not_applicable": names} if names else found


def _of_methods(what: str, source: Cache | Frame, **options: Any) -> Any:
    return json_value(getattr(source, what.replace("-", "_"))(**options))


def _source(what: str) -> str:
    """The name of the fold that computes it."""
    known = {"self-model": "self_model", "identity": "self_model", "commitments": "self_model"}
    return known.get(what, "directives" if what == "active-directives" else what)


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
