"""Plays the services of a Compose file in name spaces, as Docker would run them, without Docker and without an image.

A service gets a root of its own (the programs and libraries of this machine, read-only where the file says so), its
volumes and its temporary directories, its user without capabilities, its own network, and the pid namespace that the
file names. Settings come from the Compose file and from the stage of the Dockerfile that it builds. A setting that is
not known here is an error. Needs root, util-linux and iproute2.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.support import daemons, ledgers, pages

DOCKER = ledgers.ROOT / "docker"
PROGRAMS = "/opt/pmm-shm/bin"
"""Where the image has the programs of its virtual environment."""

_NOT_PLAYED = {"build", "ports", "restart", "depends_on"}
_PLAYED = {
    "user", "read_only", "cap_drop", "security_opt", "tmpfs", "volumes", "pid", "network_mode", "init", "command",
}  # fmt: skip
_NEEDED = ("unshare", "nsenter", "setpriv", "chroot", "ip")

# Runs as root in new namespaces; the arguments are the command, which gets the service's user and no capability.
# Mounts on /tmp come before the folders below it.
_CONTAINER = """
set -e
ip link set lo up
root={root}
mount -t tmpfs -o mode=755 root $root
for name in bin sbin lib lib64; do [ ! -L /$name ] || cp -P /$name $root/$name; done
{mounts}
mkdir -p $root/proc $root/dev $root/srv $root{programs}
mount -t proc proc $root/proc
mount --rbind /dev $root/dev
mount --bind {bin} $root{programs}
{seal}
exec chroot $root setpriv --reuid {uid} --regid {gid} --clear-groups {restrictions} \
    env --ignore-environment --chdir=/srv {environment} "$@"
