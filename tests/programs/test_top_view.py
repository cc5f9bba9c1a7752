"""`pmm-shm status` and `top`: what they say, what they tell to type, and a real terminal given back as it was."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from pmm_shm.instance.paths import Instance
from pmm_shm.remedies import remedy_for
from pmm_shm.wire.protocol import COUNTERS
from pmm_shm_cli.charts import bars, curve, spark
from pmm_shm_cli.process_usage import ProcessUsage
from pmm_shm_cli.sampling import SAMPLES_MAX, Sample, Series, event_rates
from pmm_shm_cli.status_view import duration, size
from pmm_shm_cli.top_view import KEYS, SORTS, Display, frame
from pmm_shm_terminal.state import with_remedies

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
    assert series.hit_rate == series.served_rate == pytest.approx(0.9)
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


def test_reads_that_caught_up_are_served() -> None:
    series = Series()
    series.add(sample(0.0, 1))
    series.add(sample(1.0, 1, metrics_hits=60, metrics_misses=40, metrics_caught_up=30, metrics_replayed=10))
    assert (series.hit_rate, series.served_rate) == (0.6, 0.9)


def test_bars_of_several_lines() -> None:
    assert bars([0, 1, 2, 4, 8], 6, 2) == ["     █", " ▁▂▄██"]
    assert bars([None, 0, 3], 3, 3) == ["  █", "  █", " ▁█"]
    assert bars([1, 8], 4, 1, plain=True) == [spark([1, 8], 4, plain=True)]
    assert bars([8], 2, 2, plain=True) == [" %", " %"]
    assert bars([], 2, 2) == ["  ", "  "]
    assert bars([1], 0, 2) == ["", ""]


def test_rates_of_the_time_before() -> None:
    assert event_rates([0.1, 0.2, 1.9, 3.0, -5.0], 1.0, True)[-5:] == [0, 1, 0, 1, 2]
    assert len(event_rates([], 1.0, True)) == SAMPLES_MAX
    # Of the interval of the oldest event that is known, others may be missing.
    assert event_rates([0.1, 2.5, 2.6], 1.0, False) == [0, 1]
    assert event_rates([], 1.0, False) == []
    assert event_rates([0.1], 0.5, True)[-1] == 2


def test_charts_begin_with_what_was_before() -> None:
    series = Series()
    series.begin_with([(0.1, 0.2), (0.3, 0.4)], [5.0])
    series.add(sample(1.0, 100))
    assert (list(series.ias), list(series.gas)) == ([0.1, 0.3, 0.5], [0.2, 0.4, 0.25])
    assert list(series.events) == [5.0, None]


def test_the_use_of_a_processor() -> None:
    now = 100.0
    usage = ProcessUsage(lambda: now)
    first = usage.of([os.getpid(), -1])
    assert first[os.getpid()]["cpu_percent"] is None
    assert first[os.getpid()]["resident_bytes"] > 1 << 20
    assert first[-1] == {"cpu_percent": None, "resident_bytes": None}
    now += 1e6
    assert 0.0 <= usage.of([os.getpid()])[os.getpid()]["cpu_percent"] < 1.0


# The layout.


def seen() -> dict[str, Any]:
    numbers = {
        "pid": 7, "uptime_ms": 1_000, "lag_ms": 0, "verifications_passed": 1, "verifications_failed": 0,
        "workers": {**dict.fromkeys(COUNTERS, 0), "live": 1, "seen": 2},
        "sizes": {"resident_bytes": 1, "store_disk_bytes": 2, "ledger_bytes": 3, "wal_bytes": 4},
    }  # fmt: skip
    processes = [
        {"pid": 7, "command": "pmm-cached", "behind_txns": None, "cpu_percent": 1.0, "resident_bytes": 30},
        {"pid": 9, "command": "worker nine", "behind_txns": 5, "cpu_percent": 3.0, "resident_bytes": 10},
        {"pid": 8, "command": "worker eight", "behind_txns": 0, "cpu_percent": 2.0, "resident_bytes": 20},
    ]
    return {
        "health": "healthy", "ledger": "/x/agent.db", "as_of": 1_234, "lag_events": 0, "head_id": 1_234,
        "remedies": [{"problem": "the moon is full", "command": None}],
        "reads": {"hits": 3, "caught_up": 1, "replayed": 0, "served_rate": 1.0},
        "readers": [{"pid": 9, "behind_txns": 5, "command": "worker nine"}],
        "processes": processes,
        "daemon": numbers,
    }  # fmt: skip


def drawn(width: int, height: int, display: Display | None = None, plain: bool = False) -> list[str]:
    series = Series()
    series.begin_with([(number / 100, 0.5) for number in range(100)], [1.0, 2.0])
    series.add(sample(1.0, 1_234))
    out = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    out.print(frame(seen(), series, width, height, display=display, hint="? keys", plain=plain))
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("display", [None, Display(shows_keys=True)])
def test_a_frame_fits_any_terminal_and_uses_it(display: Display | None, plain: bool) -> None:
    for height in range(1, 70, 3):
        for width in (10, 40, 80, 200):
            lines = drawn(width, height, display, plain)
            assert len(lines) <= height
            assert max(map(cell_len, lines)) <= width
    # All but what cannot be divided.
    for height in (24, 30, 50, 80):
        assert len(drawn(100, height, display, plain)) > height - 8, height


def test_processes_are_sorted_by_the_chosen_column() -> None:
    def order(display: Display) -> list[int]:
        lines = drawn(100, 50, display)
        return [int(line.split()[0]) for line in lines[[" process" in line for line in lines].index(True) + 1 :]]

    assert [order(Display(sort=sort)) for sort in SORTS] == [[9, 8, 7], [7, 8, 9], [9, 8, 7], [9, 8, 7]]
    assert order(Display(sort="memory", is_reversed=True)) == [9, 8, 7]


def test_keys_and_a_pause_are_shown() -> None:
    lines = drawn(100, 50, Display(shows_keys=True, is_paused=True))
    assert lines[0].endswith("paused, p goes on")
    for key, words in KEYS.items():
        assert any(line.startswith(key) and line.endswith(words) for line in lines)
