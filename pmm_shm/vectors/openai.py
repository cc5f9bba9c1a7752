"""Embedders behind any endpoint that speaks OpenAI's HTTP interface, by the `openai` SDK: an optional extra.

`OPENAI_API_KEY` and `OPENAI_BASE_URL` say whom to ask. A call has one deadline; what may pass is tried again until
then, and nothing else, for an answer may cost money. No attempt begins after the deadline, and none is given more than
what is left of it for each of its steps (to connect, to send, to be answered); only a silence in several stretches it.

Invariant: no error message holds the key.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn
from urllib.parse import urlsplit

from pmm_shm import limits
from pmm_shm.errors import ConfigError, EmbedderError
from pmm_shm.late import late_imports
from pmm_shm.names import checked_model_name
from pmm_shm.vectors.embedder import Embedder, checked_embedder

_KNOWN_DIMENSIONS = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
}
_SHORTENS = frozenset({"text-embedding-3-small", "text-embedding-3-large"})
"""Models that give shorter vectors when asked; others are not asked, for many servers refuse the question."""

_DEFAULT_BASE_URL = "https://api.openai.com/v1"
_REMEDY = "pip install 'pmm-shm[openai]'"
_REQUEST_CHARS_MAX = 100_000
_ANSWER_BYTES_PER_NUMBER = 64
_ANSWER_BYTES_SPARE = 1 << 20
_REASON_CHARS_MAX = 200
_WAIT_FIRST_S = 0.25
_WAIT_MAX_S = 8.0


class _PassingError(Exception):
    """What may be gone at the next attempt. `retry_after_s`: when to come back, as the endpoint says; else 0.0."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class OpenAIEmbedder(Embedder):
    """`openai:MODEL` or `openai:MODEL/DIMENSION`.

    Parameters:
        name: as above; the dimension may be left out for the models of OpenAI's own, and shortens the vectors of those
            that can do that.
        deadline_s: for one call of `embed`, with all its requests, attempts and waits.
        sleep, clock: seconds.

    Raises:
        ConfigError: no such name, or no dimension where none is known.
    """

    PREFIX = "openai:"

    batch_max = 128
    takes_empty = False

    def __init__(
        self,
        name: str,
        *,
        deadline_s: float = limits.PROVIDER_DEADLINE_S,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = checked_model_name(name)
        self._model, self.dimension = _parsed(name)
        checked_embedder(self)
        self._deadline_s = deadline_s
        self._sleep = sleep
        self._clock = clock
        # By process: connections are not shared with a forked child, nor closed by it. Never more than one of its own.
        self._clients: dict[int, Any] = {}

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """The vectors, (n, dimension).

        Raises:
            EmbedderError: the package or the key is missing, the endpoint refuses, answers nonsense, or did not answer
                in time.
        """
        deadline = self._clock() + self._deadline_s
        # A lone surrogate has no place in a request: it reads as U+FFFD, two that make a pair as their character.
        readable = [text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for text in texts]
        return [vector for part in _parts(readable) for vector in self._vectors(part, deadline)]

    def _vectors(self, texts: list[str], deadline: float) -> list[list[float]]:
        """The vectors of one request, tried until the deadline."""
        client = self._client()
        tenacity = _imported("tenacity")
        attempts = tenacity.Retrying(
            sleep=self._sleep,
            retry=tenacity.retry_if_exception_type(_PassingError),
            wait=_waits(tenacity),
            stop=lambda state: self._clock() + state.upcoming_sleep >= deadline,
            reraise=True,
        )
        try:
            return self._checked(client, attempts(self._attempt, client, texts, deadline), len(texts))
        except _PassingError as error:
            tried = attempts.statistics.get("attempt_number", 1)
            many = f"{tried} attempts" if tried != 1 else "1 attempt"
            self._fail(client, str(error), f"given up after {many} within {self._deadline_s:g} s; try again later")

    def _attempt(self, client: Any, texts: list[str], deadline: float) -> bytes:
        """The body of one answer. Raises `_PassingError` where another attempt may help."""
        remaining_s = deadline - self._clock()
        if remaining_s <= 0:
            raise _PassingError("no time left")
        openai = _imported("openai")
        options: dict[str, Any] = {"dimensions": self.dimension} if self._asks_for_dimension() else {}
        try:
            with client.embeddings.with_streaming_response.create(
                model=self._model,
                input=texts,
                encoding_format="float",
                # Half of the whole, so that an endpoint that swallows one request is asked once more.
                timeout=min(remaining_s, self._deadline_s / 2),
                **options,
            ) as response:
                return self._body(client, response.iter_bytes(), len(texts), deadline)
        except openai.APIStatusError as error:
            self._refused(client, error)
        except openai.APITimeoutError:
            raise _PassingError("no answer in time") from None
        except openai.APIConnectionError as error:
            raise _PassingError(f"no connection: {error.__cause__ or error}") from None
        except openai.OpenAIError as error:
            self._fail(client, f"{type(error).__name__}: {error}")

    def _body(self, client: Any, chunks: Iterator[bytes], count: int, deadline: float) -> bytes:
        """All of an answer that is not too large and does not trickle in beyond the deadline."""
        body = bytearray()
        bytes_max = count * self.dimension * _ANSWER_BYTES_PER_NUMBER + _ANSWER_BYTES_SPARE
        while True:
            try:
                chunk = next(chunks, None)
            except Exception as error:
                # The SDK passes on what its transport raises, whichever that is.
                raise _PassingError(f"the answer broke off: {type(error).__name__}: {error}") from None
            if chunk is None:
                return bytes(body)
            body += chunk
            if len(body) > bytes_max:
                self._fail(client, f"an answer of more than {bytes_max} bytes, too many for {count} vectors")
            if self._clock() >= deadline:
                raise _PassingError("the answer did not end in time")

    def _refused(self, client: Any, error: Any) -> NoReturn:
        """An answer with an error status: passing, or not."""
        status = error.status_code
        message = error.body.get("message") if isinstance(error.body, dict) else error.body
        reason = f"status {status}: {message or error.message}"
        # Without credit, no attempt helps, though the status is that of too many requests.
        if (status in (408, 429) and error.code != "insufficient_quota") or status >= 500:
            raise _PassingError(reason, _retry_after_s(error.response.headers)) from None
        if status in (401, 403):
            remedy = "check OPENAI_API_KEY, and that OPENAI_BASE_URL is where it belongs"
        elif status == 404:
            remedy = f"check OPENAI_BASE_URL and the model {self._model!r}"
        elif status == 429:
            remedy = "check the account's credit"
        else:
            remedy = "the endpoint does not take this request"
        self._fail(client, reason, remedy)

    def _checked(self, client: Any, body: bytes, count: int) -> list[list[float]]:
        """The vectors of an answer, in the order of the texts."""
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            self._fail(client, "an answer that is no JSON", "check OPENAI_BASE_URL: it often ends in /v1")
        entries = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            self._fail(client, "an answer without vectors", "check OPENAI_BASE_URL")
        vectors = {entry.get("index"): entry.get("embedding") for entry in entries if type(entry.get("index")) is int}
        if len(entries) != count or vectors.keys() != set(range(count)):
            self._fail(client, f"{len(entries)} vectors with {len(vectors)} indices, and {count} texts were sent")
        for vector in vectors.values():
            if not isinstance(vector, list):
                self._fail(client, f"a vector that is no list of numbers but {type(vector).__name__}")
            if len(vector) != self.dimension:
                remedy = f"name the model {self.PREFIX}{self._model}/{len(vector)}"
                self._fail(client, f"a vector of dimension {len(vector)}, expected {self.dimension}", remedy)
        return [vectors[index] for index in range(count)]

    def _asks_for_dimension(self) -> bool:
        return self._model in _SHORTENS and self.dimension != _KNOWN_DIMENSIONS[self._model]

    def _client(self) -> Any:
        """The SDK's client of this process."""
        pid = os.getpid()
        client = self._clients.get(pid)
        if client is None:
            openai = _imported("openai")
            key = os.environ.get("OPENAI_API_KEY", "").strip()
            if not key:
                remedy = "set it (to anything, where the endpoint asks for none)"
                raise EmbedderError(f"embedder {self.name!r}: no OPENAI_API_KEY: {remedy}")
            if not key.isascii() or not key.isprintable() or " " in key:
                raise EmbedderError(f"embedder {self.name!r}: OPENAI_API_KEY holds what no key holds: correct it")
            base_url = os.environ.get("OPENAI_BASE_URL", "").strip() or _DEFAULT_BASE_URL
            try:
                if urlsplit(base_url).scheme not in ("http", "https"):
                    raise ValueError("no http:// or https:// at its beginning")
                made = openai.OpenAI(api_key=key, base_url=base_url, max_retries=0)
            except Exception as error:
                reason = _without(f"{type(error).__name__}: {error}", key, base_url)
                raise EmbedderError(f"embedder {self.name!r}: OPENAI_BASE_URL cannot be used: {reason}") from None
            # In one step: another thread may have been faster.
            client = self._clients.setdefault(pid, made)
        return client

    def _fail(self, client: Any, reason: str, remedy: str = "") -> NoReturn:
        url = urlsplit(str(client.base_url))
        # Without a user's name and password, which may stand there.
        endpoint = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
        text = _without(reason, client.api_key, url.password or "")
        if remedy:
            text = f"{text}: {remedy}"
        raise EmbedderError(f"embedder {self.name!r}: {endpoint}: {text}") from None


def _parsed(name: str) -> tuple[str, int]:
    """Model and dimension of `openai:MODEL[/DIMENSION]`."""
    match = re.fullmatch(r"openai:([^/].*?)(?:/([1-9][0-9]{0,8}))?", name)
    if match is None:
        raise ConfigError(f"embedder {name!r}: expected openai:MODEL or openai:MODEL/DIMENSION")
    model, number = match.groups()
    known = _KNOWN_DIMENSIONS.get(model)
    if number is None and known is None:
        raise ConfigError(f"embedder {name!r}: its dimension is not known; append it: openai:{model}/DIMENSION")
    dimension = int(number) if number is not None else known or 0
    if known is not None and (dimension > known or (dimension < known and model not in _SHORTENS)):
        raise ConfigError(f"embedder {name!r}: the vectors of this model have dimension {known}")
    return model, dimension


def _parts(texts: list[str]) -> Iterator[list[str]]:
    """The texts in order, in requests that are not too long; a text is never cut."""
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


def _waits(tenacity: Any) -> Callable[[Any], float]:
    """How long to wait after an attempt: longer and longer, never all at the same time, or as the endpoint asks."""
    growing = tenacity.wait_exponential(multiplier=_WAIT_FIRST_S, max=_WAIT_MAX_S) + tenacity.wait_random(
        0, _WAIT_FIRST_S
    )

    def seconds(state: Any) -> float:
        own_s, asked_s = growing(state), state.outcome.exception().retry_after_s
        return float(max(own_s, asked_s))

    return seconds


def _retry_after_s(headers: Any) -> float:
    """What `Retry-After` says in seconds; 0.0 where it says nothing, or a date."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def _without(text: str, *secrets: str) -> str:
    """One line of limited length, without secrets."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    text = " ".join(text.split())
    return text if len(text) <= _REASON_CHARS_MAX else f"{text[:_REASON_CHARS_MAX]}..."


def _imported(module: str) -> Any:
    """A package of the extra."""
    try:
        with late_imports:
            return importlib.import_module(module)
    except ImportError as error:
        raise EmbedderError(f"embedders of {OpenAIEmbedder.PREFIX!r}: not installed ({error}): {_REMEDY}") from error
