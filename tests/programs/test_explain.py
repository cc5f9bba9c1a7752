"""`explain`: the value it ends with is the one that is read, and each listed event does what is said of it."""

from __future__ import annotations

import json

import pytest

from pmm_shm_client import connect
from tests.support import daemons
from tests.support.command import run


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("trait", "courage"), 2, "trait: expected one of openness"),
        (("commitment", "c9"), 1, "no event speaks of commitment 'c9'"),
        (("directive", "be nice"), 1, "no event has the directive 'be nice'"),
        (("commitment", "1"), 1, "no event speaks of commitment '1'"),
        (("commitment", "x", "--integer"), 2, "CID: 'x' is not an integer"),
        (("commitment", "0", "--integer"), 2, "no commitment has the id 0"),
        (("metrics", "--integer"), 2, "--integer means something for commitment only"),
        (("identity",), 2, "WHAT: expected identity.name"),
        (("trait",), 2, "WHAT: expected identity.name"),
        (("metrcs",), 2, "trait NAME, directive TEXT, or metrics; did you mean metrics?"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], code: int, said: str, story: str) -> None:
    ran = daemons.run_python("from pmm_shm_cli.main import main; main()", "explain", story, *words)
    assert (ran.returncode, ran.stdout) == (code, "")
    assert ran.stderr.startswith("pmm-shm: ")
    assert ran.stderr.count("\n") == 1
    assert said in ran.stderr


def test_without_what_it_lists_what_there_is(story: str) -> None:
    found = json.loads(run("explain", story, "--json").out)
    with connect(story) as cache:
        frame = cache.frame()
    assert found["as_of"] == frame.as_of
    assert found["subjects"]["identity.name"] == frame.identity().name
    assert found["subjects"]["metrics"] == {"ias": frame.metrics().ias, "gas": frame.metrics().gas}
    names = {f"commitment {cid}" for part in (frame.commitments().open, frame.commitments().expired) for cid in part}
    assert {name for name in found["subjects"] if name.startswith("commitment ")} == names
    # Each of them can be explained as it is printed.
    for name in found["subjects"]:
        assert run("explain", story, "--", *name.split(" ", 1)).code == 0, name
    ran = run("explain", env={"PMM_DB": story})
    assert (ran.code, ran.err) == (0, "")
    for name in found["subjects"]:
        assert f"│ {name}" in ran.out
