"""`pmm-shm web` through HTTP: who is let in, what pages and API answer, beside the library's own answers."""

from __future__ import annotations

import html
import http.client
import json
import os
import re
import socket
import stat
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

pytest.importorskip("starlette")
pytest.importorskip("jinja2")

from pmm_shm.limits import REPLACEMENT_NOTICED_S
from pmm_shm_client import EventLog, connect
from pmm_shm_web.shown import spelled
from tests.support import daemons, ledgers, pmm2
from tests.support.command import run
from tests.support.fork_daemon import ForkedDaemon
from tests.support.hazards import insert_hostile
from tests.support.web import HOSTILE, WebServer, fill, path_of, serving, words


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    folder = tmp_path_factory.mktemp("web")
    path = str(folder / "agent.db")
    fill(path)
    with ForkedDaemon(Path(path)), serving(path, folder) as made:
        yield made


# Who is let in.


@pytest.mark.parametrize(
    "path", ["/", "/mind", "/stream", "/events/1", "/static/page.js", "/api/v1/mind", "/api/v1/live"]
)
def test_nobody_without_the_token(server: WebServer, path: str) -> None:
    for cookie in ("", "a=b", server.cookie[:-1], server.cookie.replace("=", "x=")):
        reply = server.ask(path, cookie=cookie)
        assert reply.status == 403
        assert "Echo" not in reply.text
    assert server.ask(path, "?token=wrong").status == 403


def test_the_token_becomes_a_cookie_and_leaves_the_address(server: WebServer) -> None:
    reply = server.ask("/mind", f"?at=3&token={server.token}&x=%C3%A9", cookie="")
    assert (reply.status, reply.headers["location"]) == (303, "/mind?at=3&x=%C3%A9")
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert str(server.port) in cookie
    # Not the address of another host.
    assert server.ask("//example.org/", f"?token={server.token}", cookie="").headers["location"] == "/example.org/"


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1", "localhost:1", "", "127.0.0.1:1@example.org"])
def test_a_foreign_host_is_refused(server: WebServer, host: str) -> None:
    for path in ("/", "/healthz", "/api/v1/mind"):
        assert server.ask(path, headers={"Host": host or " "}).status in (400, 403)


