"""The packages contain only what every supported Python takes."""

from __future__ import annotations

import ast
import re

from tests.support.sources import sources


def test_the_packages_speak_only_what_every_python_takes() -> None:
    """Numbered placeholders with a sequence: Python 3.12 warns of them, 3.14 refuses them."""
    for path, _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "WHERE" in node.value:
                assert not re.search(r"\?\d", node.value), (path, node.lineno)
