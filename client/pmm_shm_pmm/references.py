"""Finds who refers to PMM's own functions after they were replaced: `from pmm.x import f` keeps the old one.

Needed where PMM was loaded before the replacements were installed, and where its modules import each other in a circle.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType, ModuleType
from typing import Any

Pair = tuple[Any, Any]
"""(former, present): two functions or two classes."""


def redirect(pairs: Sequence[Pair], package: str = "") -> None:
    """Let all names in loaded modules, and the bases of all classes, refer to the present one of each pair.

    Parameters:
        package: only in the modules whose names begin so.
    """
    present = {id(former): now for former, now in pairs}
    for module in [one for name, one in list(sys.modules.items()) if name.startswith(package)]:
        if isinstance(module, ModuleType):
            try:
                # Not `vars`: it loads a module that is lazy.
                names: dict[str, Any] = object.__getattribute__(module, "__dict__")
            except AttributeError:
                # The libraries of cffi say that they are modules, and have no names that could be replaced.
                continue
            for name, value in list(names.items()):
                if id(value) in present:
                    names[name] = present[id(value)]
    for former, now in pairs:
        subclasses: list[type] = former.__subclasses__() if isinstance(former, type) else []
        for subclass in subclasses:
            if subclass is not now:
                subclass.__bases__ = tuple(now if base is former else base for base in subclass.__bases__)


def holder(pairs: Sequence[Pair], ours: Sequence[Any]) -> str | None:
    """In words, something that still refers to a former function or class; None for nothing.

    Parameters:
        ours: what may do so.
    """
    import gc

    classes = [former for former, _ in pairs if isinstance(former, type)]
    spared = {id(one) for one in (ours, *ours, pairs, *pairs, classes)}
    for former, now in pairs:
        if not isinstance(now, type):
            spared |= {id(vars(now)), *map(id, now.__closure__ or ())}
        for referrer in gc.get_referrers(former):
            if id(referrer) not in spared and _holds(referrer, former, classes):
                return f"{former.__module__}.{former.__qualname__} is also in a {type(referrer).__name__}"
    return None


def _holds(referrer: Any, former: Any, classes: Sequence[type]) -> bool:
    """Whether a referrer of a former function or class could still call it."""
    import gc

    if isinstance(referrer, FrameType):
        return False
    # Much refers to a class that is no use of it: its instances, its methods, annotations.
    if isinstance(former, type) and not isinstance(referrer, (dict, list, set, frozenset)):
        return False
    owners = gc.get_referrers(referrer) if isinstance(referrer, dict) else []
    if not isinstance(former, type):
        # The methods of a class that was replaced as a whole.
        return not any(owner is one for owner in owners for one in classes)
    return not any(
        getattr(owner, "__annotations__", None) is referrer
        or (isinstance(owner, dict) and owner.get("__annotations__") is referrer)
        for owner in owners
    )