def test_a_foreign_origin_is_refused(server: WebServer) -> None:
    for origin in (
        "http://example.org",
        "null",
        f"http://127.0.0.1:{server.port + 1}",
        f"http://localhost:{server.port}",
    ):
        assert server.ask("/", headers={"Origin": origin}).status == 403
        assert server.ask("/jobs/x/cancel", method="POST", headers={"Origin": origin}).status == 403
    assert server.ask("/", headers={"Origin": f"http://127.0.0.1:{server.port}"}).status == 200
    assert server.ask("/", headers={"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}).status == 403


def test_the_health_check_needs_no_token_and_tells_nothing(server: WebServer) -> None:
    reply = server.ask("/healthz", cookie="")
    assert (reply.status, reply.text) == (200, "ok\n")


def test_headers_of_all_answers(server: WebServer) -> None:
    for reply in (server.ask("/"), server.ask("/", cookie=""), server.ask("/nothing"), server.ask("/api/v1/events")):
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'self';")
        assert "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "same-origin"
        assert reply.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in reply.headers


def test_a_browser_keeps_a_file_and_asks_for_a_changed_one_anew(server: WebServer) -> None:
    page = server.page()
    addresses = re.findall(r"/static/[^\s\"]+", page)
    assert {one.partition("?")[0].rpartition("/")[2] for one in addresses} == {
        *("icon.svg", "start.js", "page.js", "htmx.min.js", "uPlot.iife.min.js", "uPlot.min.css")
    }
    for address in addresses:
        assert "immutable" in server.ask(address).headers["cache-control"], address
        for other in (address.partition("?")[0], address + "0"):
            assert server.ask(other).headers["cache-control"] == "no-store", other
        assert server.ask(address, cookie="").headers["cache-control"] == "no-store", address


def test_the_style_of_the_page_is_the_one_that_the_policy_names(server: WebServer) -> None:
    reply = server.ask("/")
    (style,) = re.findall(r"<style>(.*?)</style>", reply.text, re.DOTALL)
    digest = b64encode(sha256(style.encode("utf-8")).digest()).decode("ascii")
    assert f"style-src 'self' 'sha256-{digest}';" in reply.headers["content-security-policy"]
    assert '<link rel="stylesheet"' not in reply.text


def test_the_head_of_the_page_is_sent_before_the_rest(server: WebServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", "/", headers={"Cookie": server.cookie})
    reply = connection.getresponse()
    # A piece of the body may come in several reads, and a read never holds parts of two.
    head = ""
    while 'id="as-of"' not in head and (read := reply.read1(1 << 20)):
        head += read.decode("utf-8")
    assert 'id="as-of"' in head
    assert 'id="chart"' not in head
    assert reply.read().decode("utf-8").rstrip().endswith("</html>")
    connection.close()


def test_it_listens_on_this_host_alone(server: WebServer) -> None:
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    assert [one for one in listening if one.endswith(f":{server.port:04X}") and one.startswith("00000000")] == []
    assert f"0100007F:{server.port:04X}" in listening


def test_other_hosts_and_a_token_of_a_file(tmp_path: Path, ledger: str) -> None:
    file = tmp_path / "token"
    with serving(ledger, tmp_path, "--allow-host", "agent.example.org", "--token-file", str(file)) as server:
        token = file.read_text(encoding="ascii").strip()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert server.token == token
        tunnel = {"Host": "agent.example.org", "Origin": "https://agent.example.org"}
        assert server.ask("/healthz", headers=tunnel).status == 200
        bearer = {"Authorization": f"Bearer {token}"}
        assert server.ask("/api/v1/metrics", cookie="", headers=bearer).status == 200
        assert server.ask("/api/v1/metrics", cookie="", headers={"Authorization": f"Bearer {token}x"}).status == 403
        # A page is for a browser, which has the cookie.
        assert server.ask("/", cookie="", headers=bearer).status == 403


# The pages.


def test_the_page_shows_the_mind(server: WebServer) -> None:
    text = words(server.page())
    with connect(path_of(server)) as cache:
        assert f"{cache.metrics().ias:.3f}" in text
        assert cache.stage().stage in text
        assert f"Open commitments {len(cache.commitments().open)}" in text
    assert "a number" in text
    assert "healthy" in text


def test_every_part_is_a_page_for_people_and_a_part_for_scripts(server: WebServer) -> None:
    for path in (
        "/mind",
        "/parts",
        "/stream",
        "/facets",
        "/events/1",
        "/search?q=week",
        "/context",
        "/operations",
        "/commitments",
        "/why?subject=name&at=9",
        "/doctor",
    ):
        assert server.page(path).startswith("<!doctype html>"), path
        part = server.ask(path, headers={"HX-Request": "true"})
        assert part.status == 200, part.text
        assert "<html" not in part.text
    assert server.ask("/events/99999").status == 404
    assert server.ask("/?at=x").status == 400
    assert "at: expected" in server.ask("/mind?at=x", headers={"HX-Request": "true"}).text


def test_nothing_of_the_ledger_is_markup(server: WebServer) -> None:
    cid = quote(json.dumps(HOSTILE))
    kind = quote(HOSTILE[:60])
    for path in (
        "/",
        "/?at=405",
        "/facets",
        f"/stream?kind={kind}",
        f"/?text={quote(HOSTILE)}",
        "/events/406",
        f"/why?subject=commitment&argument={cid}&at=406",
        "/search?q=alert",
        f"/context?x={kind}",
    ):
        page = server.page(path)
        assert "<script>alert" not in page, path
        assert "<b>" not in page, path
        assert "<i>" not in page, path
        # The field of a form holds the very text, and is apart from the page.
        outside = re.sub(r' value="[^"]*"', "", page)
        assert not re.search("[\u202a-\u202e\u2066-\u2069]", outside), path
        scripts = re.findall(r"<script[^>]*>", page)
        assert all(' src="/static/' in one for one in scripts), path
        assert not re.search(
            r"\son[a-z]+=|hx-on|javascript:|\bjs:", re.sub(r"<bdi>.*?</bdi>", "", page, flags=re.DOTALL)
        ), path
    answer = server.ask("/context", method="POST", body=urlencode({"message": HOSTILE}).encode())
    assert "<script>alert" not in answer.text
    assert "alert" in words(answer.text)


def test_a_mind_of_the_past_is_that_of_the_log_until_there(server: WebServer) -> None:
    with connect(path_of(server)) as cache:
        for event_id in (1, 50, 200, 201, 199, 403, 10**9):
            assert server.api(f"/mind?at={event_id}") == json.loads(cache.frame_at(event_id).to_json())
        page = words(server.page("/?at=50"))
        assert "As of event 50" in page
        assert f"{cache.frame_at(50).metrics().ias:.3f}" in page
        rows = [row["id"] for row in server.api("/events?at=50&limit=500")["rows"]]
        assert rows == list(range(50, 0, -1))
        kinds = server.api("/kinds?at=50")["kinds"]
    assert sum(kinds.values()) == 50


def test_why_is_the_explanation_of_the_command(server: WebServer) -> None:
    for path, what in (
        ("subject=trait&argument=openness", ("trait", "openness")),
        ("subject=name", ("identity.name",)),
        ("subject=metrics", ("metrics",)),
        ("subject=commitment&argument=" + quote('"c7"'), ("commitment", "c7")),
        ("subject=commitment&argument=7", ("commitment", "7", "--integer")),
        ("subject=directive&argument=405", ("directive", HOSTILE)),
    ):
        found = server.api(f"/why?{path}&at=405")
        wanted = json.loads(run("explain", path_of(server), *what, "--until", "405", "--limit", "200", "--json").out)
        assert found == wanted
    assert server.ask("/api/v1/why?subject=trait&argument=x").status == 400
    assert server.ask("/api/v1/why?subject=commitment&argument=true").status == 400
    for argument in ("1", "x", "999999", str(1 << 63)):
        assert server.ask(f"/api/v1/why?subject=directive&argument={argument}").status == 400


def test_the_context_is_that_of_the_library(server: WebServer) -> None:
    with connect(path_of(server)) as cache:
        wanted = cache.context("plan week 3", 3, 3, 4, recall_mode="auto")
    body = json.dumps({"text": "plan week 3"}).encode()
    found = server.api("/context", method="POST", body=body)
    assert found["block"] == str(wanted)
    page = server.ask("/context", method="POST", body=b"message=plan+week+3").text
    block = re.search(r'<pre class="block"><bdi>(.*?)</bdi></pre>', page, re.DOTALL)
    assert block is not None
    assert html.unescape(block[1]) == spelled(str(wanted))
    with connect(path_of(server)) as cache:
        wanted = cache.context("plan week 3", 1, 0, 2)
    assert server.api("/context?text=plan+week+3&reflections=1&recall=0&messages=2")["block"] == str(wanted)
    page = server.ask("/context", method="POST", body=b"message=plan+week+3&reflections=1&recall=0&messages=2").text
    assert html.escape(str(wanted).splitlines()[-1]) in page
    for wrong in ("reflections=33", "recall=-1", "messages=x"):
        assert server.ask(f"/api/v1/context?text=x&{wrong}").status == 400
    past = server.api("/context?at=20&text=plan")
    assert past["as_of"] == 20
    assert past["commitments"] == ["plan week 0", "plan week 1", "plan week 2", "plan week 3", "plan week 4"]


def test_search_is_that_of_the_library(server: WebServer) -> None:
    with connect(path_of(server)) as cache:
        for mode in ("words", "meaning", "hybrid"):
            for at in (None, 30):
                query = f"/search?q=plan+week+5&k=4&mode={mode}" + ("" if at is None else f"&at={at}")
                (found,) = server.api(query)
                wanted = cache.search("plan week 5", 4, mode=mode, until=at)  # type: ignore[call-overload]
                assert wanted
                assert found["hits"] == [hit.to_dict() for hit in wanted]
    assert [one["mode"] for one in server.api("/search?q=plan+week+5")] == ["words", "meaning"]
    page = words(server.page("/search?q=plan+week+5"))
    assert "By words" in page
    assert "By meaning" in page
    for wrong in ("mode=guess", "role=system", "since=yesterday", "until=1.5", "at=3&until=2"):
        assert server.ask(f"/api/v1/search?q=x&{wrong}").status == 400


def test_search_has_the_filters_of_the_library(server: WebServer) -> None:
    chosen = {
        "kind=user,reflection": {"kinds": ["user", "reflection"]},
        "role=assistant": {"roles": ["assistant"]},
        "since=10&until=30": {"since": 10, "until": 30},
        "since=2000-01-01&until=2000-01-01": {"since": "2000-01-01", "until": "2000-01-01"},
        "role=user&at=30&distinct=1": {"roles": ["user"], "until": 30, "distinct": True},
    }
    with connect(path_of(server)) as cache:
        for query, filters in chosen.items():
            (found,) = server.api(f"/search?q=plan+week+5&k=4&mode=auto&{query}")
            wanted = cache.search("plan week 5", 4, mode="auto", **filters)  # type: ignore[call-overload]
            assert found["hits"] == [hit.to_dict() for hit in wanted]
    assert "plan week 5" in words(server.page("/search?q=plan+week+5&role=user&kind="))
    assert "plan week 5" not in words(server.page("/search?q=plan+week+5&kind=none"))


def test_the_api_gives_the_answers_of_the_library(server: WebServer) -> None:
    with connect(path_of(server)) as cache:
        for name in ("identity", "commitments", "metrics", "stage", "recent", "history"):
            assert server.api(f"/{name}") == json.loads(getattr(cache, name)().to_json())
        assert server.api("/active-directives")["active_directives"] == cache.active_directives()
        event = cache.event(406)
        assert event is not None
        assert server.api("/events/406") == event.to_dict()
    assert server.api("/status")["health"] == "healthy"
    kinds = server.api("/kinds")["kinds"]
    assert kinds[HOSTILE[:60]] == 1
    assert [row["id"] for row in server.api(f"/events?kind={quote(HOSTILE[:60])}")["rows"]] == [406]
    assert sum(kinds.values()) == server.api("/status")["head_id"]
    assert server.ask("/api/v1/events/999999").status == 404


# Live.


def test_an_append_of_another_process_is_told(tmp_path: Path) -> None:
    for is_served in (True, False):
        folder = tmp_path / str(is_served)
        folder.mkdir()
        path = str(folder / "agent.db")
        fill(path)
        daemon = ForkedDaemon(Path(path)) if is_served else None
        with serving(path, folder) as server:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            connection.request("GET", "/api/v1/live", headers={"Cookie": server.cookie})
            stream = connection.getresponse()
            heads: list[int] = []

            def listen(stream: Any = stream, heads: list[int] = heads) -> None:
                while line := stream.readline():
                    if line.startswith(b"data: "):
                        heads.append(int(line[6:]))

            listener = threading.Thread(target=listen, daemon=True)
            listener.start()
            daemons.until(lambda heads=heads: heads, "the head at the beginning")
            assert run("append", path, "user", "hello").code == 0
            daemons.until(lambda heads=heads: heads[-1] == 407, "the append")
            new = server.ask("/stream/new?after=406", headers={"HX-Request": "true"}).text
            assert "hello" in new
            assert "after=407" in new
            assert server.stop() is not None
            listener.join(10)
            connection.close()
        if daemon is not None:
            daemon.kill()


def test_answers_over_one_connection_do_not_wait_for_each_other(server: WebServer) -> None:
    """Small answers are sent at once: not one delayed acknowledgement, of 40 ms, for each."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    times = []
    for _ in range(100):
        began = time.monotonic()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        times.append(time.monotonic() - began)
    connection.close()
    assert min(times[1:]) < 0.03


# Other ledgers.


def test_a_ledger_of_pmm2_says_what_does_not_apply(tmp_path: Path) -> None:
    path = pmm2.build(tmp_path / "agent.db", 5, [("user", "hello", {})])
    with serving(path, tmp_path) as server:
        text = words(server.page())
        assert "do not apply" in text
        assert "IAS" not in text.replace("OCEAN traits, IAS, GAS or stage", "")
        assert "hello" in text
        found = server.api("/metrics")
        assert (found["ias"], found["gas"]) == (None, None)
        assert server.api("/chart") is None


def test_an_error_of_the_api_is_json_and_positions_may_be_any_integer(server: WebServer) -> None:
    for path, status in (("/nothing", 404), ("/", 404), ("/events/x", 404), ("/mind?at=9e9", 400)):
        reply = server.ask("/api/v1" + path)
        assert reply.status == status
        assert reply.json["error"]
    assert server.ask("/api/v1/mind", method="POST", body=b"").json["error"] == "Method Not Allowed"
    for at in (-(1 << 63), -1, 0, (1 << 63) - 1):
        assert server.ask(f"/?at={at}").status == 200
        assert server.api(f"/metrics?at={at}")["as_of"] == (0 if at <= 0 else server.api("/status")["head_id"])


def test_a_ledger_that_is_replaced_and_one_that_is_gone(tmp_path: Path) -> None:
    path, other = str(tmp_path / "agent.db"), str(tmp_path / "other.db")
    for one, text in ((path, "before"), (other, "behind")):
        with EventLog(one) as log:
            log.append_many([("identity_adopt", text, {"name": text}), *([("user", text, None)] * (5 + len(one)))])
    with serving(path, tmp_path) as server:
        assert "before" in words(server.page("/?at=3"))
        for suffix in ("-wal", "-shm"):
            Path(path + suffix).unlink(missing_ok=True)
        os.replace(other, path)
        time.sleep(REPLACEMENT_NOTICED_S + 0.1)
        for page in ("/", "/?at=3", "/stream", "/why?subject=name"):
            assert "behind" in words(server.page(page)), page
            assert "before" not in words(server.page(page)), page
        assert sum(server.api("/kinds")["kinds"].values()) == server.api("/status")["head_id"]
        os.unlink(path)
        time.sleep(REPLACEMENT_NOTICED_S + 0.1)
        for page in ("/", "/?at=3", "/stream", "/header", "/facets", "/api/v1/mind"):
            assert server.ask(page).status == 503, page
        assert server.ask("/healthz").status == 200
        # A part that is asked for again and again stays where it is, and the page says what has failed.
        part = server.ask("/header", headers={"HX-Request": "true"})
        assert (part.status, part.headers["hx-retarget"]) == (200, "#notice")
        assert "no such file" in part.text


def test_an_empty_ledger(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.db")
    EventLog(path).close()
    with serving(path, tmp_path) as server:
        text = words(server.page())
        assert "No name yet" in text
        assert "No event matches." in text
        for page in ("/?at=5", "/search?q=x", "/why?subject=metrics", "/operations", "/facets", "/api/v1/chart"):
            assert server.ask(page).status == 200, page
        assert server.api("/kinds") == {"kinds": {}, "others": 0, "counted_to": 0, "is_complete": True}


def test_many_listeners_and_clients_that_read_nothing(tmp_path: Path) -> None:
    """Each hears of an append; those that do not read hold nobody up."""
    path = str(tmp_path / "agent.db")
    fill(path)
    with serving(path, tmp_path) as server:
        listeners = [socket.create_connection(("127.0.0.1", server.port), 20) for _ in range(60)]
        request = f"GET /api/v1/live HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nCookie: {server.cookie}\r\n\r\n"
        for one in listeners:
            one.sendall(request.encode("ascii"))
        assert run("append", path, "user", "hello").code == 0
        for one in listeners[::2]:
            heard = b""
            while b"data: 407\n" not in heard:
                more = one.recv(4096)
                assert more, heard
                heard += more
        assert server.ask("/healthz").status == 200
        assert "hello" in server.page("/stream")
        for one in listeners:
            one.close()


def test_hostile_rows(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.db")
    connection = ledgers.connect(path)
    ledgers.make_table(connection, strict=False)
    connection.close()
    insert_hostile(path)
    ledgers.execute(path, "INSERT INTO events (ts, kind, content, meta) VALUES ('', 'user', ?, '{}')", "x" * 10_000_000)
    long = json.dumps({"cid": "c" * 100_000, "text": "t" * 100_000})
    ledgers.execute(path, "INSERT INTO events (ts, kind, content, meta) VALUES ('', 'commitment_open', '', ?)", long)
    for kind in ("note", "commitment_open"):
        meta = '{"cid": "inf", "text": "t", "big": 1e999, "not": NaN}'
        ledgers.execute(path, "INSERT INTO events (ts, kind, content, meta) VALUES ('', ?, '', ?)", kind, meta)
    (last,) = ledgers.execute(path, "SELECT max(id) FROM events")[0]
    with serving(path, tmp_path) as server:
        page = server.page()
        assert len(page) < 300_000
        assert "10,000,000 characters" in words(page)
        assert len(server.page(f"/events/{last - 3}")) < 400_000
        for path_ in ("/facets", "/parts", "/?at=9", "/search?q=x", "/why?subject=metrics", "/operations"):
            assert server.ask(path_).status == 200, path_
        # Every answer of the API is JSON that any parser takes.
        ids = [one for (one,) in ledgers.execute(path, "SELECT id FROM events WHERE id >= 0")]
        events = [f"/events/{one}" for one in ids[:-1]]
        for path_ in (
            *events,
            "/mind",
            "/commitments",
            "/recent",
            "/history",
            "/kinds",
            "/search?q=x",
            "/context?text=x",
        ):
            reply = server.ask("/api/v1" + path_)
            assert reply.status == 200, (path_, reply.text)
            json.loads(reply.body, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        for before in (last + 1, *ids[::20]):
            server.api(f"/events?limit=500&before={before}")


def test_a_ledger_that_is_none_and_a_port_that_is_taken(tmp_path: Path, server: WebServer) -> None:
    ran = run("web", str(tmp_path / "missing.db"))
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    ran = run("web", path_of(server), "--port", str(server.port))
    assert ran.code == 1
    assert ran.err == f"pmm-shm: port {server.port}: Address already in use; choose another with --port\n"
    assert run("web", path_of(server), "--allow-host", "a b").code == 2


def test_a_users_fold_is_shown_now_and_as_of_an_event_with_its_history(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.db")
    with connect(path, create=True) as cache:
        for number in range(30):
            cache.append("tool_call", "", {"tool": f"<b>tool {number}</b>" if number % 3 else "search"})
    with serving(path, tmp_path, "--fold", "docs.examples.tool_use:ToolUse") as server:
        shown = words(html.unescape(server.page()))
        assert "tool_use" in shown
        assert "calls 21 " in shown
        assert "The first 20 are shown." in shown
        assert "<b>tool" not in server.page()
        found = server.api("/folds?at=4")
        assert found["as_of"] == 4
        assert found["folds"]["tool_use"]["calls"]["search"] == 2
        subject = urlencode({"subject": "fold", "argument": json.dumps(["tool_use", "calls.search"])})
        why = server.api(f"/why?{subject}&at=30")
        assert (why["value"], why["events"]) == (10, 10)
        links = urlencode({"argument": json.dumps(["tool_use", "calls.<b>tool 1</b>"])})
        assert links in html.unescape(server.page())
        assert "Why: tool_use calls.search" in words(server.page(f"/why?{subject}"))
        assert server.ask("/api/v1/why?subject=fold&argument=" + quote('["absent", "x"]')).status == 400
        assert server.ask("/api/v1/why?subject=fold&argument=x").status == 400


def test_a_fold_that_cannot_be_shown_says_why_and_the_rest_is_shown(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.db")
    with connect(path, create=True) as cache:
        cache.append("identity_adopt", "Echo", {"name": "Echo"})
    ledgers.execute(path, "ALTER TABLE events ADD COLUMN other")
    with serving(path, tmp_path, "--fold", "tests.process.test_columns:Rooms") as server:
        page = words(html.unescape(server.page()))
        assert "lacks `room`" in page
        assert "Echo" in page
        assert "lacks `room`" in server.api("/folds")["folds"]["rooms"]["problem"]
