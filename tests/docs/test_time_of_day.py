"""Which modules ask for the time of day."""

from __future__ import annotations

import ast
import re
from collections import Counter

from tests.support.sources import sources

CLOCKS = {
    ("time", name) for name in ("time", "time_ns", "localtime", "gmtime", "ctime", "strftime", "asctime")
} | {
    ("datetime", name) for name in ("now", "utcnow", "today", "fromtimestamp", "utcfromtimestamp")
} | {("date", "today")}  # fmt: skip
# Who asks for the time of day: for the `ts` of new events, what users ask for by age, the name of a safety copy, and
# the lines of the daemon's log.
CLOCKS_ALLOWED = {
    "pmm_shm/ledger/new_events.py": {"datetime.now": 1},
    "pmm_shm/ledger/instants.py": {"time.time_ns": 1},
    "pmm_shm/ledger/restore.py": {"datetime.datetime.now": 1},
    "server/pmm_cached/logs.py": {"datetime.now": 1},
    # The age of a report, for people, and the name of a file of lost events.
    "pmm_shm/instance/run_reports.py": {"time.time": 2},
    "server/pmm_replicator/forks.py": {"datetime.now": 1},
    # The doctor looks whether the clock and the newest event agree, and changes nothing.
    "client/pmm_shm_cli/doctor/checks/rows.py": {"time.strftime": 1, "time.gmtime": 1},
    "client/pmm_shm_cli/doctor/machine.py": {"time.time": 1},
}
CLOCK_IN_SQL = re.compile(r"CURRENT_(TIME|DATE)|'now'|unixepoch\(|CLOCK_REALTIME", re.IGNORECASE)


def test_no_module_asks_for_the_time_of_day_but_those_that_are_known_to() -> None:
    """Hazard 22: nothing is decided by a clock that jumps."""
    found: dict[str, dict[str, int]] = {}
    for name, _, tree in sources():
        calls: Counter[str] = Counter()
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
                if (owner, node.attr) in CLOCKS:
                    calls[ast.unparse(node)] += 1
            elif isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime"):
                # By their bare names the calls would not be seen.
                calls.update(alias.name for alias in node.names if (node.module, alias.name) in CLOCKS)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                calls.update(match.group() for match in CLOCK_IN_SQL.finditer(node.value))
        if calls:
            found[name] = dict(calls)
    assert found == CLOCKS_ALLOWED
