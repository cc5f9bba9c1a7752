"""Two hosts on one log in PostgreSQL, while processes, servers and connections are killed and standbys take over.

The oracle: each host has the rows that the present primary has, and its answers equal a full replay of them. No
acknowledged event is gone but those that PostgreSQL has lost, and each of these is in a file of lost events.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from pmm_shm.errors import LedgerError, ReplicaLaggingError, SourceUnreachableError, UnknownOutcomeError
from pmm_shm.folds.metrics import MetricsFold
from pmm_shm.folds.recent import RecentFold
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.source.report import read_status
from pmm_shm.projection.replay import replay
from pmm_shm_client import EventLog, connect
from tests.support.clusters import needs_postgresql
from tests.support.daemons import until
from tests.support.fork_daemon import ForkedDaemon
from tests.support.ports import HeldPort
from tests.support.postgres import Postgres
from tests.support.replicas import Host, execute, make_source, source_rows

_NAME = "agent"
_SERVERS = 3
_HOSTS = st.integers(0, 1)


class ClusterMachine(RuleBasedStateMachine):
    """Servers take over in order, each once; the one before may come back as an old primary."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="pmm-cluster-"))
        self.folder.chmod(0o755)
        self.ports = [HeldPort() for _ in range(_SERVERS)]
        self.servers = [Postgres(self.folder / "server0", port=self.ports[0])]
        self.is_old_back = False
        make_source(self.primary.dsn, _NAME)
        self._add_standby()
        hosts = ",".join(["127.0.0.1"] * _SERVERS)
        dsn = f"host={hosts} port={','.join(str(port.number) for port in self.ports)} user=owner dbname=postgres"
        self.hosts = [Host(self.folder / f"host{number}", dsn, _NAME) for number in range(2)]
        self.daemons: list[Any] = [None, None]
        for number in range(2):
            self._start_daemon(number)
        self.acknowledged: set[str] = set()
        self.count = 0

    @property
    def primary(self) -> Postgres:
        return self.servers[self.active]

    active = 0

    def _add_standby(self) -> None:
        if len(self.servers) < _SERVERS:
            number = len(self.servers)
            one = Postgres(self.folder / f"server{number}", standby_of=self.primary, port=self.ports[number])
            self.servers.append(one)

    def _start_daemon(self, number: int) -> None:
        host = self.hosts[number]
        options = ("--source", host.dsn, "--name", _NAME)
        self.daemons[number] = ForkedDaemon(Path(host.ledger), *options)
        self.daemons[number].__enter__()

    @rule(number=_HOSTS, size=st.integers(1, 4), wait=st.booleans())
    def append(self, number: int, size: int, wait: bool) -> None:
        contents = [f"event {self.count + index}" for index in range(size)]
        self.count += size
        with contextlib.closing(EventLog(self.hosts[number].ledger, create=False, timeout=15.0)) as log:
            try:
                log.append_many([("user", content, {}) for content in contents], wait=wait)
            except (SourceUnreachableError, UnknownOutcomeError):
                return
            except ReplicaLaggingError:
                pass
        self.acknowledged.update(contents)

    @rule(number=_HOSTS)
    def kill_follower(self, number: int) -> None:
        status = read_status(Instance.of(self.hosts[number].ledger).directory)
        if status is not None and status.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(status.pid, signal.SIGKILL)

    @rule(number=_HOSTS)
    def kill_daemon(self, number: int) -> None:
        self.daemons[number].kill()
        self.daemons[number].__exit__(None, None, None)
        self._start_daemon(number)

    @rule()
    def kill_server(self) -> None:
        self.primary.kill()
        self.primary.start()

    @rule()
    def cut_connections(self) -> None:
        execute(
            self.primary.dsn,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'pmm-shm' AND pid <> pg_backend_pid()",
        )

    @precondition(lambda self: self.active + 1 < len(self.servers))
    @rule()
    def promote(self) -> None:
        self.primary.kill()
        self.active += 1
        self.primary.promote()
        self.is_old_back = False
        self._add_standby()

    @precondition(lambda self: self.active > 0 and not self.is_old_back)
    @rule()
    def old_primary_comes_back(self) -> None:
        self.servers[self.active - 1].start()
        self.is_old_back = True

    @rule()
    def look(self) -> None:
        rows = source_rows(self.primary.dsn, _NAME)
        for host in self.hosts:
            until(lambda host=host: host.rows() == source_rows(self.primary.dsn, _NAME), "equal rows", 60.0)
            with connect(host.ledger) as cache:
                connection = Connection(host.ledger, "ro")
                folds = [RecentFold(), MetricsFold()]
                position, states = replay(connection, folds)
                connection.close()
                frame = cache.frame()
                assert [frame.fold(fold.name) for fold in folds] == [fold.view(states[fold.name]) for fold in folds]
                assert frame.as_of == position.as_of
        kept = {
            json.loads(line)["content"]
            for path in self.folder.rglob("*.jsonl*")
            for line in path.read_text(encoding="ascii").splitlines()
        }
        assert self.acknowledged <= {row[3] for row in rows} | kept

    def teardown(self) -> None:
        with contextlib.suppress(LedgerError, AssertionError):
            for daemon in self.daemons:
                daemon.__exit__(None, None, None)
        for server in self.servers:
            server.close()
        for port in self.ports:
            port.close()
        shutil.rmtree(self.folder, ignore_errors=True)


ClusterMachine.TestCase.settings = settings(
    max_examples=6, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)


@needs_postgresql
class TestCluster(ClusterMachine.TestCase):  # type: ignore[name-defined,misc]
    pass
