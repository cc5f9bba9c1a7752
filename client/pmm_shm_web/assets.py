"""The files beside the pages: the style within each page, and addresses that change with the files' contents."""

from __future__ import annotations

from base64 import b64encode
from hashlib import blake2b, sha256
from pathlib import Path

FOLDER = Path(__file__).parent / "static"
PREFIX = "/static/"
STYLE = (FOLDER / "page.css").read_text(encoding="utf-8")
"""Part of each page, so that the first paint waits for no second answer."""
STYLE_SOURCE = f"'sha256-{b64encode(sha256(STYLE.encode('utf-8')).digest()).decode('ascii')}'"
"""What a content security policy must name for the style to apply."""


def _address(path: Path) -> str:
    digest = blake2b(path.read_bytes(), digest_size=6).hexdigest()
    return f"{PREFIX}{path.relative_to(FOLDER).as_posix()}?v={digest}"


ADDRESSES = {path.name: _address(path) for path in FOLDER.rglob("*") if path.is_file()}
"""The address of each file by its name. A browser may keep the answer for ever: a changed file has another address."""
