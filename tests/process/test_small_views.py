"""Views that a reader makes anew behind every event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from pmm_shm.errors import FoldError
from pmm_shm.folds.contract import Column, Fold
from pmm_shm.folds.state import State
from pmm_shm.ledger.rows import Event
from pmm_shm_client import connect


class Anew(Fold):
    """A small view that is an object of its own each time, of the newest tick's `x`."""

    name = "anew"
    version = 1
    kinds: Mapping[str, tuple[Column, ...]] = {"tick": ("meta",)}
    has_small_view = True

    def apply(self, event: Event, state: State) -> None:
        state["x"] = event.meta["x"]

    def view(self, state: State) -> Any:
        return (state.get("x"),)


class Incomparable(Anew):
    name = "incomparable"

    def view(self, state: State) -> Any:
        class View:
            def __eq__(self, other: object) -> bool:
                raise ValueError("ambiguous")

            __hash__ = None  # type: ignore[assignment]

        return View()


def test_a_small_view_stays_until_it_is_another(ledger: str) -> None:
    with connect(ledger, folds=[Anew]) as cache:
        cache.append("tick", meta={"x": 1})
        view = cache.fold("anew")
        cache.append("tick", meta={"x": 1})
        assert cache.fold("anew") is view
        cache.append("tick", meta={"x": 2})
        assert cache.fold("anew") == (2,)


def test_small_views_that_cannot_be_compared_are_the_folds_failure(ledger: str) -> None:
    with connect(ledger, folds=[Incomparable]) as cache:
        cache.append("tick", meta={"x": 1})
        cache.fold("incomparable")
        cache.append("tick", meta={"x": 2})
        with pytest.raises(FoldError, match="`view` fails at event 2: ValueError: ambiguous"):
            cache.fold("incomparable")
        assert cache.fold("incomparable") is not None
