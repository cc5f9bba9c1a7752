"""Messages name the command that adds an extra to this installation, wherever it came from."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.installation import extra_command

METADATA = """Metadata-Version: 2.1
Name: pmm-shm
Version: 9.9
Provides-Extra: plot
Requires-Dist: click>=8.1
Requires-Dist: matplotlib>=3.8; extra == "plot"
"""


def command_of(folder: Path, monkeypatch: pytest.MonkeyPatch, record: Any) -> str:
    """The words behind `install`, for an installation with this record of its source."""
    found = folder / "site" / "pmm_shm-9.9.dist-info"
    found.mkdir(parents=True)
    (found / "METADATA").write_text(METADATA)
    if record is not None:
        (found / "direct_url.json").write_text(json.dumps(record))
    monkeypatch.syspath_prepend(str(found.parent))
    return extra_command("plot").partition(" install ")[2]


def test_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"dir_info": {}, "url": tmp_path.as_uri()}
    assert command_of(tmp_path, monkeypatch, record) == f'"{tmp_path}[plot]"'


def test_of_an_editable_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"dir_info": {"editable": True}, "url": tmp_path.as_uri()}
    assert command_of(tmp_path, monkeypatch, record) == f'-e "{tmp_path}[plot]"'


def test_of_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "pmm_shm-9.9-py3-none-any.whl"
    wheel.touch()
    record = {"archive_info": {}, "url": wheel.as_uri()}
    assert command_of(tmp_path, monkeypatch, record) == f'"pmm-shm[plot] @ {wheel.as_uri()}"'


def test_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"vcs_info": {"vcs": "git", "commit_id": "abc"}, "url": "https://example.org/a.git"}
    assert command_of(tmp_path, monkeypatch, record) == '"pmm-shm[plot] @ git+https://example.org/a.git@abc"'


def test_of_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command_of(tmp_path, monkeypatch, None) == '"pmm-shm[plot]"'


def test_a_source_that_is_gone_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"dir_info": {}, "url": (tmp_path / "gone").as_uri()}
    assert command_of(tmp_path, monkeypatch, record) == '"matplotlib>=3.8"'


def test_a_path_that_a_shell_would_change_is_one_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / 'a $HOME "b"'
    odd.mkdir()
    record = {"dir_info": {}, "url": odd.as_uri()}
    assert shlex.split(command_of(tmp_path, monkeypatch, record)) == [f"{odd}[plot]"]


def test_the_program_installs_into_this_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "bin" / "pip"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(other.parent))
    assert extra_command("plot").startswith(f"{sys.executable} -m pip install ")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert extra_command("plot").startswith("pip install ")
    assert os.access(other, os.X_OK)
