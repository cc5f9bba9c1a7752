"""The contract of a fold: how a projection is computed, once, for daemon, catch-up, replay and verification.

A fold in use:

    class ToolUse(Fold):
        name = "tool_use"
        version = 1
        kinds = {"tool_call": ("meta",)}

        def apply(self, event, state):
            tool = str(event.meta.get("tool") or "unknown")
            counts = state.table("counts")
            counts[tool] = counts.get(tool, 0) + 1

        def view(self, state):
            return frozen(dict(state.table("counts").items()))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from pmm_shm import limits
from pmm_shm.codec import pack
from pmm_shm.errors import FoldError, PmmShmError
from pmm_shm.folds.state import State, Touched
from pmm_shm.late import late_imports
from pmm_shm.ledger.rows import Event
from pmm_shm.typed import Any, ClassVar, Literal, NoReturn

Column = Literal["content", "meta"]
_OWN_COLUMNS = frozenset({"id", "ts", "kind", "content", "meta"})
FoldIdentity = tuple[str, int, bytes]
"""(name, version, packed parameters): state folded under one identity is void under another."""


class Fold(ABC):
    """A projection of the log. State at a position is a pure function of the events up to it.

    Attributes:
        name: unique, at most 64 bytes.
        version: raise it with any change of `apply`: the daemon then rebuilds the fold.
        kinds: the event kinds it needs, and which of the columns `content` and `meta` it needs of each; None for all
            events with both. An undeclared column reads as empty.
        columns: other columns of the ledger that it needs of these events, such as `hash`; they are in `event.columns`,
            and part of the identity. In a ledger without such a column, reads of the fold raise a
            `FoldError`.
        parameters: everything else that the state depends on; part of the identity.
        checks_values: whether each value is checked for storability when its event is folded, so that a bad value is
            that event's failure. The built-in folds do without: their tests check it.
        shares_events: whether an event may have columns that the fold has not declared, because another fold needs
            them: one shared object is faster than one for each fold. The built-in folds ignore such columns.
        has_small_view: whether `view` takes only microseconds. A reader then makes it anew behind every event, and does
            not look up first whether the events in between have touched the fold.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    kinds: Mapping[str, tuple[Column, ...]] | None = None
    columns: Sequence[str] = ()
    parameters: Mapping[str, Any] = {}
    checks_values: ClassVar[bool] = True
    shares_events: ClassVar[bool] = False
    has_small_view: ClassVar[bool] = False

    @abstractmethod
    def apply(self, event: Event, state: State) -> None:
        """Fold one event into the state.

        Must not depend on anything but its arguments and the parameters. An exception undoes the event's writes and
        puts its id into the quarantine.
        """

    @abstractmethod
    def view(self, state: State) -> Any:
        """The immutable answer at this state."""

    def patch(self, view: Any, state: State, touched: Touched) -> Any:
        """The answer at this state, given the answer before the parts in `touched` were written.

        Override it where the view is large; it must equal `view(state)`.
        """
        return self.view(state)

    def describe(self, view: Any) -> Mapping[str, Any]:
        """What people see of a view, in `status`, in plots and on the web page: name to a number, a text or a table,
        which maps its keys to values. By default the parts of the view.
        """
        from pmm_shm.folds.view_parts import described_view

        return described_view(view)

    def explain_keys(self, view: Any) -> Mapping[str, Any]:
        """The values whose history `pmm-shm explain` lists: key to value. By default those of `describe`; an entry of
        a table has the key `table.key`.
        """
        from pmm_shm.folds.view_parts import flattened

        return flattened(self.describe(view))

    def identity(self) -> FoldIdentity:
        """(name, version, parameters as bytes); the same for the life of the fold."""
        known: FoldIdentity | None = self.__dict__.get("_identity")
        if known is None:
            parameters: Any = dict(self.parameters)
            if self.columns:
                # A list is no mapping: no other fold's parameters look like it.
                parameters = [parameters, sorted(self.columns)]
            known = self.__dict__["_identity"] = (self.name, self.version, pack(parameters))
        return known

    def on_shape(self, identity: str) -> Fold:
        """This fold for logs of a shape, whose identity is part of the fold's: its state means nothing elsewhere."""
        with late_imports:
            import copy
        other = copy.copy(self)
        other.__dict__["_identity"] = self.name, self.version, pack([self.identity()[2], identity])
        return other


