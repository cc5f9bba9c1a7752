"""Who may ask: the token, the names of the host, and the headers that keep a page of ours to itself.

Invariant: nothing behind the guard runs for a request with a foreign `Host` or `Origin`, or without the token;
`/healthz` needs no token, and tells nothing of the ledger.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pmm_shm_web.assets import ADDRESSES, STYLE_SOURCE

API = "/api/v1"
HEALTH = "/healthz"
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; style-src 'self' %b; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        b"object-src 'none'" % STYLE_SOURCE.encode("ascii"),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_NO_STORE = (b"cache-control", b"no-store")
_FOR_EVER = (b"cache-control", b"private, max-age=31536000, immutable")
_ASSETS = frozenset(ADDRESSES.values())


@dataclass(frozen=True)
class Access:
    """What a request must show.

    Attributes:
        token: the secret in the address that is opened first.
        cookie: the name of the cookie that takes its place; other ports of the host share cookies.
        hosts: the values of `Host` that are answered, in lower case.
    """

    token: str
    cookie: str
    hosts: frozenset[str]

    @classmethod
    def of(cls, ledger: str, port: int, token: str, more_hosts: Iterable[str] = ()) -> Access:
        """The access to the page of a ledger at a port; `more_hosts` as `Host` has them behind a tunnel."""
        hosts = {f"{name}:{port}" for name in LOCAL_NAMES} | {host.lower() for host in more_hosts}
        if port == 80:
            hosts |= set(LOCAL_NAMES)
        digest = blake2b(os.fsencode(ledger), digest_size=6).hexdigest()
        return cls(token, f"pmm_shm_web_{port}_{digest}", frozenset(hosts))

    def is_token(self, given: str | None) -> bool:
        """Whether this is the token; takes the same time for every wrong one."""
        return given is not None and hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode())


class Guard:
    """ASGI middleware that lets only requests with the token pass, from this host's own pages."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            # No websocket is served; one that is not accepted is refused with 403.
            await send({"type": "websocket.close", "code": 1008})
            return
        path: str = scope["path"]
        answer = self._answer(scope, path)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [one for one in message["headers"] if one[0].lower() != b"server"]
                kind = _FOR_EVER if message["status"] == 200 and _asset(scope) in _ASSETS else _NO_STORE
                message = {**message, "headers": [*kept, *_HEADERS, kind]}
            await send(message)

        await (self._app if answer is None else answer)(scope, receive, send_guarded)

    def _answer(self, scope: Scope, path: str) -> Response | None:
        """The guard's own answer; None where the request may pass."""
        headers = _headers(scope)
        hosts, origins = headers.get("host", []), headers.get("origin", [])
        if len(hosts) != 1 or hosts[0].lower() not in self._access.hosts:
            return _refused(path, "this name of the host is not served; see --allow-host")
        if any(
            origin.lower() not in {f"http://{hosts[0]}".lower(), f"https://{hosts[0]}".lower()} for origin in origins
        ):
            return _refused(path, "a request of another site")
        if _is_foreign(scope, headers):
            return _refused(path, "a request of another site")
        if path == HEALTH:
            return None
        token = _token_in_query(scope) if scope["method"] == "GET" else None
        if token is not None:
            return self._exchanged(scope, path, token)
        if self._access.is_token(_cookie(headers, self._access.cookie)):
            return None
        if path.startswith(API + "/") and any(map(self._access.is_token, _bearers(headers))):
            return None
        return _refused(path, "open the address that pmm-shm web has printed: it has the token")

    def _exchanged(self, scope: Scope, path: str, token: str) -> Response:
        """Put the token into a cookie, and remove it from the address."""
        if not self._access.is_token(token):
            return _refused(path, "this token is not valid: open the address that pmm-shm web has printed last")
        query = [(name, value) for name, value in _query(scope) if name != "token"]
        # One slash: two would be the name of another host.
        target = "/" + quote(path.lstrip("/")) + (f"?{urlencode(query)}" if query else "")
        answer = RedirectResponse(target, 303)
        answer.set_cookie(self._access.cookie, self._access.token, path="/", httponly=True, samesite="strict")
        return answer


def _headers(scope: Scope) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found


def _is_foreign(scope: Scope, headers: Mapping[str, list[str]]) -> bool:
    """Whether a browser says that another site's page asks; a link that a person follows is no such request."""
    sites, modes = headers.get("sec-fetch-site", []), headers.get("sec-fetch-mode", [])
    is_link = scope["method"] == "GET" and modes == ["navigate"] and headers.get("sec-fetch-dest", []) == ["document"]
    return bool(sites) and sites[0] not in ("same-origin", "none") and not is_link


def _asset(scope: Scope) -> str:
    query: bytes = scope["query_string"]
    return f"{scope['path']}?{query.decode('latin-1')}"


def _query(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)


def _token_in_query(scope: Scope) -> str | None:
    return next((value for name, value in _query(scope) if name == "token"), None)


def _cookie(headers: Mapping[str, list[str]], name: str) -> str | None:
    for text in headers.get("cookie", []):
        try:
            found: SimpleCookie = SimpleCookie(text)
        except CookieError:
            continue
        if name in found:
            return found[name].value
    return None


def _bearers(headers: Mapping[str, list[str]]) -> list[str]:
    parts = [text.partition(" ") for text in headers.get("authorization", [])]
    return [token.strip() for scheme, _, token in parts if scheme.lower() == "bearer"]


def _refused(path: str, why: str) -> Response:
    body: dict[str, Any] = {"error": why}
    return JSONResponse(body, 403) if path.startswith(API) else PlainTextResponse(f"403: {why}\n", 403)
