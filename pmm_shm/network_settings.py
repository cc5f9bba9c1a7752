"""The environment variables with which a system sends HTTP requests through a proxy or trusts other certificates.

A library that fails because of one of them seldom names it. These functions find the variable to blame.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from urllib.parse import urlsplit

CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def proxy_variable(url: str) -> str | None:
    """The variable with the proxy for a URL; None if the request needs no proxy."""
    # Slow to import, and needed only after a failure.
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

    parts = urlsplit(url)
    if proxy_bypass_environment(parts.netloc.rpartition("@")[2]):
        return None
    return next((name for scheme in (parts.scheme, "all") if (name := _variable(scheme)) is not None), None)


def proxy_variables() -> list[str]:
    """All variables that name a proxy."""
    return [name for scheme in ("http", "https", "all") if (name := _variable(scheme)) is not None]


def secrets() -> list[str]:
    """The parts `user:password` of the proxies' URLs."""
    users = (os.environ[name].rpartition("@")[0].rpartition("/")[2] for name in proxy_variables())
    return [user for user in users if user]


def unusable_certificates() -> str | None:
    """The variable that names a file or folder of certificates that cannot be read; None if all can."""
    import ssl

    file, folder = map(os.environ.get, CERTIFICATES)
    try:
        if file:
            ssl.create_default_context(cafile=file)
    except (OSError, ValueError):
        return CERTIFICATES[0]
    return CERTIFICATES[1] if folder and not os.path.isdir(folder) else None


def unusable_proxy(use: Callable[[str], object]) -> str | None:
    """The variable whose proxy makes `use` raise; None if there is none."""
    for name in proxy_variables():
        value = os.environ[name]
        try:
            use(value if "://" in value else f"http://{value}")
        except Exception:
            return name
    return None


def _variable(scheme: str) -> str | None:
    names = (f"{scheme}_proxy", f"{scheme}_PROXY".upper())
    return next((name for name in names if os.environ.get(name)), None)
