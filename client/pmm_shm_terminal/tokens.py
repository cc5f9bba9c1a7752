"""Secrets that a program's clients must show: new ones, and those in a file."""

from __future__ import annotations

import os
import secrets
import stat

from pmm_shm.errors import ConfigError

_TOKEN_BYTES = 32
_TOKEN_CHARS_MIN = 16
_TOKEN_CHARS_MAX = 512


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def token_in(path: str) -> str:
    """The token in a file of mode 0600; a missing file is made, with a new one.

    Raises:
        ConfigError: others may read the file, or it has no token.
        OSError: it cannot be read or made.
    """
    try:
        made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        pass
    else:
        with os.fdopen(made, "w", encoding="ascii") as file:
            file.write(new_token() + "\n")
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8", errors="replace") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077 or status.st_uid != os.geteuid():
            raise ConfigError(f"--token-file: {path!r} must be your own file that nobody else may read (chmod 600)")
        token = file.read(_TOKEN_CHARS_MAX).strip()
    if len(token) < _TOKEN_CHARS_MIN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"--token-file: {path!r} holds no token of {_TOKEN_CHARS_MIN} or more characters; remove it")
    return token
