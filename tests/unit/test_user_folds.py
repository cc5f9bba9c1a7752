"""A user's own fold, registered as any package does it: through the metadata of a distribution.

The fold is `docs/examples/tool_use.py`, the one that the documentation shows.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from pmm_shm.errors import FoldError, UnknownFoldError
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.helpers import Counter
from pmm_shm.folds.state import State, Touched
from pmm_shm.ledger.rows import Event
from pmm_shm_client import EventLog, connect
from tests.support.sites import Site
from tests.support.user_folds import BROKEN, EXAMPLE, GOOD, calls, use

# Without a daemon that knows it.


def test_the_example_is_about_twenty_lines() -> None:
    code = EXAMPLE.read_text(encoding="utf-8").split('"""', 2)[2]
    assert sum(1 for line in code.splitlines() if line.strip()) <= 25


def test_a_fold_of_the_client_alone_is_exact(ledger: str, site: Site) -> None:
    with connect(ledger) as cache:
        assert cache.fold("tool_use") == {"calls": {}, "last": None}
        for number in range(1, 6):
            use(cache, "search", "write")
            assert calls(cache) == {"search": number, "write": number}
            assert cache.fold("tool_use")["last"] == "write"


@pytest.mark.usefixtures("site")
def test_a_fold_of_the_client_alone_is_not_replayed_per_read(ledger: str) -> None:
    with EventLog(ledger) as log, connect(ledger) as cache:
        log.append_many([("tool_call", "", {"tool": "search"})] * 100)
        first = cache.fold("tool_use")
        before = cache.stats()["projection"]
        assert cache.fold("tool_use") is first
        use(log, "write")
        assert calls(cache) == {"search": 100, "write": 1}
        after = cache.stats()["projection"]
        assert after["cache_hits"] == before["cache_hits"] + 1
        assert after["events_processed"] <= before["events_processed"] + 2


def test_an_unregistered_fold_is_unknown(ledger: str) -> None:
    with connect(ledger) as cache, pytest.raises(UnknownFoldError, match="no fold 'tool_use'"):
        cache.fold("tool_use")


# With a daemon.


def test_the_view_is_immutable(ledger: str, site: Site) -> None:
    with connect(ledger) as cache:
        use(cache, "search")
        with pytest.raises(TypeError):
            cache.fold("tool_use")["calls"]["search"] = 100
        assert calls(cache) == {"search": 1}


# Broken registrations.


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_registration_is_a_fold_error_of_one_line(ledger: str, site: Site, case: str) -> None:
    source, entry, expected = BROKEN[case]
    assert case in ("no module", "no attribute", "a module", "the same name twice") or source != GOOD
    site.install(source, *([entry] if entry else []))
    with connect(ledger) as cache:
        cache.append("identity_adopt", "Ada", {})
        with pytest.raises(FoldError) as caught:
            cache.fold("tool_use")
        text = str(caught.value)
        assert "\n" not in text
        assert expected in text
        # Whoever asks for no fold of a user's never hears of it.
        assert cache.identity().name == cache.frame().identity().name == "Ada"


class Fragile(Fold):
    """Counts messages; while the last one is `bad`, there is no view."""

    name = "fragile"
    version = 1
    kinds: ClassVar = {"user": ("content",)}
    strikes: ClassVar[list[Exception]] = []

    def apply(self, event: Event, state: State) -> None:
        state["last"] = event.content
        Counter(state, "words").add(event.content)

    def view(self, state: State) -> Any:
        if self.strikes:
            raise self.strikes.pop()
        if state["last"] == "bad":
            raise ValueError("no view\nof this")
        return Counter(state, "words").view()

    def patch(self, view: Any, state: State, touched: Touched) -> Any:
        if state["last"] == "bad":
            raise ValueError("no patch")
        return Counter(state, "words").patched(view, touched)


def test_a_view_that_has_failed_is_made_anew(ledger: str) -> None:
    with EventLog(ledger) as log, connect(ledger, folds=[Fragile]) as cache:
        log.append("user", "a")
        assert cache.fold("fragile") == {"a": 1}
        log.append("user", "b")
        log.append("user", "bad")
        with pytest.raises(FoldError, match=r"fold 'fragile': `patch` fails at event 3: ValueError: no patch"):
            cache.fold("fragile")
        with pytest.raises(FoldError, match=r"fold 'fragile': `view` fails at event 3: ValueError: no view of this"):
            cache.fold("fragile")
        assert cache.frame().recent().as_of == 3
        log.append("user", "a")
        assert cache.fold("fragile") == cache.frame().fold("fragile") == {"a": 2, "b": 1, "bad": 1}


def test_an_exception_from_outside_is_not_blamed_on_the_view(ledger: str) -> None:
    with EventLog(ledger) as log, connect(ledger, folds=[Fragile]) as cache:
        log.append("user", "a")
        Fragile.strikes.append(TimeoutError("time is up"))
        with pytest.raises(TimeoutError, match="time is up"):
            cache.fold("fragile")
        assert cache.fold("fragile") == {"a": 1}
