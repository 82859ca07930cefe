"""The door: every request comes in here and every reply goes out here.

It gives the request its id, finds the route, renders errors, sends replies with the security headers, and counts.
The OpenAI-compatible routes are called directly; every other path goes to the FastAPI app behind the same door.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any, Final

import structlog

from nagaya.errors import MethodNotAllowed, NagayaError, SessionClosed
from nagaya.kernel.ids import new_id
from nagaya.server.calls import (
    Call,
    Disconnected,
    Receive,
    Reply,
    Router,
    Scope,
    Send,
    Stream,
    error_reply,
    language_of,
)
from nagaya.server.metrics import Metrics
from nagaya.server.streams import Streams

if TYPE_CHECKING:
    from nagaya.wiring import Nagaya

_log = structlog.get_logger(__name__)

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9_.-]{8,64}")

SECURITY_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
)
CLOSE: Final = (b"connection", b"close")
DOCS_POLICY: Final = (
    b"default-src 'none'; script-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; img-src 'self' data: "
    b"https://fastapi.tiangolo.com; style-src 'unsafe-inline' https://cdn.jsdelivr.net; connect-src 'self'; "
    b"frame-ancestors 'none'"
)


class Door:
    """The outermost ASGI app. ``behind`` answers what the router does not know."""

    def __init__(self, nagaya: Nagaya, router: Router, behind: Any, metrics: Metrics, streams: Streams) -> None:
        self._nagaya = nagaya
        self._router = router
        self._behind = behind
        self._metrics = metrics
        self._streams = streams
        self._language: str = nagaya.settings.language

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        began_s = time.perf_counter()
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        given_id = None
        for name, value in headers:
            if name == b"x-request-id":
                given_id = value
        is_good = given_id is not None and _REQUEST_ID.fullmatch(given_id)
        request_id = given_id.decode() if given_id is not None and is_good else new_id("req")
        found = self._router.find(scope["path"], scope.get("raw_path") or b"")
        if found is None:
            await self._pass_on(scope, receive, send, request_id, began_s)
            return
        pattern, handlers, params = found
        language = self._language
        call: Call | None = None
        try:
            try:
                handler = handlers.get(scope["method"])
                call = Call(scope, receive, self._nagaya, request_id)
                accept = call.header(b"accept-language")
                call.language = language if accept is None else language_of(accept, language)
                language = call.language
                call.params, call.route = params, pattern
                if handler is None:
                    allow = ", ".join(sorted(handlers)).encode()
                    reply: Reply | Stream = error_reply(MethodNotAllowed(), language, more=((b"allow", allow),))
                else:
                    reply = await handler(call)
            except NagayaError as error:
                if error.status >= 500:
                    _log.warning("refused", action="http.error", code=error.code, route=pattern, request_id=request_id)
                reply = error_reply(error, language)
            except Disconnected:
                return
            except Exception:
                # The stack goes to the log, never to the caller; the request id joins the two.
                _log.exception("a request failed", action="http.failed", route=pattern, request_id=request_id)
                reply = error_reply(NagayaError(), language)
            if isinstance(reply, Stream):
                assert call is not None
                status = await self._send_stream(call, reply, send, receive)
            else:
                status = reply.status
                await self._send_reply(reply, send, request_id)
        finally:
            if call is not None and call.stream_of is not None:
                self._nagaya.open_streams.give_back(call.stream_of)
        self._metrics.count(pattern, scope["method"], status, time.perf_counter() - began_s)

    def _parting(self) -> tuple[tuple[bytes, bytes], ...]:
        """What tells a client, while the server drains, that its next request needs another connection."""
        return () if self._nagaya.ready else (CLOSE,)

    async def _send_reply(self, reply: Reply, send: Send, request_id: str) -> None:
        headers = [
            *reply.headers,
            (b"content-length", b"%d" % len(reply.body)),
            (b"x-request-id", request_id.encode()),
            *SECURITY_HEADERS,
            *self._parting(),
        ]
        try:
            await send({"type": "http.response.start", "status": reply.status, "headers": headers})
            await send({"type": "http.response.body", "body": reply.body})
        except OSError:
            # The client went away; there is nobody to tell.
            return

    async def _send_stream(self, call: Call, stream: Stream, send: Send, receive: Receive) -> int:
        request_id = call.request_id
        headers = [*stream.headers, (b"x-request-id", request_id.encode()), *SECURITY_HEADERS, *self._parting()]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            call.let_go()
            del headers
            whole = await self._streams.send(stream, send, receive)
        except OSError:
            stream.leave()
            await stream.frames.aclose()
            return 499
        except NagayaError as error:
            _log.warning("stream failed", action="http.stream_failed", code=error.code, request_id=request_id)
            return error.status
        except asyncio.CancelledError:
            raise
        except Exception:
            _log.exception("a stream failed", action="http.stream_failed", request_id=request_id)
            return 500
        return 200 if whole else SessionClosed.status

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, request_id: str, began_s: float) -> None:
        """To the FastAPI app, with the same headers, limits and errors."""
        status = 500
        started = False

        async def send_guarded(message: dict[str, Any]) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                started = True
                status = message["status"]
                headers = list(message.get("headers", ()))
                policy = (b"content-security-policy", DOCS_POLICY)
                own = [policy if docs and name == policy[0] else (name, value) for name, value in SECURITY_HEADERS]
                headers += [(b"x-request-id", request_id.encode()), *own, *self._parting()]
                message = {**message, "headers": headers}
            await send(message)

        docs = scope["path"] == "/docs"
        scope["nagaya.request_id"] = request_id
        try:
            await self._behind(scope, receive, send_guarded)
        except OSError:
            return
        except Exception:
            _log.exception("a request failed", action="http.failed", path=scope["path"][:100], request_id=request_id)
            if started:
                return
            accept = next((value for name, value in scope["headers"] if name == b"accept-language"), b"")
            reply = error_reply(NagayaError(), language_of(accept.decode("latin-1"), self._language))
            status = reply.status
            await self._send_reply(reply, send, request_id)
        route = scope.get("route")
        self._metrics.count(getattr(route, "path", "unknown"), scope["method"], status, time.perf_counter() - began_s)
