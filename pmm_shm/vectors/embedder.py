"""The interface of embedders, and checks of names, texts and vectors."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pmm_shm import limits
from pmm_shm.errors import ConfigError, EmbedderError, InvalidTextError, InvalidVectorError
from pmm_shm.names import checked_model_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pmm_shm.vectors.in_flight import InFlight

    Vector = NDArray[np.float32]
    """(dimension,) float32"""
    Matrix = NDArray[np.float32]
    """(n, dimension) float32"""


_REASON_CHARS_MAX = 500


class Embedder(ABC):
    """Turns texts into vectors. Under one name, the same text always has the same vector.

    Attributes:
        name: the model, 1 to 128 printable characters; all workers share the vectors of one name.
        dimension: of its vectors, 1 to `limits.DIMENSION_MAX`.
        batch_max: the most texts that one call of `embed` accepts. It is lowered for the life of the process when a
            batch is refused and its halves are not.
        requests_max: how many calls of `embed` the daemon may make at the same time: more than 1 for an embedder on the
            network. A search that can do without such an embedder calls it in a thread, and waits for it only
            `limits.SEARCH_EMBEDDER_S`.
        in_flight: set by a daemon that makes several; the embedder may tell it of an overload.
        takes_empty: whether the empty text has a vector.
    """

    name: str
    dimension: int
    batch_max: int = 64
    requests_max: int = 1
    in_flight: InFlight | None = None
    takes_empty: bool = False

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> Any:
        """The vectors of 1 to `batch_max` texts, as an array or nested lists of numbers, (n, dimension).

        Raises:
            EmbedderError: a temporary failure, for example a provider that is down.
            InvalidTextError: one of the texts can never be embedded, or these are too many for one call.
        """


def checked_embedder(embedder: Embedder) -> Embedder:
    """The embedder, if its attributes are within the limits. Raises `ConfigError`."""
    checked_model_name(embedder.name)
    for value, name, most in (
        (embedder.dimension, "dimension", limits.DIMENSION_MAX),
        (embedder.batch_max, "batch_max", limits.EMBED_BATCH_MAX),
        (embedder.requests_max, "requests_max", limits.EMBED_REQUESTS_MAX),
    ):
        if type(value) is not int or not 1 <= value <= most:
            raise ConfigError(f"embedder {embedder.name!r}: {name} must be an integer from 1 to {most}, got {value!r}")
    return embedder


def checked_text(text: object, embedder: Embedder | None = None) -> str:
    """A text that can be embedded; None counts as "".

    Raises:
        InvalidTextError: not a text, too long, or empty and the embedder has no vector for it.
    """
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise InvalidTextError(f"text: expected str, got {type(text).__name__}")
    if len(text) > limits.TEXT_CHARS_MAX:
        raise InvalidTextError(f"text: {len(text)} characters; at most {limits.TEXT_CHARS_MAX} are embedded")
    if not text and embedder is not None and not embedder.takes_empty:
        raise InvalidTextError(f"text: empty, and model {embedder.name!r} has no vector for that")
    return text


def encodable(text: str) -> str:
    """The text as UTF-8 can encode it: a pair of surrogates becomes its character, a lone one U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def text_key(text: str) -> bytes:
    """32 bytes that represent a text in keys: SHA-256 of its UTF-8, with lone surrogates passed through."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def embedded(embedder: Embedder, texts: Sequence[str]) -> Matrix:
    """The checked vectors of up to `embedder.batch_max` texts, (n, dimension) float32.

    Raises:
        EmbedderError: the embedder failed, or did not return such vectors.
        InvalidTextError: it has no vector for one of the texts.
    """
    import numpy as np

    try:
        matrix = np.ascontiguousarray(embedder.embed(texts), dtype=np.float32)
    except (EmbedderError, InvalidTextError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:_REASON_CHARS_MAX]
        raise EmbedderError(f"embedder {embedder.name!r}: {type(error).__name__}: {reason}") from error
    if matrix.shape != (len(texts), embedder.dimension):
        wanted = (len(texts), embedder.dimension)
        raise EmbedderError(f"embedder {embedder.name!r}: returned shape {matrix.shape}, expected {wanted}")
    if not np.isfinite(matrix).all():
        raise EmbedderError(f"embedder {embedder.name!r}: returned a vector with NaN or infinity")
    return matrix


def embedded_each(embedder: Embedder, texts: Sequence[str]) -> list[Vector | InvalidTextError]:
    """The checked vector of each text, (dimension,) float32, or the reason why it has none.

    A batch that is refused is halved. If no single text was to blame, the embedder gets smaller batches from then on.

    Raises:
        EmbedderError: as `embedded`.
    """
    outcomes: list[Vector | InvalidTextError] = []
    while len(outcomes) < len(texts):
        batch = texts[len(outcomes) : len(outcomes) + embedder.batch_max]
        try:
            outcomes.extend(embedded(embedder, batch))
        except InvalidTextError as refusal:
            if len(batch) == 1:
                outcomes.append(refusal)
                continue
            half = (len(batch) + 1) // 2
            parts = [*embedded_each(embedder, batch[:half]), *embedded_each(embedder, batch[half:])]
            if not any(isinstance(one, InvalidTextError) for one in parts):
                embedder.batch_max = min(embedder.batch_max, half)
            outcomes += parts
    return outcomes


def checked_vector(vector: object, dimension: int | None = None) -> NDArray[np.float64]:
    """A vector from outside, checked: (dimension,) float64, finite.

    Raises:
        InvalidVectorError: not one row of numbers, with NaN or infinity, or of another dimension.
    """
    import numpy as np

    try:
        row = np.asarray(vector, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidVectorError(f"vector: not a row of numbers: {error}") from None
    if row.ndim != 1 or not 1 <= row.shape[0] <= limits.DIMENSION_MAX:
        raise InvalidVectorError(f"vector: expected one row of 1 to {limits.DIMENSION_MAX} numbers, got {row.shape}")
    if not np.isfinite(row).all():
        raise InvalidVectorError("vector: holds NaN or infinity")
    if dimension is not None and row.shape[0] != dimension:
        raise InvalidVectorError(f"vector: dimension {row.shape[0]}, and the table has {dimension}")
    return row
