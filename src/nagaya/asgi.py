"""Nagaya's gate in front of somebody else's ASGI app.

::

    app.add_middleware(TenantMiddleware, nagaya=nagaya, open_paths=("/healthz",))

    @app.get("/hello")
    async def hello(entrance: Entrance = Depends(entrance_of)):
        async with nagaya.session(entrance) as tenant: ...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import HTTPConnection

from nagaya.errors import NagayaError, NoTenant
from nagaya.kernel.ids import new_id
from nagaya.server.calls import Call, Receive, Scope, Send, error_reply, language_of
from nagaya.tenancy.principal import Entrance
from nagaya.wiring import Nagaya

__all__ = ["TenantMiddleware", "entrance_of"]

_ENTRANCE = "nagaya.entrance"


class TenantMiddleware:
    """Lets a request through only with a verified entrance, which it puts where :func:`entrance_of` finds it.

    A refused request gets Nagaya's error shape and never reaches the app. ``open_paths`` are let through without an
    entrance (exact paths). WebSockets are gated by their handshake in the same way. ``nagaya`` must be open while
    requests come; the app opens and closes it, in its lifespan.
    """

    def __init__(self, app: Any, *, nagaya: Nagaya, open_paths: Sequence[str] = ()) -> None:
        self._app = app
        self._nagaya = nagaya
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit or refuse one request."""
        # Nothing that came from outside may pass for an entrance.
        scope.pop(_ENTRANCE, None)
        if scope["type"] not in ("http", "websocket") or scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
            return
        request_id = new_id("req")
        accept = next((value for name, value in scope["headers"] if name == b"accept-language"), b"")
        try:
            call = Call({"method": "GET", **scope}, receive, self._nagaya, request_id)
            scope[_ENTRANCE] = await self._nagaya.enter(call.credential(), call.named())
        except NagayaError as refused:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            reply = error_reply(refused, language_of(accept.decode("latin-1"), self._nagaya.settings.language))
            headers = [
                *reply.headers,
                (b"content-length", b"%d" % len(reply.body)),
                (b"x-request-id", request_id.encode()),
            ]
            await send({"type": "http.response.start", "status": reply.status, "headers": headers})
            await send({"type": "http.response.body", "body": reply.body})
            return
        await self._app(scope, receive, send)


def entrance_of(request: HTTPConnection) -> Entrance:
    """The entrance of a request that came through :class:`TenantMiddleware`; ``NoTenant`` for any other.

    Works as a FastAPI dependency, of WebSockets too, and with Starlette's ``Request`` and ``WebSocket``.
    """
    entrance = request.scope.get(_ENTRANCE)
    if not isinstance(entrance, Entrance):
        raise NoTenant
    return entrance
