"""The commands on the log of another program: before its shape is recorded, and those that need a ledger of PMM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command import is_one_line, run
from tests.support.foreign_logs import BLOB, FOLDS, sums_of, toml_of
from tests.support.fork_daemon import ForkedDaemon
from tests.support.polling import until

COUNT = 12
(SUMS,) = FOLDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log, `app.db`, its shape, `blob.toml`, and the same shape without folds, `bare.toml`."""
    made = tmp_path_factory.mktemp("foreign")
    BLOB.make(made / "app.db", COUNT).close()
    (made / "blob.toml").write_text(toml_of(BLOB.shape), encoding="utf-8")
    (made / "bare.toml").write_text(toml_of(BLOB.shape).replace(json.dumps(list(FOLDS)), "[]"), encoding="utf-8")
    return made


def test_a_shape_that_is_not_recorded_is_given_to_commands(folder: Path) -> None:
    shape = ("--shape", "blob.toml")

    def json_of(*arguments: str) -> object:
        ran = run(*arguments, *shape, "--json", cwd=folder)
        assert ran.code == 0, ran.err
        return json.loads(ran.out)

    assert json_of("read", "app.db", "sums") == sums_of(COUNT)
    assert json_of("replay", "app.db", "sums") == sums_of(COUNT)
    assert json_of("explain", "app.db") == {"as_of": COUNT, "subjects": sums_of(COUNT)}
    assert json_of("verify", "app.db")["ok"] is True  # type: ignore[index]
    assert json_of("doctor", "app.db")["ok"] is True  # type: ignore[index]
    for command in ("log", "export"):
        assert "paid" in run(command, "app.db", *shape, cwd=folder).out
    status = run("status", "app.db", *shape, cwd=folder)
    assert (status.code, "--shape blob.toml" in status.out) == (3, True)
    assert not (folder / "app.db-cache" / "shape.json").exists()
    refused = run("log", "app.db", "--shape", "nothing", cwd=folder)
    assert refused.code == 2
    assert is_one_line(refused.err)
    assert "no such shape" in refused.err


def test_a_fold_is_named_by_its_class(folder: Path) -> None:
    for words in (["read", "app.db", SUMS], ["replay", "app.db", SUMS]):
        ran = run(*words, "--shape", "bare.toml", "--json", cwd=folder)
        assert json.loads(ran.out) == sums_of(COUNT), ran.err
    explained = run("explain", "app.db", "a", "--fold", SUMS, "--shape", "bare.toml", "--json", cwd=folder)
    assert json.loads(explained.out)["value"] == sums_of(COUNT)["a"]
    for command in ("explain", "plot"):
        refused = run(command, "app.db", "--shape", "bare.toml", cwd=folder)
        assert refused.code == 2
        assert is_one_line(refused.err)
        assert "needs --fold" in refused.err


def test_where_a_daemon_has_recorded_it(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "app.db"
    BLOB.make(path, COUNT).close()
    name, shape = str(path), str(folder / "blob.toml")

    def described() -> object:
        return json.loads(run("status", name, "--json").out or "{}").get("described")

    with ForkedDaemon(path, "--shape", shape):
        until(lambda: described() == {"sums": sums_of(COUNT)}, "the folds of the shape in status")
        explained = run("explain", name, "a", "--json")
        assert json.loads(explained.out)["value"] == sums_of(COUNT)["a"]
        for words in (
            ["chat", name],
            ["context", name, "hello"],
            ["bench", name],
            ["cluster", "forks", name],
            ["run", "--ledger", name, "-m", "json.tool"],
        ):
            refused = run(*words)
            assert refused.code == 2
            assert is_one_line(refused.err)
            assert "needs a ledger of PMM" in refused.err
        for command in ("search", "recall"):
            assert "restart pmm-cached with --word-kinds" in run(command, name, "hello").err
        # With the shape named once more, the folds are those that are recorded.
        assert json.loads(run("read", name, "sums", "--shape", shape, "--json").out) == sums_of(COUNT)
        unpublished = run("read", name, "tests.support.program_logs:Story", "--consistency", "snapshot")
        assert is_one_line(unpublished.err)
        assert "the fold story is not published in this version; restart pmm-cached" in unpublished.err
    with ForkedDaemon(path, "--word-kinds", "paid"):
        assert "word-kinds" not in run("search", name, "hello").err
