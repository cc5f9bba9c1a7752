"""A power cut: the writes and syncs of a process are recorded by strace, and what was not synced is dropped."""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_CALLS = "openat,pwrite64,write,ftruncate,fsync,fdatasync,unlink,unlinkat,rename,renameat"
_LINE = re.compile(r"\d+ +(\w+)\((.*)\) += (-?\d+)")
_PATH = re.compile(r"<([^>]*)>")
_TEXT = re.compile(r'"([^"]*)"')


class Step(NamedTuple):
    """A system call on a file of the recorded folder.

    Attributes:
        call: `create`, `write`, `truncate`, `sync`, `sync_folder`, or `unlink`.
        name: of the file.
        data, offset: of a write; `offset` is the new size for `truncate`.
    """

    call: str
    name: str
    data: bytes = b""
    offset: int = 0


def record(folder: Path, names: Sequence[str], command: Sequence[str], env: dict[str, str]) -> list[Step]:
    """Run a command, and record what it does with these files of `folder`, which are not there yet."""
    trace = folder.with_name(folder.name + "-trace")
    watched = [str(folder), *(str(folder / name) for name in names)]
    options = [option for path in watched for option in ("-P", path)]
    done = subprocess.run(
        ["strace", "-f", "-y", "-xx", "-s", "16777216", "-e", f"trace={_CALLS}", *options, "-o", str(trace), *command],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    steps: list[Step] = []
    there: set[str] = set()
    for line in trace.read_text(encoding="ascii").splitlines():
        assert "unfinished" not in line, line
        match = _LINE.match(line)
        if match and int(match[3]) >= 0:
            steps += _step(match[1], match[2], str(folder), there)
    return steps


def _step(call: str, arguments: str, folder: str, there: set[str]) -> list[Step]:
    paths = [_unescaped(one).decode() for one in _PATH.findall(arguments)]
    texts = [_unescaped(one) for one in _TEXT.findall(arguments)]
    assert not call.startswith("rename"), arguments
    if call in ("openat", "unlink", "unlinkat"):
        path = os.path.join(folder, texts[0].decode())
        name = os.path.basename(path)
        if call != "openat":
            there.discard(name)
            return [Step("unlink", name)]
        if "O_CREAT" not in arguments or name in there:
            return []
        there.add(name)
        return [Step("create", name)]
    path, name = paths[0], os.path.basename(paths[0])
    numbers = arguments.rsplit(", ", 2)
    if call in ("fsync", "fdatasync"):
        return [Step("sync_folder" if path == folder else "sync", name)]
    if call == "ftruncate":
        return [Step("truncate", name, offset=int(numbers[-1]))]
    return [Step("write", name, texts[0], int(numbers[-1]) if call == "pwrite64" else -1)]


def _unescaped(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


class _Inode:
    def __init__(self) -> None:
        self.synced = bytearray()
        self.pending: list[Step] = []

    def sync(self) -> None:
        for step in self.pending:
            _apply(self.synced, step)
        self.pending = []


def _apply(content: bytearray, step: Step) -> None:
    end = step.offset if step.call == "truncate" else step.offset + len(step.data)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    if step.call == "truncate":
        del content[end:]
    else:
        content[step.offset : end] = step.data


def after_power_cut(steps: Sequence[Step], luck: random.Random | None = None) -> dict[str, bytes]:
    """The files after a power cut behind these steps, by name.

    What was not synced is lost: file contents, and new and removed names. With `luck`, each of the lost writes may have
    reached the disk nevertheless, in any order, and so may the names.
    """
    names: dict[str, _Inode] = {}
    synced_names: dict[str, _Inode] = {}
    for step in steps:
        if step.call == "create":
            names[step.name] = _Inode()
        elif step.call == "unlink":
            names.pop(step.name, None)
        elif step.call == "sync_folder":
            synced_names = dict(names)
        elif step.call == "sync":
            names[step.name].sync()
        else:
            names[step.name].pending.append(step)
    files = {}
    for name, inode in (names if luck is not None and luck.random() < 0.5 else synced_names).items():
        content = bytearray(inode.synced)
        for step in inode.pending:
            if luck is not None and luck.random() < 0.5:
                _apply(content, step)
        files[name] = bytes(content)
    return files
