"""A client for any endpoint that speaks OpenAI's HTTP interface, built on the `openai` SDK: an optional package.

`OPENAI_API_KEY` and `OPENAI_BASE_URL` name the endpoint. Each request has a deadline. The SDK retries temporary
failures, and its HTTP client, which is extended here, keeps the retries within the deadline: each step of an attempt
(connect, send, wait for an answer) gets at most the time that is left, and an attempt that fails is the last one if
the wait before the next could reach the deadline.

Invariant: no error message contains a key or a password of 8 characters or more, or the user and password of a URL in
front of its host. (Endpoints without keys accept any word, and a short one would be masked wherever it occurs.)
"""

from __future__ import annotations

import math
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from pmm_shm import limits, network_settings
from pmm_shm.errors import PmmShmError
from pmm_shm.late import late_imports

if TYPE_CHECKING:
    from pmm_shm.vectors.in_flight import InFlight

_IN_HEADERS = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID")
_DEFAULT_BASE_URL = "https://api.openai.com/v1"
_REASON_CHARS_MAX = 200
_SECRET_CHARS_MIN = 8
_CONNECT_S = 30.0
"""How long an attempt waits for a connection, at most."""
_RETRIES_MAX = 1_000
"""More than any deadline has time for, and few enough for the SDK, which doubles a wait this many times."""
# Both take time that grows with the length of a text, and not with its square, whatever it holds.
_TITLE = re.compile(r"<title[^<>]*>([^<]*)", re.IGNORECASE)
_TAG = re.compile(r"<(style|script)\b.*?(?:</\1\s*>|\Z)|<[^>]*(?:>|\Z)", re.IGNORECASE | re.DOTALL)
REFUSALS = frozenset({400, 403, 413, 422, 451})
"""Statuses with which endpoints, or a firewall before them, refuse a text or a batch, among other things."""
_PROXY_STATUSES = frozenset({403, 502, 503, 504})
"""Statuses with which a proxy itself answers if it forbids a host or does not reach it."""
_REMEDIES = {
    401: "check OPENAI_API_KEY, and that it belongs to the endpoint in OPENAI_BASE_URL",
    403: "check OPENAI_API_KEY, and that it belongs to the endpoint in OPENAI_BASE_URL",
    408: "try again later",
    429: "too many requests, or no credit; try again later",
}


class BrokenAnswerError(Exception):
    """The connection failed in the middle of an answer."""


class _DeadlineReached(BaseException):
    """No time is left for another attempt; the cause is the failure of the last one, if it failed.

    Not an `Exception`: some versions of the SDK retry after any of those.
    """


class Answer:
    """The bytes of an answer, as they arrive.

    Parameters:
        response: of the SDK; it is closed by whoever opened it.
    """

    def __init__(self, chunks: Iterator[bytes], response: Any) -> None:
        self._chunks = chunks
        self._response = response
        self._timer: threading.Timer | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def end_within(self, seconds: float) -> None:
        """Let the answer break off after `seconds` if it has not ended, even if the endpoint still sends something."""
        stream = self._response.http_response.extensions["network_stream"]
        # Only this wakes a thread that waits for the connection. The method of a TLS socket would not wait for it.
        shutdown = partial(socket.socket.shutdown, stream.get_extra_info("socket"), socket.SHUT_RDWR)
        self._timer = threading.Timer(seconds, _quietly, [shutdown])
        self._timer.daemon = True
        self._timer.start()

    def close(self) -> None:
        """No longer wait for the end."""
        if self._timer is not None:
            self._timer.cancel()


def _quietly(call: Callable[[], object]) -> None:
    with suppress(OSError):
        call()


@dataclass
class OpenAIRequest:
    """One request with its retries.

    Attributes:
        deadline: when to give up, on the client's clock.
        deadline_s: how long the caller allowed in all, for messages.
        timeout_s: how long each attempt waits for the endpoint, at most.
        in_flight: limits how many attempts are made at the same time, if there are several requests.
        retries: whether temporary failures of this request are retried.
        attempts: how many have begun.
        began: when the last one did, on the clock of `in_flight`.
        status: of the last answer; None if there was none.
    """

    deadline: float
    deadline_s: float
    timeout_s: float
    in_flight: InFlight | None = None
    retries: bool = True
    attempts: int = 0
    began: float = 0.0
    status: int | None = None


_current: ContextVar[OpenAIRequest] = ContextVar("_current")
"""The request that this thread is sending, for the SDK's HTTP client."""


