"""Nothing shortens a file that another process may have mapped."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.support.sources import sources

# Module to what may shorten a file there, and which: none of these is mapped by anybody.
SHORTENS = {
    "server/pmm_cached/instance_lock.py": ["ftruncate"],  # daemon.lock
    "pmm_shm/instance/making.py": ["w"],  # A temporary file, to be renamed.
    "pmm_shm/ledger/backup.py": ["truncate"],  # An unfinished backup, to be removed.
    "server/pmm_replicator/forks.py": ["w"],  # A new file.
    "client/pmm_shm_pmm/report.py": ["w"],  # A new file, or one that is appended to.
    "client/pmm_shm_terminal/tokens.py": ["w"],  # A new file.
    "client/pmm_shm_cli/commands/plot.py": ["write_bytes"],  # The figure.
    "client/pmm_shm_cli/top_view.py": ["truncate"],  # A line of text.
}


def test_nothing_shortens_a_file_in_place() -> None:
    """Row 17: a page that is gone is a SIGBUS in every process that has it mapped. Write anew, and rename."""
    found: dict[str, list[str]] = {}
    for path, _, tree in sources():
        for node in ast.walk(tree):
            for call in _shortenings(node):
                found.setdefault(path, []).append(call)
    assert found == SHORTENS


def _shortenings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.Attribute, ast.Name)):
        name = node.attr if isinstance(node, ast.Attribute) else node.id
        if name in ("truncate", "ftruncate", "O_TRUNC", "write_text", "write_bytes", "copyfile"):
            yield name
    elif isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("open", "fdopen"):
            for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str) and "w" in argument.value:
                    yield argument.value
