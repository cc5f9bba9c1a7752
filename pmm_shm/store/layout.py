"""Keys and records of the LMDB environment; `docs/FORMAT.md` is this module in prose.

| key | value |
| --- | --- |
| `h` | the header: position, anchor, lineage |
| `g` generation | name of the fold whose state this generation holds, live or shadow |
| `s` generation, fold key | a cell or a table's entry |
| `t` sequence | what one commit touched |
| `b` block | the seal of a block of rows; of the newest block, of its rows up to where was verified |
| `z` | there while the tables of event vectors are of another history |

Numbers in keys are big-endian, generations 4 bytes, sequences and blocks 8. Values are packed by `pmm_shm.codec`.
"""

from __future__ import annotations

from pmm_shm.codec import pack, unpack
from pmm_shm.errors import StoreError
from pmm_shm.folds.contract import Fold, FoldIdentity
from pmm_shm.folds.state import Touched
from pmm_shm.ledger.tail import Position
from pmm_shm.typed import Any, NamedTuple

FORMAT = 2
HEADER_KEY = b"h"
GENERATION_PREFIX = b"g"
STATE_PREFIX = b"s"
TOUCHED_PREFIX = b"t"
SEAL_PREFIX = b"b"
OTHER_HISTORY_KEY = b"z"
EVENT_TABLE_PREFIX = b"v"
_MAP_OF_4 = b"\x84"
_new_tuple = tuple.__new__


def state_prefix(generation: int) -> bytes:
    """Prefix of all keys of one generation."""
    return STATE_PREFIX + generation.to_bytes(4, "big")


def generation_key(generation: int) -> bytes:
    return GENERATION_PREFIX + generation.to_bytes(4, "big")


def touched_key(sequence: int) -> bytes:
    return TOUCHED_PREFIX + sequence.to_bytes(8, "big")


def seal_key(block: int) -> bytes:
    return SEAL_PREFIX + block.to_bytes(8, "big")


class Header(NamedTuple):
    """The position and the generations that are published; written in the same transaction as the state.

    Attributes:
        uuid: 16 random bytes, made with the environment.
        position: the newest event that is folded, and its anchor.
        sequence: number of commits since the environment was made.
        folds: fold name to (version, packed parameters, generation).
        is_void: the daemon found the state wrong; readers ignore it until a rebuild has replaced it.
        next_generation: the next number to give to a rebuild.
        head_mark: the shared mark of the ledger (`Freshness.shared`) that was taken before the position was found to be
            the head of the log; empty where there is none.
    """

    uuid: bytes
    position: Position
    sequence: int
    folds: dict[str, tuple[int, bytes, int]]
    is_void: bool
    next_generation: int
    head_mark: bytes = b""

    def pack(self) -> bytes:
        return pack({**self._first_fields(), **self._moving_fields(), **self._last_fields()})

    def _first_fields(self) -> dict[str, Any]:
        return {"format": FORMAT, "uuid": self.uuid}

    def _moving_fields(self) -> dict[str, Any]:
        position = self.position
        return {
            "event_id": position.event_id,
            "anchor": position.anchor,
            "sequence": self.sequence,
            "head_mark": self.head_mark,
        }

    def _last_fields(self) -> dict[str, Any]:
        folds = {name: list(entry) for name, entry in self.folds.items()}
        return {"folds": folds, "void": self.is_void, "next_generation": self.next_generation}

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        """The header that `data` holds.

        Raises:
            StoreError: another format version, or not a header.
        """
        try:
            record = unpack(data)
            version = record["format"]
        except Exception as error:
            raise StoreError(f"the store's header cannot be read: {error}") from error
        if version != FORMAT:
            raise StoreError(f"the store has format {version}, this version reads format {FORMAT}")
        try:
            header = cls(
                record["uuid"],
                Position(record["event_id"], record["anchor"]),
                record["sequence"],
                {name: (entry[0], entry[1], entry[2]) for name, entry in record["folds"].items()},
                record["void"],
                record["next_generation"],
                # Of an earlier version there is none.
                record.get("head_mark", b""),
            )
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise StoreError(f"the store's header cannot be read: {error!r}") from error
        return header._checked()

    def _checked(self) -> Header:
        numbers = [self.sequence, self.next_generation, *(entry[2] for entry in self.folds.values())]
        is_valid = (
            type(self.uuid) is bytes
            and type(self.head_mark) is bytes
            and type(self.position.anchor) is bytes
            and (self.position.event_id is None or type(self.position.event_id) is int)
            and all(type(number) is int and number >= 0 for number in numbers)
        )
        if not is_valid:
            raise StoreError("the store's header holds values of the wrong type")
        return self

    def generation_of(self, fold: Fold) -> int | None:
        """The live generation of the fold with this name, version and parameters; None if it is not published."""
        return self.generation_of_identity(fold.identity())

    def generation_of_identity(self, identity: FoldIdentity) -> int | None:
        name, version, parameters = identity
        entry = self.folds.get(name)
        if self.is_void or entry is None or entry[:2] != (version, parameters):
            return None
        return entry[2]


