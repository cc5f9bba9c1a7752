"""`make install` into a folder of a packager, and `make uninstall`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ledgers

FOLDER = ledgers.ROOT / "systemd"
UNITS = {"system": FOLDER / "pmm-cached@.service", "user": FOLDER / "user" / "pmm-cached@.service"}
INSTALL_S = 240


def tree(root: Path) -> dict[str, str]:
    """Every path below, with its kind and content."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        else:
            found[name] = "folder" if path.is_dir() else path.read_bytes().hex()
    return found


def run(*command: str | os.PathLike[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A program; what it says, stderr behind stdout."""
    return subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=INSTALL_S,
        check=False,
    )


def make(*arguments: str) -> None:
    made = run("make", *arguments, cwd=ledgers.ROOT)
    assert made.returncode == 0, made.stdout


@pytest.mark.timeout(2 * INSTALL_S)
def test_install_and_uninstall(tmp_path: Path) -> None:
    root = tmp_path / "root"
    others = ("opt/pmm/bin/other", "opt/pmm/lib/other", "opt/pmm/share/doc/other", "etc/other")
    for name in others:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("another's", encoding="utf-8")
    before = tree(root)
    where = (f"DESTDIR={root}", "PREFIX=/opt/pmm", f"PYTHON={sys.executable}")
    make("install", *where)
    program = root / "opt/pmm/lib/pmm-shm"
    for name in ("pmm-cached", "pmm-shm"):
        link = root / "opt/pmm/bin" / name
        assert link.resolve() == program / "bin" / name
        assert link.read_text(encoding="utf-8").startswith("#!/opt/pmm/lib/pmm-shm/bin/python")
    # Nothing names the place where it was put together, and the program is whole.
    assert not run("grep", "-rlI", str(root), str(root)).stdout
    shown = run(program / "bin" / "python", "-I", "-m", "pmm_cached", "--version", cwd=tmp_path)
    assert (shown.returncode, shown.stdout.startswith("pmm-cached, version")) == (0, True), shown.stdout
    assert "Exit codes" in run(program / "bin" / "python", "-I", "-m", "pmm_shm_cli", "--help").stdout
    for manager, shipped in UNITS.items():
        unit = root / "opt/pmm/lib/systemd" / manager / shipped.name
        assert unit.read_text(encoding="utf-8") == shipped.read_text(encoding="utf-8").replace(
            "/usr/local/", "/opt/pmm/"
        )
    for kind in ("sysusers", "tmpfiles"):
        assert (root / f"opt/pmm/lib/{kind}.d/pmm-cached.conf").is_file()
    assert (root / "etc/pmm-cached/agent.env.example").is_file()
    for page in ("pmm-shm.1", "pmm-shm-read.1", "pmm-cached.1"):
        assert (root / "opt/pmm/share/man/man1" / page).read_text(encoding="ascii").startswith(".TH")
    # What an administrator wrote stays.
    own = root / "etc/pmm-cached/mine.env"
    own.write_text("PMM_DB=/x.db\n", encoding="utf-8")
    make("uninstall", *where)
    assert tree(root) == {**before, "etc/pmm-cached": "folder", "etc/pmm-cached/mine.env": own.read_bytes().hex()}
    own.unlink()
    make("uninstall", *where)
    assert tree(root) == before
