"""The balance of each account in a bank on pyeventsourcing, whose module is `bank`."""

from collections.abc import Mapping
from typing import Any

from pmm_shm.folds.contract import Column, Fold
from pmm_shm.folds.state import State
from pmm_shm.frozen import frozen
from pmm_shm.ledger.rows import Event

SIGNS = {"bank:Account.Deposited": 1, "bank:Account.Withdrawn": -1}


class Balances(Fold):
    """Cents by account."""

    name = "balances"
    version = 1
    kinds: Mapping[str, tuple[Column, ...]] = dict.fromkeys(["bank:Account.Opened", *SIGNS], ("meta",))

    def apply(self, event: Event, state: State) -> None:
        account, change = event.meta["originator_id"], event.meta["state"]
        cents = state.table("cents")
        if event.kind in SIGNS:
            cents[account] = cents[account] + SIGNS[event.kind] * change["cents"]
        else:
            cents[account], state.table("owners")[account] = 0, change["owner"]

    def view(self, state: State) -> Any:
        owners = state.table("owners")
        return frozen({owners[account]: cents for account, cents in state.table("cents").items()})
