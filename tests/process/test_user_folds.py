"""A user's own fold, registered as any package does it: through the metadata of a distribution.

The fold is `docs/examples/tool_use.py`, the one that the documentation shows.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pmm_shm.errors import CommandError
from pmm_shm_client import Cache, connect
from tests.conftest import StartDaemon
from tests.support import answers, daemons, ledgers
from tests.support.sites import Site
from tests.support.user_folds import BROKEN, EXAMPLE, calls, use


def version_two() -> str:
    """The example with another meaning, and another version."""
    source = EXAMPLE.read_text(encoding="utf-8")
    changed = source.replace("version = 1", "version = 2").replace(".add(tool)", ".add(tool, 10)")
    assert changed.count("version = 2") == changed.count(".add(tool, 10)") == 1
    return changed


# Without a daemon that knows it.


def test_a_fold_of_the_client_alone_beside_a_daemon_that_has_it_not(
    ledger: str, site: Site, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(ledger, forked=False)
    assert "tool_use" not in daemon.stats()["folds"]
    with connect(ledger) as cache:
        cache.wait_for(use(cache, "search", "write"), 30.0)
        assert calls(cache) == {"search": 1, "write": 1}
        daemon.freeze()
        use(cache, "search")
        cache.append("identity_adopt", "Ada", {})
        frame = cache.frame()
        assert (calls(frame), frame.identity().name, frame.as_of) == ({"search": 2, "write": 1}, "Ada", 4)
        assert calls(cache) == {"search": 2, "write": 1}
        daemon.thaw()
        assert answers.everything(cache) == answers.replayed(ledger)
        assert cache.verify().ok
        with pytest.raises(CommandError, match="tool_use"):
            cache.invalidate("tool_use")


# With a daemon.


def test_the_daemon_publishes_the_fold(ledger: str, site: Site, start_daemon: StartDaemon) -> None:
    with connect(ledger) as cache:
        use(cache, "search", "write")
        daemon = start_daemon(ledger, env=site.environment)
        assert "tool_use" in daemon.stats()["folds"]
        assert calls(cache) == {"search": 1, "write": 1}
        for number in range(2, 6):
            cache.wait_for(use(cache, "search"), 30.0)
            assert calls(cache) == {"search": number, "write": 1}
            assert cache.fold("tool_use", consistency="snapshot") == cache.fold("tool_use", consistency="wait")
        with connect(ledger) as fresh:
            assert calls(fresh) == calls(cache)
            assert fresh.stats()["projection"]["events_processed"] == 0


def test_reads_are_exact_beyond_the_daemon(ledger: str, site: Site, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger, env=site.environment)
    with connect(ledger) as cache:
        cache.wait_for(use(cache, "search"), 30.0)
        daemon.freeze()
        for number in range(1, 6):
            event_id = use(cache, "write")
            frame = cache.frame()
            assert calls(cache) == calls(frame) == {"search": 1, "write": number}
            assert frame.as_of == frame.metrics().as_of == event_id
            assert cache.fold("tool_use")["last"] == "write"
        assert calls_published(cache) == {"search": 1}
        daemon.thaw()
        cache.wait_for(event_id, 30.0)
        assert calls_published(cache) == calls(cache)


def calls_published(cache: Cache) -> dict[str, int]:
    return dict(cache.fold("tool_use", consistency="snapshot")["calls"])


def test_a_frame_includes_the_fold_once_its_cache_has_read_it(
    ledger: str, site: Site, start_daemon: StartDaemon
) -> None:
    start_daemon(ledger, env=site.environment)
    with connect(ledger) as cache:
        use(cache, "search")
        early = cache.frame()
        use(cache, "write")
        assert calls(early) == {"search": 1}
        late = cache.frame()
        cache.fold("tool_use")
        with_it = cache.frame()
        use(cache, "write")
        assert calls(early) == {"search": 1}
        assert calls(late) == calls(with_it) == {"search": 1, "write": 1}
        assert (early.as_of, late.as_of, with_it.as_of) == (1, 2, 2)


def test_the_fold_is_verified(ledger: str, site: Site, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger, "--verify-every", "0", env=site.environment)
    with connect(ledger) as cache:
        cache.wait_for(use(cache, "search", "write", "search"), 30.0)
        assert "tool_use" in cache.verify().folds
        assert cache.verify("tool_use").folds == ("tool_use",)
        assert cache.invalidate("tool_use") == 3
        ledgers.execute(ledger, """UPDATE events SET meta = '{"tool": "other"}' WHERE id = 1""")
        report = cache.verify("tool_use")
        assert not report
        assert "tool_use" in str(report.difference)
        daemons.until(lambda: calls(cache) == {"search": 1, "write": 1, "other": 1}, "the state is mended")
        assert cache.verify()
        daemon.stop()
        assert cache.verify("tool_use").folds == ("tool_use",)
        assert "tool_use" in cache.verify().folds


def test_an_event_that_the_fold_fails_at_goes_to_the_quarantine(
    ledger: str, site: Site, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(ledger, env=site.environment)
    with connect(ledger) as cache:
        use(cache, "search")
        poison = [use(cache, 7), cache.append("tool_call", "", {})]
        last = use(cache, "write")
        cache.wait_for(last, 30.0)
        assert calls(cache) == {"search": 1, "write": 1}
        numbers = daemon.stats()
        assert daemon.process.poll() is None
        assert (numbers["health"], numbers["as_of"], numbers["quarantined"]) == ("degraded", last, 2)
        assert [entry[:2] for entry in numbers["quarantine"]] == [[event_id, "tool_use"] for event_id in poison]
        assert "ValueError: tool is not a name" in numbers["quarantine"][0][2]
        assert "KeyError" in numbers["quarantine"][1][2]
        assert cache.verify()
        cache.wait_for(cache.append("identity_adopt", "Ada", {}), 30.0)
        assert cache.identity(consistency="snapshot").name == "Ada"


def test_a_poison_event_leaves_no_half_written_state(ledger: str, site: Site, start_daemon: StartDaemon) -> None:
    source = EXAMPLE.read_text(encoding="utf-8").replace(
        '        state["last"] = tool\n',
        '        state["last"] = tool\n        if tool == "poison":\n            raise RuntimeError("too late")\n',
    )
    site.install(source)
    daemon = start_daemon(ledger, env=site.environment)
    with connect(ledger) as cache:
        use(cache, "search", "poison")
        assert cache.fold("tool_use") == {"calls": {"search": 1}, "last": "search"}
        daemon.wait_published(2)
        assert cache.fold("tool_use", consistency="snapshot") == {"calls": {"search": 1}, "last": "search"}
        assert cache.verify()


@pytest.mark.parametrize(
    "error", ["RecursionError()", "AssertionError()", "StopIteration()", "SystemExit(0)", "KeyboardInterrupt()"]
)
def test_no_kind_of_exception_in_a_fold_ends_the_daemon(
    ledger: str, site: Site, start_daemon: StartDaemon, error: str
) -> None:
    source = EXAMPLE.read_text(encoding="utf-8").replace('ValueError("tool is not a name")', error)
    site.install(source)
    with connect(ledger) as cache:
        use(cache, "search", 7, "write")
        daemon = start_daemon(ledger, env=site.environment, wait=False)
        daemon.wait_ready()
        last = use(cache, 7, "write")
        daemon.wait_published(last)
        assert calls(cache) == {"search": 1, "write": 2}
        assert daemon.stats()["quarantined"] == 2


def test_a_new_version_is_rebuilt(ledger: str, site: Site, start_daemon: StartDaemon) -> None:
    with connect(ledger) as cache:
        use(cache, "search", "search")
        daemon = start_daemon(ledger, env=site.environment)
        assert calls(cache) == {"search": 2}
        daemon.stop()
    site.install(version_two())
    daemon = start_daemon(ledger, env=site.environment)
    with connect(ledger) as cache:
        assert calls(cache) == {"search": 20}
        daemons.until(lambda: "tool_use" in daemon.stats()["folds"], "the rebuild of the new version")
        assert calls_published(cache) == {"search": 20}
        assert daemon.stats()["rebuilds"] == 1
        cache.wait_for(use(cache, "search"), 30.0)
        assert calls(cache) == calls_published(cache) == {"search": 30}
        assert cache.verify()


def test_a_client_of_another_version_than_the_daemons_is_exact(
    ledger: str, site: Site, start_daemon: StartDaemon
) -> None:
    with connect(ledger) as cache:
        use(cache, "search", "search")
    daemon = start_daemon(ledger, env=site.environment)
    site.install(version_two())
    with connect(ledger) as cache:
        assert calls(cache) == {"search": 20}
        daemon.freeze()
        use(cache, "search")
        assert calls(cache) == calls(cache.frame()) == {"search": 30}
        assert answers.everything(cache) == answers.replayed(ledger)
        daemon.thaw()


def test_a_fold_that_is_taken_away_leaves_the_others_alone(ledger: str, site: Site, start_daemon: StartDaemon) -> None:
    with connect(ledger) as cache:
        use(cache, "search")
        start_daemon(ledger, env=site.environment).stop()
        daemon = start_daemon(ledger, forked=False)
        daemons.until(lambda: daemon.stats()["folds"] and "tool_use" not in daemon.stats()["folds"])
        use(cache, "search")
        assert calls(cache) == {"search": 2}
        assert answers.everything(cache) == answers.replayed(ledger)
        cache.wait_for(2, 30.0)
        daemon.stop()
        start_daemon(ledger, env=site.environment)
        assert calls(cache) == {"search": 2}


# Broken registrations.


@pytest.mark.parametrize(
    "case", ["no module", "fails on import", "exits on import", "no version", "a name that is built in"]
)
def test_a_daemon_with_a_broken_registration_exits_with_one_line(ledger: str, site: Site, case: str) -> None:
    source, entry, expected = BROKEN[case]
    site.install(source, *([entry] if entry else []))
    done = daemons.run_daemon(ledger, env=site.environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("pmm-cached: ")
    assert expected in done.stderr
    assert not os.path.exists(ledger + "-cache")


def test_it_needs_no_test_framework() -> None:
    code = "from docs.examples.tool_use import ToolUse; from pmm_shm.testing import check_fold; check_fold(ToolUse)"
    code += "; import sys; assert not {'pytest', 'hypothesis', 'pmm_shm_client'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
