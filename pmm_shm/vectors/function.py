"""A user's own function as an embedder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pmm_shm.errors import ConfigError
from pmm_shm.vectors.embedder import Embedder, checked_embedder


class FunctionEmbedder(Embedder):
    """Embeds by a function: it takes a list of texts and returns as many vectors, in their order.

    Parameters:
        name: the model; another function, or another version of it, needs another name.
        dimension: of the vectors that the function returns.
        function: may raise anything where it fails. Several threads may call it at the same time.
        batch_max: how many texts the function takes at once.
        takes_empty: whether the function takes the empty text.

    Raises:
        ConfigError: a name or number beyond the limits, or a function that cannot be called.
    """

    def __init__(
        self,
        name: str,
        dimension: int,
        function: Callable[[list[str]], Any],
        batch_max: int = 16,
        takes_empty: bool = False,
    ) -> None:
        self.name = name
        self.dimension = dimension
        self.batch_max = batch_max
        self.takes_empty = bool(takes_empty)
        checked_embedder(self)
        if not callable(function):
            raise ConfigError(f"embedder {name!r}: expected a function, got {type(function).__name__}")
        self._function = function

    def embed(self, texts: Sequence[str]) -> Any:
        # A list of its own: what the function does to it is nobody else's business.
        return self._function(list(texts))
