"""Embedders behind any endpoint that speaks OpenAI's HTTP interface; they need the extra `openai`."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pmm_shm import limits
from pmm_shm.errors import ConfigError, EmbedderError, InvalidTextError
from pmm_shm.names import checked_model_name
from pmm_shm.openai_client import BrokenAnswerError, OpenAIClient, OpenAIRequest, message_of
from pmm_shm.vectors.embedder import Embedder, checked_embedder, encodable

_KNOWN_DIMENSIONS = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
}
_SHORTENS = frozenset({"text-embedding-3-small", "text-embedding-3-large"})
"""Models that return shorter vectors on request. The request is sent only to these: many servers reject it."""

_HARMLESS_TEXT = "text"
_REQUEST_CHARS_MAX = 100_000
_ANSWER_BYTES_PER_NUMBER = 64
_ANSWER_BYTES_SPARE = 1 << 20


class OpenAIEmbedder(Embedder):
    """`openai:MODEL` or `openai:MODEL/DIMENSION`.

    Parameters:
        name: as above. The dimension is optional for OpenAI's own models; those that can do it return shorter vectors.
        deadline_s: for one call of `embed`, including all its requests, retries and waits.
        clock: monotonic seconds.

    Raises:
        ConfigError: the name is malformed, or gives no dimension for a model whose dimension is unknown.
    """

    PREFIX = "openai:"

    batch_max = 128
    requests_max = 8
    takes_empty = False

    def __init__(
        self,
        name: str,
        *,
        deadline_s: float = limits.PROVIDER_DEADLINE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = checked_model_name(name)
        self._model, self.dimension = _parsed(name)
        checked_embedder(self)
        self._deadline_s = deadline_s
        self._clock = clock
        # By process: a forked child must neither use nor close its parent's connections.
        self._clients: dict[int, OpenAIClient] = {}

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """The vectors, (n, dimension).

        Raises:
            EmbedderError: the package or the key is missing, or the endpoint refuses all requests, returns nonsense, or
                does not answer in time.
            InvalidTextError: the endpoint refuses these texts, or has no usable vector for one, and accepts others.
        """
        client = self._client()
        deadline = self._clock() + self._deadline_s
        vectors: list[list[float]] = []
        for part in _parts(list(map(encodable, texts))):
            # Half of the deadline for an attempt: if the endpoint ignores one request, there is time for another.
            request = OpenAIRequest(deadline, self._deadline_s, self._deadline_s / 2, self.in_flight)
            try:
                vectors += self._vectors(client, request, part)
            except (InvalidTextError, EmbedderError) as failure:
                is_refusal = isinstance(failure, InvalidTextError)
                if len(part) > 1 or not (is_refusal or (request.status or 0) >= 500):
                    raise
                # A wrong setting is refused with the same status as a wrong text.
                if self._accepts(client, _HARMLESS_TEXT):
                    raise InvalidTextError(f"{failure}; it accepts other texts") from None
                raise EmbedderError(str(failure)) from None
        return vectors

    def _accepts(self, client: OpenAIClient, text: str) -> bool:
        """Whether the endpoint embeds a text at the first attempt."""
        timeout_s = self._deadline_s / 2
        request = OpenAIRequest(self._clock() + timeout_s, timeout_s, timeout_s, self.in_flight, retries=False)
        try:
            self._vectors(client, request, [text])
        except (InvalidTextError, EmbedderError):
            return False
        return True

    def _vectors(self, client: OpenAIClient, request: OpenAIRequest, texts: list[str]) -> list[list[float]]:
        return self._checked(client, self._answer(client, request, texts), len(texts))

    def _answer(
        self, client: OpenAIClient, request: OpenAIRequest, texts: list[str], *, is_last: bool = False
    ) -> bytes:
        """The body of an answer, if it is not too large. One that breaks off is requested once more."""
        bytes_max = len(texts) * self.dimension * _ANSWER_BYTES_PER_NUMBER + _ANSWER_BYTES_SPARE
        is_shorter = self._model in _SHORTENS and self.dimension != _KNOWN_DIMENSIONS[self._model]
        options = {"dimensions": self.dimension} if is_shorter else {}
        body = bytearray()
        try:
            with client.answer(
                client.sdk.embeddings, request, input=texts, encoding_format="float", **options
            ) as chunks:
                for chunk in chunks:
                    body += chunk
                    if len(body) > bytes_max:
                        client.fail(f"an answer of more than {bytes_max} bytes, too many for {len(texts)} vectors")
        except BrokenAnswerError as error:
            if is_last:
                client.give_up(request, str(error))
            return self._answer(client, request, texts, is_last=True)
        return bytes(body)

    def _checked(self, client: OpenAIClient, body: bytes, count: int) -> list[list[float]]:
        """The vectors of an answer, in the order of the texts.

        What a single text may have caused is a refusal; that of a harmless text tells.
        """
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            client.fail("an answer that is not JSON", "check OPENAI_BASE_URL: it often ends in /v1")
        entries = answer.get("data") if isinstance(answer, dict) else None
        if entries is None and isinstance(answer, dict) and answer.get("error"):
            client.fail(message_of(answer["error"]), is_refusal=True)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            client.fail("an answer without vectors", "check OPENAI_BASE_URL")
        vectors = {index: entry.get("embedding") for index, entry in zip(_indices(entries), entries, strict=True)}
        if len(entries) != count or vectors.keys() != set(range(count)):
            found = sum(index is not None for index in vectors)
            reason = f"{len(entries)} vectors with {found} indices, and {count} texts were sent"
            client.fail(reason, is_refusal=True)
        for vector in vectors.values():
            if not isinstance(vector, list):
                reason = f"expected a list of numbers for each vector, got {type(vector).__name__}"
                client.fail(reason, is_refusal=True)
            if not vector or not _is_finite(vector):
                client.fail("a vector without numbers, or with NaN or infinity", is_refusal=True)
            if not any(vector):
                client.fail("a vector of zeros", "searches would never find this text", is_refusal=True)
            if len(vector) != self.dimension:
                remedy = f"name the model {self.PREFIX}{self._model}/{len(vector)}"
                client.fail(f"a vector of dimension {len(vector)}, expected {self.dimension}", remedy)
        return [vectors[index] for index in range(count)]

    def _client(self) -> OpenAIClient:
        """The client of this process."""
        pid = os.getpid()
        client = self._clients.get(pid)
        if client is None:
            caller = f"embedder {self.name!r}"
            made = OpenAIClient(
                caller, self._model, "openai", EmbedderError, InvalidTextError, retries=True, clock=self._clock
            )
            # In one step: another thread may have been faster.
            client = self._clients.setdefault(pid, made)
        return client


def _indices(entries: list[dict[str, Any]]) -> list[int | None]:
    """The index of each entry; None if it has none that is a number.

    Some endpoints leave out all indices and keep the order; others leave out zeros, as Protocol Buffers do, or write
    them as texts or floats. A single vector needs none.
    """
    if len(entries) == 1:
        return [0]
    indices = [_number(entry.get("index")) for entry in entries]
    if indices.count(None) == len(indices):
        return list(range(len(indices)))
    if indices.count(None) == 1 and 0 not in indices:
        indices[indices.index(None)] = 0
    return [index if type(index) is int else None for index in indices]


def _number(index: Any) -> Any:
    """An index as an integer, if it is one in another form."""
    is_number = (isinstance(index, str) and index.isdecimal()) or (isinstance(index, float) and index.is_integer())
    return int(index) if is_number else index


def _is_finite(vector: list[Any]) -> bool:
    try:
        return math.isfinite(sum(map(float, vector)))
    except (TypeError, ValueError, OverflowError):
        return False


def _parsed(name: str) -> tuple[str, int]:
    """Model and dimension of `openai:MODEL[/DIMENSION]`."""
    match = re.fullmatch(r"openai:([^/].*?)(?:/([1-9][0-9]{0,8}))?", name)
    if match is None:
        raise ConfigError(f"embedder {name!r}: expected openai:MODEL or openai:MODEL/DIMENSION")
    model, number = match.groups()
    known = _KNOWN_DIMENSIONS.get(model)
    if number is None and known is None:
        raise ConfigError(f"embedder {name!r}: its dimension is unknown; append it: openai:{model}/DIMENSION")
    dimension = int(number) if number is not None else known or 0
    if known is not None and (dimension > known or (dimension < known and model not in _SHORTENS)):
        raise ConfigError(f"embedder {name!r}: the vectors of this model have dimension {known}")
    return model, dimension


def _parts(texts: list[str]) -> Iterator[list[str]]:
    """The texts in order, split into requests of limited length; a text is never cut."""
    part: list[str] = []
    chars = 0
    for text in texts:
        if part and chars + len(text) > _REQUEST_CHARS_MAX:
            yield part
            part, chars = [], 0
        part.append(text)
        chars += len(text)
    if part:
        yield part