class OpenAIClient:
    """Requests for one model. Thread-safe; not to be used on both sides of a fork.

    Parameters:
        caller: how error messages begin.
        model: as the endpoint calls it.
        extra: the extra of pmm-shm that installs the SDK.
        error: the class of all errors raised here, except for `refusal`.
        refusal: the class of the error if the endpoint refuses what a request contains (`REFUSALS`).
        retries: whether temporary failures are retried until the deadline.
        clock: monotonic seconds.

    Raises:
        error: the SDK is not installed, or the environment variables cannot be used.
    """

    def __init__(
        self,
        caller: str,
        model: str,
        extra: str,
        error: type[PmmShmError],
        refusal: type[PmmShmError],
        *,
        retries: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._caller = caller
        self._model = model
        self._error = error
        self._refusal = refusal
        self._retries = retries
        self._clock = clock
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        self._base_url = os.environ.get("OPENAI_BASE_URL", "").strip() or _DEFAULT_BASE_URL
        self._proxy: str | None = None
        try:
            with late_imports:
                import openai
        except ImportError as problem:
            with late_imports:
                from pmm_shm.installation import extra_command

            raise error(f"{caller}: not installed ({problem}): {extra_command(extra)}") from problem
        self._sdk_module: Any = openai
        with late_imports:
            # It imports the rest of its packages when a client is made: in a child forked meanwhile, they would stay
            # imported in part.
            self.sdk: Any = self._connected()

    def __del__(self) -> None:
        try:
            self.sdk.close()
        except Exception:
            # Not connected, or the interpreter is shutting down.
            pass

    @contextmanager
    def answer(self, resource: Any, request: OpenAIRequest, **arguments: Any) -> Iterator[Answer]:
        """Send a request; yields the bytes of a successful answer as they arrive.

        Parameters:
            resource: of `sdk`, for example `sdk.embeddings`; `arguments` go to its `create`.

        Raises:
            BrokenAnswerError: the connection failed in the middle of the answer.
            error: as given to the client: any other failure of the endpoint, or the deadline.
        """
        openai = self._sdk_module
        with ExitStack() as stack:
            token = _current.set(request)
            try:
                manager = resource.with_streaming_response.create(
                    model=self._model, timeout=request.timeout_s, **arguments
                )
                response = stack.enter_context(manager)
            except openai.APIStatusError as problem:
                self._refused(request, problem)
            except openai.APIConnectionError as problem:
                self._unanswered(request, problem.__cause__)
            except openai.OpenAIError as problem:
                self.fail(f"{type(problem).__name__}: {problem}")
            except _DeadlineReached as reached:
                self._unanswered(request, reached.__cause__)
            finally:
                _current.reset(token)
            answer = Answer(self._chunks(response.iter_bytes(), request), response)
            stack.callback(answer.close)
            yield answer

    def give_up(self, request: OpenAIRequest, reason: str, remedy: str = "try again later") -> NoReturn:
        """Raise the error of a failure that may be temporary."""
        if self._retries:
            many = "1 attempt" if request.attempts == 1 else f"{request.attempts} attempts"
            remedy = f"given up after {many} within {request.deadline_s:g} s; {remedy}"
        self.fail(reason, remedy)

    def fail(self, reason: str, remedy: str = "", *, is_refusal: bool = False) -> NoReturn:
        """Raise an error: one line with the endpoint and the remedy, without secrets."""
        scheme, mark, rest = self._base_url.partition("?")[0].partition("://")
        user, _, host = rest.rpartition("@")
        endpoint = f"{scheme}://{host}" if mark else "OPENAI_BASE_URL"
        if self._proxy is not None:
            endpoint += f" (through the proxy in {self._proxy})"
            if remedy.startswith("check OPENAI_BASE_URL"):
                remedy += f"; or check {self._proxy}: the answer may be the proxy's"
        reason = self._masked(reason, user)
        reason = " ".join(reason.split())
        reason = reason if len(reason) <= _REASON_CHARS_MAX else f"{reason[:_REASON_CHARS_MAX]}..."
        error = self._refusal if is_refusal else self._error
        raise error(": ".join(filter(None, (self._caller, endpoint, reason, remedy)))) from None

    def _masked(self, text: str, user: str) -> str:
        """The text without secrets; `user` is that of the URL, perhaps with its password."""
        users = [one for one in (user, *network_settings.secrets()) if one]
        for one in users:
            text = text.replace(f"{one}@", "***@")
        for secret in (self._key, *users, *(one.partition(":")[2] for one in users)):
            if len(secret) >= _SECRET_CHARS_MIN:
                text = text.replace(secret, "***")
        return text

    def _connected(self) -> Any:
        if not self._key:
            self.fail("no OPENAI_API_KEY", "set it (to any word, if the endpoint needs no key)")
        # The SDK sends the others, too.
        for name, value in (("OPENAI_API_KEY", self._key), *((name, os.environ.get(name, "")) for name in _IN_HEADERS)):
            if not value.isascii() or not value.isprintable() or " " in value:
                remedy = "correct it" if value is self._key else "correct it, or unset it"
                self.fail(f"{name} contains characters that no key has", remedy)
        try:
            parts = urlsplit(self._base_url)
            if parts.scheme not in ("http", "https"):
                raise ValueError("it does not begin with http:// or https://")
            # `port` raises `ValueError` if it is not a number.
            if not parts.hostname or parts.port == 0:
                raise ValueError("it names no host")
            self._proxy = network_settings.proxy_variable(self._base_url)
            return self._sdk_module.OpenAI(
                api_key=self._key,
                base_url=self._base_url,
                max_retries=_RETRIES_MAX if self._retries else 0,
                http_client=self._http_client(),
            )
        except self._error:
            raise
        except Exception as problem:
            self.fail(f"OPENAI_BASE_URL cannot be used: {type(problem).__name__}: {problem}")

    def _http_client(self) -> Any:
        """The SDK's HTTP client, which reads the variables of `network_settings`."""
        try:
            return self._limited_client()
        except Exception as problem:
            reason, default = f"{type(problem).__name__}: {problem}", self._sdk_module.DefaultHttpxClient
            if (name := network_settings.unusable_certificates()) is not None:
                self.fail(f"{name}={os.environ[name]} cannot be used: {reason}", "correct it, or unset it")
            name = network_settings.unusable_proxy(lambda url: default(proxy=url, trust_env=False).close())
            if name is not None:
                self.fail(f"the proxy in {name} cannot be used: {reason}", f"correct {name}, or unset it")
            raise

    def _limited_client(self) -> Any:
        """The SDK's HTTP client, which keeps its attempts within the deadline."""
        default: Any = self._sdk_module.DefaultHttpxClient
        before_attempt, after_failure = self._before_attempt, self._after_failure

        class HttpClient(default):  # type: ignore[misc]
            def send(self, *args: Any, **options: Any) -> Any:
                with _room():
                    try:
                        return super().send(*args, **options)
                    except Exception as problem:
                        after_failure(problem)
                        raise

        return HttpClient(event_hooks={"request": [before_attempt], "response": [self._after_answer]})

    def _before_attempt(self, attempt: Any) -> None:
        """Give an attempt no more time than is left."""
        request = _current.get()
        left_s = request.deadline - self._clock()
        if left_s <= 0:
            raise _DeadlineReached
        request.attempts += 1
        timeout_s = min(left_s, request.timeout_s)
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), timeout_s)
        # A server may need long for an answer, never for a connection.
        attempt.extensions["timeout"] = {**timeouts, "connect": min(timeout_s, _CONNECT_S)}

    def _after_answer(self, response: Any) -> None:
        """Tell the SDK whether to retry: only after a temporary failure, and only if the wait ends in time."""
        request = _current.get()
        request.status = response.status_code
        if response.status_code < 400:
            return
        headers = response.headers
        # The SDK would also wait until a date, or for `retry-after-ms`, however long that is.
        headers.pop("retry-after-ms", None)
        asked_s = _seconds(headers.pop("retry-after", ""))
        if asked_s:
            headers["retry-after"] = str(asked_s)
        is_temporary = response.status_code in (408, 429) or response.status_code >= 500
        if request.in_flight is not None and (response.status_code == 429 or response.status_code >= 500):
            request.in_flight.overloaded(request.began, asked_s)
        if response.status_code == 429:
            is_temporary = b'"insufficient_quota"' not in response.read()
        headers["x-should-retry"] = "true" if is_temporary and self._can_wait(asked_s) else "false"

    def _after_failure(self, problem: Exception) -> None:
        """End the request if the SDK's wait after a failed connection could reach the deadline.

        If nothing listens at the address, the request ends soon: a user waits for a search, which can do with words.
        """
        request = _current.get()
        if _is_nobody_there(problem):
            deadline = self._clock() + limits.PROVIDER_REFUSED_S
            if deadline < request.deadline:
                request.deadline, request.deadline_s = deadline, limits.PROVIDER_REFUSED_S
        if request.in_flight is not None:
            request.in_flight.overloaded(request.began)
        if self._retries and (_is_untrusted(problem) or not self._can_wait()):
            raise _DeadlineReached from problem

    def _can_wait(self, asked_s: float = 0.0) -> bool:
        """Whether the SDK's next wait ends before the deadline: the wait asked for, or half a second, then doubled."""
        request = _current.get()
        if not request.retries:
            return False
        wait_s = asked_s or min(0.5 * 2.0 ** (request.attempts - 1), 8.0)
        return self._clock() + wait_s < request.deadline

    def _chunks(self, chunks: Iterator[bytes], request: OpenAIRequest) -> Iterator[bytes]:
        while True:
            try:
                chunk = next(chunks, None)
            except Exception as problem:
                # The SDK lets the errors of its HTTP library through, whichever library that is.
                raise BrokenAnswerError(f"the answer broke off: {type(problem).__name__}: {problem}") from None
            if chunk is None:
                return
            if self._clock() >= request.deadline:
                self.give_up(request, f"the answer did not end within {request.deadline_s:g} s")
            yield chunk

    def _unanswered(self, request: OpenAIRequest, problem: BaseException | None) -> NoReturn:
        """Raise the error of a request without an answer; `problem` is that of its last attempt, if it failed."""
        if problem is None and request.attempts == 0:
            self.give_up(request, "the endpoint is overloaded and asks to wait")
        if problem is None:
            self.give_up(request, f"no answer within {request.deadline_s:g} s")
        # By name, because the SDK's version decides which HTTP library it is.
        if type(problem).__name__ == "ConnectTimeout" and request.timeout_s > _CONNECT_S:
            self.give_up(request, f"no connection within {_CONNECT_S:g} s", "is it running? check OPENAI_BASE_URL")
        if any(one.__name__ == "TimeoutException" for one in type(problem).__mro__):
            self.give_up(request, f"no answer within {request.timeout_s:g} s")
        if _is_untrusted(problem):
            names = [name for name in network_settings.CERTIFICATES if os.environ.get(name)]
            remedy = f"check the certificates in {names[0]}" if names else "name its authority's in SSL_CERT_FILE"
            self.give_up(request, f"its certificate is not trusted: {problem}", remedy)
        if self._proxy is not None:
            host = urlsplit(self._base_url).hostname
            self.give_up(request, f"no connection: {problem}", f"check {self._proxy}, or name {host} in NO_PROXY")
        self.give_up(request, f"no connection: {problem}", "is it running? check OPENAI_BASE_URL")

    def _refused(self, request: OpenAIRequest, problem: Any) -> NoReturn:
        """Raise the error of an answer with an error status."""
        status = problem.status_code
        said = message_of(problem.body) or problem.response.reason_phrase
        reason = f"status {status}: {said}" if said else f"status {status}"
        if status == 429 and problem.code == "insufficient_quota":
            self.fail(reason, "check the account's credit")
        default = "try again later" if status >= 500 else "the endpoint does not accept this request"
        remedy = _REMEDIES.get(status, default)
        if asked_s := _seconds(problem.response.headers.get("retry-after", "")):
            remedy = remedy.replace("try again later", f"try again in {math.ceil(asked_s)} s")
        if self._proxy is not None:
            if status == 407:
                self.fail(reason, f"check the user and password in {self._proxy}")
            if status in _PROXY_STATUSES:
                remedy += f"; or check {self._proxy}: the answer may be the proxy's"
        if status in (408, 429) or status >= 500:
            self.give_up(request, reason, remedy)
        if status == 404:
            self.fail(reason, f"check OPENAI_BASE_URL and the model {self._model!r}")
        self.fail(reason, remedy, is_refusal=status in REFUSALS)


