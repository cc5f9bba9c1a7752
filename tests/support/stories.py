"""A log that each part of an explanation can be shown on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import ledgers
from tests.support.answers import insert

STORY: list[tuple[str, str, Any]] = [
    ("identity_adopt", "Echo", {}),
    ("identity_adopt", "", {"name": ["x"]}),
    ("identity_change", "name changed to: Nova\x1b[31m", {}),
    ("identity_adopt", "  ", {}),
    ("identity_clear", "", {}),
    ("trait_update", "", {"trait": "o", "delta": 0.7}),
    ("trait_update", "", {"delta": {"openness": "-0.25", "O": -0.125, "c": 0.1}}),
    ("trait_update", "", {"trait": "openness", "delta": "much"}),
    ("commitment_open", "write", {"cid": "7", "text": "write"}),
    ("commitment_open", "", {"cid": "7"}),
    ("evidence_candidate", "", {"cid": "7", "evidence_type": ["done"]}),
    ("evidence_candidate", "", {"cid": "7", "evidence_type": "hint"}),
    ("evidence_candidate", "", {"cid": "7"}),
    ("evidence_candidate", "", {"cid": "7"}),
    ("commitment_snooze", "", {"cid": "7", "until_tick": 9}),
    ("commitment_snooze", "", {"cid": "7", "until_tick": 9}),
    ("commitment_open", "write", {"cid": 7, "text": "another"}),
    ("commitment_close", "", {"cid": "7"}),
    ("commitment_close", "", {"cid": "7"}),
    ("commitment_close", "", {"cid": 7}),
    ("commitment_open", "read", {"cid": -8, "text": "read"}),
    ("commitment_expire", "", {"cid": -8, "reason": "late"}),
    ("commitment_open", "true", {"cid": True, "text": "true"}),
    ("identity_change", "nothing of the kind", {}),
]


@pytest.fixture
def story(ledger: str) -> str:
    insert(
        ledger,
        [
            {"id": number, "ts": ledgers.TS.format(number), "kind": kind, "content": content, "meta": meta}
            for number, (kind, content, meta) in enumerate(STORY, 1)
        ],
    )
    return ledger
