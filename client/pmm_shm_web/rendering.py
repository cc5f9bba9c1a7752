"""Templates to pages. Every value is escaped; the filters `shown` and `shown_json` also cut and isolate it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, StreamingResponse

from pmm_shm_web import assets, mind, shown


def _link(path: str, **parameters: Any) -> str:
    """An address; parameters without a value are left out."""
    given = {name: shown.encodable(str(value)) for name, value in parameters.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


def environment() -> Environment:
    """The templates of the package, and what they may call."""
    made = Environment(
        loader=PackageLoader("pmm_shm_web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        shown=shown.shown,
        shown_json=shown.shown_json,
        score=shown.score,
        count=shown.count,
        rate=shown.rate,
        time=shown.time,
        words=shown.words,
        in_short=mind.in_short,
    )
    made.globals.update(link=_link, assets=assets.ADDRESSES, style=assets.STYLE)
    return made


class Renderer:
    """Renders templates with the same values for all."""

    def __init__(self, **common: Any) -> None:
        self._environment = environment()
        self._common = common
        # Now: the first page must not wait for it.
        for name in self._environment.list_templates():
            self._environment.get_template(name)

    def __call__(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        text = self._environment.get_template(template).render({**self._common, **values})
        return HTMLResponse(_encoded(text), status)

    def in_two(self, template: str, end: str, **values: Any) -> StreamingResponse:
        """A page whose part up to `end` is sent, and so can be painted, while the rest is rendered.

        Errors of the first part are raised; the rest must only use values that are computed already.
        """
        parts = self._environment.get_template(template).generate({**self._common, **values})
        first = _encoded("".join(_until(parts, end)))

        def sent() -> Iterator[bytes]:
            yield first
            yield _encoded("".join(parts))

        return StreamingResponse(sent(), media_type="text/html")


def _until(parts: Iterable[str], end: str) -> Iterator[str]:
    for part in parts:
        yield part
        if end in part:
            return


def _encoded(text: str) -> bytes:
    # A lone surrogate of the ledger must not end the answer.
    return text.encode("utf-8", "replace")
