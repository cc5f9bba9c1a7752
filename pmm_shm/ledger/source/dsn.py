"""Data source names: how to reach the servers of PostgreSQL, without a password.

A password comes from where libpq finds it: `PGPASSWORD`, `PGPASSFILE`, `~/.pgpass`, a service file. It is never on a
command line, where every user of the machine can read it, and never in a ledger.
"""

from __future__ import annotations

import math
from typing import Any

from pmm_shm.errors import ConfigError, MissingExtraError
from pmm_shm.late import late_imports

# A host that is gone without a word is noticed after about ten seconds; a name that says otherwise is obeyed.
_DEFAULTS: dict[str, Any] = {
    "application_name": "pmm-shm",
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_CONNECT_S_MIN, _CONNECT_S_MAX = 2, 130
_SECRETS = ("password", "sslpassword", "oauth_client_secret")


def psycopg() -> Any:
    """The driver.

    Raises:
        MissingExtraError: it is not installed.
    """
    with late_imports:
        import logging

        try:
            import psycopg as module
        except ImportError as error:
            from pmm_shm.installation import extra_command

            raise MissingExtraError(f"PostgreSQL needs psycopg: {extra_command('postgres')} ({error})") from None
        # What it has to say of a lost connection is in our own errors; the program's handlers get it all the same.
        logger = logging.getLogger("psycopg")
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
    return module


def checked_dsn(text: str) -> str:
    """The name as `key=value` pairs.

    Raises:
        ConfigError: it has a password, or no meaning.
        MissingExtraError: psycopg is not installed.
    """
    driver = psycopg()
    with late_imports:
        from psycopg.conninfo import conninfo_to_dict, make_conninfo
    try:
        values = conninfo_to_dict(text)
    except driver.Error as error:
        # The message may repeat the text, and a password in it.
        reason = "it cannot be read as one" if "@" in text or "password" in text else str(error).strip()
        raise ConfigError(f"not a data source name for PostgreSQL: {reason}") from None
    secret = next((key for key in _SECRETS if values.get(key)), None)
    if secret is not None:
        raise ConfigError(
            f"the data source name has a {secret}, which others could read: put it into ~/.pgpass, or name a file of "
            "that format in PGPASSFILE"
        )
    return make_conninfo("", **values)


def each_host(dsn: str) -> list[str]:
    """The name for each host that it lists, in order: each server is asked by itself whether it is the primary."""
    with late_imports:
        from psycopg.conninfo import conninfo_to_dict, make_conninfo
    values = conninfo_to_dict(dsn)
    # A primary is found by our own look: with read-write, libpq would stay with an old one that came back.
    values.pop("target_session_attrs", None)
    lists = {key: str(values[key]).split(",") for key in ("host", "hostaddr", "port") if values.get(key)}
    count = max([len(one) for key, one in lists.items() if key != "port"], default=1)
    names = []
    for index in range(count):
        own = {key: one[index] if len(one) > 1 else one[0] for key, one in lists.items()}
        names.append(make_conninfo("", **{**_DEFAULTS, **values, **own}))
    return names


def connect_timeout_s(dsn: str, left_s: float) -> int:
    """How long one server may take to answer: what its name says, unless less is left. libpq's least is 2 s."""
    with late_imports:
        from psycopg.conninfo import conninfo_to_dict
    own_s = int(conninfo_to_dict(dsn).get("connect_timeout") or 0)
    return max(_CONNECT_S_MIN, math.ceil(min(own_s if own_s > 0 else _CONNECT_S_MAX, left_s)))
