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
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pmm_shm import limits
from pmm_shm.errors import EmbedderError, InvalidTextError
from pmm_shm.late import late_imports
from pmm_shm.vectors.embedder import Embedder, encodable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pmm_shm.vectors.embedder import Matrix

NAME = "wordllama"
DIMENSION = 256

_WEIGHTS = "l2_supercat"
_PIECE_CHARS = 16_384
_WORDS_AT_ONCE = 1_024
_WORD_TOKENS = 16
"""Few words have more."""
_SPACE = "\u2581"
"""Begins the tokens in front of which there is a space."""


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

    Parameters:
        words: letters and digits, as `pmm_shm.vectors.word_match.words_of` finds them.

    Raises:
        EmbedderError: the package is not installed, or its files are not the expected ones.
    """
    with _keeping:
        return _kept_words.of(words)


class _KeptWords:
    """The vectors of words asked for before. Not thread-safe."""

    def __init__(self) -> None:
        self.is_in_use = False
        self._rows: dict[str, int] = {}
        self._vectors: Matrix | None = None
        self._used = 0

    def of(self, words: Sequence[str]) -> Matrix:
        """The vectors of these words."""
        if self.is_in_use:
            # In a signal handler, halfway through a change by its own thread.
            return _made_vectors(words)
        self.is_in_use = True
        try:
            return self._of(words)
        finally:
            self.is_in_use = False

    def _of(self, words: Sequence[str]) -> Matrix:
        import numpy as np

        if self._vectors is None:
            # The system gives memory only to rows that are written.
            self._vectors = np.empty((limits.MATCH_VECTORS_KEPT, DIMENSION), np.float32)
        rows = np.array([self._rows.get(word, -1) for word in words], np.intp)
        vectors: Matrix = self._vectors[rows]
        new = np.flatnonzero(rows < 0)
        if len(new):
            vectors[new] = _made_vectors([words[at] for at in new.tolist()])
            if self._used + len(new) > len(self._vectors):
                # Those of this request are the likeliest to be asked for again.
                self._rows, self._used, new = {}, 0, np.arange(min(len(words), len(self._vectors)))
            start, self._used = self._used, self._used + len(new)
            self._vectors[start : self._used] = vectors[new]
            self._rows.update(zip((words[at] for at in new.tolist()), range(start, self._used), strict=True))
        return vectors


def _made_vectors(words: Sequence[str]) -> Matrix:
    import numpy as np

    model = _loaded()
    parts = []
    for start in range(0, len(words), _WORDS_AT_ONCE):
        part = words[start : start + _WORDS_AT_ONCE]
        # In one text, which takes less time. No token has a letter in front of the space that begins the next word.
        tokens = model.tokenizer.encode(encodable(" ".join(part)), add_special_tokens=False)
        starts = np.array([at for at, token in enumerate(tokens.tokens) if token[0] == _SPACE], np.intp)
        if len(starts) != len(part):
            raise EmbedderError(f"embedder {NAME!r}: an unknown tokenizer; install it anew: {_remedy()}")
        parts.append(_sums(model.embedding, np.array(tokens.ids, np.intp), starts))
    rows: Matrix = np.concatenate(parts)
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    rows /= np.where(lengths == 0.0, 1.0, lengths)[:, np.newaxis]
    return rows


def _sums(embedding: Matrix, ids: NDArray[np.intp], starts: NDArray[np.intp]) -> Matrix:
    """The sum of the vectors of each word, token by token: three times as fast as `np.add.reduceat`."""
    import numpy as np

    counts = np.diff(starts, append=len(ids))
    rows: Matrix = embedding[ids[starts]]
    for at in range(1, min(counts.max(), _WORD_TOKENS)):
        longer = np.flatnonzero(counts > at)
        rows[longer] += embedding[ids[starts[longer] + at]]
    for word in np.flatnonzero(counts > _WORD_TOKENS).tolist():
        rows[word] = embedding[ids[starts[word] : starts[word] + counts[word]]].sum(axis=0)
    return rows


def is_installed() -> bool:
    """Whether the package is there; nothing is imported."""
    return find_spec(NAME) is not None


_model: Any = None
# Re-entrant: a signal handler may search while its thread does.
_loading = threading.RLock()
_kept_words = _KeptWords()
_keeping = threading.RLock()


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


def _renew_locks() -> None:
    """In a forked child, which does not have the thread that may hold a lock."""
    global _loading, _keeping, _kept_words
    if _kept_words.is_in_use:
        # Halfway through a change.
        _kept_words = _KeptWords()
    _loading, _keeping = threading.RLock(), threading.RLock()


os.register_at_fork(after_in_child=_renew_locks)
