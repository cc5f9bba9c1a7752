"""A FUSE file system of the kernel's own kind that any name can be given to: one folder with one file in it.

It answers what statfs(2) and stat(2) ask and refuses the rest, which it counts: whoever opens or makes something there
is found out. Needs root, /dev/fuse, and a mount namespace that ends with the process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import threading
import time
from collections import Counter

LOOKUP, FORGET, GETATTR, STATFS, INIT, ACCESS, INTERRUPT, BATCH_FORGET = 1, 2, 3, 17, 26, 34, 36, 42
HARMLESS = {LOOKUP, FORGET, GETATTR, STATFS, INIT, ACCESS, INTERRUPT, BATCH_FORGET}
_ROOT, _FILE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


class FuseStandIn:
    """Mounted at `folder` as `fuse.<subtype>`, until the process ends.

    Attributes:
        requests: the number of each operation that was asked for.
    """

    def __init__(self, folder: str, kind: str, source: str, file_name: str | None) -> None:
        self.requests: Counter[int] = Counter()
        self._file_name = None if file_name is None else file_name.encode()
        self._device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0".encode()
        if _libc.mount(source.encode(), folder.encode(), kind.encode(), 0, options) != 0:
            raise OSError(ctypes.get_errno(), "mount")
        threading.Thread(target=self._serve, daemon=True).start()

    def forbidden(self) -> dict[int, int]:
        """What was asked for beside looking."""
        return {number: count for number, count in self.requests.items() if number not in HARMLESS}

    def _serve(self) -> None:
        while True:
            data = os.read(self._device, 1 << 20)
            number, unique, node = struct.unpack_from("=4xIQQ", data)
            self.requests[number] += 1
            if number in (FORGET, BATCH_FORGET, INTERRUPT):
                continue
            answer = self._answer(number, node, data[40:])
            error, body = (-answer, b"") if isinstance(answer, int) else (0, answer)
            os.write(self._device, struct.pack("=IiQ", 16 + len(body), error, unique) + body)

    def _answer(self, number: int, node: int, body: bytes) -> bytes | int:
        if number == INIT:
            return struct.pack("=IIIIHHIIHHI28x", 7, 31, 0, 0, 0, 0, 4096, 1, 0, 0, 0)
        if number == GETATTR:
            return struct.pack("=QII", 0, 0, 0) + _attributes(node)
        if number == STATFS:
            return struct.pack("=5Q4I24x", 1_000, 500, 500, 1_000, 500, 4096, 255, 4096, 0)
        if number == LOOKUP and self._file_name is not None and body.rstrip(b"\0") == self._file_name:
            return struct.pack("=4Q2I", _FILE, 0, 0, 0, 0, 0) + _attributes(_FILE)
        return errno.ENOENT if number == LOOKUP else errno.ENOSYS


def _attributes(node: int) -> bytes:
    mode = stat.S_IFDIR | 0o777 if node == _ROOT else stat.S_IFREG | 0o666
    now = int(time.time())
    return struct.pack("=6Q10I", node, 4096, 8, now, now, now, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