@contextmanager
def _room() -> Iterator[None]:
    """The room for one attempt among all those in flight, if these are limited."""
    request = _current.get()
    if request.in_flight is None:
        yield
        return
    began = request.in_flight.enter(request.deadline)
    if began is None:
        raise _DeadlineReached
    request.began = began
    try:
        yield
    finally:
        request.in_flight.leave()


def _is_nobody_there(problem: BaseException | None) -> bool:
    """Whether a connection failed because no program listens at its address."""
    while problem is not None:
        if isinstance(problem, ConnectionRefusedError):
            return True
        problem = problem.__cause__ or problem.__context__
    return False


def _is_untrusted(problem: BaseException | None) -> bool:
    """Whether a connection failed because a certificate is not trusted."""
    return "CERTIFICATE_VERIFY_FAILED" in str(problem)


def message_of(body: Any) -> str:
    """An endpoint's description of its error, in any of the usual shapes; "" if there is none."""
    if isinstance(body, list) and len(body) == 1:
        # Gemini's.
        body = body[0]
    if isinstance(body, dict) and isinstance(body.get("error"), dict) and not body.get("message"):
        body = body["error"]
    if isinstance(body, dict):
        return str(body.get("message") or body.get("error") or body)
    return _words_of(str(body or ""))


def _words_of(text: str) -> str:
    """The text; of a page, as proxies and servers send them, its title or else its words."""
    if not text.lstrip().startswith("<"):
        return text
    import html

    title = _TITLE.search(text)
    words = title[1].strip() if title is not None else ""
    return html.unescape(words or _TAG.sub(" ", text)).strip()


def _seconds(value: str) -> float:
    """The seconds in a `Retry-After` header; 0.0 for a date or nonsense."""
    try:
        seconds = float(value)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
