"""The Dockerfile and the Compose file: their services, played in name spaces."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pmm_shm.ledger.source.dsn import checked_dsn
from pmm_shm_client import connect
from tests.support import containers, daemons, pages
from tests.support.containers import Project, Service
from tests.support.ledgers import PACKAGES, ROOT

REQUEST = """
import json, sys, urllib.request
path, body = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
url, headers = "http://127.0.0.1:8000" + path, {"Content-Type": "application/json"}
request = urllib.request.Request(url, body and body.encode(), headers)
print(urllib.request.urlopen(request, timeout=30).read().decode())
"""


DOCKERFILE = (containers.DOCKER / "Dockerfile").read_text(encoding="utf-8")
STAGES = containers.stages(DOCKERFILE)


def copied(*stages: str) -> list[tuple[list[str], str]]:
    """Sources in the checkout and the target of each COPY in these stages."""
    words = [rest.split() for stage in stages for name, rest in STAGES[stage] if name == "COPY"]
    return [(one[:-1], one[-1]) for one in words if not one[0].startswith("--from")]


def test_what_the_image_is_built_from_is_enough_and_all_that_is_sent(tmp_path: Path) -> None:
    """The stage `build` installs the packages, by its own command, from a folder with what it copies."""
    ignored = (containers.DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    sources = [source for sources, _ in copied(*STAGES) for source in sources]
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == set(sources)
    context = tmp_path / "context"
    for sources, target in copied("build"):
        for source in sources:
            place = context / (source if target == "./" else target)
            place.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, place)
    runs = [rest for name, rest in STAGES["build"] if name == "RUN"]
    assert "pip install --no-cache-dir --require-hashes -r requirements/product.txt" in runs
    install = runs[-1].split()
    assert install[:2] == ["pip", "install"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *install[1:-1], "--quiet", "--target", str(tmp_path / "site"), "."],
        cwd=context,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {path.name for path in (tmp_path / "site").iterdir() if path.is_dir() and "dist-info" not in path.name}
    assert found - {"bin"} == set(PACKAGES)
    assert {path.name for path in (tmp_path / "site" / "bin").iterdir()} == {"pmm-cached", "pmm-shm"}


@pytest.mark.parametrize("stage", ["base", "daemon", "app"])
def test_no_image_runs_as_root(stage: str) -> None:
    made = containers.image(stage, STAGES)
    assert made.user == "10001:10001"
    assert made.environment["PMM_DB"].startswith("/data/")


def test_the_application_is_that_of_the_how_to() -> None:
    text = (pages.DOCS / "howto" / "flask.md").read_text(encoding="utf-8")
    (application,) = (block.body for block in pages.parsed(text) if block.name == "app.py")
    assert application == (containers.DOCKER / "app.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    pytest.importorskip("flask")
    if reason := containers.missing():
        pytest.skip(reason)
    project = Project(tmp_path_factory.mktemp("compose"))
    try:
        project.up()
        daemons.until(
            lambda: project.running["app"].execute("python", "-c", REQUEST, "/agent").returncode == 0, "the app"
        )
        yield project
    finally:
        project.down()


def ask(project: Project, path: str, body: Any = None) -> Any:
    """The answer of the application, asked from within its container."""
    sent = [] if body is None else [json.dumps(body)]
    done = project.running["app"].execute("python", "-c", REQUEST, path, *sent)
    assert done.returncode == 0, done.stderr + project.running["app"].log.read_text(encoding="utf-8")
    return json.loads(done.stdout)


def status(service: Service) -> Any:
    return json.loads(service.execute("pmm-shm", "status", "--json").stdout)


def test_the_application_answers_from_the_state_that_the_daemon_publishes(project: Project) -> None:
    first = ask(project, "/messages", {"text": "Could you plan the week?"})
    assert "Could you plan the week?" in first["prompt"]
    assert ask(project, "/agent")["as_of"] >= first["id"]
    daemons.until(lambda: status(project.running["app"])["health"] == "healthy", "the daemon is healthy")
    found = status(project.running["app"])
    assert found["reasons"] == []
    # They see each other's processes.
    seen = project.running["app"].execute("cat", f"/proc/{found['daemon']['pid']}/cmdline")
    assert "pmm-cached" in seen.stdout, seen.stderr
    shown = project.running["app"].execute("pmm-shm", "read", "metrics", "--json", "--consistency", "snapshot")
    assert json.loads(shown.stdout)["as_of"] == ask(project, "/agent")["as_of"], shown.stderr


def test_a_commitment_is_closed_once(project: Project) -> None:
    with connect(project.volume("ledger") / "agent.db") as cache:
        cache.append("commitment_open", "", {"cid": "c1", "text": "plan the week"})
    assert "c1" in ask(project, "/agent")["open"]
    assert [ask(project, "/commitments/c1/close", {})["closed"] for _ in range(2)] == [True, False]
    assert "c1" not in ask(project, "/agent")["open"]


def test_the_commands_of_the_how_to_work_in_the_containers(project: Project) -> None:
    text = (pages.DOCS / "howto" / "containers.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    docker compose .* exec (\w+) (.+)$", text, re.MULTILINE)
    assert len(commands) > 2
    for name, command in commands:
        done = project.running[name].execute(*command.split())
        assert done.returncode == 0, (command, done.stdout, done.stderr)


@pytest.mark.parametrize("name", ["pids", "cached", "app"])
def test_a_service_has_no_privileges_and_writes_only_what_it_must(project: Project, name: str) -> None:
    service = project.running[name]
    lines = Path(f"/proc/{service.pid}/status").read_text(encoding="utf-8").splitlines()
    values = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert values["Uid"].split() == values["Gid"].split() == ["10001"] * 4
    assert {int(values[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert values["NoNewPrivs"] == "1"
    tried = service.execute("sh", "-c", "for path in / /srv /opt /usr /etc; do touch $path/new && echo $path; done")
    assert tried.stdout == ""
    assert tried.stderr.count("Read-only file system") == 5, tried.stderr


def test_the_daemon_ends_and_starts_again_beside_the_workers(project: Project) -> None:
    """It does not own the pid namespace: its end does not end them."""
    app = project.running["app"].pid
    before = ask(project, "/messages", {"text": "before"})["id"]
    assert project.running["cached"].kill(signal.SIGKILL) != 0
    assert project.running["app"].execute("pmm-shm", "status").returncode == 3
    assert ask(project, "/messages", {"text": "without"})["id"] == before + 1
    assert ask(project, "/agent")["as_of"] == before + 1
    daemons.until(project.start("cached").is_healthy, "the daemon is back")
    assert project.running["app"].pid == app
    assert ask(project, "/messages", {"text": "after"})["id"] == before + 2
    found = status(project.running["app"])
    assert (found["health"], found["reasons"]) == ("healthy", [])
    project.running["cached"].kill(signal.SIGTERM)
    assert not any("Traceback" in one.log.read_text(encoding="utf-8") for one in project.running.values())
    daemons.until(project.start("cached").is_healthy, "the daemon is back")


def test_the_hosts_of_a_log_in_postgresql_fit_the_image() -> None:
    text = (containers.DOCKER / "cluster.yaml").read_text(encoding="utf-8")
    services: dict[str, Any] = yaml.safe_load(text)["services"]
    assert set(services) == {"postgres", "log", "host-a", "host-b"}
    volumes = yaml.safe_load(text)["volumes"]
    for name, service in services.items():
        assert {one.split(":")[0] for one in service.get("volumes", ())} <= set(volumes)
        assert set(service.get("depends_on", ())) <= set(services)
        if name != "postgres":
            assert service["build"]["target"] in STAGES
            assert checked_dsn(service["environment"]["PMM_SOURCE"])
            assert service["read_only"]
            assert service["cap_drop"] == ["ALL"]
        # No password in the file.
        passwords = [value for key, value in service["environment"].items() if "PASSWORD" in key]
        assert all(value.startswith("${PGPASSWORD:?") for value in passwords)
        assert passwords
    assert services["host-a"]["volumes"] != services["host-b"]["volumes"]
    # The image that is built where no target is named stays the daemon's.
    assert list(STAGES)[-1] == "daemon"
