"""The known folds: a list of the built-in ones, and those that users register.

A user's fold is an entry point of the group `pmm_shm.folds`: an instance of `Fold`, or a subclass that takes no
arguments.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable

from pmm_shm import limits
from pmm_shm.errors import FoldError, UnknownFoldError
from pmm_shm.folds.contract import Fold, checked_fold
from pmm_shm.folds.directives import DirectivesFold
from pmm_shm.folds.engine import DECODE
from pmm_shm.folds.history import HistoryFold
from pmm_shm.folds.metrics import MetricsFold
from pmm_shm.folds.recent import RecentFold
from pmm_shm.folds.self_model import SelfModelFold
from pmm_shm.folds.stage import StageFold
from pmm_shm.late import late_imports
from pmm_shm.typed import Any

GROUP = "pmm_shm.folds"
BUILT_IN: tuple[type[Fold], ...] = (SelfModelFold, MetricsFold, StageFold, DirectivesFold, RecentFold, HistoryFold)
BUILT_IN_NAMES = frozenset(fold.name for fold in BUILT_IN)


def built_in_folds() -> list[Fold]:
    """New instances of the built-in folds, in order."""
    return [fold() for fold in BUILT_IN]


def registered_folds() -> list[Fold]:
    """The users' folds, by name. Takes 50 ms: not for the path of a read.

    Raises:
        FoldError: one does not load, breaks the contract, or has the name of another.
    """
    with late_imports:
        from importlib.metadata import entry_points

    folds: dict[str, Fold] = {}
    for entry in entry_points(group=GROUP):
        try:
            loaded = entry.load()
            fold = checked_fold(loaded() if isinstance(loaded, type) else loaded)
        except FoldError:
            raise
        except (Exception, SystemExit) as error:
            reason = f"{type(error).__name__}: {error}"
            raise FoldError(f"fold {entry.name!r} ({entry.value}) does not load: {reason}") from error
        if fold.name in folds or fold.name in BUILT_IN_NAMES or fold.name == DECODE:
            raise FoldError(f"fold {entry.name!r} ({entry.value}): the name {fold.name!r} is taken")
        folds[fold.name] = fold
    return [folds[name] for name in sorted(folds)]


_named: dict[str, Fold] = {}


def named_fold(name: str) -> Fold:
    """The fold that `package.module:attribute` names: an instance, or a subclass that takes no arguments. From now on,
    `find_fold` finds it by its own name.

    Raises:
        ConfigError: there is no such module or attribute.
        FoldError: it does not load, breaks the contract, or has the name of a fold that is built in.
    """
    with late_imports:
        from pmm_shm.user_objects import load_object

    fold = made_fold(load_object(name, "fold", FoldError), f"fold {name!r}")
    _named[fold.name] = fold
    return fold


def made_fold(given: object, what: str) -> Fold:
    """An instance of `Fold`, or of the subclass that is given, checked.

    Raises:
        FoldError: it cannot be made, breaks the contract, or has the name of a fold that is built in.
    """
    try:
        fold = checked_fold(given() if isinstance(given, type) else given)
    except FoldError as error:
        raise FoldError(f"{what}: {error}") from error
    except (Exception, SystemExit) as error:
        raise FoldError(f"{what} cannot be made: {type(error).__name__}: {error}") from error
    if fold.name in BUILT_IN_NAMES or fold.name == DECODE:
        raise FoldError(f"{what}: the name {fold.name!r} is taken")
    return fold


def with_named(folds: list[Fold], named: Iterable[Fold]) -> list[Fold]:
    """`folds` and those of `named` that are not among them.

    Raises:
        FoldError: one of them has the name of another.
    """
    found = {fold.name: fold for fold in folds}
    for fold in named:
        if not is_same_fold(found.setdefault(fold.name, fold), fold):
            raise FoldError(f"fold {name_of_type(fold)!r}: the name {fold.name!r} is taken")
    return list(found.values())


def is_same_fold(one: Fold, other: Fold) -> bool:
    """Whether both compute the same."""
    return type(one) is type(other) and one.identity() == other.identity()


def name_of_type(fold: Fold) -> str:
    """The name of a fold's class as `package.module:attribute`."""
    return f"{type(fold).__module__}:{type(fold).__qualname__}"


def importable_name(fold: Fold) -> str | None:
    """The name by which `named_fold` makes this fold in another process; None if it does not."""
    module = sys.modules.get(type(fold).__module__)
    if module is None or module.__name__ == "__main__":
        return None
    try:
        found: Any = functools.reduce(getattr, type(fold).__qualname__.split("."), module)
        return name_of_type(fold) if found is type(fold) and is_same_fold(found(), fold) else None
    except Exception:
        # A local class, or one that takes arguments.
        return None


def find_fold(name: str) -> Fold:
    """The fold of this name, built in, named before, or registered.

    Raises:
        UnknownFoldError: there is none.
        FoldError: a registered fold does not load.
    """
    for fold in BUILT_IN:
        if fold.name == name:
            return fold()
    if name in _named:
        return _named[name]
    for registered in registered_folds():
        if registered.name == name:
            return registered
    raise UnknownFoldError(f"no fold {name!r}: neither built in ({', '.join(sorted(BUILT_IN_NAMES))}) nor registered")


def chosen_folds(names: Iterable[str]) -> list[Fold]:
    """The folds of these names: `package.module:attribute`, or those that `find_fold` takes.

    Raises:
        ConfigError, FoldError: as `named_fold`.
        UnknownFoldError: as `find_fold`.
    """
    return with_named([], [named_fold(name) if ":" in name else find_fold(name) for name in names])


def checked_fold_name(name: object) -> None:
    """Check that a fold can have this name.

    Raises:
        UnknownFoldError: it cannot.
    """
    try:
        is_name = isinstance(name, str) and 0 < len(name.encode()) <= limits.FOLD_NAME_BYTES_MAX
    except UnicodeEncodeError:
        is_name = False
    if not is_name:
        raise UnknownFoldError(f"no fold {name!r:.80}: a name is text of 1 to {limits.FOLD_NAME_BYTES_MAX} bytes")
