"""BLAKE2b without OpenSSL.

`hashlib` loads OpenSSL for every process that imports it, 2 ms and half a megabyte, and then takes BLAKE2b from
Python's own module all the same.
"""

from __future__ import annotations

try:
    from _blake2 import blake2b
except ImportError:  # An interpreter that has it elsewhere.
    from hashlib import blake2b

__all__ = ["blake2b"]
