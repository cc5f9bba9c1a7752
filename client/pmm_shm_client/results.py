"""The results of the read methods: immutable, each with `as_of`, the newest event it includes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from pmm_shm.folds.history import NameChange, Point, StageChange
from pmm_shm.folds.recent import Entry, Telemetry
from pmm_shm.folds.self_model import Cid, ExpiredCommitment, OpenCommitment, SelfModel
from pmm_shm.folds.stage import StageSnapshot
from pmm_shm.frozen import json_text, plain, plain_dict, result, thawed
from pmm_shm.typed import Any, NamedTuple, TypedDict

NOT_IN_PMM2 = ("identity", "metrics", "stage", "history")
"""The read methods whose answers do not apply to a ledger of PMM 2: it has no adopted name, traits, scores or stage."""


@result
class Identity(NamedTuple):
    """The adopted name (None if there is none) and the five traits (name to float, in the order O C E A N)."""

    name: Any
    traits: Mapping[str, float]
    as_of: int

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        return plain_dict(self)

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(plain(self))


@result
class Commitments(NamedTuple):
    """Open commitments (cid to meta) and expired ones (cid to {"text", "expired_at", "reason"}), in order."""

    open: Mapping[Cid, OpenCommitment]
    expired: Mapping[Cid, ExpiredCommitment]
    as_of: int

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        return plain_dict(self)

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(plain(self))


@result
class Metrics(NamedTuple):
    """IAS and GAS, 0.0 to 1.0."""

    ias: float
    gas: float
    as_of: int

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        return plain_dict(self)

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(plain(self))


@result
class Stage(NamedTuple):
    """The stage, "S0" to "S4", and the snapshot {"IAS_mean", "GAS_mean", "count", "window"}."""

    stage: str
    snapshot: StageSnapshot
    as_of: int

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        return plain_dict(self)

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(plain(self))


@result
class Recent(NamedTuple):
    """The newest 32 reflections and 64 messages, oldest first, and the newest tick with telemetry, or None."""

    reflections: tuple[Entry, ...]
    messages: tuple[Entry, ...]
    telemetry: Telemetry | None
    as_of: int

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        return plain_dict(self)

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(plain(self))


@result
class History(NamedTuple):
    """IAS and GAS over the life of the ledger, in bounded space: oldest first.

    A sample is taken after each event that changes IAS or GAS; between two samples the scores are constant. A point
    summarises the samples of `stride` event ids. `stages` and `names` are the newest 256 changes, `stage_changes` and
    `name_changes` count all.
    """

    points: tuple[Point, ...]
    stride: int
    stages: tuple[StageChange, ...]
    stage_changes: int
    names: tuple[NameChange, ...]
    name_changes: int
    as_of: int

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        return plain_dict(self)

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(plain(self))


class Model:
    """The self-model, read-only at every depth; `json.dumps` takes its parts.

    Not a tuple: a mapping of commitments is made when somebody looks at it, and then kept.
    """

    __slots__ = ("_view", "as_of")
    _view: SelfModel
    as_of: int
    """The newest event that it includes, an id; 0 before the first event."""

    def __init__(self, view: SelfModel, as_of: int) -> None:
        object.__setattr__(self, "_view", view)
        object.__setattr__(self, "as_of", as_of)

    @property
    def name(self) -> Any:
        """The adopted name, any JSON value; None if there is none."""
        return self._view.name

    @property
    def traits(self) -> Mapping[str, float]:
        """Trait name to float, in the order O C E A N."""
        return self._view.traits

    @property
    def strict_traits(self) -> Mapping[str, float]:
        """The same with each delta limited to 0.05."""
        return self._view.strict_traits

    @property
    def open(self) -> Mapping[Cid, OpenCommitment]:
        """Cid to the meta of an open commitment, in order."""
        return self._view.open

    @property
    def expired(self) -> Mapping[Cid, ExpiredCommitment]:
        """Cid to {"text", "expired_at", "reason"} of an expired commitment, in order."""
        return self._view.expired

    def to_dict(self) -> dict[str, Any]:
        """A new dict by attribute names, plain at every depth."""
        return {name: plain(getattr(self, name)) for name in _MODEL_FIELDS}

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(self.to_dict())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Model):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _MODEL_FIELDS)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Model {self.name!r}, {len(self.open)} open, as_of={self.as_of}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Model, (self._view, self.as_of)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a model is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a model is immutable")


_MODEL_FIELDS = ("name", "traits", "strict_traits", "open", "expired", "as_of")


FOLD_BEHIND: Mapping[str, str] = {"identity": "self_model", "commitments": "self_model", "model": "self_model"}
"""The fold behind a read method, where it has another name."""

RESULTS: Mapping[str, Callable[[Any, int], Any]] = {
    "identity": lambda view, as_of: Identity(view.name, view.traits, as_of),
    "commitments": lambda view, as_of: Commitments(view.open, view.expired, as_of),
    "model": Model,
    "metrics": lambda view, as_of: tuple.__new__(Metrics, (*view, as_of)),
    "stage": lambda view, as_of: Stage(view.stage, view.snapshot, as_of),
    "recent": lambda view, as_of: Recent(view.reflections, view.messages, view.telemetry, as_of),
    "history": lambda view, as_of: History._make((*view, as_of)),
}
"""Read method to the result it makes of its fold's view."""


class IdentityDict(TypedDict):
    """The identity in a self-model: the name is any JSON value, None if there is none."""

    name: Any
    traits: dict[str, float]


class CommitmentsDict(TypedDict):
    """The commitments in a self-model, in order."""

    open: dict[Cid, OpenCommitment]
    expired: dict[Cid, ExpiredCommitment]


class SelfModelDict(TypedDict):
    """The result of `self_model`."""

    identity: IdentityDict
    commitments: CommitmentsDict


def self_model_dict(model: SelfModel, *, strict: bool) -> SelfModelDict:
    """The self-model as a new dict that shares nothing with the view.

    Raises:
        ProjectionInvariantError: with `strict`, if the state violates an invariant.
    """
    if strict and model.violation is not None:
        violation = model.violation
        # A new one: a raised exception keeps the traceback of its reader.
        raise type(violation)(violation.violation, violation.cid, violation.event_id)
    return {
        "identity": {
            "name": thawed(model.name),
            "traits": dict(model.strict_traits if strict else model.traits),
        },
        "commitments": {
            "open": {cid: thawed(entry) for cid, entry in model.open.items()},
            "expired": {cid: thawed(entry) for cid, entry in model.expired.items()},
        },
    }


def applicable(name: str, answer: dict[str, Any], not_applicable: Collection[str]) -> dict[str, Any]:
    """The plain fields of the answer of a read method, as far as they apply to its ledger: the others are None."""
    if name in not_applicable:
        return {field: value if field == "as_of" else None for field, value in answer.items()}
    if name == "self_model" and "identity" in not_applicable:
        return {**answer, "identity": None}
    return answer
