"""The folds in `docs/examples` for logs of other programs."""

from __future__ import annotations

from typing import Any

import pytest

from pmm_shm.testing import check_fold
from tests.support.ledgers import ROOT
from tests.support.program_logs import example


def stored(event: str, account: str, **values: Any) -> tuple[str, str, dict[str, Any]]:
    """One event as the shape of pyeventsourcing shows it."""
    return (f"bank:Account.{event}", "", {"originator_id": account, "originator_version": 1, "state": values})


def turn(model: str, day: str, tokens_in: int | None, tokens_out: int | None) -> dict[str, Any]:
    """One event as the shape of llm shows it."""
    meta = {"model": model, "resolved_model": None, "input_tokens": tokens_in, "output_tokens": tokens_out}
    return {"kind": "turn", "content": "", "meta": meta, "ts": f"{day}T10:00:00+00:00"}


BANK = [
    stored("Opened", "a1", owner="Ann"),
    stored("Opened", "b2", owner="Bob"),
    *(stored("Deposited", "a1", cents=cents) for cents in range(100, 500, 10)),
    stored("Withdrawn", "a1", cents=120),
]
TURNS = [
    turn("echo-1", "2026-01-02", 3, 4),
    turn("echo-2", "2026-01-02", None, None),
    *(turn("echo-1", f"2026-01-{day:02}", day, 10 * day) for day in range(2, 20)),
]


@pytest.mark.parametrize(
    ("name", "fold", "events"),
    [("bank_balances", "Balances", BANK), ("llm_tokens", "Tokens", TURNS)],
    ids=["bank_balances", "llm_tokens"],
)
def test_an_example_keeps_the_laws_of_a_fold(name: str, fold: str, events: list[Any]) -> None:
    check_fold(getattr(example(name), fold), events)


def test_the_page_shows_the_example() -> None:
    page = (ROOT / "docs" / "howto" / "any-log.md").read_text(encoding="utf-8")
    assert (ROOT / "docs" / "examples" / "bank_balances.py").read_text(encoding="utf-8") in page
