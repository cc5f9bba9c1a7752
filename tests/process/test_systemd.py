"""What lies in systemd/, judged by systemd's own tools; the daemon under the unit's restrictions."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pmm_shm import flags, limits
from pmm_shm.instance.paths import Instance
from pmm_shm.wire.endpoints import choose_endpoints
from pmm_shm_client import connect
from tests.support import answers, daemons, ledgers, sandbox
from tests.support.managers import Manager
from tests.support.waiting import at_most

FOLDER = ledgers.ROOT / "systemd"
SYSTEM, USER = FOLDER / "pmm-cached@.service", FOLDER / "user" / "pmm-cached@.service"
UNITS = {"system": SYSTEM, "user": USER}
PROGRAM = "/usr/local/bin/pmm-cached"
EXPOSURE_MAX = 1.5
TOOL_S = 110


def run(*command: str | os.PathLike[str], **options: object) -> subprocess.CompletedProcess[str]:
    """A tool that must be there; what it says, stderr behind stdout."""
    name = os.fspath(command[0])
    if shutil.which(name) is None:
        pytest.fail(f"no {name}: install it (on Debian: apt-get install systemd)")
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TOOL_S,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def values(unit: Path, name: str) -> list[str]:
    return [value for key, value in sandbox.settings(unit) if key == name]


# Units.


@pytest.mark.parametrize("manager", UNITS)
def test_the_units_are_valid(tmp_path: Path, folder: Path, manager: str) -> None:
    program = tmp_path / "pmm-cached"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    unit = tmp_path / UNITS[manager].name
    unit.write_text(UNITS[manager].read_text(encoding="utf-8").replace(PROGRAM, str(program)), encoding="utf-8")
    # The sockets of other units are there, too, and have names of their own.
    runtime = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
    checked = run("systemd-analyze", f"--{manager}", "verify", unit, env=runtime)
    assert (checked.returncode, checked.stdout) == (0, "")
    # The tool does look: the same with a line it cannot know.
    unit.write_text(unit.read_text(encoding="utf-8").replace("RestartSec=1", "RestartSecs=1"), encoding="utf-8")
    assert "RestartSecs" in run("systemd-analyze", f"--{manager}", "verify", unit, env=runtime).stdout


def test_the_systems_unit_is_hardened(tmp_path: Path) -> None:
    checked = run("systemd-analyze", "security", "--offline=true", SYSTEM)
    (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", checked.stdout)
    assert float(exposure) <= EXPOSURE_MAX


@pytest.mark.parametrize("manager", UNITS)
def test_the_watchdog_waits_longer_than_sqlite(manager: str) -> None:
    (watchdog,) = values(UNITS[manager], "WatchdogSec")
    # A sign of life is at most half of the time old when the wait for a busy ledger begins.
    assert int(watchdog) / 2 > limits.LEDGER_TIMEOUT_S + 5
    assert values(UNITS[manager], "Type") == ["notify"]


def test_the_users_unit_asks_for_nothing_that_its_manager_cannot_do() -> None:
    names = {name for name, _ in sandbox.settings(USER)}
    needs_capabilities = {"User", "Group", "CapabilityBoundingSet", "IPAddressDeny", *sandbox.MOUNTS, "ProtectClock"}
    assert not names & needs_capabilities
    # All else is as in the system's unit, but for where the files lie and the network.
    differ = {"Environment", "EnvironmentFile", "RestrictAddressFamilies", "RuntimeDirectoryMode", "WorkingDirectory"}
    assert {one for one in sandbox.settings(USER) if one[0] not in differ} <= set(sandbox.settings(SYSTEM))


def test_the_example_names_what_there_is() -> None:
    text = (FOLDER / "agent.env.example").read_text(encoding="utf-8")
    known = set(re.findall(r'"(PMM_\w+)"', Path(flags.__file__).read_text(encoding="utf-8"))) | {
        "PMM_CACHED_OPTIONS",
        "PYTHONPATH",
        # Of libpq.
        "PGPASSFILE",
    }
    named = re.findall(r"^#?([A-Z_]+)=", text, re.MULTILINE)
    assert "PMM_DB" in named
    assert set(named) <= known
    (options,) = re.findall(r"^#PMM_CACHED_OPTIONS=(.+)$", text, re.MULTILINE)
    refused = daemons.run_daemon(*options.split(), "/nowhere.db")
    assert (refused.returncode, "no such file" in refused.stderr) == (1, True), refused.stderr
    # What is not commented out is all that a start needs.
    assert re.findall(r"^([A-Z_]+)=", text, re.MULTILINE) == ["PMM_DB"]


def test_account_and_directories(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make accounts, even below another root")
    for folder in ("etc", "usr/lib/sysusers.d", "usr/lib/tmpfiles.d", "var/lib", "var/cache", "run"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(FOLDER / "pmm-cached.sysusers", tmp_path / "usr/lib/sysusers.d/pmm-cached.conf")
    shutil.copy(FOLDER / "pmm-cached.tmpfiles", tmp_path / "usr/lib/tmpfiles.d/pmm-cached.conf")
    made = run("systemd-sysusers", f"--root={tmp_path}", "pmm-cached.conf")
    assert made.returncode == 0, made.stdout
    (account,) = [line.split(":") for line in (tmp_path / "etc/passwd").read_text().splitlines()]
    assert (account[0], account[5]) == ("pmm", "/var/lib/pmm")
    assert account[6].endswith("nologin")
    made = run("systemd-tmpfiles", f"--root={tmp_path}", "--create", "pmm-cached.conf")
    assert (made.returncode, made.stdout) == (0, "")
    found = {}
    for folder in ("var/lib/pmm", "etc/pmm-cached", "var/cache/pmm-cached", "run/pmm-cached"):
        status = os.stat(tmp_path / folder)
        found[folder] = (oct(stat.S_IMODE(status.st_mode)), status.st_uid, status.st_gid)
    uid, gid = int(account[2]), int(account[3])
    assert found == {
        "var/lib/pmm": ("0o2770", uid, gid),
        "etc/pmm-cached": ("0o755", 0, 0),
        "var/cache/pmm-cached": ("0o711", uid, gid),
        "run/pmm-cached": ("0o711", uid, gid),
    }
    # What the unit makes is the same.
    assert [values(SYSTEM, f"{kind}DirectoryMode") for kind in ("Cache", "Runtime")] == [["0711"], ["0711"]]


# The daemon under the unit's restrictions.


def needs_name_spaces() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make mounts and filters as systemd does")
    if run("unshare", "--mount", "--net", "true").returncode != 0:
        pytest.skip("this machine allows no name spaces, to root neither")


def sandboxed(unit: Path, ledger: str, env: dict[str, str]) -> subprocess.Popen[bytes]:
    with open(ledger + ".log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.sandbox", str(unit), sys.executable, "-m", "pmm_cached", ledger],
            cwd=ledgers.ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def test_each_line_of_the_unit_is_tried_or_named() -> None:
    known = {*sandbox.MOUNTS, *sandbox.FILTERS, *sandbox.LAST, *sandbox.NOT_TRIED, *sandbox.OTHERS}
    assert {name for name, _ in sandbox.settings(SYSTEM)} <= known
    assert values(SYSTEM, "RestrictAddressFamilies") == ["AF_UNIX"]
    assert values(SYSTEM, "ProtectSystem") == ["full"]
    assert values(SYSTEM, "ProtectProc") == ["invisible"]


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_the_daemon_works_under_the_units_restrictions(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, journal: str
) -> None:
    needs_name_spaces()
    monkeypatch.setenv("PMM_SHM_DIR", str(tmp_path / "cache"))
    ledger = ledgers.build(tmp_path / "ledger.db", 300, journal=journal)
    manager = Manager(folder)
    process = sandboxed(SYSTEM, ledger, manager.environment(watchdog_s=1.0))
    try:
        manager.wait_for("READY")
        assert process.poll() is None
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        assert re.search(r"^CapEff:\s+0{16}$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
        assert re.search(r"^Seccomp:\s+2$", status, re.MULTILINE)
        assert os.readlink(f"/proc/{process.pid}/ns/net") != os.readlink("/proc/self/ns/net")
        # The bit that hands a directory's group on is refused, and done without.
        # The bit that hands the group on is refused; the folders of the tests let no group in.
        assert stat.S_IMODE(os.stat(Instance.of(ledger).directory).st_mode) == 0o700
        with connect(ledger) as cache:
            last = cache.append("identity_adopt", "Ada", {})
            assert cache.identity(consistency="wait").as_of == last
            assert cache.verify()
            assert cache.invalidate() == last
            assert answers.everything(cache) == answers.replayed(ledger)
        manager.wait_for("STATUS", f"healthy, as of event {last}")
        manager.wait_for("WATCHDOG")
        with at_most(2.0):
            process.terminate()
            assert process.wait(daemons.DEADLINE_S) == 0
        manager.wait_for("STOPPING")
    finally:
        process.kill()
        process.wait()
        manager.close()


@pytest.mark.parametrize("line", ["~@resources", "~socket", "~flock"])
def test_a_filter_that_refuses_more_would_break_it(tmp_path: Path, line: str) -> None:
    """The restrictions are real, and these lines must not be added."""
    needs_name_spaces()
    unit = tmp_path / "narrow.service"
    unit.write_text(
        SYSTEM.read_text(encoding="utf-8").replace("SystemCallFilter=@chown", f"SystemCallFilter={line}"),
        encoding="utf-8",
    )
    process = sandboxed(unit, ledgers.build(tmp_path / "ledger.db"), daemons.environment())
    try:
        assert process.wait(daemons.DEADLINE_S) != 0
    finally:
        process.kill()
        process.wait()


def test_a_long_name_falls_back_to_the_runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the unit sets TMPDIR: never to /tmp, where somebody else might take the name."""
    assert "TMPDIR=%t/pmm-cached" in values(SYSTEM, "Environment")
    runtime = Path("/run") if os.access("/run", os.W_OK) else tmp_path
    folder = runtime / f"pmm-{os.getpid()}"
    folder.mkdir(mode=0o711)
    try:
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        monkeypatch.setenv("PMM_SHM_DIR", str(tmp_path / "cache"))
        ledger = ledgers.build(tmp_path / ("x" * 120 + ".db"))
        instance = Instance.of(ledger)
        instance.directory.mkdir(parents=True, mode=0o700)
        assert Path(choose_endpoints(instance).commands).is_relative_to(folder)
    finally:
        shutil.rmtree(folder)
