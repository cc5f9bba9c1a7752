"""What a user's type checker says: right programs pass, and a wrong key or name is found in each kind of result."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ledgers

RIGHT = """
from typing import Any

from pmm_shm_client import Cache, Commitments, Event, Frame, Hits, Recollection, Stats, connect


def ids(hits: Hits[Recollection]) -> list[int]:
    return [hit.event["id"] for hit in hits]


def decide(frame: Frame) -> list[tuple[str, str, dict[str, Any]]]:
    return [("commitment_close", "", {"cid": cid}) for cid in frame.commitments().open]


def main(cache: Cache) -> None:
    open_ones: Commitments = cache.commitments()
    for cid, entry in open_ones.open.items():
        print(cid, entry["cid"], entry["text"], entry.get("source"), entry.get("snoozed_until"))
    for gone in open_ones.expired.values():
        print(gone["expired_at"] + 1, gone["reason"])
    print(ids(cache.recall("apple")), cache.search("apple")[0].similarity + 1.0, repr(cache.search("x")))
    model = cache.self_model(strict=True)
    print(model["identity"]["traits"]["openness"] + 1.0, model["commitments"]["open"])
    stats: Stats = cache.stats()
    print(stats["metrics"]["hit_rate"] + 1.0, stats["projection"]["verifications_passed"] + 1)
    if stats["daemon"] is not None:
        print(stats["daemon"]["sizes"]["ledger_bytes"] + 1, stats["daemon"]["workers"]["live"] + 1)
    print(cache.stage().snapshot["IAS_mean"] + 1.0, cache.directives()[0]["seen_count"] + 1)
    print(cache.active_directives()[0]["score"] + 1.0)
    events: list[Event] = cache.events("user", after=3, newest_first=True)
    print([event.content.upper() for event in events], cache.event(1))
    frame = cache.frame()
    cache.append("user", "hello", expected_head=frame)
    cache.append_many([("user", "hello", None), {"kind": "user"}], expected_head=frame.as_of)
    print(cache.decide(decide)[0] + 1, frame.to_dict()["as_of"], cache.metrics().to_json().upper())


with connect("agent.db", create=True, durability="full") as opened:
    main(opened)
"""
WRONG = {
    'cache.commitments().open["a"]["txt"]': "txt",
    'cache.commitments().expired["a"]["expired"]': "expired",
    'cache.frame().commitments().open["a"]["txt"]': "txt",
    'cache.recall("x")[0].event["contents"]': "contents",
    'cache.search("x")[0].event': "event",
    'cache.self_model()["identity"]["nam"]': "nam",
    'cache.self_model()["commitments"]["closed"]': "closed",
    'cache.stats()["projections"]': "projections",
    'cache.stats()["metrics"]["hitrate"]': "hitrate",
    '(cache.stats()["daemon"] or {})["as_off"]': "as_off",
    'cache.stage().snapshot["IAS"]': "IAS",
    'cache.directives()[0]["text"]': "text",
    'cache.active_directives()[0]["scores"]': "scores",
    "cache.events()[0].text": "text",
    "cache.metrics().iaz": "iaz",
    'cache.append("user", expected_head="3")': "expected_head",
    'connect("a.db", durability="fast")': "durability",
}
"""A wrong expression, and a word of the complaint."""


_ROOTS = ledgers.checkout_path().split(os.pathsep)[:3]


def program(folder: Path) -> tuple[Path, dict[int, str]]:
    """A program with the wrong expressions, and those by line."""
    head = "from pmm_shm_client import Cache, connect\n\n\ndef main(cache: Cache) -> None:\n"
    lines = head.split("\n")[:-1] + [f"    print({expression})" for expression in WRONG]
    path = folder / "wrong.py"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    first = len(head.split("\n"))
    return path, {first + number: expression for number, expression in enumerate(WRONG)}


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_right_programs_pass_and_each_wrong_key_is_found(checker: str, tmp_path: Path) -> None:
    pytest.importorskip(checker)
    right, (wrong, expressions) = tmp_path / "right.py", program(tmp_path)
    right.write_text(RIGHT, encoding="utf-8")
    # The types of numpy take ten seconds, and no result has them.
    options = "[mypy]\nstrict = True\nno_site_packages = True\nignore_missing_imports = True\nfollow_imports = silent\n"
    (tmp_path / "mypy.ini").write_text(options, encoding="utf-8")
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}', encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", checker, right.name, wrong.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ledgers.checkout_path(), "MYPYPATH": os.pathsep.join(_ROOTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    found: dict[int, str] = {}
    for line in said.splitlines():
        match = re.search(r"(right|wrong)\.py:(\d+)(?::\d+)?\S* -? ?error: (.*)", line)
        if match:
            assert match[1] == "wrong", line
            found[int(match[2])] = found.get(int(match[2]), "") + match[3]
    assert {line: expressions[line] for line in found} == expressions, said
