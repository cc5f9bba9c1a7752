"""Fixtures for tests of the log in PostgreSQL, on one real server per module, and what they all need."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import postgres

if TYPE_CHECKING:
    from tests.support.postgres import Postgres
    from tests.support.replicas import Host, Writer

needs_postgresql = pytest.mark.skipif(
    postgres.programs() is None and not os.environ.get("CI"),
    reason="PostgreSQL is not installed (apt-get install postgresql)",
)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres.running() as one:
        yield one


@pytest.fixture
def name(server: Postgres, request: pytest.FixtureRequest) -> str:
    """A ledger in PostgreSQL without events, for one test."""
    from tests.support.replicas import make_source

    own: str = request.node.name[:80]
    make_source(server.dsn, own)
    return own


@pytest.fixture
def hosts(server: Postgres, name: str, tmp_path: Path) -> list[Host]:
    """Two hosts with a replica each, which nobody follows yet."""
    from tests.support.replicas import Host

    return [Host(tmp_path / f"host{number}", server.dsn, name) for number in range(2)]


@pytest.fixture
def host(hosts: list[Host]) -> Host:
    return hosts[0]


@pytest.fixture
def writer(server: Postgres, name: str) -> Iterator[Writer]:
    from tests.support.replicas import Writer

    one = Writer(server.dsn, name)
    yield one
    one.close()
