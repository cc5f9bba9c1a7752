"""What a replacement cannot answer exactly, the original function answers; each time is counted by its reason.

Invariant: an error of ours never reaches PMM. What leaves a replacement is its answer, an error that the contract
names, or an error of PMM's own code that it called.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])


class Fallback(Exception):
    """Raised by a replacement that cannot answer exactly: PMM's own function shall.

    Parameters:
        reason: a few words, the same for all calls with the same cause; counted, and shown to users.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Leaving(Exception):
    """Carries an exception out of a replacement unchanged."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def passing_errors() -> Iterator[None]:
    """Errors raised inside leave the replacement as they are: those of PMM's code, and those that the contract names.

    From the first append on, a replacement runs inside of it: the original would append once more.
    """
    try:
        yield
    except (_Leaving, Fallback):
        raise
    except Exception as error:
        raise _Leaving(error) from error


class Counts:
    """How often one replaced function answered, and why it did not; a thread may read while others count.

    Attributes:
        answered: calls that the replacement answered.
        fallbacks: reason to number of calls that the original answered.
    """

    def __init__(self) -> None:
        self.answered = 0
        self.fallbacks: Counter[str] = Counter()


def whole(argument: Any) -> Any:
    """The whole list in place of one that is short for our own functions (module `sparse`); all else as it is."""
    sparse = sys.modules.get(f"{__package__}.sparse")
    return argument if sparse is None else sparse.whole(argument)


def with_fallback(original: _F, replacement: Callable[..., Any], counts: Counts, *, strict: bool = False) -> _F:
    """`replacement`, with the name, module and signature of `original`, which answers where it cannot.

    Parameters:
        strict: raise in place of falling back; for tests.
    """

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            answer = replacement(*args, **kwargs)
        except _Leaving as leaving:
            error = leaving.error
        except Fallback as fallback:
            _count(counts, fallback.reason, fallback, strict)
            return original(*map(whole, args), **{name: whole(value) for name, value in kwargs.items()})
        except Exception as unexpected:
            _count(counts, f"error: {type(unexpected).__name__}", unexpected, strict)
            return original(*map(whole, args), **{name: whole(value) for name, value in kwargs.items()})
        else:
            counts.answered += 1
            return answer
        _raise(error)

    return wrapper  # type: ignore[return-value]


def _count(counts: Counts, reason: str, error: Exception, strict: bool) -> None:
    counts.fallbacks[reason] += 1
    if strict:
        raise error


def _raise(error: BaseException) -> NoReturn:
    # Outside of the handler, so that it has the context that PMM's code gave it.
    try:
        raise error
    finally:
        del error
