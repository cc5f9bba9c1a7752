"""The record of a log's shape, a file in its instance directory: whoever opens the log reads it by this shape.

The daemon writes it, or a client that starts one. It counts only in a directory that a client may trust, as the
published state does.
"""

from __future__ import annotations

import contextlib
import json
import os

from pmm_shm.errors import ConfigError, InstanceDirectoryError, StoreError
from pmm_shm.instance.access import check_directory
from pmm_shm.instance.making import replace_file
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.shape import Shape

_FORMAT = 1
_ROOT = 0


def read_shape(instance: Instance) -> Shape | None:
    """The recorded shape; None where there is none, or none that this process may trust.

    Raises:
        ConfigError: the record cannot be read.
    """
    file = instance.shape_file
    try:
        check_directory(instance)
        text = file.read_text(encoding="utf-8")
        owner = os.stat(instance.directory).st_uid
    except (OSError, InstanceDirectoryError):
        return None
    except ValueError:
        text = ""
    try:
        record = json.loads(text)
        found = record["shape"]
        if record["format"] != _FORMAT or not isinstance(found.get("folds", []), list):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConfigError(f"{file}: not the record of a shape; delete it, and start pmm-cached with --shape") from None
    if owner not in (os.geteuid(), _ROOT):
        # A name of a module is code: it is taken from nobody else.
        found = {**found, "folds": [name for name in found.get("folds", ()) if ":" not in str(name)]}
    return Shape.from_definition(found, str(file))


def record_shape(instance: Instance, shape: Shape) -> None:
    """Write the record, in one step, if it is another one.

    Raises:
        StoreError: it cannot be written.
    """
    with contextlib.suppress(ConfigError):
        if read_shape(instance) == shape:
            return
    try:
        replace_file(instance.shape_file, json.dumps({"format": _FORMAT, "shape": shape.definition()}), is_durable=True)
    except OSError as error:
        raise StoreError(f"{instance.shape_file}: {error.strerror}") from None


def agreed_shape(instance: Instance, given: Shape | None) -> Shape | None:
    """The shape to read a ledger by: the one that is given, or the recorded one.

    Raises:
        ConfigError: another one is recorded, or the record cannot be read.
    """
    if not os.path.exists(instance.shape_file):
        return given
    recorded = read_shape(instance)
    if given is None or recorded is None:
        return given or recorded
    if recorded.identity != given.identity:
        raise ConfigError(
            f"{instance.ledger}: its daemon reads it by the shape {recorded}, and {given} differs; leave `shape` out, "
            f"or restart pmm-cached with --shape and a higher version than {recorded.version}"
        )
    return given


def succeeding_shape(instance: Instance, given: Shape | None) -> Shape | None:
    """As `agreed_shape`, for a daemon that starts: a higher version of the same name takes the recorded one's place.

    Raises:
        ConfigError: the recorded shape is another one, or has been changed without a higher version.
    """
    if given is not None and os.path.exists(instance.shape_file):
        recorded = read_shape(instance)
        if recorded is not None and recorded.identity != given.identity:
            if recorded.name == given.name and given.version > recorded.version:
                return given
            raise ConfigError(
                f"{instance.ledger}: the recorded shape is {recorded}, and {given} differs; raise its version, "
                f"or delete {instance.shape_file}"
            )
    return agreed_shape(instance, given)
