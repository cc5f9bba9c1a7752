"""Log shapes: which columns of a foreign append-only table are the id, kind, time, content and meta of an event.

A shape is a value, or a TOML file; `docs/SHAPES.md` describes both. `shape_view` makes a temporary view of it, so that
every statement about `events` works on the foreign table.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from pmm_shm.digests import blake2b
from pmm_shm.errors import ConfigError

Value = str | Mapping[str, str]
"""A column, an SQL expression, or `{"json": column, "path": "$.key"}`."""

_NOT_IN_SQL = re.compile("[\0\ud800-\udfff]")
_PATH = re.compile(r'\$(?:\.(?:"[^"]+"|[^.\["][^.\[]*)|\[(?:\d+|#(?:-\d+)?)\])*')
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_RESERVED = frozenset(("id", "ts", "kind", "content", "meta", "prev_hash", "hash", "rowid"))
_EPOCHS = frozenset(("epoch", "epoch_ms", "epoch_us"))
_IDENTITY_BYTES = 16
_SQL_VERSION = 1
"""To be raised when `shape_sql` makes other values of the same definition."""
COLUMNS_MAX = 1_000
"""Half of the columns that a statement has in SQLite."""
META_COLUMNS_MAX = 60
"""SQLite's functions take 127 arguments in many builds: 60 pairs, and some to spare."""


@dataclass(frozen=True)
class Shape:
    """How an append-only table of any program is a log of events.

    Attributes:
        name: text of letters, digits, `_`, `-` and `.`.
        version: 1 or higher; raise it with every change of the definition.
        from_: a table, or a join of tables, as in SQL behind FROM.
        kind: the event's kind.
        position: `rowid` or an integer key, the id of the event.
        ts: ISO 8601 text, or `{"epoch": column}` in seconds (`epoch_ms`, `epoch_us`: milliseconds, microseconds).
        content: text.
        meta: `{"json": column}`, or `{"columns": {key: value}}`.
        kinds: stored kind to the kind that folds see.
        columns: further columns by name.
        folds: the folds of such a log, as `package.module:Class` or by the name of a registered one.

    Raises:
        ConfigError: a field has no meaning.
    """

    name: str
    version: int
    from_: str
    kind: Value
    position: str = "rowid"
    ts: Value = "''"
    content: Value = "''"
    meta: Mapping[str, Any] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, Value] = field(default_factory=dict)
    folds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given: Mapping[str, Any] = vars(self)
        if not isinstance(given["name"], str) or not _NAME.fullmatch(self.name):
            raise ConfigError(f"shape {self.name!r:.80}: `name` must be up to 64 letters, digits, `_`, `-` and `.`")
        if type(given["version"]) is not int or self.version < 1:
            raise self.error(f"`version` must be a whole number from 1 on, got {self.version!r:.80}")
        for key in ("from_", "position"):
            if not isinstance(given[key], str) or not given[key].strip():
                raise self.error(f"`{key.rstrip('_')}` must be text")
        for key in ("kind", "content"):
            self._check_value(key, getattr(self, key))
        self._check_ts()
        self._check_meta()
        if not _is_text_to_text(self.kinds):
            raise self.error("`kinds` must map stored kinds to kinds")
        if not isinstance(given["columns"], Mapping) or len(given["columns"]) > COLUMNS_MAX:
            raise self.error(f"`columns` must map at most {COLUMNS_MAX} names to values")
        for name, value in given["columns"].items():
            if not isinstance(name, str) or not name.isidentifier() or name.lower() in _RESERVED:
                raise self.error(f"columns.{name}: the name must be an identifier, and none of {_listed(_RESERVED)}")
            self._check_value(f"columns.{name}", value)
        if len({name.lower() for name in self.columns}) < len(self.columns):
            raise self.error("`columns`: two names differ in case alone")
        folds = given["folds"]
        if not isinstance(folds, (list, tuple)) or not all(isinstance(name, str) and name for name in folds):
            raise self.error("`folds` must be a list of names")
        object.__setattr__(self, "folds", tuple(self.folds))
        if not _is_utf_8(self.definition()):
            raise self.error("its texts must be valid Unicode without NUL characters")

    def error(self, fault: str) -> ConfigError:
        """The error about a fault of this shape."""
        return ConfigError(f"shape {self.name!r}: {fault}")

    def definition(self) -> dict[str, Any]:
        """The shape as `from_definition` takes it: the keys of the TOML file."""
        return {one.name.rstrip("_"): _plain(getattr(self, one.name)) for one in fields(self)}

    @property
    def identity(self) -> str:
        """A digest of all that the events depend on: everything but `folds`."""
        known = {key: value for key, value in self.definition().items() if key != "folds"}
        text = json.dumps([_SQL_VERSION, known], sort_keys=True, ensure_ascii=True)
        return blake2b(text.encode(), digest_size=_IDENTITY_BYTES).hexdigest()

    def __hash__(self) -> int:
        return hash((self.identity, self.folds))

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @classmethod
    def from_definition(cls, found: Mapping[str, Any], what: str) -> Shape:
        """The shape with these keys.

        Parameters:
            what: names the origin in messages.

        Raises:
            ConfigError: keys are missing or unknown, or a value has no meaning.
        """
        keys = {one.name.rstrip("_"): one.name for one in fields(cls)}
        unknown = found.keys() - keys.keys()
        if unknown:
            raise ConfigError(f"{what}: unknown key {sorted(map(str, unknown))[0]!r}; known are {_listed(keys)}")
        missing = [key for key in ("name", "version", "from", "kind") if key not in found]
        if missing:
            raise ConfigError(f"{what}: `{missing[0]}` is missing")
        try:
            return cls(**{keys[key]: value for key, value in found.items()})
        except TypeError as error:
            raise ConfigError(f"{what}: {error}") from None

    def _check_value(self, key: str, value: object, *, is_nested: bool = False) -> None:
        """Raise where `value` is neither text nor a part of a JSON column."""
        if isinstance(value, str):
            if value.strip():
                return
        elif isinstance(value, Mapping) and _is_text_to_text(value):
            needed = {"json"} if is_nested and "path" not in value else {"json", "path"}
            if value.keys() == needed and _PATH.fullmatch(value.get("path", "$")):
                return
        raise self.error(f'`{key}` must be a column, an expression, or {{ json = "column", path = "$.key" }}')

    def _check_ts(self) -> None:
        if isinstance(self.ts, Mapping) and len(self.ts) == 1 and _EPOCHS.issuperset(self.ts):
            ((key, value),) = self.ts.items()
            self._check_value(f"ts.{key}", value)
        else:
            self._check_value("ts", self.ts)

    def _check_meta(self) -> None:
        meta: object = self.meta
        if isinstance(meta, Mapping):
            if not meta:
                return
            if meta.keys() == {"json"} and isinstance(meta["json"], str) and meta["json"].strip():
                return
            if meta.keys() == {"columns"} and isinstance(meta["columns"], Mapping):
                if not 0 < len(meta["columns"]) <= META_COLUMNS_MAX:
                    raise self.error(f"`meta.columns` must have 1 to {META_COLUMNS_MAX} keys")
                for key, value in meta["columns"].items():
                    self._check_value(f"meta.columns.{key}", value, is_nested=True)
                return
        raise self.error('`meta` must be { json = "column" } or { columns = { key = "column" } }')


