"""BLAKE2b, the digest of rows, keys and paths."""

from __future__ import annotations

try:
    # The same that `hashlib` has. That module loads OpenSSL, which no first read needs: 3 ms, and 1 MB.
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

__all__ = ["blake2b"]