class BatchFold(Fold):
    """A fold that takes many events at once, and one event as a batch of one; a replay costs a fraction of the time.

    The result must not depend on the end of a batch. A subclass that has to see events one by one sets
    `takes_batches` to false.

    Attributes:
        newest_max: event kinds of which only so many of the newest of a batch can make a difference; the others may be
            left out. Such a kind needs `content` alone.
    """

    takes_batches: ClassVar[bool] = True
    newest_max: ClassVar[Mapping[str, int]] = {}

    @abstractmethod
    def apply_batch(self, events: Sequence[Event], state: State) -> None:
        """Fold events, in order, into the state; `state.quarantine` has to be told which of them it is about.

        An exception undoes the whole batch: then it is folded anew, one event at a time.
        """

    def apply(self, event: Event, state: State) -> None:
        self.apply_batch((event,), state)


def view_of(fold: Fold, state: State, as_of: int) -> Any:
    """The view of a fold at event `as_of`.

    Raises:
        FoldError: `view` fails.
    """
    try:
        return fold.view(state)
    except Exception as error:
        raise_failure(fold, "view", as_of, error, lambda: fold.view(state))


def patched_view(fold: Fold, view: Any, state: State, touched: Touched, as_of: int) -> Any:
    """The view of a fold at event `as_of`, given an earlier view and the parts that were written since.

    Raises:
        FoldError: `patch` fails.
    """
    try:
        return fold.patch(view, state, touched)
    except Exception as error:
        method = "view" if type(fold).patch is Fold.patch else "patch"
        raise_failure(fold, method, as_of, error, lambda: fold.patch(view, state, touched))


def raise_failure(fold: Fold, method: str, as_of: int, error: Exception, again: Callable[[], Any]) -> NoReturn:
    """Raise a `FoldError` if the exception is the fold's: then a second call raises it, too. Raise any other one as it
    is: it came from the store, or from outside, such as out of a signal handler.
    """
    if not isinstance(error, (PmmShmError, MemoryError)):
        try:
            again()
        except Exception as second:
            if type(second) is type(error):
                what = f"fold {fold.name!r}: `{method}` fails at event {as_of}: {type(error).__name__}: {error}"
                raise FoldError(" ".join(what.split())[:400]) from error
    raise error


def checked_fold(fold: Any) -> Fold:
    """The object, if it keeps the contract.

    Raises:
        FoldError: it does not.
    """
    if not isinstance(fold, Fold):
        raise FoldError(f"{fold!r} is not a pmm_shm Fold")
    name = getattr(fold, "name", None)
    if not isinstance(name, str) or not 0 < len(name.encode()) <= limits.FOLD_NAME_BYTES_MAX:
        raise FoldError(f"{type(fold).__name__}: `name` must be text of 1 to {limits.FOLD_NAME_BYTES_MAX} bytes")
    version = getattr(fold, "version", None)
    if type(version) is not int:
        raise FoldError(f"{name}: `version` must be an integer")
    if fold.kinds is not None:
        kinds: Mapping[Any, Any] = fold.kinds
        for kind, columns in kinds.items():
            if not isinstance(kind, str) or not set(columns) <= {"content", "meta"}:
                raise FoldError(f"{name}: `kinds` maps event kinds to ('content', 'meta'), got {kind!r}: {columns!r}")
    others: Any = fold.columns
    if not isinstance(others, (tuple, list)) or not all(isinstance(column, str) and column for column in others):
        raise FoldError(f"{name}: `columns` must be a tuple of names of columns, got {others!r:.80}")
    if not _OWN_COLUMNS.isdisjoint(others):
        raise FoldError(f"{name}: `columns` is for other columns than {', '.join(sorted(_OWN_COLUMNS))}; see `kinds`")
    try:
        fold.identity()
    except (TypeError, ValueError) as error:
        raise FoldError(f"{name}: `parameters` cannot be stored: {error}") from error
    return fold
