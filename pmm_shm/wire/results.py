"""The results of commands, one class each.

The message of a result is the map of its class's fields: `_asdict()` of a named tuple, `asdict()` of a dataclass.
`read_result` turns it back into an object, for these classes and for others whose fields are the message's keys, such
as `VerifyReport`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from pmm_shm.errors import CommandError

_T = TypeVar("_T")


class WaitResult(NamedTuple):
    """Result of `wait`: whether the event is published, and the newest event id that is."""

    reached: bool
    as_of: int


class LeaseResult(NamedTuple):
    """Result of `lease`; keys are given by their index in the request.

    Attributes:
        granted: (index, fencing token) of each lease that the client holds now.
        ready: the vector is stored.
        held: another client holds the lease.
        failed: another client held the lease, and released it without a vector.
    """

    granted: Sequence[tuple[int, int]]
    ready: Sequence[int]
    held: Sequence[int]
    failed: Sequence[int]


class PutResult(NamedTuple):
    """Result of `put`: how many vectors were stored, and how many refused because their lease had ended."""

    stored: int
    refused: int


class ClaimResult(NamedTuple):
    """Result of `claim`: the fencing token if the client holds the role, and how long the holder's lease lasts."""

    token: int | None
    remaining_ms: int


def read_result(kind: Callable[..., _T], result: Any) -> _T:
    """The result of a command as an object of the class `kind`; lists become tuples.

    Raises:
        CommandError: a field is missing.
    """
    try:
        values = [result[name] for name in kind.__annotations__]
    except (KeyError, TypeError, IndexError):
        raise CommandError(f"the daemon's answer has not the fields of a {kind.__name__}") from None
    return kind(*(tuple(value) if isinstance(value, list) else value for value in values))
