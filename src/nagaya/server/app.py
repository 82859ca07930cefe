"""The ASGI application: the platform opened at start-up, the door in front, FastAPI behind for the documents."""

from __future__ import annotations

import asyncio
import gc
import signal
from types import FrameType
from typing import Any

import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from nagaya import __version__
from nagaya.errors import CommandFailed, InvalidRequest, MethodNotAllowed, NagayaError, NotFound
from nagaya.server.calls import Receive, Scope, Send, error_reply, language_of
from nagaya.server.cors import Cors
from nagaya.server.door import Door
from nagaya.server.metrics import Metrics
from nagaya.server.openapi import document
from nagaya.server.routes import router
from nagaya.server.streams import Streams
from nagaya.settings import Settings, load_settings
from nagaya.wiring import Nagaya

_log = structlog.get_logger(__name__)

DRAIN_NOTICE_S = 1.0
"""How long ``/readyz`` says 503 before the listener closes, so that a load balancer can look."""


class Application:
    """The server's ASGI app for one process. Opens the platform at lifespan start-up, closes it at shutdown."""

    def __init__(self, settings: Settings) -> None:
        self.nagaya = Nagaya.open(settings=settings)
        self.problem: NagayaError | None = None
        """What kept the platform from opening, after a start that failed."""
        self.metrics = Metrics(max_tenants=settings.metrics_tenants, folder=settings.metrics_folder)
        self.streams = Streams(self.metrics.streams)
        self.nagaya.metrics = self.metrics
        door: Any = Door(self.nagaya, router(), documents(settings), self.metrics, self.streams)
        if settings.cors_origins:
            door = Cors(door, settings.cors_origins, self.metrics, settings.language)
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._door(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._open()
        except Exception as failed:
            # Whoever started the server says so, once; a web server of its own logs the message sent here.
            self.problem = failed if isinstance(failed, NagayaError) else CommandFailed(kind=type(failed).__name__)
            _log.debug("the start failed", action="server.start_failed", exc_info=failed)
            await send({"type": "lifespan.startup.failed", "message": str(self.problem)})
            return
        self.streams.start()
        self._drain_on_sigterm()
        before = _collect_seldom()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        _collect_as(before)
        await self.streams.stop()
        await self.nagaya.close(deadline_s=self.nagaya.settings.drain_s)
        await send({"type": "lifespan.shutdown.complete"})

    async def _open(self) -> None:
        await self.nagaya.__aenter__()
        try:
            await self.nagaya.start_work()
        except BaseException:
            await self.nagaya.close()
            raise

    def _drain_on_sigterm(self) -> None:
        """On SIGTERM say "not ready" first, and stop listening a moment later, as the server itself then does."""
        before = signal.getsignal(signal.SIGTERM)
        if not callable(before):
            return
        loop = asyncio.get_running_loop()

        def stop(number: int, frame: FrameType | None) -> None:
            self.nagaya.ready = False
            _log.info("draining", action="server.draining")
            loop.call_soon_threadsafe(loop.call_later, DRAIN_NOTICE_S, before, number, frame)

        try:
            signal.signal(signal.SIGTERM, stop)
        except ValueError:
            # Not the main thread, as under a test's own server: signals are not ours there.
            return


def _collect_seldom() -> tuple[int, int, int]:
    """What start-up made lives as long as the process, and a request leaves few cycles behind: looking through both
    for garbage every few requests took about 6 % of their time. Gives the thresholds as they were."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    return before


def _collect_as(before: tuple[int, int, int]) -> None:
    gc.unfreeze()
    gc.set_threshold(*before)


def documents(settings: Settings) -> FastAPI:
    """The FastAPI app: ``/openapi.json``, ``/docs``, and the error shape for every path that is not there."""
    app = FastAPI(title="Nagaya", version=__version__, redoc_url=None)
    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to give a document of one's own

    async def shaped(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        problem: NagayaError
        if status == 404:
            problem = NotFound("path")
        elif status == 405:
            problem = MethodNotAllowed()
        elif status < 500:
            problem = InvalidRequest("The request is not valid.", "リクエストが正しくありません。")
        else:
            problem = NagayaError()
        accept = request.headers.get("accept-language")
        reply = error_reply(problem, language_of(accept, settings.language))
        headers = {name.decode(): value.decode() for name, value in reply.headers}
        if isinstance(error, HTTPException) and error.headers:
            headers |= error.headers
        return Response(reply.body, reply.status, headers)

    app.add_exception_handler(HTTPException, shaped)
    return app


def from_environment() -> Application:
    """The application for a worker process: settings from the environment that ``nagaya serve`` prepared."""
    from nagaya.kernel.telemetry import set_up_logging

    settings = load_settings()
    set_up_logging(settings.log_level, settings.log_format)
    return Application(settings)
