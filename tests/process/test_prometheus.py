"""`pmm-cached --metrics-port`: what Prometheus would find, over real HTTP, held to its conventions."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pmm_shm.installation import extra_command
from pmm_shm_client import connect
from tests.conftest import StartDaemon
from tests.support import daemons, ledgers
from tests.support.waiting import at_most

DASHBOARD = ledgers.ROOT / "docs" / "grafana" / "pmm-cached.json"
SECRET = "Xanthippe's password"
UNITS = ("seconds", "bytes")
Value = tuple[str, tuple[tuple[str, str], ...]]


@pytest.fixture
def scraped(tmp_path: Path, start_daemon: StartDaemon) -> tuple[daemons.Daemon, str]:
    """A daemon with events, rejected ones among them, and where its metrics are."""
    ledger = ledgers.build(tmp_path / "xanthippe.db", 20)
    ledgers.execute(
        ledger, "INSERT INTO events (ts, kind, content, meta) VALUES ('t', 'commitment_open', ?, '{')", SECRET
    )
    daemon = start_daemon(ledger, "--metrics-port", "0")
    return daemon, f"http://127.0.0.1:{port_of(daemon)}/metrics"


def port_of(daemon: daemons.Daemon) -> int:
    lines = map(json.loads, daemon.log.read_text(encoding="utf-8").splitlines())
    return int(next(line["port"] for line in lines if line["event"] == "metrics"))


def text_of(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode("utf-8")  # type: ignore[no-any-return]


def values(text: str) -> dict[Value, float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def until_scraped(url: str, condition: Callable[[dict[Value, float]], bool]) -> dict[Value, float]:
    found: dict[Value, float] = {}

    def holds() -> bool:
        found.clear()
        found.update(values(text_of(url)))
        return condition(found)

    daemons.until(holds, "the metrics are as they should be")
    return found


def test_the_numbers_are_the_daemons(scraped: tuple[daemons.Daemon, str]) -> None:
    daemon, url = scraped
    with connect(daemon.instance.ledger) as cache:
        for _ in range(4):
            cache.metrics()
        last = cache.append("user", "hello", {})
        daemon.wait_published(last)
    found = until_scraped(
        url,
        lambda found: found["pmm_cached_applied_event_id", ()] == last and found["pmm_cached_workers_total", ()] == 1,
    )
    stats = daemon.stats()
    assert found["pmm_cached_head_event_id", ()] == stats["head_id"] == last
    assert found["pmm_cached_worker_reads_total", (("group", "metrics"), ("result", "hit"))] == 3
    assert found["pmm_cached_worker_reads_total", (("group", "metrics"), ("result", "miss"))] == 1
    assert found["pmm_cached_live_workers", ()] == 0
    assert found["pmm_cached_quarantined_events", ()] == stats["quarantined"] == 1
    assert found["pmm_cached_health", (("state", "degraded"),)] == 1
    assert sum(found["pmm_cached_health", (("state", state),)] for state in ("healthy", "lagging", "degraded")) == 1
    assert found["pmm_cached_lag_seconds", ()] == 0
    assert found["pmm_cached_ledger_bytes", ()] == Path(daemon.instance.ledger).stat().st_size
    assert found["pmm_cached_events_folded_total", ()] == stats["events_folded"]
    assert found["process_resident_memory_bytes", ()] > 1 << 20


def test_names_and_units_are_those_of_the_conventions(scraped: tuple[daemons.Daemon, str]) -> None:
    text = text_of(scraped[1])
    families = list(text_string_to_metric_families(text))
    helps = re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE)
    types = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))
    assert len({name for name, _ in helps}) == len(helps) == len(types) == len(families)
    assert all(words.strip() for _, words in helps)
    for name, kind in types.items():
        assert re.fullmatch(r"(pmm_cached|process)(_[a-z]+)+", name)
        assert (kind == "counter") == name.endswith("_total"), name
        assert not re.search(r"_(ms|milliseconds|kb|mb|kilobytes|count|sum|bucket|gauge|counter)(_|$)", name), name
        for unit in UNITS:
            assert unit not in name or re.search(rf"_{unit}(_total)?$", name), name
    samples = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(samples) == len(set(samples))
    for family in families:
        for sample in family.samples:
            assert set(sample.labels) <= {"version", "state", "result", "group"}
            assert not set(sample.labels) & {"le", "quantile", "instance", "job"}


def test_nothing_of_the_ledger_is_in_it(scraped: tuple[daemons.Daemon, str]) -> None:
    text = text_of(scraped[1])
    for word in ("anthippe", "password", "ledger.db", "content", "/tmp", "note", "local-bow"):
        assert word not in text
    labels = set(re.findall(r'="([^"]*)"', text)) - {"healthy", "lagging", "degraded", "passed", "failed"}
    assert {label for label in labels if not re.fullmatch(r"\d[\w.+]*|unknown", label)} == {
        "hit",
        "caught_up",
        "replayed",
        "miss",
        "projection",
        "metrics",
    }


def test_the_dashboard_asks_for_what_there_is(scraped: tuple[daemons.Daemon, str]) -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries = [variable["query"] for variable in dashboard["templating"]["list"]]
    asked = re.findall(r"\b(?:pmm_cached|process)_\w+", " ".join([*expressions, json.dumps(queries)]))
    there: dict[str, set[str]] = {}
    for name, labels in values(text_of(scraped[1])):
        there.setdefault(name, {"instance"}).update(label for label, _ in labels)
    assert asked
    assert set(asked) <= there.keys()
    for expression in expressions:
        names = re.findall(r"\b(?:pmm_cached|process)_\w+", expression)
        assert names, expression
        assert expression.count("(") == expression.count(")")
        grouped = " ".join(re.findall(r"by \((.+?)\)", expression))
        used = re.findall(r"(\w+)=~?\"", expression) + re.findall(r"\w+", grouped)
        assert set(used) <= set.intersection(*(there[name] for name in names)), expression
        assert ("_total" not in expression) or "rate(" in expression or "increase(" in expression
    identities = [panel["id"] for panel in dashboard["panels"]]
    assert len(identities) == len(set(identities))


def test_only_loopback_is_listened_on(scraped: tuple[daemons.Daemon, str]) -> None:
    port = int(scraped[1].split(":")[2].split("/")[0])
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port]
    assert listening == [f"0100007F:{port:04X}"]


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def test_slow_and_many_clients_take_no_threads_and_hold_nobody_up(scraped: tuple[daemons.Daemon, str]) -> None:
    daemon, url = scraped
    port = int(url.split(":")[2].split("/")[0])
    text_of(url)
    before = threads_of(daemon.pid)
    idle = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(3)]
    try:
        idle[0].sendall(b"GET /metr")
        ledgers.execute(
            daemon.instance.ledger, "INSERT INTO events (ts, kind, content, meta) VALUES ('t', 'user', 'x', '{}')"
        )
        began = time.monotonic()
        daemon.wait_published(22)
        assert time.monotonic() - began < 2.0
        assert threads_of(daemon.pid) == before
        # Each silent client costs two seconds, and then the next one has its turn.
        assert "pmm_cached_applied_event_id 22.0" in text_of(url)
        # Under a slow client, too, it stops in time.
        idle.append(socket.create_connection(("127.0.0.1", port), 10))
        time.sleep(0.1)
        with at_most(2.0):
            assert daemon.stop() == 0
    finally:
        for one in idle:
            one.close()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_it_can_only_be_read(scraped: tuple[daemons.Daemon, str], method: str) -> None:
    request = urllib.request.Request(scraped[1], b"x", method=method)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code in (405, 501)
    refused.value.close()
    assert scraped[0].stats()["pid"] == scraped[0].pid


def test_a_port_in_use_is_one_line(ledger: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = daemons.run_daemon("--metrics-port", str(taken.getsockname()[1]), ledger)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "Address already in use" in ended.stderr


@pytest.mark.parametrize("port", ["-1", "65536", "0.0.0.0:9464", "x"])
def test_what_is_no_port(ledger: str, port: str) -> None:
    assert daemons.run_daemon("--metrics-port", port, ledger).returncode == 2


def test_without_the_extra_it_is_one_line_and_nothing_is_made(ledger: str, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "prometheus_client.py").write_text("raise ImportError('not there')\n")
    ended = daemons.run_daemon("--metrics-port", "0", ledger, env=daemons.with_path(tmp_path / "site"))
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
    assert extra_command("prometheus") in ended.stderr
    assert not Path(f"{ledger}-cache").exists()


def test_it_is_imported_only_where_it_is_asked_for() -> None:
    code = "import sys, pmm_cached.main; print('prometheus_client' in sys.modules)"
    ended = daemons.run_python(code, forked=False)
    assert ended.stdout == "False\n", ended.stderr


def test_a_restart_takes_the_same_port_again(ledger: str, start_daemon: StartDaemon) -> None:
    first = start_daemon(ledger, "--metrics-port", "0")
    port = port_of(first)
    text_of(f"http://127.0.0.1:{port}/metrics")
    first.kill()
    second = start_daemon(ledger, "--metrics-port", str(port))
    assert "pmm_cached_info" in text_of(f"http://127.0.0.1:{port}/metrics")
    assert second.stop() == 0
