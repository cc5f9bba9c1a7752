"""The answers that a command line can ask for (WHAT), as JSON.

Invariant: `read` and `replay` print the same for the same position.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from pmm_shm.errors import UnknownFoldError
from pmm_shm_terminal.answer_names import CHOICES, NAMES
from pmm_shm_terminal.completers import registered_folds
from pmm_shm_terminal.options import did_you_mean
from pmm_shm_terminal.output import json_value

if TYPE_CHECKING:
    from pmm_shm.folds.contract import Fold
    from pmm_shm.ledger.shape import Shape
    from pmm_shm_client.cache import Cache
    from pmm_shm_client.frame import Frame
    from pmm_shm_client.reads import Consistency
    from pmm_shm_client.replaying import ReplayReading

_FRAME = tuple(name for name in NAMES if name not in ("history", "frame"))
"""The parts of `frame`: all except the history, which is long and can be read alone."""


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
