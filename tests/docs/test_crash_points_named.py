"""The registry of the crash points: the code names each of them, and no other."""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator

from pmm_shm import crash_points
from pmm_shm.crash_points import COMMITS, POINTS
from tests.support.sources import sources


def _reached() -> Iterator[tuple[str, str]]:
    """(function that is called, its first argument) of each call that names a point or a commit."""
    for _, _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if function in ("crash_point", "transact", "_commit", "_commit_result"):
                    name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
                    yield function, str(name)


def test_the_registry_names_each_point_and_no_other() -> None:
    reached = list(_reached())
    commits = [name for function, name in reached if function != "crash_point" and name != "None"]
    points = [name for function, name in reached if function == "crash_point" and name != "None"]
    # The two points of a commit are made of its name, in one place; the header's stand there by themselves.
    assert sorted(commits) == sorted(set(COMMITS) - {"open"})
    made = {f"{name}.{when}" for name in set(COMMITS) - {"open"} for when in ("inside", "committed")}
    assert sorted(points) == sorted(set(POINTS) - made)
    assert [function for function, name in reached if name == "None"].count("crash_point") == 2


def test_every_write_transaction_of_the_store_has_its_points() -> None:
    """No `write()` of the environment but in the two places that reach points."""
    found = [
        source.name
        for source in sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.With)
        for item in node.items
        if isinstance(item.context_expr, ast.Call)
        and isinstance(item.context_expr.func, ast.Attribute)
        and item.context_expr.func.attr == "write"
    ]
    assert found == ["writer.py", "writer.py"]


def test_nothing_but_a_test_installs_a_hook() -> None:
    for path, _, tree in sources():
        if path == "pmm_shm/crash_points.py":
            imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
            assert not {"os", "sys"} & imported
        else:
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.module == "pmm_shm.crash_points":
                    assert [alias.name for alias in node.names] == ["crash_point"], path
                elif isinstance(node, ast.ImportFrom) and node.module == "pmm_shm":
                    assert "crash_points" not in [alias.name for alias in node.names], path


def test_a_point_costs_nothing_without_a_hook() -> None:
    crash_point = crash_points.crash_point
    best_s = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(10_000):
            crash_point("append.inside")
        best_s = min(best_s, time.perf_counter() - began)
    assert best_s / 10_000 < 500e-9  # Measured: 30 ns. The machine of a test may be slow.


def test_a_hook_is_called_with_the_point_until_it_is_taken_away() -> None:
    seen: list[str] = []
    crash_points.install(seen.append)
    try:
        crash_points.crash_point("append.inside")
    finally:
        crash_points.install(None)
    crash_points.crash_point("append.committed")
    assert seen == ["append.inside"]
