"""The distribution as users get it: a wheel in an environment with nothing else, outside of the checkout; the sdist.

Needs pip, and an index or a cache of what the wheel depends on: where they are out of reach, these tests are skipped.
"""

from __future__ import annotations

import configparser
import hashlib
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import daemons, ledgers

PACKAGES = ledgers.PACKAGES
PIP_S = 240
# Each fixture runs it, and a test may be the first to need several of them.
pytestmark = pytest.mark.timeout(3 * PIP_S)
# In the environment of the wheel nothing may come from the checkout.
OUTSIDE = {"PYTHONPATH": None, "PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1"}


def run(*words: str | Path, cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, words)),
        cwd=cwd,
        env=daemons.environment(**OUTSIDE),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PIP_S,
        check=False,
    )


def done(*words: str | Path, cwd: Path) -> str:
    """What a program prints that must succeed."""
    ran = run(*words, cwd=cwd)
    assert ran.returncode == 0, (words, ran.stdout[-2_000:], ran.stderr[-2_000:])
    return ran.stdout


def make_environment(folder: Path) -> Path:
    """An empty virtual environment, without even pip; returns its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


def install(python: Path, *what: str | Path) -> None:
    """Install with the pip of whoever runs the tests; skips where it cannot reach an index."""
    ran = run(
        sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--retries=0", *what,
        cwd=python.parent,
    )  # fmt: skip
    if ran.returncode != 0:
        out_of_reach = ("No module named pip", "No matching distribution", "Could not find a version", "Connection")
        reason = next((text for text in out_of_reach if text in ran.stderr), None)
        assert reason is not None, ran.stderr[-3_000:]
        pytest.skip(f"pip cannot install {', '.join(map(str, what))}: {ran.stderr.strip().splitlines()[-1][:200]}")


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has what builds the packages; nothing is downloaded by a build itself."""
    python = make_environment(tmp_path_factory.mktemp("builder"))
    install(python, "build", "hatchling>=1.24")
    return python


