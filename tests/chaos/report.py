"""What a chaos run is asked for, and what it came to: as lines of text here, as JSON by its fields."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Wanted:
    """What a run is to do.

    Attributes:
        seconds: from when all work until the run begins to end.
        check_every: how many restarts lie between two comparisons with cold replays.
        must_finish: whether it is a failure to have done less than the plan.
    """

    seed: int
    seconds: float = 900.0
    daemon_kills: int = 300
    client_kills: int = 200
    stops: int = 20
    journal: str = "wal"
    check_every: int = 10
    must_finish: bool = False

    def command(self) -> str:
        """How to run it again."""
        options = f"--seed {self.seed} --seconds {self.seconds:g} --daemon-kills {self.daemon_kills}"
        options += f" --client-kills {self.client_kills} --stops {self.stops} --journal {self.journal}"
        return f"python -m tests.chaos {options} --check-every {self.check_every}"


@dataclass
class Report:
    """What a run came to.

    Attributes:
        plan: digest of the plan: equal for equal seeds and counts.
        acts: how often each thing was done, by kind; of a daemon's kills also by moment.
        asked: how often each kind was asked for.
        is_whole: whether all of the plan was done.
        restarts: of the daemon that came up again and were measured.
        made_anew: restarts that had to rebuild, because two daemons before were killed while they opened the store, or
            one before anything was published.
        missed, folded: events that were appended from the kill until the restarted daemon was looked at, and events
            that it had folded by then; sums over all restarts that did not rebuild.
        most_missed, most_folded: the same, the largest.
        catch_up_p50_ms, catch_up_p99_ms, catch_up_max_ms: from the start of the process until it had published what the
            ledger's head was at the start; over all restarts.
        anew_max_ms: the longest of those that rebuilt.
        longest_step_ms: by role, the longest step of a client, waiting for a stopped one included.
    """

    seed: int
    journal: str
    plan: str
    acts: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    is_whole: bool = False
    elapsed_s: float = 0.0
    events: int = 0
    acknowledged: int = 0
    unhashed: int = 0
    steps: dict[str, int] = field(default_factory=dict)
    longest_step_ms: dict[str, float] = field(default_factory=dict)
    restarts: int = 0
    made_anew: int = 0
    missed: int = 0
    folded: int = 0
    most_missed: int = 0
    most_folded: int = 0
    catch_up_p50_ms: float = 0.0
    catch_up_p99_ms: float = 0.0
    catch_up_max_ms: float = 0.0
    anew_max_ms: float = 0.0
    live_checks: int = 0
    texts: int = 0
    texts_computed: int = 0
    texts_shared: int = 0
    slots_most: int = 0
    slots_at_end: int = 0
    daemon_memory_most_mib: float = 0.0
    daemon_memory_end_mib: float = 0.0
    store_mib: float = 0.0


def as_text(report: Report) -> str:
    """The report as lines of a name and a value."""
    asked = ", ".join(f"{number} {kind}" for kind, number in report.asked.items())
    steps = ", ".join(f"{name} {number}" for name, number in report.steps.items())
    longest = ", ".join(f"{name} {ms:.0f} ms" for name, ms in report.longest_step_ms.items())
    rows = {
        "seed, plan, journal": f"{report.seed}, {report.plan}, {report.journal}",
        "asked for": asked,
        "done": ", ".join(f"{number} {kind}" for kind, number in report.acts.items()),
        "time": f"{report.elapsed_s:.0f} s",
        "events, acknowledged, without hash": f"{report.events}, {report.acknowledged}, {report.unhashed}",
        "steps of clients": steps,
        "longest step": longest,
        "restarts measured": f"{report.restarts}, of which {report.made_anew} had to rebuild",
        "missed, folded after restarts": f"{report.missed}, {report.folded}",
        "most missed, most folded": f"{report.most_missed}, {report.most_folded}",
        "catch-up p50, p99, longest": f"{report.catch_up_p50_ms:.0f}, {report.catch_up_p99_ms:.0f}, "
        f"{report.catch_up_max_ms:.0f} ms",
        "longest with a rebuild": f"{report.anew_max_ms:.0f} ms",
        "comparisons with replays meanwhile": f"{report.live_checks}, and {report.steps.get('prober', 0)} by a client",
        "texts, computed, shared at the end": f"{report.texts}, {report.texts_computed}, {report.texts_shared}",
        "reader slots, most and at the end": f"{report.slots_most}, {report.slots_at_end}",
        "daemon's memory, most and at the end": f"{report.daemon_memory_most_mib:.0f}, "
        f"{report.daemon_memory_end_mib:.0f} MiB",
        "store": f"{report.store_mib:.0f} MiB",
    }
    return "\n".join(f"{name + ':':40}{value}" for name, value in rows.items())
