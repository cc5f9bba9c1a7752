"""A verification is never about nothing: what is not there is an error, and exit code 0 means that all was read."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pmm_shm import errors
from pmm_shm_client import connect
from pmm_shm_client.aio import connect_async
from tests.support import ledgers
from tests.support.command import is_one_line, run
from tests.support.daemons import until
from tests.support.fork_daemon import ForkedDaemon

COUNT = 200


def remove(path: str) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(path + suffix).unlink(missing_ok=True)


def move_away(path: str) -> None:
    os.rename(path, path + ".elsewhere")


def replace_by_a_folder(path: str) -> None:
    remove(path)
    Path(path).mkdir()


def replace_by_an_empty_file(path: str) -> None:
    remove(path)
    Path(path).touch()


def replace_by_a_text(path: str) -> None:
    remove(path)
    Path(path).write_text("no database\n" * 200, encoding="utf-8")


WAYS = (remove, move_away, replace_by_a_folder, replace_by_an_empty_file, replace_by_a_text)


@pytest.fixture(params=[False, True], ids=["no daemon", "a daemon"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A ledger whose state is published; the daemon has stopped or still runs."""
    made = ledgers.build(tmp_path / "l.db", COUNT, journal="delete")
    with ForkedDaemon(Path(made), "--verify-every", "0") as daemon:
        with connect(made) as cache:
            until(lambda: cache.verify().folds, "everything is published")
        if not request.param:
            assert daemon.stop() == 0
        yield made


@pytest.mark.parametrize("vanish", WAYS)
def test_what_is_not_there_is_not_verified(path: str, vanish: Callable[[str], None]) -> None:
    async def verify_async() -> None:
        async with await connect_async(path) as cache:
            vanish(path)
            await cache.verify_async()

    with connect(path) as cache:
        assert cache.verify()
        with pytest.raises(errors.PmmShmError, match=r"l\.db"):
            asyncio.run(verify_async())
        with pytest.raises(errors.PmmShmError, match=r"l\.db"):
            cache.verify()
        if vanish in (remove, move_away):
            with pytest.raises(errors.LedgerNotFoundError):
                cache.verify("metrics")
    for options in ([], ["--no-chain"], ["--fold", "metrics"]):
        ran = run("verify", path, *options)
        assert ran.code != 0
        assert ran.out == ""
        assert is_one_line(ran.err)


def test_where_nothing_is_published_the_ledger_is_read(tmp_path: Path) -> None:
    path = ledgers.build(tmp_path / "l.db", 2_000, journal="delete")
    with connect(path) as cache:
        for fold in (None, "metrics"):
            report = cache.verify(fold)
            assert (report.ok, report.folds, report.events, report.as_of) == (True, (), 2_000, 0)
    ran = run("verify", path, "--no-chain")
    assert ran.code == 0
    assert "nothing is published; all 2,000 events can be read" in ran.out
    # A page of the table in the middle of the file is damaged.
    data = bytearray(Path(path).read_bytes())
    middle = len(data) // 4096 // 2 * 4096
    data[middle : middle + 4096] = b"\xff" * 4096
    Path(path).write_bytes(data)
    ran = run("verify", path, "--no-chain")
    assert ran.code != 0
    assert is_one_line(ran.err)


def test_a_chain_without_hashes_is_not_called_ok(tmp_path: Path) -> None:
    path = ledgers.build(tmp_path / "l.db", 5, hash_columns=False)
    ran = run("verify", path)
    assert ran.code == 0
    assert "no row has a hash" in ran.out
    assert "all 5 events can be read" in ran.out
    ran = run("verify", ledgers.build(tmp_path / "empty.db", 0))
    assert ran.code == 0
    assert "no rows" in ran.out
