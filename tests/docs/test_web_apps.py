"""The applications of the how-tos for Flask and FastAPI, each with four worker processes and many clients at once."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm_client import connect
from tests.support import pages
from tests.support.daemons import DEADLINE_S, environment, is_alive, serving, until
from tests.support.fork_daemon import ForkedDaemon

WORKERS = 4
CLIENTS = 6
ROUNDS = 8
SERVERS = {
    "flask": ["gunicorn", "--workers", "4", "--bind", "unix:app.sock", "--no-control-socket", "app:app"],
    "fastapi": ["uvicorn", "app:app", "--workers", "4", "--uds", "app.sock"],
}


class Server:
    """The server of a how-to with its application, in a folder of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        pytest.importorskip(name)
        (application,) = (
            block.body
            for block in pages.parsed((pages.DOCS / "howto" / f"{name}.md").read_text(encoding="utf-8"))
            if block.name == "app.py"
        )
        (folder / "app.py").write_text(application, encoding="utf-8")
        self.ledger = folder / "agent.db"
        self._socket = str(folder / "app.sock")
        self.log = folder / "app.log"
        program, *arguments = SERVERS[name]
        with open(self.log, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", program, *arguments],
                cwd=folder,
                env=environment(PMM_DB=str(self.ledger)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def workers(self) -> list[int]:
        """Pids of the children that listen to the socket."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        children = [pid for pid in map(int, path.read_text(encoding="ascii").split()) if is_alive(pid)]
        # Not the helpers of multiprocessing.
        return [
            pid
            for pid in children
            if "resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
        ]

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The answer to one request, parsed."""
        connection = http.client.HTTPConnection("app", timeout=DEADLINE_S)
        try:
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.settimeout(DEADLINE_S)
            connection.sock.connect(self._socket)
            sent = None if body is None else json.dumps(body)
            connection.request(method, path, sent, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        assert response.status == 200, answer.decode() + self.log.read_text(encoding="utf-8")
        return json.loads(answer)

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text(encoding="utf-8")
        started = self.log.read_text(encoding="utf-8")
        ready = max(started.count("Application startup complete"), started.count("Booting worker"))
        return ready == WORKERS and os.path.exists(self._socket)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, folder: Path) -> Iterator[Server]:
    # The workers of Flask find no ledger, those of FastAPI neither a ledger nor a daemon: all of them make one at once.
    server = Server(request.param, folder)
    try:
        until(server.is_up, "the server and its workers")
        until(lambda: os.path.exists(server.ledger), "a worker has made the ledger")
        with ForkedDaemon(server.ledger) if request.param == "flask" else contextlib.nullcontext():
            yield server
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(DEADLINE_S) in (0, -signal.SIGTERM)
        assert "Traceback" not in server.log.read_text(encoding="utf-8")
    finally:
        pages.end_all_in(folder)


def test_four_workers_and_many_clients(server: Server) -> None:
    """Each message is stored once, and its answer has its id; a commitment is closed by one request of all."""
    answers: list[tuple[str, Any]] = []
    closings: list[tuple[str, bool]] = []
    failures: list[BaseException] = []
    together = threading.Barrier(CLIENTS)
    with connect(server.ledger) as cache:
        for turn in range(ROUNDS):
            cache.append("commitment_open", "", {"cid": f"c{turn}", "text": "call"})

        def work(number: int) -> None:
            try:
                for turn in range(ROUNDS):
                    text = f"message {number}-{turn}"
                    answers.append((text, server.ask("POST", "/messages", {"text": text})))
                    together.wait(DEADLINE_S)
                    closed = server.ask("POST", f"/commitments/c{turn}/close")
                    closings.append((f"c{turn}", closed["closed"] if isinstance(closed, dict) else closed))
            except BaseException as error:
                failures.append(error)
                together.abort()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S * 2)
        assert failures == []
        assert len(server.workers()) == WORKERS
        assert all(answer["prompt"].startswith("# Context") for _, answer in answers)
        assert sorted(cid for cid, closed in closings if closed) == [f"c{turn}" for turn in range(ROUNDS)]
        events = cache.events("user", limit=None)
        assert {event.id: event.content for event in events} == {answer["id"]: text for text, answer in answers}
        assert len(events) == CLIENTS * ROUNDS
        assert cache.commitments().open == {}
        assert cache.verify()
        assert cache.stats()["daemon"] is not None
        assert len(serving(str(server.ledger))) <= 1
