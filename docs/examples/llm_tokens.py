"""How many tokens each model took in and gave out per day, from the log of simonw's `llm`."""

from collections.abc import Mapping
from typing import Any

from pmm_shm.folds.contract import Column, Fold
from pmm_shm.folds.state import State
from pmm_shm.frozen import frozen
from pmm_shm.ledger.rows import Event


class Tokens(Fold):
    """(tokens in, tokens out) by model and day."""

    name = "llm_tokens"
    version = 1
    kinds: Mapping[str, tuple[Column, ...]] = {"turn": ("meta",)}

    def apply(self, event: Event, state: State) -> None:
        turn, tokens = event.meta, state.table("tokens")
        key = (turn["resolved_model"] or turn["model"], event.ts[:10])
        taken, given = tokens.get(key, (0, 0))
        # A model that tells no usage has NULL here.
        tokens[key] = (taken + (turn["input_tokens"] or 0), given + (turn["output_tokens"] or 0))

    def view(self, state: State) -> Any:
        by_model: dict[str, dict[str, tuple[int, int]]] = {}
        for (model, day), tokens in sorted(state.table("tokens").items()):
            by_model.setdefault(model, {})[day] = tuple(tokens)
        return frozen(by_model)
