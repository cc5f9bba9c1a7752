"""How many tokens each model took in and gave out per day, from the log of simonw's `llm`."""

from collections.abc import Mapping
from typing import Any

from pmm_shm.folds.contract import Column, Fold
from pmm_shm.folds.helpers import Counter
from pmm_shm.folds.state import State
from pmm_shm.ledger.rows import Event


class Tokens(Fold):
    """(model, day, "in" or "out") to tokens."""

    name = "llm_tokens"
    version = 1
    kinds: Mapping[str, tuple[Column, ...]] = {"turn": ("meta",)}

    def apply(self, event: Event, state: State) -> None:
        turn, tokens = event.meta, Counter(state, "tokens")
        model, day = str(turn["model"]), event.ts[:10]
        # A model that reports no usage has NULL here.
        tokens.add((model, day, "in"), int(turn["input_tokens"] or 0))
        tokens.add((model, day, "out"), int(turn["output_tokens"] or 0))

    def view(self, state: State) -> Any:
        return Counter(state, "tokens").view()
