"""The same data as JSON, under `/api/v1`; `docs/howto/web.md` has the list."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from pmm_shm.errors import ConfigError
from pmm_shm.frozen import json_text, plain
from pmm_shm_client.frame import Frame
from pmm_shm_client.results import applicable
from pmm_shm_web import chart
from pmm_shm_web.folds import FoldPart
from pmm_shm_web.guard import API
from pmm_shm_web.jobs import CancelledError, Job
from pmm_shm_web.mind import SearchOutcome
from pmm_shm_web.questions import context_counts, position, search_filters, status_of, stream_query, whole_number
from pmm_shm_web.site import Site

ANSWERS = ("identity", "commitments", "metrics", "stage", "recent", "history", "directives", "active-directives")
SEARCH_K, SEARCH_K_MAX = 10, 100
MESSAGE_BYTES_MAX = 4 << 20


class Api:
    """The JSON of a site."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def routes(self) -> list[BaseRoute]:
        return [
            Route(f"{API}/mind", self.mind),
            *(Route(f"{API}/{name}", self.answer) for name in ANSWERS),
            Route(f"{API}/folds", self.folds),
            Route(f"{API}/chart", self.chart),
            Route(f"{API}/why", self.why),
            Route(f"{API}/events", self.events),
            Route(f"{API}/events/{{event_id:int}}", self.event),
            Route(f"{API}/kinds", self.kinds),
            Route(f"{API}/search", self.search),
            Route(f"{API}/context", self.context, methods=["GET", "POST"]),
            Route(f"{API}/status", self.status),
            Route(f"{API}/doctor", self.doctor),
            Route(f"{API}/live", self.live),
        ]

    def _frame(self, request: Request) -> Frame | Job:
        return self._site.mind.frame(position(request.query_params))

    def mind(self, request: Request) -> Response:
        found = self._frame(request)
        return _progress(found) if isinstance(found, Job) else _json(found.to_dict())

    def answer(self, request: Request) -> Response:
        found = self._frame(request)
        if isinstance(found, Job):
            return _progress(found)
        name = request.url.path.rpartition("/")[2].replace("-", "_")
        value = getattr(found, name)()
        if name in found.not_applicable:
            return _json(applicable(name, value.to_dict(), found.not_applicable))
        return _json({"as_of": found.as_of, name: value} if isinstance(value, list) else value.to_dict())

    def folds(self, request: Request) -> Response:
        """What the users' folds describe."""
        found = self._frame(request)
        if isinstance(found, Job):
            return _progress(found)
        parts = self._site.mind.folds.parts(found)
        return _json({"as_of": found.as_of, "folds": {part.name: _described(part) for part in parts}})

    def chart(self, request: Request) -> Response:
        found = self._site.mind.frame(None)
        if isinstance(found, Job):
            return _progress(found)
        has_scores = self._site.shape is None and "history" not in found.not_applicable
        return _json(chart.numbers(found.history()) if has_scores else None)

    def why(self, request: Request) -> Response:
        parameters = request.query_params
        at = position(parameters)
        subject = self._site.mind.subject(parameters.get("subject", ""), parameters.get("argument", ""))
        found = self._site.mind.explanation(subject, self._site.ledger.head() if at is None else at)
        if isinstance(found, Job):
            return _progress(found)
        return _json({**vars(found), "steps": [one._asdict() for one in found.steps]})

    def events(self, request: Request) -> Response:
        page = self._site.stream.page(stream_query(request.query_params))
        return _json({**page._asdict(), "rows": [row._asdict() for row in page.rows]})

    def event(self, request: Request) -> Response:
        """The whole event, uncut."""
        event_id = request.path_params["event_id"]
        found = self._site.mind.cache.event(event_id)
        if found is None:
            return _json({"error": f"there is no event {event_id}"}, 404)
        return _json(found.to_dict())

    def kinds(self, request: Request) -> Response:
        at = position(request.query_params)
        found = self._site.kinds.counts() if at is None else self._site.kinds.counts_until(at)
        return _json(None if found is None else {**found._asdict(), "kinds": dict(found.kinds)})

    def search(self, request: Request) -> Response:
        parameters = request.query_params
        text, k = parameters.get("q", ""), whole_number(parameters, "k", 1, SEARCH_K_MAX) or SEARCH_K
        filters, mode, model = search_filters(parameters), parameters.get("mode"), parameters.get("model")
        if mode is not None or model is not None:
            return _json([_found(self._site.mind.search(text, k, filters, mode or "meaning", model))])
        return _json([_found(one) for one in self._site.mind.searches(text, k, filters)])

    async def context(self, request: Request) -> Response:
        """`context()` for the message in the body, or in `text`."""
        parameters = request.query_params
        text = parameters.get("text", "")
        if request.method == "POST":
            text = await _message(request)
        at, counts = position(parameters), context_counts(parameters)
        found = await run_in_threadpool(self._site.mind.context, text, at, counts)
        return _progress(found) if isinstance(found, Job) else _json({**found.to_dict(), "block": str(found)})

    def status(self, _: Request) -> Response:
        return _json(
            {"ledger": self._site.path, "head_id": self._site.ledger.head(), **self._site.operations.numbers()}
        )

    def doctor(self, _: Request) -> Response:
        return _json(self._site.operations.findings())

    async def live(self, _: Request) -> Response:
        """Server-sent events: the newest id now, and after each change."""

        async def lines() -> AsyncIterator[str]:
            async for head in self._site.live.heads():
                yield ": nothing new\n\n" if head is None else f"event: head\ndata: {head}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    def failed(self, _: Request, error: Exception) -> Response:
        """An error as JSON."""
        status = 409 if isinstance(error, CancelledError) else status_of(error)
        return _json({"error": str(error) or "cancelled"}, status)


async def _message(request: Request) -> str:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MESSAGE_BYTES_MAX:
            raise ConfigError(f"expected at most {MESSAGE_BYTES_MAX} bytes")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        raise ConfigError('expected {"text": MESSAGE}')
    text: str = found["text"]
    return text


def _described(part: FoldPart) -> dict[str, Any]:
    if part.problem is not None:
        return {"problem": part.problem}
    tables = {table.name: {one.name: one.value for one in table.entries} for table in part.tables}
    return {**{one.name: one.value for one in part.entries}, **tables}


def _found(one: SearchOutcome) -> dict[str, Any]:
    hits = None if one.hits is None else [hit._asdict() for hit in one.hits]
    names = ("model", "as_of", "is_complete")
    more = {} if one.hits is None else {name: getattr(one.hits, name) for name in names}
    return {"mode": one.mode, "hits": hits, "problem": one.problem, **more}


def _progress(job: Job) -> Response:
    """202: ask again."""
    return _json({"job": job.id, "done": job.done, "total": job.total}, 202)


def _json(value: Any, status: int = 200) -> Response:
    return Response(json_text(plain(value)), status, media_type="application/json")
