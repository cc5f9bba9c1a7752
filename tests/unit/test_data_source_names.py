"""Data source names: each of several hosts by itself, the timeouts, and no password."""

from __future__ import annotations

import math
import sys

import pytest
from psycopg.conninfo import conninfo_to_dict

from pmm_shm.errors import ConfigError, MissingExtraError
from pmm_shm.installation import extra_command
from pmm_shm.ledger.source.dsn import checked_dsn, connect_timeout_s, each_host
from pmm_shm.ledger.source.statements import array


def test_without_the_driver_the_message_is_the_command_that_installs_it_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError) as caught:
        checked_dsn("host=x")
    assert extra_command("postgres") in str(caught.value)


def parts(dsn: str, *keys: str) -> list[tuple[str | int | None, ...]]:
    return [tuple(conninfo_to_dict(one).get(key) for key in keys) for one in each_host(dsn)]


@pytest.mark.parametrize(
    ("dsn", "hosts"),
    [
        ("dbname=a", [(None, None)]),
        ("host=x", [("x", None)]),
        ("host=x,y port=1,2", [("x", "1"), ("y", "2")]),
        ("host=x,y port=5", [("x", "5"), ("y", "5")]),
        ("postgresql://x:1,y:2/a", [("x", "1"), ("y", "2")]),
        ("postgresql://x,y/a", [("x", ""), ("y", "")]),
        ("host=x,y,z", [("x", None), ("y", None), ("z", None)]),
    ],
)
def test_each_host_is_asked_by_itself(dsn: str, hosts: list[tuple[str, str]]) -> None:
    assert parts(dsn, "host", "port") == hosts


def test_addresses_belong_to_their_hosts() -> None:
    assert parts("host=x,y hostaddr=10.0.0.1,10.0.0.2", "host", "hostaddr") == [("x", "10.0.0.1"), ("y", "10.0.0.2")]
    assert parts("hostaddr=10.0.0.1,10.0.0.2", "hostaddr") == [("10.0.0.1",), ("10.0.0.2",)]


def test_what_libpq_would_choose_is_left_to_our_own_look() -> None:
    assert parts("host=x target_session_attrs=read-write", "target_session_attrs") == [(None,)]


def test_a_name_may_say_otherwise_than_the_defaults() -> None:
    keys = ("connect_timeout", "tcp_user_timeout", "application_name")
    assert parts("host=x", *keys) == [("5", "10000", "pmm-shm")]
    assert parts("host=x connect_timeout=9 tcp_user_timeout=1 application_name=b", *keys) == [("9", "1", "b")]


@pytest.mark.parametrize(
    ("dsn", "left_s", "expected_s"),
    [
        ("connect_timeout=5", math.inf, 5),
        ("connect_timeout=5", 3.2, 4),
        ("connect_timeout=5", 0.1, 2),
        ("connect_timeout=5", -7.0, 2),
        ("connect_timeout=0", math.inf, 130),
        ("connect_timeout=0", 60.0, 60),
        ("host=x", math.inf, 130),
    ],
)
def test_a_server_is_waited_for_as_long_as_there_is_time(dsn: str, left_s: float, expected_s: int) -> None:
    assert connect_timeout_s(dsn, left_s) == expected_s


@pytest.mark.parametrize("key", ["password", "sslpassword", "oauth_client_secret"])
def test_no_secret_is_in_a_name(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked_dsn(f"host=x {key}=hunter2")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("dsn", ["postgresql://u:hunter2@[", "host=x password='hunter2"])
def test_a_name_that_cannot_be_read_is_not_repeated(dsn: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read as one") as caught:
        checked_dsn(dsn)
    assert "hunter2" not in str(caught.value)


def test_a_name_is_kept_as_pairs() -> None:
    assert checked_dsn("postgresql://me@x:1,y:2/agents") == "user=me dbname=agents host=x,y port=1,2"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], "{}"),
        ([None, 1, ""], '{NULL,"1",""}'),
        (["NULL", 'a"b', "c\\d", "{e,f}"], '{"NULL","a\\"b","c\\\\d","{e,f}"}'),
    ],
)
def test_an_array_is_quoted(values: list[object], expected: str) -> None:
    assert array(values) == expected
