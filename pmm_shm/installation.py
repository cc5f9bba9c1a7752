"""How this pmm-shm was installed, for messages that name a command which adds an extra to it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pmm_shm.names import DISTRIBUTION


def extra_command(extra: str) -> str:
    """The command line that installs an extra where this process finds it, from where pmm-shm came from."""
    return f"{_installer()} {_what_to_install(extra)}"


def _installer() -> str:
    """The program that installs into this environment."""
    found = shutil.which("pip")
    if found is not None and os.path.dirname(os.path.realpath(os.path.dirname(found))) == os.path.realpath(sys.prefix):
        return "pip install"
    python = shlex.quote(sys.executable or "python3")
    if find_spec("pip") is None and shutil.which("uv") is not None:
        return f"uv pip install --python {python}"
    return f"{python} -m pip install"


def _what_to_install(extra: str) -> str:
    installed, record = _installed()
    if record is None:
        checkout = Path(__file__).resolve().parent.parent
        is_checkout = installed is None and (checkout / "pyproject.toml").is_file()
        return _quoted(f"{checkout if is_checkout else DISTRIBUTION}[{extra}]")
    url = str(record.get("url", ""))
    if url.startswith("file:"):
        path = url2pathname(urlsplit(url).path)
        if os.path.isdir(path):
            editable = "-e " if record.get("dir_info", {}).get("editable") else ""
            return editable + _quoted(f"{path}[{extra}]")
        if not os.path.exists(path):
            # What it was installed from is gone; what the extra adds is known.
            return " ".join(map(_quoted, _requirements(installed, extra)))
    vcs = record.get("vcs_info")
    if isinstance(vcs, dict):
        url = f"{vcs.get('vcs')}+{url}@{vcs.get('commit_id')}"
    return _quoted(f"{DISTRIBUTION}[{extra}] @ {url}")


def _installed() -> tuple[Distribution | None, dict[str, Any] | None]:
    """The installed distribution, and pip's record of its source, which one from an index has not."""
    try:
        found = distribution(DISTRIBUTION)
        record = json.loads(found.read_text("direct_url.json") or "null")
    except (PackageNotFoundError, ImportError, OSError, ValueError):
        return None, None
    return found, record if isinstance(record, dict) else None


def _requirements(installed: Distribution | None, extra: str) -> list[str]:
    wanted = f'extra == "{extra}"'
    lines = [line.partition(";") for line in (installed.requires if installed is not None else None) or ()]
    return [name.strip() for name, _, marker in lines if marker.strip().replace("'", '"') == wanted]


def _quoted(text: str) -> str:
    """As one word of a shell, in double quotes where they suffice."""
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'
