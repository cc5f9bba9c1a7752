"""`pmm-shm run` on the stand-in for PMM with the replacements that are shipped: every name, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.instance.paths import Instance
from pmm_shm.wire.endpoints import find_endpoints
from pmm_shm_client import connect
from pmm_shm_client.autostart import is_running
from pmm_shm_pmm.folds import FOLDS
from pmm_shm_pmm.seams import SEAMS
from tests.support import daemons, standin_package

LOOK = """
import inspect, json, pickle, sys
from pmm.runtime.loop import Runtime
import pmm.commitments.restructuring
from pmm_shm_pmm.patching import current
from pmm_shm_pmm.seams import SEAMS

patcher = current()
found = {}
for seam in SEAMS:
    value, original = sys.modules[seam.module], patcher.original(seam.module, seam.name)
    for name in seam.name.split("."):
        value = getattr(value, name)
    try:
        signatures = [str(inspect.signature(one)) for one in (value, original)]
    except (TypeError, ValueError) as error:
        signatures = [repr(error)]
    found[seam.label] = {
        "is_replaced": value is not original,
        "same": [
            signatures[0] == signatures[-1],
            value.__module__ == original.__module__,
            value.__qualname__ == original.__qualname__,
            value.__doc__ == original.__doc__,
            pickle.loads(pickle.dumps(value)) is value,
        ],
    }
print(json.dumps([found, patcher.kept]))
"""
# The class is replaced as a whole.
NOT_BY_NAME = {"pmm.storage.eventlog:EventLog.read_all"}
NOT_NEEDED = {
    "pmm.commitments.tracker:CommitmentTracker.add_commitment",
    "pmm.commitments.tracker:CommitmentTracker.close_reflection_on_next",
}


def look(folder: Path, root: Path = standin_package.ROOT, **changes: str) -> tuple[dict[str, Any], dict[str, str]]:
    table = folder / "known.json"
    table.write_text(json.dumps(standin_package.hashes()), encoding="utf-8")
    (folder / "look.py").write_text(LOOK, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pmm_shm_cli", "run", "--no-daemon", "--elect-autonomy", "look.py"],
        env={**daemons.with_path(root), "PMM_SHM_SOURCES": str(table), **changes},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, kept = json.loads(done.stdout)
    return found, kept


def test_every_name_is_replaced_and_looks_as_before(folder: Path) -> None:
    found, kept = look(folder)
    there = {seam.label for seam in SEAMS if find_spec(f"pmm_shm_pmm.{seam.home}") is not None}
    assert {label: why for label, why in kept.items() if label in there} == {}
    for label in there - NOT_BY_NAME:
        assert found[label]["is_replaced"] or label in NOT_NEEDED, label
        assert all(found[label]["same"]), (label, found[label]["same"])


def test_a_short_program_leaves_a_daemon_with_the_folds_of_pmm(folder: Path) -> None:
    ledger = folder / "agent.db"
    (folder / "short.py").write_text(
        "import sys\nfrom pmm.storage.eventlog import EventLog\nfrom pmm.storage.projection import build_self_model\n"
        "log = EventLog(sys.argv[1])\nlog.append(kind='user', content='Hello', meta={})\n"
        "build_self_model(log.read_all())\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "pmm_shm_cli", "run", str(folder / "short.py"), str(ledger)],
        env=daemons.with_path(standin_package.ROOT),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    instance = Instance.of(ledger)
    try:
        daemons.until(lambda: is_running(instance), "the daemon answers")
        with connect(ledger) as cache:
            names = {fold.name for fold in FOLDS}
            daemons.until(lambda: names <= set((cache.stats()["daemon"] or {"folds": []})["folds"]), "PMM's folds")
    finally:
        daemons.end(find_endpoints(instance).pid)


@pytest.mark.parametrize(
    ("other", "kept_name"),
    [
        ("pmm.runtime.memegraph:MemeGraphProjection", None),
        ("pmm.storage.eventlog:EventLog.verify_chain", None),
        ("pmm.commitments.restructuring:CommitmentRestructurer._text_similarity", "consolidate_similar"),
    ],
)
def test_one_other_source_keeps_that_one_name(folder: Path, other: str, kept_name: str | None) -> None:
    found, kept = look(folder, standin_package.other(folder / "other", other))
    label = f"{other.rpartition('.')[0]}.{kept_name}" if kept_name else other
    assert kept[label].startswith("unknown source")
    assert not found[label]["is_replaced"]
    assert [name for name, why in kept.items() if why.startswith("unknown source")] == [label]
