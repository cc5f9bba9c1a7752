"""The pages in docs: what they show is run, and what they name exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import pages
from tests.pages import DOCS, Workplace

RUN = [DOCS / "TUTORIAL.md", DOCS / "TROUBLESHOOTING.md", *sorted((DOCS / "howto").glob("*.md"))]


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    place = Workplace(tmp_path)
    yield place
    place.close()


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_blocks_run_and_print_what_they_show(page: Path, workplace: Workplace) -> None:
    for block in pages.parsed(page.read_text(encoding="utf-8")):
        workplace.run(block)