class HeaderDecoder:
    """Unpacks the headers of one environment as they come. Parts that a commit of events does not change are compared
    as bytes and not decoded again.

    Headers with the same `folds` (the very object) have the same UUID, too, and are void both or neither.
    """

    def __init__(self) -> None:
        self._header: Header | None = None
        self._before = b""
        self._behind = b""

    def unpack(self, data: bytes) -> Header:
        """As `Header.unpack`."""
        known = self._header
        if known is not None and data.startswith(self._before) and data.endswith(self._behind):
            moving = data[len(self._before) : -len(self._behind)]
            try:
                fields = unpack(_MAP_OF_4 + moving)
                event_id, anchor, sequence = fields["event_id"], fields["anchor"], fields["sequence"]
                head_mark = fields["head_mark"]
            except (ValueError, TypeError, LookupError):
                # Not such a header after all: decode it whole.
                return self._unpack_whole(data)
            # As `_checked`.
            is_position = type(anchor) is bytes and (type(event_id) is int or event_id is None)
            if is_position and type(sequence) is int and sequence >= 0 and type(head_mark) is bytes:
                position = _new_tuple(Position, (event_id, anchor))
                parts = known.uuid, position, sequence, known.folds, known.is_void, known.next_generation, head_mark
                return _new_tuple(Header, parts)
        return self._unpack_whole(data)

    def _unpack_whole(self, data: bytes) -> Header:
        header = Header.unpack(data)
        # A map is their number, in one byte, and then the fields. There may be others than ours: no part is known then.
        self._header = header if data == header.pack() else None
        self._before = data[:1] + pack(header._first_fields())[1:]
        self._behind = pack(header._last_fields())[1:]
        return header


class TouchedRecord(NamedTuple):
    """The keys that one commit wrote behind the event `after_id`, per fold; None if there were too many to list."""

    after_id: int | None
    folds: dict[str, Touched | None]

    def pack(self) -> bytes:
        folds: dict[str, Any] = {}
        for name, touched in self.folds.items():
            tables = None if touched is None else {table: list(keys) for table, keys in touched.tables.items()}
            folds[name] = None if touched is None else [touched.cells, tables]
        return pack([self.after_id, folds])


class Seal(NamedTuple):
    """The digest over all raw columns of one block of rows: those behind the seal before it, up to `last_id`.

    Only that of the newest block may be of fewer than `limits.SEAL_BLOCK_ROWS` rows; it is replaced as the block grows.
    """

    first_id: int
    last_id: int
    digest: bytes

    def pack(self) -> bytes:
        return pack([self.first_id, self.last_id, self.digest])

    @classmethod
    def unpack(cls, data: bytes) -> Seal:
        first_id, last_id, digest = unpack(data)
        return cls(first_id, last_id, digest)
