"""`pmm-shm web` in a real browser, Debian's Chromium; skipped where there is none, except in CI."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pmm_shm_client import EventLog, connect
from tests.support import ledgers
from tests.support.command import run
from tests.support.daemons import until
from tests.support.fork_daemon import ForkedDaemon
from tests.support.web import HOSTILE, WebServer, fill, path_of, serving

BROWSER = shutil.which("chromium")
if os.environ.get("CI") != "true":
    pytest.importorskip("starlette")
    pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    if BROWSER is None:
        pytest.skip("no chromium: apt-get install chromium", allow_module_level=True)

from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Route, expect, sync_playwright  # noqa: E402

PAST = 120
TIMEOUT_MS = 20_000
expect.set_options(timeout=TIMEOUT_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    folder = tmp_path_factory.mktemp("web")
    path = folder / "agent.db"
    fill(str(path))
    ledgers.execute(
        path, "INSERT INTO events (ts, kind, content, meta) VALUES ('', 'user', ?, '{}')", "<b>" * 3_333_333
    )
    with ForkedDaemon(path), serving(path, folder) as made:
        yield made


class Visit:
    """A page that was opened with the token, and what the browser said and asked for meanwhile."""

    def __init__(self, browser: Browser, server: WebServer, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(TIMEOUT_MS)
        self.problems: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda told: self.problems.append(told.text) if is_problem(told) else None)
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.on("dialog", lambda dialog: self.problems.append(f"dialog: {dialog.message}"))
        self.page.goto(server.address)
        if options.get("java_script_enabled", True):
            self.wait_scripts()

    def wait_scripts(self) -> None:
        """Until the page follows the log; before, its links and forms load pages."""
        self.page.locator("html.scripted").wait_for()


def is_problem(told: ConsoleMessage) -> bool:
    """Whether it is an error; htmx logs as one, twice, that a request was given up for a newer one."""
    return told.type == "error" and not told.text.startswith(("htmx:afterRequest", "htmx:sendAbort"))


@pytest.fixture
def visit(browser: Browser, server: WebServer) -> Iterator[Visit]:
    made = Visit(browser, server)
    yield made
    made.context.close()
    # Nothing was asked of anybody else, nothing of the ledger ran, and the policy of the page was kept.
    assert made.problems == []
    assert made.hosts == {f"127.0.0.1:{server.port}"}


def test_the_page_and_the_chart(visit: Visit, server: WebServer) -> None:
    page = visit.page
    assert "token" not in page.url
    with connect(path_of(server)) as cache:
        expect(page.locator("#header .ias")).to_have_text(f"{cache.metrics().ias:.3f}")
    expect(page.locator("#chart canvas")).to_be_visible()
    expect(page.locator("#facets li").first).to_be_visible()
    expect(page.locator("#operations")).to_contain_text("healthy")


def test_the_dot_and_the_page_follow_an_append_of_another_process(visit: Visit, server: WebServer) -> None:
    page = visit.page
    expect(page.locator("#dot.on")).to_be_visible()
    head = int(page.locator("#as-of").inner_text().replace(",", ""))
    expect(page.locator("#dot")).to_have_attribute("data-beats", "0")
    assert run("append", path_of(server), "user", f"hello from outside {head}").code == 0
    expect(page.locator("#dot")).to_have_attribute("data-beats", "1")
    expect(page.locator("#as-of")).to_have_text(f"{head + 1:,}")
    expect(page.locator("#stream .event").first).to_contain_text(f"hello from outside {head}")
    # The event is listed once, and the next one above it.
    assert run("append", path_of(server), "user", f"and again {head}").code == 0
    expect(page.locator("#stream .event").first).to_contain_text(f"and again {head}")
    expect(page.locator(f"#e{head + 1}")).to_have_count(1)
    # The keyboard stays where it was, and the event before now is that of now.
    page.locator("#why-trait-openness").focus()
    page.evaluate("document.querySelector('#why-trait-openness').classList.add('old')")
    assert run("append", path_of(server), "user", f"once more {head}").code == 0
    expect(page.locator("#as-of")).to_have_text(f"{head + 3:,}")
    expect(page.locator("#why-trait-openness.old")).to_have_count(0)
    expect(page.locator("#why-trait-openness:focus")).to_be_visible()
    page.keyboard.press("Shift+ArrowLeft")
    expect(page.locator("#position")).to_have_attribute("data-at", f"{head + 2}")


def test_every_one_of_many_appends_is_shown_in_the_end(browser: Browser, tmp_path: Path) -> None:
    """However they come: none waits for the next one, and a burst says where the rest of it is."""
    path = tmp_path / "agent.db"
    fill(str(path))
    with serving(path, tmp_path) as server, EventLog(path) as log:
        visit = Visit(browser, server)
        page, first = visit.page, visit.page.locator("#stream .event").first
        expect(page.locator("#dot.on")).to_be_visible()
        for n in range(12):
            log.append("user", f"one of many {n}")
            page.wait_for_timeout(70 * (n % 4))
        expect(first).to_contain_text("one of many 11")
        expect(page.locator("#as-of")).to_have_text("418")
        expect(page.locator("#facets li").filter(has_text="user")).to_contain_text("112")
        log.append_many([("user", f"burst {n}", None) for n in range(600)])
        expect(first).to_contain_text("burst 599")
        expect(page.locator("#stream")).to_contain_text("from event 818 down")
        # A list that has become long begins anew.
        log.append_many([("user", f"more {n}", None) for n in range(200)])
        expect(first).to_contain_text("more 199")
        page.wait_for_timeout(600)
        log.append_many([("user", f"last {n}", None) for n in range(200)])
        expect(first).to_contain_text("last 199")
        expect(page.locator("#stream .event")).to_have_count(50)
        visit.context.close()
        assert visit.problems == []


def test_the_past_by_click_and_by_keys(visit: Visit, server: WebServer) -> None:
    page = visit.page
    expect(page.locator("#chart canvas")).to_be_visible()
    over = page.locator("#chart .u-over").bounding_box()
    assert over is not None
    page.mouse.click(over["x"] + over["width"] * 0.4, over["y"] + 20)
    position = page.locator("#position")
    expect(page.locator("#header")).to_contain_text("the past")
    at = int(position.get_attribute("data-at") or "")
    assert page.url.endswith(f"/?at={at}")
    with connect(path_of(server)) as cache:
        for key, step in (("Shift+ArrowRight", 1), ("Shift+ArrowRight", 1), ("Shift+ArrowLeft", -1)):
            page.keyboard.press(key)
            at += step
            expect(position).to_have_attribute("data-at", str(at))
            frame = cache.frame_at(at)
            expect(page.locator("#header .gas")).to_have_text(f"{frame.metrics().gas:.3f}")
            expect(page.locator("#open-title small")).to_have_text(f"{len(frame.commitments().open)}")
            expect(page.locator("#stream .event").first).to_have_attribute("id", f"e{at}")
        page.keyboard.press("ArrowLeft")
        expect(position).not_to_have_attribute("data-at", str(at))
    page.get_by_role("link", name="Now").click()
    expect(page.locator("#header")).to_contain_text("healthy")
    page.go_back()
    expect(page.locator("#header")).to_contain_text("the past")


def test_why_leads_into_the_stream(visit: Visit) -> None:
    page = visit.page
    page.locator("#parts a.why").nth(1).click()
    expect(page.locator("#why-title")).to_contain_text("trait openness")
    link = page.locator("#why tbody a").first
    event_id = link.inner_text().replace(",", "")
    link.click()
    expect(page.locator("#stream .event").first).to_have_attribute("id", f"e{event_id}")
    page.locator(f"#e{event_id} summary").click()
    expect(page.locator(f"#e{event_id} .json")).to_contain_text('"trait": "openness"')
    page.locator("#directives-title ~ ol a.why").first.click()
    expect(page.locator("#why-title")).to_contain_text("Why: directive <script>alert('x')")
    expect(page.locator("#why tbody tr")).to_have_count(1)
    expect(page.locator("#why tbody tr")).to_contain_text("first seen")


def test_facets_filters_and_pages(visit: Visit) -> None:
    page = visit.page
    page.locator("#facets a", has_text="trait_update").click()
    kinds = page.locator("#stream .event .kind")
    expect(kinds.first).to_have_text("trait_update")
    assert set(kinds.all_inner_texts()) == {"trait_update"}
    first = page.locator("#stream .event").first.get_attribute("id")
    page.get_by_role("link", name="Older", exact=True).click()
    expect(page.locator(f"#{first}")).to_have_count(0)
    page.get_by_role("link", name="All, newest").click()
    expect(page.locator("#stream input[name=kind]")).to_have_value("")
    page.locator("#stream input[name=text]").fill("plan week 17?")
    page.locator("#stream input[name=text]").press("Enter")
    expect(page.locator("#stream .event")).to_have_count(1)


def test_search_and_context(visit: Visit, server: WebServer) -> None:
    page = visit.page
    page.locator("input[name=q]").fill("plan week 5")
    page.locator("input[name=q]").press("Enter")
    expect(page.locator("#search-results")).to_contain_text("plan week 5")
    page.locator("#context-form textarea").fill("What did I ask for?")
    page.locator("#context-form button").click()
    expect(page.locator("#context-result")).to_contain_text("# Context (layout 1)")


def test_hostile_text_is_text(visit: Visit) -> None:
    page = visit.page
    shown = HOSTILE.replace("\u202e", "[U+202E]").replace("\u2066", "[U+2066]")
    expect(page.locator("#open-title ~ #open")).to_contain_text(shown)
    assert page.locator("bdi b, bdi i, bdi script, bdi img").count() == 0
    # 10 MB of it.
    page.goto(page.url.split("?")[0] + "?text=%3Cb%3E%3Cb%3E%3Cb%3E%3Cb%3E")
    expect(page.locator("#stream .event")).to_have_count(1)
    expect(page.locator("#stream .event")).to_contain_text("9,999,999 characters")
    page.locator("#stream .event summary").click()
    expect(page.locator("#stream .json")).to_contain_text("Cut: content")


def test_another_profile_is_refused(browser: Browser, server: WebServer) -> None:
    context = browser.new_context()
    answer = context.new_page().goto(f"http://127.0.0.1:{server.port}/")
    assert answer is not None
    assert answer.status == 403
    context.close()


@pytest.mark.parametrize("width", [320, 360, 640])
def test_no_width_lets_the_page_scroll_sideways(browser: Browser, server: WebServer, width: int) -> None:
    visit = Visit(browser, server, viewport={"width": width, "height": 800})
    expect(visit.page.locator("#chart canvas")).to_be_visible()
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    visit.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page_with_the_keyboard_alone(browser: Browser, server: WebServer, scheme: Any) -> None:
    visit = Visit(browser, server, viewport={"width": 400, "height": 800}, color_scheme=scheme)
    page = visit.page
    expect(page.locator("#chart canvas")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    # Every control can be reached by Tab alone; the first one skips to the mind.
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Skip to the mind")
    page.evaluate("window.isSame = true")
    page.keyboard.press("Enter")
    page.wait_for_url("**/#mind")
    assert page.evaluate("window.isSame")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.locator("a.why:focus").count():
            break
    page.keyboard.press("Enter")
    expect(page.locator("#why-title:focus")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator("button.close:focus")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.locator("#why-title")).to_have_count(0)
    expect(page.locator("a.why:focus")).to_be_visible()
    visit.context.close()
    assert visit.problems == []


def test_without_scripts(browser: Browser, server: WebServer) -> None:
    visit = Visit(browser, server, java_script_enabled=False)
    page = visit.page
    expect(page.locator("#chart svg polyline.ias")).to_have_count(1)
    page.locator("#position input[name=at]").fill(str(PAST))
    page.locator("#position input[name=at]").press("Enter")
    expect(page.locator("#header")).to_contain_text(f"{PAST}")
    page.locator("a.why").nth(1).click()
    expect(page.locator("#why-title")).to_contain_text("openness")
    page.go_back()
    page.locator("#context-form textarea").fill("hello")
    page.locator("#context-form button").click()
    expect(page.locator("pre.block")).to_contain_text("# Context (layout 1)")
    page.goto(f"http://127.0.0.1:{server.port}/facets")
    expect(page.locator(".facets")).to_contain_text("trait_update")
    visit.context.close()


def test_the_page_is_painted_and_works_before_its_scripts_come(browser: Browser, server: WebServer) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    held: list[Route] = []
    page.route(
        "**/static/**", lambda route: route.continue_() if "start.js" in route.request.url else held.append(route)
    )
    page.goto(server.address)
    # Asked from here: a page that waits by itself evaluates text, which the page's policy forbids.
    until(lambda: page.evaluate("performance.getEntriesByName('first-contentful-paint').length"), "a first paint")
    assert page.evaluate("getComputedStyle(document.body).maxWidth") == "1180px"
    # A link and a form load a page.
    page.locator("#parts a.why").first.click()

    def is_answered() -> bool:
        # A page that shows progress asks again when its scripts have come.
        title = page.locator("h1").inner_text()
        if title == "Replaying":
            page.reload()
        return title == "Why"

    until(is_answered, "the events behind a value")
    page.go_back()
    page.locator("#stream input[name=kind]").fill("trait_update")
    page.locator("#stream input[name=kind]").press("Enter")
    page.wait_for_url("**/?kind=trait_update**")
    # What was opened meanwhile is filled when the scripts come.
    event = page.locator("#stream .event").first
    event.locator("summary").click()
    expect(event.locator(".json a").first).to_be_visible()
    page.wait_for_timeout(100)
    assert page.locator("html.scripted").count() == 0
    page.unroute("**/static/**")
    for route in held:
        with suppress(Error):
            route.continue_()
    expect(event.locator(".json")).to_contain_text('"trait": "openness"')
    expect(page.locator("#chart canvas")).to_be_visible()
    context.close()


def test_the_page_says_that_the_server_is_gone_and_sees_a_daemon_come(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    fill(str(path))
    with serving(path, tmp_path) as server:
        visit = Visit(browser, server)
        page = visit.page
        expect(page.locator("#header .health")).to_have_text("absent")
        with ForkedDaemon(path):
            until(lambda: run("status", str(path), "--json").code == 0, "the daemon")
            page.evaluate("document.body.dispatchEvent(new CustomEvent('looked'))")
            expect(page.locator("#header .health")).to_contain_text("healthy")
        server.program.kill()
        page.locator("#position a.go").first.click()
        expect(page.locator("#notice")).to_have_text("The server does not answer.")
        expect(page.locator("#header")).to_contain_text("IAS")
        visit.context.close()


def test_a_held_key_asks_for_few_positions(visit: Visit) -> None:
    page = visit.page
    expect(page.locator("#chart canvas")).to_be_visible()
    asked: list[str] = []
    held: list[Route] = []

    def ask(route: Route) -> None:
        asked.append(route.request.url.partition("at=")[2])
        if len(asked) == 1:
            held.append(route)
        else:
            route.continue_()

    page.route("**/mind?at=*", ask)
    page.evaluate(
        "for (let n = 0; n < 20; n++) document.body.dispatchEvent("
        "new KeyboardEvent('keydown', { key: 'ArrowLeft', bubbles: true }))"
    )
    expect(page.locator("#header")).to_contain_text("the past")
    # The first one, which takes long, and the last one, which may be asked for again until it is replayed.
    last = page.evaluate("String(state.at)")
    expect(page.locator("#position")).to_have_attribute("data-at", last)
    assert asked[0] != last
    assert set(asked[1:]) == {last}


def test_progress_of_a_replay_that_is_cancelled(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "long.db"
    with EventLog(path) as log:
        for _ in range(6):
            log.append_many([("commitment_open", "", {"cid": f"c{n}", "text": "t"}) for n in range(10_000)])
    with ForkedDaemon(path), serving(path, tmp_path) as server:
        visit = Visit(browser, server)
        visit.page.locator("#position input[name=at]").fill("59000")
        visit.page.locator("#position input[name=at]").press("Enter")
        # It may be quicker than the look at it.
        cancel, shown = (
            visit.page.get_by_role("button", name="Cancel"),
            visit.page.locator("#position[data-at='59000']"),
        )
        expect(cancel.or_(shown).first).to_be_visible()
        # In one step: by the next one it may be gone.
        visit.page.evaluate("document.querySelector('#mind .waiting form button')?.click()")
        expect(visit.page.get_by_text("Cancelled").or_(shown).first).to_be_visible()
        # Whoever goes elsewhere waits for no replay that was left.
        visit.wait_scripts()
        visit.page.evaluate("go(58000); go(57000); go(30)")
        expect(visit.page.locator("#position[data-at='30']")).to_be_visible()
        visit.context.close()
