"""Times of the page of `pmm-shm web`, part by part, and the memory of its server: `make bench-web`.

Each part is asked for over one connection by HTTP, beside a daemon that has published everything. The first paint is
measured in Chromium, where it and Playwright are installed, in a new profile each time.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from bench.daemons import Daemon, environment, until
from pmm_shm_client import connect

SIZES = (100_000, 1_000_000)
ROUNDS = 50
STEPS = 30
PAINTS = 12
PAST = (0.9, 0.75, 0.6, 0.45, 0.3)
"""Positions that no kept state is near to, as shares of the log."""
PARTS = {
    "whole page": "/",
    "header": "/header",
    "traits, commitments, directives": "/parts",
    "events": "/stream",
    "older events": "/stream?before={middle}",
    "events of one kind": "/stream?kind=trait_update",
    "events with a text that is rare": "/stream?text=nowhere+in+it",
    "kinds with counts": "/facets",
    "kinds with counts, as of an event": "/facets?at={middle}",
    "one event": "/events/{middle}",
    "search, by words and by meaning": "/search?q=water+the+tomatoes",
}


class Visitor:
    """One connection with the token's cookie."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        assert parts.port is not None
        self._port = parts.port
        self.address = address
        self._cookie = ""
        self._connect()
        self._connection.request("GET", f"/?{parts.query}")
        answer = self._connection.getresponse()
        answer.read()
        self._cookie = (answer.getheader("set-cookie") or "").partition(";")[0]

    def _connect(self) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)

    def ask(self, path: str) -> tuple[int, str]:
        """(status, text) of a part, as a script asks for it."""
        self._connection.request("GET", path, headers={"Cookie": self._cookie, "HX-Request": "true"})
        answer = self._connection.getresponse()
        return answer.status, answer.read().decode("utf-8")

    def until_ready(self, path: str) -> float:
        """Milliseconds until a part is there, asked for as the page does."""
        began = time.perf_counter()
        while True:
            status, text = self.ask(path)
            if status == 200 and 'class="waiting' not in text:
                return (time.perf_counter() - began) * 1e3
            time.sleep(0.05)


def private_mb(pid: int) -> float:
    """Private memory of a process, in MB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return sum(int(found) for found in re.findall(r"^Private_\w+: +(\d+) kB", text, re.MULTILINE)) / 1e3


def _shown(name: str, times_ms: list[float]) -> str:
    ordered = sorted(times_ms)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return f"| {name} | {statistics.median(ordered):.1f} | {p99:.1f} |"


def measure(count: int, say: Callable[[str], None]) -> None:
    """One size of ledger, as a table."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "agent.db"
        command = [sys.executable, "-m", "pmm_shm_cli"]
        made = [*command, "generate", str(ledger), "--events", str(count), "--seed", "7"]
        subprocess.run(made, check=True, env=environment(), stdout=subprocess.DEVNULL)
        daemon = Daemon(str(ledger))
        with connect(ledger) as cache:
            until(lambda: cache.published_as_of() == count, "the published state", 900.0)
            server = subprocess.Popen(
                [*command, "web", str(ledger), "--port", "0"], env=environment(), stdout=subprocess.PIPE, text=True
            )
            try:
                assert server.stdout is not None
                _measure_server(Visitor(server.stdout.readline().strip()), server.pid, count, say)
            finally:
                server.terminate()
                server.wait()
                daemon.stop()


def _first_paints(address: str) -> list[float]:
    """Milliseconds until a browser without a cache shows the page; none without a browser."""
    browser_path = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return []
    if browser_path is None:
        return []
    times = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for _ in range(PAINTS):
            context = browser.new_context()
            page = context.new_page()
            page.goto(address)
            page.locator("#chart canvas").wait_for()
            times.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
            context.close()
        browser.close()
    # The first page of a new browser starts its processes, too.
    return times[1:]


def _measure_server(visitor: Visitor, pid: int, count: int, say: Callable[[str], None]) -> None:
    middle = count * 6 // 10
    say(f"\n{count:,} events\n\n| part | p50 ms | p99 ms |\n| --- | --- | --- |")
    say(_shown("whole page, the first time", [visitor.until_ready("/")]))
    say(_shown("kinds with counts, the first time", [visitor.until_ready("/facets")]))
    memory = {}
    for name, path in PARTS.items():
        if name.startswith("search"):
            memory["before the first search by meaning"] = private_mb(pid)
        rounds = ROUNDS if "rare" not in name else 5
        say(_shown(name, [visitor.until_ready(path.format(middle=middle)) for _ in range(rounds)]))
    memory["after it"] = private_mb(pid)
    places = [int(count * share) for share in PAST]
    say(_shown("as of an event, the first time", [visitor.until_ready(f"/mind?at={one}") for one in places]))
    visitor.until_ready(f"/mind?at={middle}")
    say(_shown("the next event", [visitor.until_ready(f"/mind?at={middle + n}") for n in range(1, STEPS)]))
    say(_shown("the previous event", [visitor.until_ready(f"/mind?at={middle - n}") for n in range(STEPS)]))
    memory["after earlier events"] = private_mb(pid)
    for subject in ("trait&argument=openness", "name", "metrics"):
        # Not at one event twice: a result is kept for a moment.
        times = [visitor.until_ready(f"/why?subject={subject}&at={count - n}") for n in range(3)]
        say(_shown(f"why, of {subject.partition('&')[0]}", times))
    paints = _first_paints(visitor.address)
    if paints:
        say(_shown("first paint, in Chromium", paints))
    say("\n" + ", ".join(f"{name} {size:.0f} MB" for name, size in memory.items()) + " of private memory")


def main() -> None:
    """Measure the sizes that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", default=json.dumps(SIZES)[1:-1], help="numbers of events, with commas")
    for count in parser.parse_args().events.replace(" ", "").split(","):
        measure(int(count), lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
