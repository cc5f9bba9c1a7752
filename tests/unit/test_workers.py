"""What workers report of themselves: the sums of all, whatever is lost, doubled, forged or forked."""

from __future__ import annotations

import random
import re

import pytest

from pmm_cached.workers import Workers
from pmm_shm import limits
from pmm_shm.wire import protocol
from pmm_shm.wire.protocol import COUNTERS, ProtocolError, Request, unpack_request
from pmm_shm_client import Cache
from pmm_shm_client.reporting import Reporter
from tests.support import ledgers
from tests.support.reports import counters, packed


class Processes:
    """Pid to when it was started."""

    def __init__(self, *pids: int) -> None:
        self.started = dict.fromkeys(pids, 1)
        self.now = 0.0

    def table(self) -> Workers:
        return Workers(lambda: self.now, self.started.get)

    def later(self) -> None:
        self.now += 10.0


# The table.


def test_sums_are_right_whatever_is_lost_doubled_or_late() -> None:
    generator = random.Random(7)
    for _ in range(200):
        workers = Processes(1, 2, 3).table()
        sent = [
            (worker, counters(metrics_hits=hits))
            for worker in (1, 2, 3)
            for hits in sorted(generator.sample(range(99), 5))
        ]
        newest = {worker: counted["metrics_hits"] for worker, counted in sent}
        arrived = [one for one in sent if generator.random() < 0.5 or one[1]["metrics_hits"] == newest[one[0]]]
        arrived += generator.sample(arrived, 2)
        generator.shuffle(arrived)
        for worker, counted in arrived:
            workers.report(worker, worker, counted)
        found = workers.as_dict()
        assert (found["metrics_hits"], found["seen"], found["live"]) == (sum(newest.values()), 3, 3)


def test_what_a_worker_did_stays_counted_when_it_ends() -> None:
    processes = Processes(1, 2, 3)
    workers = processes.table()
    for number in (1, 2, 3):
        workers.report(number, number, counters(events_folded=10))
    workers.report(1, 1, counters(events_folded=11), is_last=True)
    del processes.started[2]
    processes.later()
    assert workers.as_dict() == {"live": 1, "seen": 3, **counters(events_folded=31)}
    # Another process with its pid is not the worker.
    processes.started[3] = 2
    processes.later()
    assert workers.as_dict()["live"] == 0


def test_the_table_is_bounded_and_forgets_the_dead_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WORKERS_MAX", 3)
    processes = Processes(*range(100))
    workers = processes.table()
    for number in range(3):
        workers.report(number, number, counters(metrics_hits=1))
    del processes.started[1]
    processes.later()
    workers.report(3, 3, counters(metrics_hits=1))
    # 0 is known still: what it had done already does not count twice.
    workers.report(0, 0, counters(metrics_hits=5))
    assert workers.as_dict() == {"live": 3, "seen": 4, **counters(metrics_hits=8)}
    for number in range(4, 100):
        workers.report(number, number, counters(metrics_hits=1))
    assert workers.as_dict() == {"live": 3, "seen": 100, **counters(metrics_hits=104)}


def test_live_workers_by_process_the_newest_report_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WORKER_PROCESSES_LISTED", 2)
    processes = Processes(1, 2, 3, 4)
    workers = processes.table()
    workers.report(10, 1, counters(projection_hits=5, metrics_hits=2))
    workers.report(20, 2, counters(metrics_caught_up=1))
    workers.report(11, 1, counters(projection_replayed=3))
    workers.report(30, 3, counters(metrics_hits=1))
    workers.report(40, 4, counters(metrics_hits=1), is_last=True)
    shown = [{name: one[name] for name in one if name != "reported_age_ms"} for one in workers.processes()]
    assert shown == [
        {"pid": 3, "caches": 1, "hits": 1, "caught_up": 0, "replayed": 0},
        {"pid": 1, "caches": 2, "hits": 7, "caught_up": 0, "replayed": 3},
    ]
    del processes.started[3]
    processes.later()
    assert [one["pid"] for one in workers.processes()] == [1, 2]
    assert all(one["reported_age_ms"] > 0 for one in workers.processes())


def test_sums_stay_numbers_that_a_reply_can_hold() -> None:
    workers = Processes(1).table()
    for worker in range(3_000):
        workers.report(worker, 1, counters(metrics_hits=limits.COUNTER_MAX))
    found = workers.as_dict()
    assert found["metrics_hits"] == limits.COUNTER_MAX
    assert protocol.unpack_reply(protocol.pack_result(1, found), 1) == found


# The message.


@pytest.mark.parametrize(
    "data",
    [
        packed(worker=-1),
        packed(worker=None),
        packed(worker=True),
        packed(is_last=1),
        packed(counted={}),
        packed(counted=counters(more=1)),
        packed(counted=counters(metrics_hits=-1)),
        packed(counted=counters(metrics_hits=limits.COUNTER_MAX + 1)),
        packed(counted={**counters(), "metrics_hits": True}),
        packed(counted={**counters(), "metrics_hits": 1.0}),
        packed(counted=[1]),
        Request(0, protocol.REPORT, {"worker": 1, "counters": counters()}, None).pack(),
        Request(0, protocol.STATS, {}, None).pack(),
    ],
)
def test_what_is_no_report(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack_request(data, protocol.REPORTS)


def test_the_largest_report_fits() -> None:
    full = dict.fromkeys(COUNTERS, limits.COUNTER_MAX)
    assert len(packed(worker=2**63 - 1, counted=full)) <= limits.REPORT_BYTES_MAX
    assert unpack_request(packed(counted=full), protocol.REPORTS).args["counters"] == full


def test_the_page_names_the_counters() -> None:
    page = (ledgers.ROOT / "docs" / "FORMAT.md").read_text(encoding="utf-8").split("### Reports")[1].split("\n## ")[0]
    assert set(re.findall(r"`(\w+_\w+)`", page)) == {*COUNTERS, "is_last"}


# With a daemon.


def test_a_cache_is_not_kept_by_its_reporter(ledger: str) -> None:
    cache = Cache(ledger)
    reporter: Reporter = cache._reporter
    cache.close()
    del cache
    reporter.report()
    assert reporter._count() is None


def test_workers_that_have_the_pid_of_another_are_counted_as_long_as_they_do() -> None:
    """A worker of another pid namespace has no pid here, so nobody sees it end."""
    processes = Processes(1, 2)
    workers = processes.table()
    workers.report(1, 1, counters(pid_collisions=1))
    workers.report(2, 2, counters(metrics_hits=1))
    workers.report(3, 0, counters(pid_collisions=4))
    assert workers.of_same_pid() == 2
    workers.report(1, 1, counters(pid_collisions=1, metrics_misses=1))
    assert workers.of_same_pid() == 1, "the other process has ended"
    workers.report(1, 1, counters(pid_collisions=2, metrics_misses=1))
    del processes.started[1]
    processes.later()
    assert workers.of_same_pid() == 1, "it was seen to end"
    workers.report(3, 0, counters(pid_collisions=5), is_last=True)
    assert workers.of_same_pid() == 0
    workers.report(4, 0, counters(pid_collisions=1))
    for _ in range(61):
        processes.later()
    assert workers.of_same_pid() == 0, "nothing was heard for ten minutes"
