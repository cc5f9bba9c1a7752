"""`check_fold`: each law has a fold that breaks it, and the message says which law, where, and with what."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from docs.examples.tool_use import ToolUse
from pmm_shm.folds.contract import BatchFold, Column, Fold
from pmm_shm.folds.registry import built_in_folds
from pmm_shm.folds.state import State, Touched
from pmm_shm.frozen import frozen
from pmm_shm.ledger.rows import Event
from pmm_shm.testing import check_fold


class Good(Fold):
    """Counts per tool, with an order of its own."""

    name = "good"
    version = 1
    kinds: Mapping[str, tuple[Column, ...]] = {"call": ("meta",)}

    def apply(self, event: Event, state: State) -> None:
        self.count(self.tool(event), event, state)

    def tool(self, event: Event) -> str:
        tool = event.meta["tool"]
        if not isinstance(tool, str):
            raise ValueError("tool is not a name")
        return tool

    def count(self, tool: str, event: Event, state: State) -> None:
        calls = state.table("calls")
        calls[tool] = calls.get(tool, 0) + 1
        state["last"] = [tool, event.id]

    def view(self, state: State) -> Any:
        return frozen({"calls": dict(sorted(state.table("calls").items())), "last": state.get("last")})


class InPlace(Good):
    def count(self, tool: str, event: Event, state: State) -> None:
        tools = state.get("tools", [])
        tools.append(tool)
        state["tools"] = tools


class InPlaceUnput(Good):
    def count(self, tool: str, event: Event, state: State) -> None:
        if state.get("tools") is None:
            state["tools"] = []
        state["tools"].append(tool)


class ChangesMeta(Good):
    def count(self, tool: str, event: Event, state: State) -> None:
        event.meta["seen"] = True


class Clock(Good):
    def count(self, tool: str, event: Event, state: State) -> None:
        state["at"] = int(time.time()) // 86_400


class Chance(Good):
    def count(self, tool: str, event: Event, state: State) -> None:
        state["at"] = random.random()


class Unique(Good):
    def count(self, tool: str, event: Event, state: State) -> None:
        state["at"] = uuid.uuid4().hex


class KeepsItself(Good):
    seen = 0

    def count(self, tool: str, event: Event, state: State) -> None:
        self.seen += 1
        state["seen"] = self.seen


class BatchEnds(BatchFold, Good):
    def apply_batch(self, events: Sequence[Event], state: State) -> None:
        state["batches"] = state.get("batches", 0) + 1


class TableOrder(Good):
    def count(self, tool: str, event: Event, state: State) -> None:
        super().count(tool, event, state)
        state["first"] = next(key for key, _ in state.table("calls").items())


class ViewOrder(Good):
    def view(self, state: State) -> Any:
        return frozen([key for key, _ in state.table("calls").items()])


class Unstorable(Good):
    checks_values = False

    def count(self, tool: str, event: Event, state: State) -> None:
        state["tools"] = {tool}


class Changeable(Good):
    def view(self, state: State) -> Any:
        return frozen({"a": 1}), {"calls": dict(state.table("calls").items())}


class LiveView(Good):
    class View:
        def __init__(self, state: State) -> None:
            self.state = state

        @property
        def last(self) -> Any:
            return self.state.get("last")

        def __eq__(self, other: object) -> bool:
            return isinstance(other, LiveView.View) and self.last == other.last

        __hash__ = None  # type: ignore[assignment]

    def view(self, state: State) -> Any:
        return self.View(state)


class WrongPatch(Good):
    def patch(self, view: Any, state: State, touched: Touched) -> Any:
        return frozen({**view, "last": state.get("last")})


class FailingPatch(Good):
    def patch(self, view: Any, state: State, touched: Touched) -> Any:
        raise KeyError("calls")


class FailingView(Good):
    def view(self, state: State) -> Any:
        return state["last"]


class Undeclared(Good):
    def count(self, tool: str, event: Event, state: State) -> None:
        state["said"] = event.content


class UndeclaredOther(Good):
    def count(self, tool: str, event: Event, state: State) -> None:
        state["hash"] = event.columns.get("hash")


class LeavesSomething(Good):
    failures = 0

    def tool(self, event: Event) -> str:
        try:
            return super().tool(event)
        except (KeyError, ValueError):
            type(self).failures = self.failures + 1
            raise

    def count(self, tool: str, event: Event, state: State) -> None:
        if not state.get("last"):
            # So it is the same each time from the first event on.
            type(self).failures = 0
        super().count(tool, event, state)
        state["failures"] = self.failures


class Parameters(Good):
    parameters: Mapping[str, Any] = {"n": 1}

    def count(self, tool: str, event: Event, state: State) -> None:
        self.parameters = {"n": 2}


class Unpackable(Good):
    parameters: Mapping[str, Any] = {"n": {1}}


class NoName(Good):
    name = ""


class Useless(Good):
    def tool(self, event: Event) -> str:
        raise ValueError("no luck")


WRONG: dict[type[Fold], tuple[str, str]] = {
    InPlace: ("values are never changed in place", "cell 'tools'"),
    InPlaceUnput: ("values are never changed in place", "cell 'tools'"),
    ChangesMeta: ("`event.meta` is never changed", "'seen': True"),
    Clock: ("the same events give the same state", "cell 'at'"),
    Chance: ("the same events give the same state", "cell 'at'"),
    Unique: ("the same events give the same state", "cell 'at'"),
    KeepsItself: ("the same events give the same state", "cell 'seen': 1 at first"),
    BatchEnds: ("a batch equals its events one by one", "cell 'batches': "),
    TableOrder: ("a restart changes nothing", "cell 'first'"),
    ViewOrder: ("a view is that of the state, in memory or stored", "view[0]"),
    Unstorable: ("values can be stored", "not set"),
    Changeable: ("a view cannot be changed", "view[1] is a dict"),
    LiveView: ("a view", ""),
    WrongPatch: ("patch equals view", "view['calls']"),
    FailingPatch: ("patch equals view", "patch raises KeyError"),
    FailingView: ("there is a view of every state", "KeyError: 'last'"),
    Undeclared: ("only declared columns are used", "event.content, which `kinds` for 'call' does not declare"),
    UndeclaredOther: ("only declared columns are used", "event.columns['hash'], which `columns` does not declare"),
    LeavesSomething: ("an event in the quarantine leaves nothing else", "cell 'failures'"),
    Parameters: ("name, version and parameters never change", ""),
    Unpackable: ("contract", "`parameters` cannot be stored"),
    NoName: ("contract", "`name`"),
    Useless: ("it can use none of", "ValueError: no luck"),
}
EVENTS: list[Any] = [("call", "", {"tool": tool}) for tool in ("b", "a", "c", "a", "b", "a")]


@pytest.mark.parametrize("given", [None, EVENTS], ids=["made up", "given"])
def test_a_fold_that_keeps_the_laws_passes(given: Any) -> None:
    check_fold(Good, given)
    check_fold(Good(), given)
    check_fold(
        ToolUse, [{**dict(zip(("kind", "content", "meta"), row, strict=True)), "kind": "tool_call"} for row in EVENTS]
    )


@pytest.mark.parametrize("fold", [type(fold) for fold in built_in_folds()], ids=lambda fold: fold.name)
def test_the_built_in_folds_keep_the_laws(fold: type[Fold]) -> None:
    check_fold(fold)


@pytest.mark.parametrize("given", [None, EVENTS], ids=["made up", "given"])
@pytest.mark.parametrize("fold", WRONG, ids=lambda fold: fold.__name__)
def test_a_broken_law_is_named(fold: type[Fold], given: Any) -> None:
    law, value = WRONG[fold]
    with pytest.raises(AssertionError) as caught:
        check_fold(fold, given)
    message = str(caught.value)
    assert law in message
    assert value in message
    assert "\n" not in message
    assert "contract" in law or "fold 'good'" in message


class Rooms(Fold):
    """Uses another column, and a value within `meta`."""

    name = "rooms"
    version = 1
    columns = ("room",)

    def apply(self, event: Event, state: State) -> None:
        rooms = state.table("rooms")
        room = event.columns["room"]
        rooms[room] = rooms.get(room, 0) + event.meta.get("inner", {}).get("size", 1)

    def view(self, state: State) -> Any:
        return frozen(dict(sorted(state.table("rooms").items(), key=repr)))


def test_other_columns_and_nested_values_are_made_up() -> None:
    check_fold(Rooms)
    check_fold(
        Rooms, [{"kind": "in", "content": "", "meta": {}, "room": "hall"}, Event(7, "", "in", "", {"inner": {}})]
    )


def test_the_random_numbers_of_the_test_stay_as_they_were() -> None:
    random.seed(7)
    expected = random.random()
    random.seed(7)
    check_fold(Good, EVENTS)
    assert random.random() == expected
