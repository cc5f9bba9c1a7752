"""Folds that a starter names, and that no distribution registers: in a cache, a daemon, and on a command line."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.errors import FoldError, UnknownFoldError
from pmm_shm.folds.contract import Fold
from pmm_shm_client import connect, connect_async
from tests.conftest import StartDaemon
from tests.support import answers, command, daemons
from tests.support.user_folds import EXAMPLE, calls, use

NAME = "tool_use:ToolUse"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on this process's path with the example's module, without a registration."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "tool_use.py").write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield folder
    sys.modules.pop("tool_use", None)


def variables(place: Path) -> dict[str, str]:
    return {**daemons.with_path(place), "PYTHONDONTWRITEBYTECODE": "1"}


def example() -> type[Fold]:
    from tool_use import ToolUse  # type: ignore[import-not-found]

    return ToolUse  # type: ignore[no-any-return]


@pytest.mark.usefixtures("place")
def test_an_added_fold_is_exact_and_in_frames(ledger: str) -> None:
    with connect(ledger) as cache:
        with pytest.raises(UnknownFoldError):
            cache.fold("tool_use")
        use(cache, "search")
        cache.add_fold(example())
        cache.add_fold(example()())  # the same once more
        use(cache, "write")
        assert calls(cache) == calls(cache.frame()) == calls(cache.frame_at(2)) == {"search": 1, "write": 1}
        assert calls(cache.frame_at(1)) == {"search": 1}
    with connect(ledger, folds=[example()]) as cache:
        assert calls(cache) == {"search": 1, "write": 1}
        assert "tool_use" not in cache.verify().folds  # nothing is published


@pytest.mark.usefixtures("place")
def test_an_added_fold_that_cannot_be_used(ledger: str) -> None:
    class Other(example()):  # type: ignore[misc]
        version = 2

    class BuiltIn(example()):  # type: ignore[misc]
        name = "metrics"

    class Fails(example()):  # type: ignore[misc]
        def __init__(self) -> None:
            raise OSError("no luck")

    with connect(ledger) as cache:
        cache.add_fold(example())
        wrong: Any
        for wrong, words in (
            (Other, "'tool_use' is taken"),
            (BuiltIn, "'metrics' is taken"),
            (Fails, "no luck"),
            (3, "not a pmm_shm Fold"),
            ("tool_use", "not a pmm_shm Fold"),
        ):
            with pytest.raises(FoldError, match=words) as caught:
                cache.add_fold(wrong)
            assert "\n" not in str(caught.value)
        assert calls(cache) == {}
    with pytest.raises(FoldError, match="not a pmm_shm Fold"):
        connect(ledger, folds=[3])  # type: ignore[list-item]


def test_a_daemon_keeps_a_fold_that_is_named(ledger: str, place: Path, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger, "--fold", NAME, "--fold", NAME, "--verify-every", "0", env=variables(place))
    with connect(ledger, folds=[example()]) as cache:
        cache.wait_for(use(cache, "search", "write"), 30.0)
        assert "tool_use" in daemon.stats()["folds"]
        assert calls(cache) == {"search": 1, "write": 1}
        assert cache.fold("tool_use", consistency="snapshot") == cache.fold("tool_use", consistency="wait")
        with connect(ledger, folds=[example()]) as fresh:
            assert calls(fresh) == calls(cache)
            assert fresh.stats()["projection"]["events_processed"] == 0
        assert cache.verify("tool_use").folds == ("tool_use",)
        assert "tool_use" in cache.verify().folds
        assert cache.invalidate("tool_use") == 2
        # Who has not named it reads all else from the same store.
        with connect(ledger) as other:
            assert answers.everything(other) == answers.replayed(ledger)
            assert other.verify()
        path = {"PYTHONPATH": variables(place)["PYTHONPATH"]}
        shown = command.run("status", ledger, "--json")
        assert (shown.code, '"tool_use"' in shown.out) == (0, True)
        for arguments in (
            ("read", ledger, NAME, "--json"),
            ("replay", ledger, NAME, "--json"),
            ("verify", ledger, "--fold", NAME),
            ("invalidate", ledger, "--fold", NAME),
        ):
            done = command.run(*arguments, env=path)
            assert done.code == 0, done
            assert "search" in done.out or "tool_use" in done.out or arguments[0] == "invalidate"


def test_beside_a_daemon_that_does_not_keep_it(ledger: str, place: Path, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger)
    with connect(ledger, folds=[example()]) as cache:
        cache.wait_for(use(cache, "search"), 30.0)
        assert calls(cache) == calls(cache.frame()) == {"search": 1}
        assert "tool_use" not in daemon.stats()["folds"]
        assert cache._reader.replays == 1  # the fold alone
        assert answers.everything(cache) == answers.replayed(ledger)


class Local(Fold):
    """It takes an argument, so no other process can make it by its name."""

    name = "local"
    version = 1

    def __init__(self, first: int) -> None:
        self.parameters = {"first": first}

    def apply(self, event: Any, state: Any) -> None:
        state["count"] = state.get("count", self.parameters["first"]) + 1

    def view(self, state: Any) -> Any:
        return state.get("count")


def test_a_daemon_that_a_cache_starts_keeps_its_folds(
    ledger: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", variables(place)["PYTHONPATH"])

    async def use_it() -> None:
        async with await connect_async(ledger, autostart=True, folds=[example(), Local(10)]) as cache:
            await cache.wait_for_async(use(cache, "search"), 30.0)
            numbers = (await cache.stats_async())["daemon"]
            assert numbers is not None
            assert "tool_use" in numbers["folds"]
            assert "local" not in numbers["folds"]
            assert (calls(cache), cache.fold("local")) == ({"search": 1}, 11)
            assert (await cache.frame_at_async(0)).as_of == 0
            newest = await cache.newest_async("tool_call")
            assert newest is not None
            assert newest.id == 1

    try:
        asyncio.run(use_it())
    finally:
        for pid in daemons.serving(ledger):
            daemons.end(pid)


WRONG = {
    "absent_module:ToolUse": (2, "there is no module 'absent_module'"),
    "tool_use:Absent": (2, "module 'tool_use' has no 'Absent'"),
    "tool_use": (2, "expected package.module:attribute"),
    "tool use:x": (2, "expected package.module:attribute"),
    "broken:ToolUse": (1, "module 'broken' does not import: RuntimeError: on purpose"),
    "tool_use:Any": (1, "fold 'tool_use:Any'"),
    "tool_use:frozen": (1, "not a pmm_shm Fold"),
    "pmm_shm.folds.metrics:MetricsFold": (1, "the name 'metrics' is taken"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_fold_that_cannot_be_used_is_one_line(ledger: str, place: Path, name: str) -> None:
    (place / "broken.py").write_text("raise RuntimeError('on purpose')\n", encoding="utf-8")
    code, words = WRONG[name]
    done = daemons.run_daemon("--fold", name, ledger, env=variables(place))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert done.stderr.startswith("pmm-cached: fold ")
    assert words in done.stderr
    assert not Path(f"{ledger}-cache").exists()
    if ":" in name:
        ran = command.run("verify", ledger, "--fold", name, env={"PYTHONPATH": variables(place)["PYTHONPATH"]})
        if not name.startswith("pmm_shm."):
            assert (ran.code, ran.err.count("\n"), words in ran.err) == (code, 1, True)
