"""The application: routes behind the guard."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from pmm_shm.errors import PmmShmError
from pmm_shm_web.api import Api
from pmm_shm_web.assets import FOLDER, PREFIX
from pmm_shm_web.guard import API, HEALTH, Access, Guard
from pmm_shm_web.jobs import CancelledError
from pmm_shm_web.pages import Pages
from pmm_shm_web.site import Site

_FAILED = "the server has failed; its terminal has the reason"


def make_app(site: Site, access: Access) -> ASGIApp:
    """The ASGI application of a site; closing the site is its caller's."""
    pages, api = Pages(site), Api(site)

    async def health(_: Request) -> Response:
        # Not in a thread: all of those may be busy.
        return PlainTextResponse("ok\n")

    async def refused(request: Request, error: Exception) -> Response:
        status, words = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, _FAILED)
        if request.url.path.startswith(API):
            return JSONResponse({"error": words}, status)
        return PlainTextResponse(f"{status}: {words}\n", status)

    async def failed(request: Request, error: Exception) -> Response:
        made = api if request.url.path.startswith(API) else pages
        return made.failed(request, error)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        site.live.close()

    application = Starlette(
        routes=[
            Route(HEALTH, health),
            *api.routes(),
            *pages.routes(),
            Mount(PREFIX.rstrip("/"), StaticFiles(directory=FOLDER)),
        ],
        exception_handlers={PmmShmError: failed, CancelledError: failed, HTTPException: refused, Exception: refused},
        lifespan=lifespan,
    )
    return Guard(application, access)
