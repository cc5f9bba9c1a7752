"""The search benchmark runs: small, and without the peer it is compared with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support import daemons

PEER = "sqlite_vec"


def test_it_runs_without_the_peer(tmp_path: Path) -> None:
    # Found first, and as if it were not installed.
    (tmp_path / f"{PEER}.py").write_text("raise ImportError('hidden')\n", encoding="utf-8")
    command = [sys.executable, "-m", "bench.search", "--quick", "--json"]
    done = subprocess.run(
        command, env=daemons.with_path(tmp_path), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {"numpy, one matrix", "Cache.search", "Cache.embed"} <= {row["name"] for row in report["rows"]}
    assert all(0 < row["p50_us"] <= row["p99_us"] for row in report["rows"])
    assert not any(PEER.replace("_", "-") in row["name"] for row in (*report["rows"], *report["targets"]))
    assert any("sqlite-vec is not installed: left out" in note for note in report["notes"])
