"""Makes the pictures of `docs/web`: the page of `pmm-shm web` over a synthetic ledger, in Debian's Chromium.

`make screenshots` runs it. The ledger is always the same, and so are the pictures, except for the fonts of the machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "web"
EVENTS, SEED, PAST = 3_000, 7, 1_500


def _environment() -> dict[str, str]:
    folders = [str(ROOT / name) for name in ("", "server", "client")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])}


def main() -> None:
    """Write `now.png`, `past.png`, `why.png` and `narrow.png`."""
    PICTURES.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pmm_shm_cli"]
    with tempfile.TemporaryDirectory() as folder:
        ledger = os.path.join(folder, "agent.db")
        made = [*command, "generate", ledger, "--events", str(EVENTS), "--seed", str(SEED)]
        subprocess.run(made, check=True, env=_environment(), stdout=subprocess.DEVNULL)
        daemon = subprocess.Popen(
            [sys.executable, "-m", "pmm_cached", ledger], env=_environment(), stderr=subprocess.DEVNULL
        )
        server = subprocess.Popen(
            [*command, "web", ledger, "--port", "0"], env=_environment(), stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            _take(server.stdout.readline().strip())
        finally:
            for process in (server, daemon):
                process.terminate()
                process.wait()


def _take(address: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, scheme, width in (("now", "light", 1_180), ("narrow", "dark", 400)):
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
            page = context.new_page()
            page.goto(address)
            page.locator("#chart canvas").wait_for()
            page.locator("#facets li").first.wait_for()
            page.locator("#dot.on").wait_for()
            page.locator("#header .healthy").wait_for()
            page.screenshot(path=PICTURES / f"{name}.png")
            if name == "now":
                page.goto(page.url.split("?")[0] + f"?at={PAST}")
                page.locator("html.scripted").wait_for()
                page.locator("#parts a.why").nth(1).click()
                page.locator("#why-title").wait_for()
                page.locator("#chart canvas").wait_for()
                page.evaluate("window.scrollTo(0, 0)")
                page.screenshot(path=PICTURES / "past.png", full_page=False)
                page.locator("#directives-title ~ ol a.why").first.click()
                page.get_by_text("Why: directive").wait_for()
                page.locator("#why").screenshot(path=PICTURES / "why.png")
            context.close()
        browser.close()


if __name__ == "__main__":
    main()
