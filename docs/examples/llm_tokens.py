"""How many tokens each model took in and gave out per day, from the log of simonw's `llm`."""

from collections.abc import Mapping
from typing import Any

from pmm_shm.folds.contract import Column, Fold
from pmm_shm.folds.helpers import Counter
from pmm_shm.folds.state import State
from pmm_shm.frozen import frozen
from pmm_shm.ledger.rows import Event


class Tokens(Fold):
    """`in` and `out`, each a table: "model day" to tokens."""

    name = "llm_tokens"
    version = 1
    kinds: Mapping[str, tuple[Column, ...]] = {"turn": ("meta",)}

    def apply(self, event: Event, state: State) -> None:
        turn = event.meta
        key = f"{turn['model']} {event.ts[:10]}"
        # A model that reports no usage has NULL here.
        Counter(state, "in").add(key, int(turn["input_tokens"] or 0))
        Counter(state, "out").add(key, int(turn["output_tokens"] or 0))

    def view(self, state: State) -> Any:
        return frozen({"in": Counter(state, "in").view(), "out": Counter(state, "out").view()})
