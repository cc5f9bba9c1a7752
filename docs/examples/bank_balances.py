"""The balance of each owner's accounts in a bank on pyeventsourcing, whose module is `bank`."""

from collections.abc import Mapping
from typing import Any

from pmm_shm.folds.contract import Column, Fold
from pmm_shm.folds.helpers import Counter
from pmm_shm.folds.state import State
from pmm_shm.ledger.rows import Event

SIGNS = {"bank:Account.Opened": 0, "bank:Account.Deposited": 1, "bank:Account.Withdrawn": -1}


class Balances(Fold):
    """Owner to balance, in cents."""

    name = "balances"
    version = 1
    kinds: Mapping[str, tuple[Column, ...]] = dict.fromkeys(SIGNS, ("meta",))

    def apply(self, event: Event, state: State) -> None:
        account, values = event.meta["originator_id"], event.meta["state"]
        owners = state.table("owners")
        if event.kind == "bank:Account.Opened":
            owners[account] = str(values["owner"])
        Counter(state, "cents").add(owners[account], SIGNS[event.kind] * int(values.get("cents", 0)))

    def view(self, state: State) -> Any:
        return Counter(state, "cents").view()
