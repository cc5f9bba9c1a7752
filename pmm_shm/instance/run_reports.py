"""What the processes of PMM under `pmm-shm run` report: one small file per process in the instance directory.

A report is a hint. It is read with distrust, and only its last state is kept.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pmm_shm.errors import InstanceDirectoryError
from pmm_shm.instance.access import check_directory
from pmm_shm.instance.making import replace_file
from pmm_shm.instance.paths import Instance

PREFIX = "run-"
KEPT_S = 24 * 3600.0
"""Age at which a report is removed by the next process that writes one, in seconds."""

_FILES_MAX = 256
_BYTES_MAX = 64 << 10


class RunReport(NamedTuple):
    """What one process has counted.

    Attributes:
        pid: in its own pid namespace.
        program: its command line, shortened.
        is_ended: it has written its last report.
        answered: by `module:name`, the calls that a replacement answered.
        fallbacks: by `module:name`, the reasons why PMM's own function answered, with the number of calls.
        kept: by `module:name`, why a name is not replaced.
    """

    pid: int
    program: str
    is_ended: bool
    answered: Mapping[str, int]
    fallbacks: Mapping[str, Mapping[str, int]]
    kept: Mapping[str, str]


def write_report(instance: Instance, token: str, report: RunReport) -> bool:
    """Replace the report of the process that chose this token, and remove reports that are old.

    Returns:
        whether it was written: nothing is where no daemon has made the directory, or another user owns it.
    """
    path = instance.directory / f"{PREFIX}{token}.json"
    is_first = not path.exists()
    try:
        check_directory(instance)
        replace_file(path, json.dumps(report._asdict()))
        if is_first:
            _remove_old(instance.directory)
    except (OSError, InstanceDirectoryError):
        return False
    return True


def read_reports(instance: Instance) -> tuple[RunReport, ...]:
    """The reports of the last day, the newest first. Raises nothing, whatever is there."""
    try:
        check_directory(instance)
        found = sorted(_files(instance.directory), key=lambda one: one[1], reverse=True)
    except (OSError, InstanceDirectoryError):
        return ()
    reports = (_read(path) for path, written_s in found[:_FILES_MAX] if time.time() - written_s < KEPT_S)
    return tuple(one for one in reports if one is not None)


def _files(directory: Path) -> Iterator[tuple[Path, float]]:
    for entry in os.scandir(directory):
        if entry.name.startswith(PREFIX) and entry.is_file(follow_symlinks=False):
            yield Path(entry.path), entry.stat(follow_symlinks=False).st_mtime


def _remove_old(directory: Path) -> None:
    newest_first = sorted(_files(directory), key=lambda one: one[1], reverse=True)
    for number, (path, written_s) in enumerate(newest_first):
        if number >= _FILES_MAX or time.time() - written_s >= KEPT_S:
            path.unlink(missing_ok=True)


def _read(path: Path) -> RunReport | None:
    if path.suffix != ".json":
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, encoding="utf-8") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            found = json.loads(file.read(_BYTES_MAX))
        return _checked(found)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _checked(found: Any) -> RunReport:
    """The report in a parsed JSON value. Raises KeyError, TypeError or ValueError."""
    return RunReport(
        _is(int, found["pid"]),
        _is(str, found["program"]),
        _is(bool, found["is_ended"]),
        {_is(str, name): _is(int, count) for name, count in _is(dict, found["answered"]).items()},
        {
            _is(str, name): {_is(str, reason): _is(int, count) for reason, count in _is(dict, reasons).items()}
            for name, reasons in _is(dict, found["fallbacks"]).items()
        },
        {_is(str, name): _is(str, reason) for name, reason in _is(dict, found["kept"]).items()},
    )


def _is(kind: Any, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}")
    return value
