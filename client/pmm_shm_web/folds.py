"""The folds that are not built in: numbers, texts and tables at a position, each with a link to its history."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pmm_shm.errors import ConfigError, FoldError, PmmShmError
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.describing import description, explainable
from pmm_shm.folds.registry import chosen_folds, named_fold, registered_folds, with_named
from pmm_shm.folds.state import State
from pmm_shm.ledger.connection import Connection
from pmm_shm.projection.cursor import require_columns
from pmm_shm.projection.fold_values import FoldValue
from pmm_shm_client.frame import Frame

TABLE_ENTRIES_SHOWN = 20


class FoldEntry(NamedTuple):
    """A named value; `argument` names its history in an address, empty where it has none."""

    name: str
    value: Any
    argument: str


class FoldTable(NamedTuple):
    """The first entries of a table."""

    name: str
    entries: tuple[FoldEntry, ...]
    total: int


class FoldPart(NamedTuple):
    """One fold at one position; `problem` says in one line why it cannot be shown."""

    name: str
    entries: tuple[FoldEntry, ...] = ()
    tables: tuple[FoldTable, ...] = ()
    problem: str | None = None


class UserFolds:
    """The folds that a page shows beside the built-in ones: those registered, and those named to the command.

    On the log of another program those of its shape take the place of the registered ones.

    Parameters:
        names: of folds that are not registered, as package.module:attribute.
        connection: to the ledger, which may lack a column that a fold asks for.

    Attributes:
        folds: those that can be read, by name.
    """

    def __init__(self, names: Iterable[str], connection: Connection) -> None:
        self.folds: dict[str, Fold] = {}
        self._problems: list[FoldPart] = []
        named = [named_fold(name) for name in names]
        try:
            shape = connection.shape
            found = with_named(registered_folds() if shape is None else chosen_folds(shape.folds), named)
        except PmmShmError as error:
            # A registration, or a shape, is not this command's: the page shows the rest.
            what = "registered folds" if connection.shape is None else "folds of the shape"
            self._problems.append(FoldPart(what, problem=str(error)))
            found = named
        for fold in found:
            try:
                require_columns([fold], connection)
                description(fold, fold.view(State()))
            except Exception as error:
                self._problems.append(FoldPart(fold.name, problem=str(error)))
            else:
                self.folds[fold.name] = fold

    def parts(self, frame: Frame) -> list[FoldPart]:
        """All folds as of a frame."""
        return [*(_part(fold, frame.fold(name)) for name, fold in self.folds.items()), *self._problems]

    def subject(self, argument: str) -> FoldValue:
        """A value to be explained: a JSON list of the fold's name and the key.

        Raises:
            ConfigError: there is no such fold.
        """
        try:
            name, key = json.loads(argument)
            fold = self.folds[name]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ConfigError(f"fold: expected a JSON list of fold and key, got {argument!r:.80}") from None
        return FoldValue(fold, str(key))

    def named(self, name: str) -> Fold:
        """The fold of this name.

        Raises:
            ConfigError: there is none.
        """
        if name not in self.folds:
            raise ConfigError(f"fold: there is no {name!r:.80}")
        return self.folds[name]


def _part(fold: Fold, view: Any) -> FoldPart:
    try:
        described, keys = description(fold, view), explainable(fold, view)
    except FoldError as error:
        return FoldPart(fold.name, problem=str(error))

    def entry(name: str, value: Any, keys_of_it: Sequence[str]) -> FoldEntry:
        key = next((key for key in keys_of_it if key in keys), None)
        return FoldEntry(name, value, "" if key is None else json.dumps([fold.name, key]))

    entries, tables = [], []
    for name, value in described.items():
        if isinstance(value, Mapping):
            shown = list(value.items())[:TABLE_ENTRIES_SHOWN]
            rows = tuple(entry(key, item, (f"{name}.{key}", key)) for key, item in shown)
            tables.append(FoldTable(name, rows, len(value)))
        else:
            entries.append(entry(name, value, (name,)))
    return FoldPart(fold.name, tuple(entries), tuple(tables))
