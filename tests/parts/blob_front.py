"""A front before a blob stand-in: it refuses, loses answers, and cuts bodies off, on demand.

``script`` is worked off one call at a time: ``pass``, ``throttle``, ``deny``, ``fail`` (500, nothing done), ``lose``
(done, then the line is cut), ``cut`` (nothing done), ``half`` (half of the answer's body, then cut), ``hang``. It counts
only calls whose method and path with query match ``only``. With an empty script everything passes.
"""

from __future__ import annotations

import asyncio
import io
import re
import ssl
from types import TracebackType

import aiohttp
from aiohttp import web

ANSWERS = {"throttle": (503, "SlowDown", "ServerBusy"), "fail": (500, "InternalError", "InternalError"),
           "deny": (403, "AccessDenied", "AuthorizationPermissionMismatch")}  # fmt: skip


class BlobFront:
    """``async with BlobFront(url) as front``; clients speak to ``127.0.0.1:front.port``."""

    def __init__(
        self, behind: str, *, trust: ssl.SSLContext | None = None, serve: ssl.SSLContext | None = None
    ) -> None:
        self._behind = behind
        self._trust = trust
        self._serve = serve
        self.port = 0
        self.script: list[str] = []
        self.only = re.compile("")
        self.calls: list[str] = []
        self.hanging = asyncio.Event()

    async def __aenter__(self) -> BlobFront:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{rest:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._serve).start()
        self.port = self._runner.addresses[0][1]
        connector = aiohttp.TCPConnector(ssl=self._trust or True)
        self._client = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        call = f"{request.method} {request.raw_path}"
        self.calls.append(call)
        action = self.script.pop(0) if self.script and self.only.search(call) else "pass"
        if action == "hang":
            self.hanging.set()
            await asyncio.sleep(3600)
        if action in ANSWERS:
            status, s3, azure = ANSWERS[action]
            code = azure if self._serve else s3
            text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>no</Message></Error>'
            return web.Response(
                status=status, text=text, headers={"Content-Type": "application/xml", "x-ms-error-code": code}
            )
        if action == "cut":
            return self._cut(request)
        kept = {name: value for name, value in request.headers.items() if name.lower() != "content-length"}
        async with self._client.request(
            request.method, self._behind + request.raw_path, headers=kept, data=io.BytesIO(body) if body else None
        ) as answer:
            content = await answer.read()
            if action == "lose":
                return self._cut(request)
            headers = {name: value for name, value in answer.headers.items() if name.lower() != "transfer-encoding"}
            response = web.StreamResponse(status=answer.status, headers=headers)
            await response.prepare(request)
            if action == "half":
                await response.write(content[: len(content) // 2])
                await asyncio.sleep(0.02)
                return self._cut(request)
            if request.method != "HEAD":
                await response.write(content)
            await response.write_eof()
            return response

    def _cut(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()