@pytest.fixture(scope="module")
def built(builder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the wheel and the sdist of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    done(builder, "-m", "build", "--no-isolation", "--wheel", "--sdist", "--outdir", folder, ledgers.ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    (found,) = built.glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds the wheel and what it depends on."""
    made = make_environment(tmp_path_factory.mktemp("user") / "venv")
    install(made, wheel)
    return made


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Path]:
    """An empty directory outside of the checkout; the daemon that is started there ends with the test."""
    folder = tmp_path / "work"
    folder.mkdir()
    yield folder
    for pid in daemons.serving(str(folder / "agent.db")):
        daemons.end(pid)


def contents(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


# What is in them.


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = contents(wheel)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert {name for name in names if name.endswith("py.typed")} == {f"{package}/py.typed" for package in PACKAGES}
    for package in PACKAGES:
        source = ledgers.ROOT / PACKAGES[package]
        files = (path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        sources = {f"{package}/{path.relative_to(source)}" for path in files}
        assert sources <= set(names)
    assert not any("__pycache__" in name or name.startswith("tests") for name in names)


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = archive.read(f"{info}/METADATA").decode()
        entries = configparser.ConfigParser()
        entries.read_string(archive.read(f"{info}/entry_points.txt").decode())
    header, _, description = metadata.partition("\n\n")
    project = (ledgers.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (version,) = re.findall(r'^version = "(.+)"$', project, re.MULTILINE)
    assert f"\nVersion: {version}\n" in header
    assert "\nRequires-Python: >=3.10\n" in header
    assert description.strip() == (ledgers.ROOT / "README.md").read_text(encoding="utf-8").strip()
    assert set(entries["console_scripts"]) == {"pmm-shm", "pmm-cached"}
    assert dict(entries["pytest11"]) == {
        "pmm_shm": "pmm_shm_client.pytest_plugin",
        "pmm_shm_pmm.pytest_plugin": "pmm_shm_pmm.pytest_plugin",
    }


def test_the_sdist_makes_the_same_wheel(builder: Path, sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data") if sys.version_info >= (3, 12) else archive.extractall(tmp_path)
    (source,) = tmp_path.iterdir()
    for name in ("Makefile", "README.md", "CHANGELOG.md", "systemd/pmm-cached@.service", "tools/man_pages.py"):
        assert (source / name).exists(), name
    assert not list(source.glob(".venv*"))
    done(builder, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, source, cwd=tmp_path)
    (again,) = tmp_path.glob("*.whl")
    assert again.name == wheel.name
    assert contents(again) == contents(wheel)


# Installed, outside of the checkout.


def test_nothing_comes_from_the_checkout(python: Path, workplace: Path) -> None:
    code = f"import {', '.join(PACKAGES)}; print({', '.join(f'{name}.__file__' for name in PACKAGES)})"
    for path in done(python, "-c", code, cwd=workplace).split():
        assert path.startswith(str(python.parent.parent)), path


def test_the_versions_are_one(python: Path, wheel: Path, workplace: Path) -> None:
    version = wheel.name.split("-")[1]
    for program in ("pmm-shm", "pmm-cached"):
        assert done(python.with_name(program), "--version", cwd=workplace) == f"{program}, version {version}\n"
    code = "from pmm_shm.versions import distribution_version; print(distribution_version())"
    assert done(python, "-c", code, cwd=workplace) == f"{version}\n"


def test_the_demo_runs(python: Path, workplace: Path) -> None:
    shown = done(python.with_name("pmm-shm"), "demo", "--seconds", "1", "--workers", "2", "--json", cwd=workplace)
    assert '"ok": true' in shown
    assert list(workplace.iterdir()) == []


def test_daemon_client_and_quick_start_run(python: Path, workplace: Path) -> None:
    """The first blocks of the guide to the library as they are; the daemon that they start is this wheel's."""
    text = (ledgers.ROOT / "docs" / "LIBRARY.md").read_text(encoding="utf-8")
    quick_start = text.split("\n## Consistency\n")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", quick_start, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    shown = done(python, "-c", "\n".join(blocks), cwd=workplace)
    assert "\nEcho 0.5 " in shown
    (pid,) = daemons.serving(str(workplace / "agent.db"))
    command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    assert str(python.parent).encode() in command[0] + command[1]
    program = python.with_name("pmm-shm")
    assert '"health": "healthy"' in done(program, "status", "agent.db", "--json", cwd=workplace)
    done(program, "verify", "agent.db", cwd=workplace)
    found = done(program, "doctor", "agent.db", "--json", cwd=workplace)
    assert '"check": "packages", "severity": "ok"' in found
    assert '"check": "versions", "severity": "ok"' in found


def test_a_type_checker_sees_types(python: Path, workplace: Path) -> None:
    program = workplace / "program.py"
    program.write_text(
        "from pmm_shm_client import connect\n"
        'with connect("agent.db") as cache:\n'
        "    reveal_type(cache.metrics().ias)\n"
        "    cache.append(1)\n",
        encoding="utf-8",
    )
    options = ("--strict", "--no-incremental", "--python-executable", python, program)
    ran = run(sys.executable, "-m", "mypy", *options, cwd=workplace)
    assert 'Revealed type is "float"' in ran.stdout.replace("builtins.", ""), ran.stdout + ran.stderr
    assert "program.py:4: error: Argument 1" in ran.stdout
    assert ran.stdout.count("error:") == 1, ran.stdout


def test_only_the_packages_and_their_programs_are_installed(python: Path, workplace: Path) -> None:
    code = "from importlib.metadata import files; print(*files('pmm-shm'), sep='\\n')"
    tops = {name.split("/")[0] for name in done(python, "-c", code, cwd=workplace).split("\n") if name}
    assert {top for top in tops if not top.endswith(".dist-info")} == {*PACKAGES, ".."}
    programs = {name for name in done(python, "-c", code, cwd=workplace).split("\n") if name.startswith("..")}
    assert {Path(name).name for name in programs} == {"pmm-shm", "pmm-cached"}
