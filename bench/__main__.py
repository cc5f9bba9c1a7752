"""`python -m bench`: measures, prints a table, writes `report.json` and plots; with `--page`, the page in `docs/`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import page, plots
from bench.children import compile_packages
from bench.context import Bench
from bench.report import FORMAT, shown
from bench.rows import ROWS
from bench.scale import FULL, QUICK, Scale
from bench.sites import Ledgers, Sites
from pmm_shm_cli.benchmark import machine

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    options = _options()
    scale = QUICK if options.quick else FULL
    if options.events is not None:
        scale = scale._replace(events=tuple(sorted(set(options.events))))
    report = run(options.rows or list(ROWS), scale, options.directory)
    (options.directory / page.DATA).write_text(as_text(report), encoding="utf-8")
    plots.write(report, options.directory)
    if options.page:
        page.write(ROOT / "docs", report)
        plots.write(report, ROOT / "docs" / "bench")
    if options.json:
        print(json.dumps(report))
    else:
        shown(report, Console(width=None if sys.stdout.isatty() else 160))


def run(numbers: Sequence[int], scale: Scale, directory: Path) -> dict[str, Any]:
    """Measure these rows; ledgers are kept in `directory`, all else of the run goes.

    Raises:
        WrongAnswerError: two sides gave different answers.
    """
    for name in [name for name in os.environ if name.startswith("PMM_")]:
        # The product is measured with its defaults, not with the settings of this shell.
        del os.environ[name]
    compile_packages()
    directory.mkdir(parents=True, exist_ok=True)
    facts = machine()
    began = time.monotonic()
    kept = Ledgers(directory / "ledgers", say)
    work = Path(tempfile.mkdtemp(prefix="work-", dir=directory))
    sites = Sites(kept, work, scale.shared_events_min)
    try:
        rows = [ROWS[number](Bench(scale, sites, say)).as_dict() for number in numbers]
    finally:
        sites.close()
        shutil.rmtree(work, ignore_errors=True)
    facts["load at the end"] = [round(value, 2) for value in os.getloadavg()]
    return {
        "format": FORMAT,
        "machine": facts,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "scale": scale._asdict(),
        "rows": rows,
    }


def as_text(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=1) + "\n"


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text} (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rows", type=_numbers, help="only these rows: 1,2,11")
    parser.add_argument("--events", type=_numbers, help="only ledgers of so many events: 1000,100000")
    parser.add_argument("--quick", action="store_true", help="tiny: whether it runs, not how fast")
    parser.add_argument("--page", action="store_true", help="write docs/BENCHMARKS.md and docs/bench/")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--directory", type=Path, default=ROOT / ".bench", help="for ledgers, data and plots")
    options = parser.parse_args()
    unknown = sorted(set(options.rows or ()) - set(ROWS))
    if unknown:
        parser.error(f"--rows: there is no row {', '.join(map(str, unknown))}; there are {min(ROWS)} to {max(ROWS)}")
    return options


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part.replace("_", "")) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, got {text!r}") from None
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"expected numbers from 1, got {text!r}")
    return numbers


if __name__ == "__main__":
    main()
