"""The pages. Each part has an address of its own: a script asks for the part alone, everybody else gets a page."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import parse_qsl

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from pmm_shm.errors import ConfigError
from pmm_shm_client.frame import Frame
from pmm_shm_client.results import History
from pmm_shm_terminal.answer_names import WHY_NOT_APPLICABLE
from pmm_shm_terminal.state import is_indexed
from pmm_shm_web import chart, course
from pmm_shm_web.jobs import CancelledError, Job
from pmm_shm_web.mind import ENTRIES_SHOWN, commitments
from pmm_shm_web.questions import (
    CONTEXT_COUNTS,
    context_counts,
    position,
    search_filters,
    status_of,
    stream_query,
    whole_number,
)
from pmm_shm_web.rendering import Renderer
from pmm_shm_web.site import Site

BODY_BYTES_MAX = 4 << 20
SEARCH_K = 10
KINDS_SHOWN = 60
LIVE = ("/header", "/parts", "/stream/new", "/facets", "/operations")
"""Parts that the page asks for again and again: a failure must not take their place."""


class Pages:
    """The HTML pages of a site."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._render = Renderer(
            ledger=site.path, ledger_name=os.path.basename(site.path), why_not=WHY_NOT_APPLICABLE, shape=site.shape
        )
        self._drawn: tuple[History, chart.Drawing] | None = None

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/", self.whole),
            Route("/header", self.header),
            Route("/mind", self.mind),
            Route("/parts", self.parts),
            Route("/commitments", self.commitments),
            Route("/why", self.why),
            Route("/course", self.course),
            Route("/stream", self.stream),
            Route("/stream/new", self.stream_new),
            Route("/facets", self.facets),
            Route("/events/{event_id:int}", self.event),
            Route("/search", self.search),
            Route("/context", self.context, methods=["GET", "POST"]),
            Route("/operations", self.operations),
            Route("/doctor", self.doctor),
            Route("/jobs/{job_id}/cancel", self.cancel, methods=["POST"]),
        ]

    def _answer(self, request: Request, template: str, title: str = "", **values: Any) -> Response:
        """The part alone for a script of ours, otherwise on a page of its own."""
        values["at"] = position(request.query_params)
        if _is_script(request):
            return self._render(template, **values)
        return self._render("alone.html", part=template, title=title, **values)

    # The whole page, and the mind at a position.

    def whole(self, request: Request) -> Response:
        at = position(request.query_params)
        found = self._site.mind.frame(at)
        if isinstance(found, Frame):
            return self._whole(request, found, at)
        return self._render("page.html", frame=None, job=found, at=at, head=self._site.ledger.head())

    def mind(self, request: Request) -> Response:
        at = position(request.query_params)
        found = self._site.mind.frame(at)
        if isinstance(found, Job):
            return self._progress(request, found, "#mind")
        if not _is_script(request):
            return self._whole(request, found, at)
        return self._render("mind_with_header.html", **self._mind_values(found, at), **self._stream_values(request))

    def _whole(self, request: Request, frame: Frame, at: int | None) -> Response:
        has_scores = self._site.shape is None and "history" not in frame.not_applicable
        drawing = self._drawing(self._site.mind.cache.history(), at) if has_scores else None
        values = {**self._mind_values(frame, at), **self._stream_values(request), "counts": CONTEXT_COUNTS}
        has_index = self._site.shape is None or is_indexed(self._numbers())
        values |= {"drawing": drawing, "has_index": has_index}
        return self._render.in_two("page.html", "</header>", job=None, **values)

    def header(self, request: Request) -> Response:
        return self._render("header.html", **self._frame_values(self._frame(request), None), with_health=True)

    def parts(self, request: Request) -> Response:
        at = position(request.query_params)
        return self._answer(request, "parts.html", **self._frame_values(self._frame(request), at))

    def _frame(self, request: Request) -> Frame:
        found = self._site.mind.frame(position(request.query_params), 30.0)
        if isinstance(found, Job):
            raise ConfigError("the log is still being replayed; ask again")
        return found

    def _frame_values(self, frame: Frame, at: int | None) -> dict[str, Any]:
        asked = self._site.operations.glance() if at is None else None
        of_agent = {} if self._site.shape else self._agent_values(frame)
        return {
            **of_agent,
            "frame": frame,
            "at": at,
            "missing": frame.not_applicable,
            "folds": self._site.mind.folds.parts(frame),
            "health": "not known yet" if asked is None else asked.health,
            "daemon": None if asked is None else asked.numbers,
            "replica": None if at is not None else self._site.operations.replica(asked),
        }

    def _numbers(self) -> dict[str, Any] | None:
        asked = self._site.operations.glance()
        return None if asked is None else asked.numbers

    def _agent_values(self, frame: Frame) -> dict[str, Any]:
        model = frame.model()
        return {
            "open": commitments(model.open),
            "expired": commitments(model.expired),
            "directives": frame.active_directives(),
        }

    def _mind_values(self, frame: Frame, at: int | None) -> dict[str, Any]:
        before, after = self._site.stream.beside(frame.as_of)
        return {
            **self._frame_values(frame, at),
            **self._facet_values(at),
            "before_id": before,
            "after_id": after,
        }

    def _drawing(self, history: History, at: int | None) -> chart.Drawing:
        """Drawn once for each history, which is the same object as long as nothing is new."""
        drawn = self._drawn
        if drawn is None or drawn[0] is not history:
            drawn = self._drawn = history, chart.drawing(history)
        return drawn[1].as_of(at)

    def _progress(self, request: Request, job: Job, target: str) -> Response:
        again = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return self._answer(request, "progress.html", "Replaying", job=job, again=again, target=target)

    def cancel(self, request: Request) -> Response:
        self._site.jobs.cancel(request.path_params["job_id"])
        return self._answer(request, "cancelled.html", "Cancelled")

    # Parts of it.

    def commitments(self, request: Request) -> Response:
        """A page of the open, or of the expired ones."""
        parameters = request.query_params
        state = parameters.get("state", "open")
        if state not in ("open", "expired"):
            raise ConfigError(f"state: expected open or expired, got {state!r:.80}")
        first = whole_number(parameters, "first", 0) or 0
        model = self._frame(request).model()
        listed = commitments(getattr(model, state), first, ENTRIES_SHOWN)
        values = {"state": state, "listed": listed, "first": first, "as_of": model.as_of}
        return self._answer(request, "commitments.html", "Commitments", **values)

    def why(self, request: Request) -> Response:
        parameters = request.query_params
        at = position(parameters)
        subject = self._site.mind.subject(parameters.get("subject", ""), parameters.get("argument", ""))
        until = self._site.ledger.head() if at is None else at
        found = self._site.mind.explanation(subject, until)
        if isinstance(found, Job):
            return self._progress(request, found, "#why")
        rows = self._site.stream.rows_of([step.event_id for step in found.steps])
        return self._answer(request, "why.html", "Why", explanation=found, rows=rows)

    def course(self, request: Request) -> Response:
        name = request.query_params.get("fold", "")
        found = self._site.mind.courses(name)
        if isinstance(found, Job):
            return self._progress(request, found, "#why")
        return self._answer(request, "course.html", "Over the log", fold=name, drawing=course.drawing(found))

    def _stream_values(self, request: Request) -> dict[str, Any]:
        query = stream_query(request.query_params)
        page = self._site.stream.page(query)
        given = {name: request.query_params.get(name, "") for name in ("kind", "text", "since", "until", "before")}
        at = position(request.query_params)
        is_tail = at is None and query.before is None and query.until is None
        return {"page": page, "query": given, "is_tail": is_tail, "tail_after": page.head}

    def _facet_values(self, at: int | None) -> dict[str, Any]:
        found = self._site.kinds.glance() if at is None else self._site.kinds.counts_until(at)
        return {"facets": found, "shown_max": KINDS_SHOWN, "head": self._site.ledger.head()}

    def stream(self, request: Request) -> Response:
        return self._answer(request, "stream.html", "Events", **self._stream_values(request))

    def stream_new(self, request: Request) -> Response:
        """Events behind `after`, and the mark from which to ask next."""
        query = stream_query(request.query_params)
        page = self._site.stream.page(query._replace(before=None))
        given = {name: request.query_params.get(name, "") for name in ("kind", "text", "since", "until", "before")}
        return self._answer(request, "tail.html", "Events", page=page, query=given, tail_after=page.head)

    def facets(self, request: Request) -> Response:
        at = position(request.query_params)
        found = self._site.kinds.counts() if at is None else self._site.kinds.counts_until(at)
        head = self._site.ledger.head()
        return self._answer(request, "facets.html", "Kinds", facets=found, shown_max=KINDS_SHOWN, head=head)

    def event(self, request: Request) -> Response:
        event_id = request.path_params["event_id"]
        found = self._site.stream.event(event_id)
        if found is None:
            return PlainTextResponse(f"There is no event {event_id}.\n", 404)
        return self._answer(request, "event.html", f"Event {event_id}", event=found)

    def search(self, request: Request) -> Response:
        text, filters = request.query_params.get("q", "").strip(), search_filters(request.query_params)
        found = self._site.mind.searches(text, SEARCH_K, filters) if text else ()
        ids = [hit.event_id for one in found for hit in one.hits or ()]
        return self._answer(
            request, "search.html", "Search", text=text, found=found, rows=self._site.stream.rows_of(ids)
        )

    async def context(self, request: Request) -> Response:
        fields = await _form(request) if request.method == "POST" else {}
        return await run_in_threadpool(self._context, request, fields)

    def _context(self, request: Request, fields: dict[str, str]) -> Response:
        text, counts = fields.get("message", ""), context_counts(fields)
        found = self._site.mind.context(text, position(request.query_params), counts, 30.0)
        if isinstance(found, Job):
            raise ConfigError("the log is still being replayed; ask again")
        values = {"context": found, "message": text, "counts": dict(zip(CONTEXT_COUNTS, counts, strict=True))}
        return self._answer(request, "context.html", "Context", **values)

    def operations(self, request: Request) -> Response:
        return self._answer(request, "operations.html", "Operations", **self._site.operations.numbers())

    def doctor(self, request: Request) -> Response:
        return self._answer(request, "doctor.html", "Doctor", **self._site.operations.findings())

    def failed(self, request: Request, error: Exception) -> Response:
        """The page of an error."""
        if isinstance(error, CancelledError):
            return self._answer(request, "cancelled.html", "Cancelled")
        values: dict[str, Any] = {"message": str(error), "at": None}
        if not _is_script(request):
            return self._render("alone.html", status_of(error), part="problem.html", title="Problem", **values)
        # A script puts only answers with a status of success into the page.
        answer = self._render("problem.html", **values)
        if request.url.path in LIVE:
            answer.headers.update({"HX-Retarget": "#notice", "HX-Reswap": "innerHTML"})
        return answer


def _is_script(request: Request) -> bool:
    headers = request.headers
    return headers.get("hx-request") == "true" and headers.get("hx-history-restore-request") != "true"


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form. Raises `ConfigError` for one that is too large."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES_MAX:
            raise ConfigError(f"expected at most {BODY_BYTES_MAX} bytes")
    return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