def load_shape(given: Shape | str | os.PathLike[str]) -> Shape:
    """The shape that is given: itself, a TOML file, or the name of a shape that comes with pmm-shm.

    Raises:
        ConfigError: there is none, or it has no meaning.
    """
    if isinstance(given, Shape):
        return given
    try:
        text = os.fsdecode(given)
    except TypeError:
        raise ConfigError(f"shape: expected a path, a name or a Shape, got {given!r:.80}") from None
    if not isinstance(given, str) or "/" in text or text.endswith(".toml"):
        return _from_file(Path(text))
    shipped = _shipped()
    if text not in shipped:
        known = ", ".join(sorted(shipped)) or "none"
        raise ConfigError(f"shape {text!r}: no such shape comes with pmm-shm ({known}); a path ends in .toml")
    return _from_file(shipped[text])


def _shipped() -> dict[str, Path]:
    return {file.stem: file for file in (Path(__file__).parent / "shapes").glob("*.toml")}


def _from_file(file: Path) -> Shape:
    # From Python 3.11 on it comes with Python.
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        found = toml.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{file}: not TOML: {error}") from None
    return Shape.from_definition(found, str(file))


def _is_text_to_text(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(one, str) for pair in value.items() for one in pair)


def _is_utf_8(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_utf_8, (*value, *value.values())))
    if isinstance(value, list):
        return all(map(_is_utf_8, value))
    return not isinstance(value, str) or _NOT_IN_SQL.search(value) is None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))
