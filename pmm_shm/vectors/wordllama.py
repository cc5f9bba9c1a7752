"""The embedder `wordllama`: static word vectors from a package, for searches by meaning offline; an optional extra.

Nothing is ever downloaded: only the package's own folder is read. The weights (33 MB as float32) are loaded on first
use, once per process.

A vector depends on its text alone, never on other texts in the batch: each text is split into tokens and averaged by
itself, a long one in pieces. The library's own `embed` pads a batch to its longest text; one long text can need
gigabytes.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pmm_shm import limits
from pmm_shm.errors import EmbedderError, InvalidTextError
from pmm_shm.late import late_imports
from pmm_shm.vectors.embedder import Embedder, encodable

if TYPE_CHECKING:
    from pmm_shm.vectors.embedder import Matrix, Vector

NAME = "wordllama"
DIMENSION = 256

_WEIGHTS = "l2_supercat"
_PIECE_CHARS = 16_384


class WordLlama(Embedder):
    """`wordllama`: the mean of the word vectors of a text."""

    name = NAME
    dimension = DIMENSION
    batch_max = 256
    takes_empty = False

    def embed(self, texts: Sequence[str]) -> Matrix:
        """The vectors, (n, 256) float32.

        Raises:
            EmbedderError: the package is not installed, or its files are not the expected ones.
            InvalidTextError: a text without a token: the empty one.
        """
        import numpy as np

        model = _loaded()
        matrix = np.empty((len(texts), DIMENSION), np.float32)
        for row, text in zip(matrix, texts, strict=True):
            # The tokenizer rejects surrogates.
            readable = encodable(text)
            row[:] = 0.0
            count = 0
            for start in range(0, len(readable), _PIECE_CHARS):
                # One by one, because the batch call starts threads, which do not survive a fork.
                piece = model.tokenizer.encode(readable[start : start + _PIECE_CHARS], add_special_tokens=False)
                row += model.embedding[piece.ids].sum(axis=0)
                count += len(piece.ids)
            if not count:
                raise InvalidTextError(f"text: without a token, and model {NAME!r} has no vector for that")
            row /= count
        return matrix


def word_vectors(words: Sequence[str]) -> Matrix:
    """The vectors of some words, (n, 256) float32, each of length 1.

    Raises:
        EmbedderError: the package is not installed, or its files are not the expected ones.
    """
    import numpy as np

    return np.concatenate([_word_vector(word) for word in words]).reshape(len(words), DIMENSION)


@lru_cache(limits.MATCH_VECTORS_KEPT)
def _word_vector(word: str) -> Vector:
    import numpy as np

    model = _loaded()
    piece = model.tokenizer.encode(encodable(word), add_special_tokens=False)
    row: Vector = model.embedding[piece.ids].sum(axis=0)
    length = np.linalg.norm(row)
    return row / length if length else row


def is_installed() -> bool:
    """Whether the package is there; nothing is imported."""
    return find_spec(NAME) is not None


_model: Any = None
_loading = threading.Lock()


def _loaded() -> Any:
    """The library's model: `embedding`, (tokens, 256) float32, and `tokenizer`."""
    global _model
    if _model is None:
        with _loading:
            if _model is None:
                _model = _load()
    return _model


def _load() -> Any:
    try:
        library = _imported()
        # Given a folder that contains the tokenizer, the library does not look for it on the network.
        model = library.WordLlama.load(
            _WEIGHTS, dim=DIMENSION, cache_dir=Path(library.__file__).parent, disable_download=True
        )
    except ImportError as error:
        raise EmbedderError(f"embedder {NAME!r}: not installed ({error}): {_remedy()}") from error
    except Exception as error:
        text = f"embedder {NAME!r}: the package does not load: {type(error).__name__}: {error}"
        raise EmbedderError(f"{' '.join(text.split())}; install it anew: {_remedy()}") from error
    # A batch pads; one text alone does not need it.
    model.tokenizer.no_padding()
    return model


def _remedy() -> str:
    with late_imports:
        from pmm_shm.installation import extra_command

    return extra_command(NAME)


def _imported() -> Any:
    """The package. Its import would log to stderr for the whole process unless the root logger has a handler."""
    root, placeholder = logging.getLogger(), logging.NullHandler()
    root.addHandler(placeholder)
    try:
        with late_imports:
            import wordllama
    finally:
        root.removeHandler(placeholder)
    return wordllama


def _renew_lock() -> None:
    """In a forked child, which does not have the thread that may hold the lock."""
    global _loading
    _loading = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)
