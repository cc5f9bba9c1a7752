"""The sources of PMM's functions that replacements of tier 2 are right for: those of its commit d3373d7."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_TABLE = Path(__file__).with_name("known_sources.json")


def known_sources(further: str | None = None) -> Mapping[str, str]:
    """By `module:name`, the SHA-256 in hexadecimal of `inspect.getsource`, encoded as UTF-8.

    Parameters:
        further: the path of a table whose entries replace those of this package.

    Raises:
        OSError: that table cannot be read.
        ValueError: it is no JSON object of texts.
    """
    import json

    table: dict[str, str] = json.loads(_TABLE.read_text(encoding="utf-8"))
    if further is not None:
        found = json.loads(Path(further).read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
            raise ValueError("expected a JSON object of names and SHA-256 sums")
        table.update(found)
    return table