"""
# An init process: passes SIGTERM on, and reaps.
_INIT = 'trap "kill $!; exit" TERM; "$@" & while wait $!; do :; done'


class Image(NamedTuple):
    """A stage of the Dockerfile: what a container of it runs, if nothing else is said."""

    environment: dict[str, str]
    user: str
    command: list[str]
    health: list[str]


def missing() -> str:
    """What this machine lacks to play services, or an empty text."""
    if os.getuid() != 0:
        return "name spaces need root"
    lacking = [name for name in _NEEDED if shutil.which(name) is None]
    if lacking:
        return f"no {', '.join(lacking)}"
    tried = subprocess.run(["unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "true"], check=False)
    return "no name spaces here" if tried.returncode else ""


def stages(dockerfile: str) -> dict[str, list[tuple[str, str]]]:
    """Instruction and arguments, in order, of each stage by its name; `FROM` is the first."""
    lines = re.sub(r"^#.*\n", "", dockerfile, flags=re.M).replace("\\\n", " ").splitlines()
    found: dict[str, list[tuple[str, str]]] = {"": []}
    for line in filter(None, lines):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = [("FROM", base)]
        else:
            found[[*found][-1]].append((instruction, rest))
    return found


def image(name: str, found: dict[str, list[tuple[str, str]]]) -> Image:
    """The settings of a stage, with those of the stages that it is built on."""
    lines = found[name]
    base = image(lines[0][1], found) if lines[0][1] in found else Image({}, "0:0", [], [])
    for instruction, rest in lines:
        if instruction == "ENV":
            added = dict(word.split("=", 1) for word in shlex.split(rest))
            added = {key: value.replace("$PATH", "/usr/bin:/bin:/usr/sbin:/sbin") for key, value in added.items()}
            base = base._replace(environment=base.environment | added)
        elif instruction == "USER":
            base = base._replace(user=rest)
        elif instruction == "CMD":
            base = base._replace(command=json.loads(rest))
        elif instruction == "HEALTHCHECK":
            base = base._replace(health=json.loads(rest.split(" CMD ")[1]))
    return base


class Service:
    """One container that runs, or has run."""

    def __init__(self, process: subprocess.Popen[bytes], image: Image, restrictions: list[str], log: Path) -> None:
        self.process = process
        self.image = image
        self.log = log
        self._restrictions = restrictions

    @property
    def pid(self) -> int:
        """The pid of its command, as this namespace counts."""
        pid = self.process.pid
        while True:  # Down from nsenter and unshare, which wait for a child.
            name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
            if name not in ("nsenter", "unshare") or not children:
                return pid
            pid = int(children[0])

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as `docker exec` does."""
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--net", "--ipc", "--uts", "--pid", "--root", "--wd"]
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return subprocess.run(
            [*enter, "setpriv", *self._restrictions, "env", "--ignore-environment", *variables, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=daemons.DEADLINE_S,
        )

    @property
    def environment(self) -> dict[str, str]:
        return environment_of(self.image)

    def is_healthy(self) -> bool:
        """Whether the health check of the image says so; fails where the container has ended."""
        assert self.process.poll() is None, self.log.read_text(encoding="utf-8")
        return self.execute(*self.image.health).returncode == 0

    def kill(self, number: int) -> int:
        """Send a signal to the command, wait for its end, and give the exit code."""
        os.kill(self.pid, number)
        return self.process.wait(daemons.DEADLINE_S)


def environment_of(image: Image) -> dict[str, str]:
    return {**image.environment, "PYTHONPATH": ledgers.checkout_path(), "LC_ALL": "C.UTF-8"}


class Project:
    """The services of a Compose file; `up` starts them in their order, `down` ends all of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        content = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
        self.services: dict[str, dict[str, Any]] = yaml.safe_load(content)["services"]
        self.stages = stages((DOCKER / "Dockerfile").read_text(encoding="utf-8"))
        self.running: dict[str, Service] = {}
        pages.commands_on_path(folder / "bin")
        srv = folder / "srv"
        srv.mkdir()
        shutil.copy(DOCKER / "app.py", srv)
        for name in self.volume_names():
            self.volume(name).mkdir(mode=0o700)
            # As the image's own directory: Docker gives its owner and mode to a new named volume.
            owner, group, mode = self.volume_owner()
            os.chown(self.volume(name), owner, group)
            self.volume(name).chmod(mode)

    def volume(self, name: str) -> Path:
        """The folder that stands for a named volume."""
        return self._folder / f"volume-{name}"

    def volume_names(self) -> set[str]:
        return {one.split(":")[0] for service in self.services.values() for one in service.get("volumes", ())}

    def volume_owner(self) -> tuple[int, int, int]:
        """User, group and mode of /data in the image."""
        runs = [rest for stage in self.stages.values() for name, rest in stage if name == "RUN"]
        (made,) = (re.search(r"install -d -o pmm -g pmm -m (\d+) /data$", one) for one in runs if " /data" in one)
        (user,) = (
            re.search(r"--gid (\d+) pmm && useradd --uid (\d+) --gid pmm", one) for one in runs if "useradd" in one
        )
        assert made is not None
        assert user is not None
        return int(user[2]), int(user[1]), int(made[1], 8)

    def up(self) -> None:
        """Start each service when those that it depends on are as it asks."""
        for name, service in self.services.items():  # In the file, too, a service comes after those it depends on.
            for other, asked in service.get("depends_on", {}).items():
                self._await(self.running[other], asked["condition"])
            self.start(name)

    def _await(self, service: Service, condition: str) -> None:
        if condition == "service_completed_successfully":
            assert service.process.wait(daemons.DEADLINE_S) == 0, service.log.read_text(encoding="utf-8")
        elif condition == "service_healthy":
            daemons.until(service.is_healthy, "the health check succeeds")
        else:
            assert condition == "service_started"

    def start(self, name: str) -> Service:
        """Start one service, again if it has ended."""
        service = self.services[name]
        assert not set(service) - _PLAYED - _NOT_PLAYED, f"{name}: settings that nobody plays"
        made = image(service["build"]["target"], self.stages)
        uid, gid = service.get("user", made.user).split(":")
        restrictions = ["--reuid", uid, "--regid", gid, "--clear-groups"]
        if service.get("cap_drop") == ["ALL"]:
            restrictions += ["--bounding-set", "-all", "--inh-caps", "-all"]
        if "no-new-privileges:true" in service.get("security_opt", ()):
            restrictions += ["--no-new-privs"]
        root = self._folder / f"root-{name}"
        root.mkdir(exist_ok=True)
        script = _CONTAINER.format(
            root=shlex.quote(str(root)),
            mounts="\n".join(self._mounts(service)),
            bin=shlex.quote(str(self._folder / "bin")),
            programs=PROGRAMS,
            seal="mount -o remount,ro $root" if service.get("read_only") else "",
            uid=uid,
            gid=gid,
            restrictions=shlex.join(restrictions[5:]),
            environment=shlex.join(f"{key}={value}" for key, value in environment_of(made).items()),
        )
        command = service.get("command", made.command)
        if service.get("init"):
            command = ["bash", "-c", _INIT, "init", *command]
        log = self._folder / f"{name}.log"
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [*self._namespaces(service), "bash", "-c", script, "container", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.running[name] = Service(process, made, restrictions, log)
        return self.running[name]

    def _namespaces(self, service: dict[str, Any]) -> list[str]:
        own = ["unshare", "--mount", "--net", "--ipc", "--uts"]
        shared = service.get("pid")
        if shared is None:
            return [*own, "--pid", "--fork"]
        holder = self.running[shared.removeprefix("service:")]
        daemons.until(lambda: self._has_started(holder), "the holder of the pid namespace")
        return ["nsenter", "--target", str(holder.pid), "--pid", *own]

    @staticmethod
    def _has_started(service: Service) -> bool:
        return os.readlink(f"/proc/{service.pid}/ns/pid") != os.readlink("/proc/self/ns/pid")

    def _mounts(self, service: dict[str, Any]) -> Iterator[str]:
        for path in service.get("tmpfs", ()):
            yield f"mkdir -p $root{path} && mount -t tmpfs -o mode=1777,noexec,nosuid,nodev tmpfs $root{path}"
        for path in sorted({"/usr", "/etc", *self._code()}):
            quoted = shlex.quote(path)
            yield f"mkdir -p $root{quoted} && mount --rbind {quoted} $root{quoted}"
            yield f"mount -o remount,bind,ro $root{quoted}"
        yield f"mkdir -p $root/srv && mount --bind {shlex.quote(str(self._folder / 'srv'))} $root/srv"
        yield "mount -o remount,bind,ro $root/srv"
        for one in service.get("volumes", ()):
            name, target = one.split(":")
            yield f"mkdir -p $root{target} && mount --bind {shlex.quote(str(self.volume(name)))} $root{target}"

    @staticmethod
    def _code() -> set[str]:
        """The folders that Python runs from, in place of those in the image."""
        asked = [sys.prefix, sys.base_prefix, *ledgers.checkout_path().split(os.pathsep)]
        resolved = {str(Path(path).resolve()) for path in asked if path and os.path.exists(path)}
        inner = {one for one in resolved for other in resolved if one != other and one.startswith(f"{other}/")}
        return {one for one in resolved - inner if not one.startswith("/usr/") and one != "/usr"}

    def down(self) -> None:
        """End everything: with the init process of a pid namespace all of its processes end."""
        for service in self.running.values():
            if service.process.poll() is None:
                service.kill(signal.SIGKILL)
