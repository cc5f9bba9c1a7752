"""What a chaos run does, drawn from its seed alone: which process, what befalls it, how long after the act before.

Two runs with the same seed and the same counts have the same plan, however fast the machine is.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import astuple, dataclass
from typing import Literal

Kind = Literal["kill daemon", "kill client", "stop client", "stop daemon"]
Moment = Literal["starting", "working", "rebuilding", "verifying"]

CLIENTS: tuple[str, ...] = (
    *("single-0", "single-1", "batch-0", "foreign-0"),
    *("prober-0", "reader-0", "reader-1"),
    *("holder-0", "holder-1", "holder-2"),
    "searcher-0",
)
"""Role and number of each client process; the first four are the writers."""
WRITERS = CLIENTS[:4]
STOPPABLE = CLIENTS[4:]
"""Those that are stopped: a writer that stands within its transaction keeps all others out, as in SQLite itself."""

_STARTING_S = 0.15
_WORKING_S = 0.5
_BUSY_S = 0.08
_CLIENT_GAP_S = 0.12
_STOP_S = (0.1, 2.0)


@dataclass(frozen=True)
class Act:
    """One thing that befalls one process.

    Attributes:
        after_s: since the act before; for a daemon that is killed, since it was started or had come up.
        victim: of `CLIENTS`; "" for the daemon.
        moment: at which a daemon is killed: while it starts, or when it has caught up and works, rebuilds, verifies.
        seconds: how long a stopped process stands, or how long no daemon runs after a kill.
    """

    kind: Kind
    after_s: float
    victim: str = ""
    moment: Moment = "working"
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind} {self.victim or self.moment}"


def draw(seed: int, daemon_kills: int, client_kills: int, stops: int) -> list[Act]:
    """The plan of a run; half of the stops are the daemon's. Every part of it has something of each kind."""
    chance = random.Random(seed)
    counts: dict[Kind, int] = {
        "kill daemon": daemon_kills,
        "kill client": client_kills,
        "stop daemon": stops // 2,
        "stop client": stops - stops // 2,
    }
    places = [((number + chance.random()) / count, kind) for kind, count in counts.items() for number in range(count)]
    return [_act(kind, chance) for _, kind in sorted(places)]


def _act(kind: Kind, chance: random.Random) -> Act:
    if kind == "kill daemon":
        return _daemon_kill(chance)
    gap_s = chance.uniform(0.0, _CLIENT_GAP_S)
    if kind == "kill client":
        return Act(kind, gap_s, chance.choice(CLIENTS))
    if kind == "stop client":
        return Act(kind, gap_s, chance.choice(STOPPABLE), seconds=chance.uniform(*_STOP_S))
    return Act(kind, gap_s, seconds=chance.uniform(*_STOP_S))


def _daemon_kill(chance: random.Random) -> Act:
    moments: tuple[Moment, ...] = ("starting", "working", "rebuilding", "verifying")
    moment = chance.choices(moments, (25, 55, 10, 10))[0]
    longest_s = {"starting": _STARTING_S, "working": _WORKING_S}.get(moment, _BUSY_S)
    # Mostly it is started anew at once; now and then much has happened meanwhile.
    down_s = chance.uniform(0.0, 0.8) if chance.random() < 0.25 else 0.0
    return Act("kill daemon", chance.uniform(0.0, longest_s), moment=moment, seconds=down_s)


def digest(plan: list[Act]) -> str:
    """A short text that is equal for equal plans."""
    return hashlib.sha256(repr([astuple(act) for act in plan]).encode()).hexdigest()[:12]
