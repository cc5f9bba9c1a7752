"""A user's own function as an embedder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pmm_shm.errors import ConfigError
from pmm_shm.vectors.embedder import Embedder, checked_embedder


class FunctionEmbedder(Embedder):
    """Embeds with a function that takes a list of texts and returns as many vectors, in the same order.

    Parameters:
        name: the model; another function or another version of it needs another name.
        dimension: of the vectors that the function returns.
        function: may raise anything on failure. Several threads may call it at the same time.
        batch_max: the most texts that the function accepts at once.
        takes_empty: whether the function accepts the empty text.

    Raises:
        ConfigError: a name or number beyond the limits, or `function` is not callable.
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
        # A copy, which the function may change.
        return self._function(list(texts))
