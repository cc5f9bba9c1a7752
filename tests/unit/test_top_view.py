"""`pmm-shm status` and `top`: what they say, what they tell to type, and a real terminal given back as it was."""

from __future__ import annotations

import pytest

from pmm_shm.instance.paths import Instance
from pmm_shm.remedies import remedy_for
from pmm_shm.wire.protocol import COUNTERS
from pmm_shm_cli.charts import curve, spark
from pmm_shm_cli.sampling import Sample, Series
from pmm_shm_cli.state import with_remedies
from pmm_shm_cli.status_view import duration, size

# What to type.


def typed(problem: str | Exception, instance: Instance) -> str | None:
    """What `status` and `top` say to type."""
    (found,) = with_remedies(instance, [problem])
    assert found["problem"] == str(problem)
    return found["command"]


@pytest.mark.parametrize(
    ("problem", "command"),
    [
        ("/x-cache: No space left on device", "df -h"),
        ("verification failed: events 1 to 9 were edited", "pmm-shm verify"),
        ("a rebuild waits for process 77, which holds an old snapshot: stop it, or let it go on", "kill -CONT 77"),
        ("the follower has not moved for 9,000 ms: if that lasts, restart the daemon", "kill -TERM 4711 && "),
        ("12 events behind the head of the log, for 2,000 ms", "pmm-shm top"),
        ("/x.db: no such file", "ls -l"),
    ],
)
def test_other_known_problems(ledger: str, problem: str, command: str) -> None:
    found = remedy_for(problem, ledger=ledger, directory=Instance.of(ledger).directory, daemon=4711)
    assert found is not None
    assert found.command.startswith(command)


def test_what_is_not_known_gets_no_advice(ledger: str) -> None:
    assert typed("the moon is full", Instance.of(ledger)) is None


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(None, "–"), (0, "0 B"), (999, "999 B"), (1_500, "1.5 kB"), (250_000_000, "250 MB")]
)
def test_sizes(size_bytes: int | None, text: str) -> None:
    assert size(size_bytes) == text


def test_durations() -> None:
    assert [duration(ms) for ms in (900, 59_000, 90_000, 5_400_000, 129_600_000)] == [
        "0 s", "59 s", "1.5 min", "1.5 h", "1.5 d",
    ]  # fmt: skip


# Rates and charts.


def sample(at: float, head: int, pid: int = 1, uptime_ms: int | None = None, **counted: int) -> Sample:
    workers = {**dict.fromkeys(COUNTERS, 0), **counted}
    own = round(at)
    numbers = {
        "pid": pid,
        "uptime_ms": at * 1_000 if uptime_ms is None else uptime_ms,
        "workers": workers,
        "commands": own,
        "commits": head,
    }
    return Sample(at, head, (0.5, 0.25), numbers, own)


def test_rates() -> None:
    series = Series()
    for second in range(30):
        # Its workers report every fifth second.
        hits = second // 5 * 5 * 900
        series.add(sample(float(second), second * 7, metrics_hits=hits, metrics_misses=hits // 9))
    assert series.events[-1] == 7
    assert series.events[0] is None
    assert series.commits[-1] == 7
    # What this program asks is not counted.
    assert series.commands[-1] == 0
    assert [rate for rate in series.reads if rate is not None][-1] == pytest.approx(1_000, rel=0.01)
    assert series.hit_rate == pytest.approx(0.9)
    assert list(series.ias) == [0.5] * 30


def test_another_daemon_or_ledger_is_no_negative_rate() -> None:
    series = Series()
    series.add(sample(1.0, 100, metrics_hits=500))
    series.add(Sample(2.0, 110, (0.5, 0.5), None))
    assert (series.events[-1], series.reads[-1], series.commits[-1]) == (10, None, None)
    series.add(sample(3.0, 120, pid=2, metrics_hits=3))
    assert (series.events[-1], series.commits[-1]) == (10, None)
    # The same pid again, of a daemon that is younger.
    series.add(sample(4.0, 120, pid=2, uptime_ms=5, metrics_hits=1))
    assert (series.commits[-1], series.reads[-1]) == (None, None)
    series.add(sample(5.0, 20, pid=2, uptime_ms=9, metrics_hits=1))
    assert series.events[-1] is None
    series.add(Sample(6.0, None, None, None))
    assert (series.events[-1], series.ias[-1]) == (None, None)


def test_sparks() -> None:
    assert spark([0, 1, 2, 4, 8], 8) == "   ▁▁▂▄█"
    assert spark([0, 0], 3) == " ▁▁"
    assert spark([5, None, 5], 3) == "█ █"
    assert spark(range(100), 4) == "████"
    assert spark([1, 8], 4, plain=True) == "  .%"
    assert (spark([], 0), spark([1], 0), spark([1], -3)) == ("", "", "")


def test_curves() -> None:
    assert curve([0.0, 1.0], 1, 1) == ["⡸"]
    assert curve([1.0, 1.0, 0.0, 0.0], 2, 2) == ["⠉⡆", " ⣇"]
    assert curve([None, 0.0], 2, 1) == [" ⢀"]
    assert curve([7.0, -7.0], 1, 1) == curve([1.0, 0.0], 1, 1)
    assert curve([], 2, 1) == ["  "]
    assert curve([0.5], 0, 1) == [""]
