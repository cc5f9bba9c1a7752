"""Addresses that no endpoint may have."""

from __future__ import annotations

from pmm_shm import limits

WRONG = {
    "tcp": "tcp://127.0.0.1:{port}",
    "ipc": "ipc:///tmp/x.sock",
    "inproc": "inproc://x",
    "a wildcard": "*",
    "abstract": "@abstract",
    "abstract with a NUL": "\0abstract",
    "a NUL": "/tmp/x\0.sock",
    "relative": "commands.sock",
    "relative with a dot": "./commands.sock",
    "empty": "",
    "too long": "/" + "x" * limits.SOCKET_PATH_BYTES_MAX,
    "no text": "/tmp/\udcff.sock",
}
