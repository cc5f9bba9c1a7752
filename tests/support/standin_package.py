"""The stand-in for PMM in `tests/support/standin`: where it is, its tier-2 hashes, and a copy with another source."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent / "standin"
"""For `PYTHONPATH`."""

TIER_2 = (
    *(
        f"pmm.commitments.tracker:CommitmentTracker.{name}"
        for name in (
            "find_evidence",
            "process_evidence",
            "close_with_evidence",
            "add_commitment",
            "_is_duplicate_of_recent_open",
            "_recent_open_cids",
            "_resolve_project_for_cid",
            "_ensure_project_open",
            "_assign_project_if_needed",
            "sweep_for_expired",
            "close_reflection_on_next",
            "_normalize_text",
            "_auto_project_id",
        )
    ),
    "pmm.runtime.recall:suggest_recall",
    "pmm.runtime.scene_compactor:maybe_compact",
    "pmm.runtime.memegraph:MemeGraphProjection",
    "pmm.runtime.loop:Runtime._ngram_repeat_telemetry_enabled",
    "pmm.runtime.loop:Runtime.handle_user",
    "pmm.runtime.loop:Runtime._get_snapshot",
    "pmm.commitments.restructuring:CommitmentRestructurer.consolidate_similar",
    "pmm.commitments.restructuring:CommitmentRestructurer._get_open_commitments",
    "pmm.commitments.restructuring:CommitmentRestructurer._text_similarity",
    "pmm.storage.eventlog:EventLog.verify_chain",
    "pmm.storage.eventlog:EventLog.read_all",
)
"""`MODULE:NAME` of each function or class whose source must be known."""


def hashes(root: Path = ROOT) -> dict[str, str]:
    """`MODULE:NAME` to the SHA-256 hex of its source, as `inspect.getsource` gives it; nothing is imported."""
    return {name: hashlib.sha256(_source(root, name).encode("utf-8")).hexdigest() for name in TIER_2}


def other(folder: Path, name: str = "pmm.runtime.recall:suggest_recall") -> Path:
    """A copy of the package in `folder` where this function has another source that does the same; the root."""
    shutil.copytree(ROOT, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    source = _source(folder, name)
    path = _path(folder, name)
    text = path.read_text(encoding="utf-8")
    changed = source.replace("\n", "  # another source\n", 1)
    path.write_text(text.replace(source, changed), encoding="utf-8")
    return folder


@contextmanager
def importable(root: Path = ROOT) -> Iterator[None]:
    """`import pmm` is this package, executed anew, and nothing afterwards."""
    _forget()
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
        _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pmm"]:
        del sys.modules[name]
    importlib.invalidate_caches()


@functools.cache
def _tree(text: str) -> ast.Module:
    return ast.parse(text)


def _path(root: Path, name: str) -> Path:
    return root.joinpath(*name.partition(":")[0].split(".")).with_suffix(".py")


def _source(root: Path, name: str) -> str:
    text = _path(root, name).read_text(encoding="utf-8")
    node: ast.Module | ast.stmt = _tree(text)
    for part in name.partition(":")[2].split("."):
        body: list[ast.stmt] = node.body  # type: ignore[union-attr]
        node = next(one for one in body if isinstance(one, ast.FunctionDef | ast.ClassDef) and one.name == part)
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return "".join(text.splitlines(keepends=True)[first - 1 : node.end_lineno])
