"""An HTTP front before an AWS stand-in: it counts calls, refuses, loses answers and delivers twice, on demand.

``script`` is worked off one call at a time: ``pass``, ``throttle``, ``fail`` (500, nothing done), ``fail after`` (done,
then 500), ``lose`` (done, then the line is cut), ``cut`` (cut, nothing done), ``twice`` (done two times), ``hang``,
``expired``, ``conflict``, ``progress``. With an empty script everything passes. ``only`` limits the script to operations.
"""

from __future__ import annotations

import asyncio
import datetime
import io
import json
import time
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp import web

ERRORS = {
    "throttle": (400, "ProvisionedThroughputExceededException", {}),
    "fail": (500, "InternalServerError", {}),
    "fail after": (500, "InternalServerError", {}),
    "expired": (400, "ExpiredTokenException", {}),
    "progress": (400, "TransactionInProgressException", {}),
    "conflict": (400, "TransactionCanceledException", {"CancellationReasons": [{"Code": "TransactionConflict"}]}),
}


class Front:
    """``async with Front(url) as front``; clients speak to ``front.url``."""

    def __init__(self, behind: str, *, sts_lifetime_s: float | None = None) -> None:
        self._behind = behind
        self.url = ""
        self.script: list[str] = []
        self.only: set[str] = set()
        self.calls: list[str] = []
        self.keys: list[str] = []
        self.sts_lifetime_s = sts_lifetime_s
        self.sts_fails: str | None = None
        self.sts_delay_s = 0.0
        self.assumed: list[dict[str, str]] = []
        self._ends_s: dict[str, float] = {}

    async def __aenter__(self) -> Front:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{rest:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self._client = aiohttp.ClientSession()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()
        await self._client.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self.sts_lifetime_s is not None and b"Action=AssumeRole" in body:
            return await self._assume(await request.post())
        operation = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        self.calls.append(operation)
        self.keys.append(request.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0])
        action = "pass"
        if self.script and (not self.only or operation in self.only):
            action = self.script.pop(0)
        if action == "pass" and self.keys[-1] in self._ends_s:
            return self._caller(self.keys[-1])
        if action == "hang":
            await asyncio.sleep(3600)
        if action in ("pass", "lose", "fail after", "twice"):
            answer = await self._forward(request, body)
            if action == "twice":
                answer = await self._forward(request, body)
            if action in ("pass", "twice"):
                return answer
        if action in ("lose", "cut"):
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        status, code, more = ERRORS[action]
        if not operation:  # a service that speaks XML
            text = f"<ErrorResponse><Error><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>"
            return web.Response(status=status, text=text, content_type="text/xml")
        text = json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": code, **more})
        return web.Response(status=status, text=text, content_type="application/x-amz-json-1.0")

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        headers = {
            name: value for name, value in request.headers.items() if name.lower() not in ("host", "content-length")
        }
        async with self._client.post(self._behind + request.path_qs, headers=headers, data=io.BytesIO(body)) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower().startswith("x-amz")}
            kept["Content-Type"] = answer.headers.get("Content-Type", "application/x-amz-json-1.0")
            return web.Response(status=answer.status, body=io.BytesIO(await answer.read()), headers=kept)

    async def _assume(self, asked: Any) -> web.Response:
        self.assumed.append(dict(asked))
        await asyncio.sleep(self.sts_delay_s)
        if self.sts_fails is not None:
            text = f"<ErrorResponse><Error><Code>{self.sts_fails}</Code><Message>no</Message></Error></ErrorResponse>"
            status = 403 if self.sts_fails == "AccessDenied" else 500
            return web.Response(status=status, text=text, content_type="text/xml")
        self._ends_s[f"KEY{len(self.assumed)}"] = time.monotonic() + (self.sts_lifetime_s or 0)
        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.sts_lifetime_s or 0)
        text = (
            '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>'
            f"<AccessKeyId>KEY{len(self.assumed)}</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
            f"<SessionToken>t</SessionToken><Expiration>{ends.isoformat()}</Expiration>"
            "</Credentials></AssumeRoleResult></AssumeRoleResponse>"
        )
        return web.Response(text=text, content_type="text/xml")

    def _caller(self, key: str) -> web.Response:
        """To whoever holds credentials of this front's: that they hold, or that they have ended."""
        if time.monotonic() > self._ends_s[key]:
            text = "<ErrorResponse><Error><Code>ExpiredToken</Code><Message>expired</Message></Error></ErrorResponse>"
            return web.Response(status=403, text=text, content_type="text/xml")
        text = (
            '<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>'
            f"<UserId>{key}</UserId></GetCallerIdentityResult></GetCallerIdentityResponse>"
        )
        return web.Response(text=text, content_type="text/xml")
