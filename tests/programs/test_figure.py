"""`pmm-shm plot`: the same file for the same ledger, whatever its size; nothing personal unless asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pmm_shm.folds.history import NameChange, Point, StageChange
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_cli.main import cli
from pmm_shm_cli.plotting import _curve
from pmm_shm_client.results import History
from pmm_shm_terminal.timeline import Band, bands
from tests.support.figures import drawn


def point(first: int, last: int, *ias: float, stage: str = "S0") -> Point:
    return Point(first, last, 2 if last > first else 1, stage, *ias, *ias)


def history(**changes: Any) -> History:
    empty: dict[str, Any] = {"points": (), "stride": 1, "stages": (), "stage_changes": 0, "names": (), "as_of": 0}
    return History(**{**empty, "name_changes": 0, **changes})


@pytest.mark.usefixtures("_with_matplotlib")
def test_names_and_a_title_only_where_they_are_asked_for(ledger: str, tmp_path: Path) -> None:
    with EventLog(ledger) as log:
        log.append("identity_adopt", "Quaxly $x_1$ \x1b")
        log.append_many([("commitment_close", "", {})] * 3)
    # Text is drawn as outlines; beside them stands what they are, as a comment.
    plain, asked = drawn(ledger, tmp_path / "a.svg"), drawn(ledger, tmp_path / "b.svg", "--names", "--title", "Seven")
    assert b"Quaxly" not in plain
    assert b"Seven" not in plain
    assert b"Quaxly $x_1$ ?" in asked
    assert b"Seven" in asked
    assert b"IAS" in plain


@pytest.mark.usefixtures("_with_matplotlib")
def test_png(ledger: str, tmp_path: Path) -> None:
    image = drawn(ledger, tmp_path / "a.PNG")
    assert image.startswith(b"\x89PNG")
    assert drawn(ledger, tmp_path / "b.png") == image


@pytest.mark.parametrize(
    ("name", "said"), [("a.pdf", "expected a name ending in .svg or .png"), ("ledger.svg", "is the ledger")]
)
def test_a_name_that_will_not_do(name: str, said: str, tmp_path: Path) -> None:
    path = str(tmp_path / "ledger.svg")
    EventLog(path).close()
    with EventLog(path) as log:
        log.append("user", "hello")
    ran = CliRunner().invoke(cli, ["plot", path, "-o", str(tmp_path / name)])
    assert ran.exit_code == 2
    assert said in ran.output
    with EventLog(path) as log:
        assert len(log.read_all()) == 1


def test_the_curve_is_a_step_between_the_ends_of_each_point() -> None:
    points = (point(5, 5, 0.2, 0.2, 0.2, 0.2), point(8, 11, 0.3, 0.5, 0.1, 0.6))
    ids, lows, highs, values = _curve(points, "ias", 2.0, 20.0)
    assert ids == [2.0, 5, 8, 11, 20.0]
    assert values == [0.0, 0.2, 0.3, 0.5, 0.5]
    assert lows == [0.0, 0.2, 0.1, 0.5, 0.5]
    assert highs == [0.0, 0.2, 0.6, 0.5, 0.5]


def test_bands_are_exact_where_the_changes_are_known_and_those_of_the_points_before() -> None:
    assert bands(history()) == [Band(0.0, 1.0, "S0")]
    changes = (StageChange(10, "S1"), StageChange(20, "S0"))
    known = history(stages=changes, stage_changes=2, names=(NameChange(4, "x"),), as_of=30)
    assert bands(known) == [Band(4.0, 10.0, "S0"), Band(10.0, 20.0, "S1"), Band(20.0, 30.0, "S0")]
    points = (point(2, 2, *[0.1] * 4, stage="S2"), point(9, 9, *[0.1] * 4, stage="S1"))
    older = history(points=points, stages=changes[1:], stage_changes=9, as_of=30)
    assert bands(older) == [Band(2.0, 9.0, "S2"), Band(9.0, 20.0, "S1"), Band(20.0, 30.0, "S0")]
