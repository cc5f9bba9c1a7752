"""Stores that a broken disk has torn."""

from __future__ import annotations

import json
import random

import pytest

from pmm_shm.instance.paths import Instance
from pmm_shm_client import connect
from tests.conftest import StartDaemon
from tests.support.answers import everything, replayed
from tests.support.torn_stores import (
    TEARINGS,
    Tear,
    kill_with_older_copy,
    published,
    put,
    survive,
)

# Power losses.


@pytest.mark.parametrize("tear", TEARINGS)
def test_a_torn_store_under_the_same_boot_is_survived(ledger: str, tear: Tear, start_daemon: StartDaemon) -> None:
    """No power loss does this, a broken disk may: a start makes it anew, a verification finds it, or LMDB ends each
    daemon, until somebody removes `boot.json`.
    """
    older = kill_with_older_copy(ledger, start_daemon)
    instance = Instance.of(ledger)
    newest, mark = instance.data_file.read_bytes(), json.loads(instance.boot_file.read_text())
    for seed in range(3):
        put(instance, tear(newest, older, random.Random(seed)), **mark)
        survive(ledger)
        with connect(ledger) as cache:
            assert everything(cache) == replayed(ledger)
        assert published(ledger) == 500
