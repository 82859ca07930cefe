"""``POST /mcp``: messages of the Model Context Protocol, let in as every request is.

Each message is complete: token, tenant, limits and scopes are asked anew, nothing of it is kept, and any server answers
the next one. What takes long is answered as an event stream, which ends when its token does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from importlib import import_module
from types import ModuleType
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
import structlog

from nagaya.context.decode import decode
from nagaya.errors import (
    MalformedJson,
    MissingExtra,
    NagayaError,
    NotAcceptable,
    OriginRefused,
    RateLimited,
    Unauthenticated,
)
from nagaya.server.calls import JSON, SSE, Call, Reply, Stream, encode, error_reply, frame_of
from nagaya.server.mcp.resource import challenge
from nagaya.server.mcp.visit import Visit
from nagaya.tenancy.principal import Entrance, Scope

PATIENCE_S: Final = 3.0
"""How long an answer may take before it becomes an event stream, which proxies do not cut."""
PARSE_ERROR: Final = -32700
REFUSED: Final = -32010
"""JSON-RPC's code of everything that is refused before the protocol has its say; ``data.code`` says what it is."""

_log = structlog.get_logger(__name__)
_loaded: list[ModuleType] = []


class McpMessage(msgspec.Struct):
    """One message of the Model Context Protocol: a JSON-RPC 2.0 request, or without ``id`` a notification."""

    jsonrpc: Literal["2.0"]
    method: str
    id: int | str | msgspec.UnsetType = msgspec.UNSET
    params: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


async def exchange(call: Call) -> Reply | Stream:
    """A message of the Model Context Protocol (streamable HTTP). What is refused is told as a JSON-RPC error."""
    message_id = None
    try:
        _check_origin(call)
        if call.header(b"authorization") is None:
            # Never by cookie: a page's browser brings that along unasked, and the protocol has no CSRF token.
            raise Unauthenticated
        entrance = await call.enter(Scope.READ)
        call.query({})
        takes_json, takes_stream = _accepted(call.header(b"accept"))
        dialogue = await _dialogue()
        message = decode(await call.body(), Any, depth_limit=call.nagaya.settings.body_depth_limit)
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in call.scope["headers"]]
        asked = dialogue.read(message, headers)
        if isinstance(asked, dialogue.Answer):
            return _reply(asked)
        message_id = asked.request.id
        if not takes_json:
            _open_stream(call, entrance)
        work = asyncio.ensure_future(dialogue.answer(asked, Visit(call, entrance)))
        return await _answered(call, entrance, work, message_id, takes_json=takes_json, takes_stream=takes_stream)
    except NagayaError as problem:
        return await _refused(call, problem, message_id)


async def _answered(
    call: Call,
    entrance: Entrance,
    work: asyncio.Future[Any],
    message_id: int | str,
    *,
    takes_json: bool,
    takes_stream: bool,
) -> Reply | Stream:
    """The answer, as JSON or, where it takes long or nothing else is taken, as a stream."""
    try:
        await asyncio.wait([work], timeout=PATIENCE_S if takes_stream else None)
        if takes_json and not work.done():
            try:
                _open_stream(call, entrance)
            except RateLimited:
                # The tool may have done its work: rather a silent wait than an answer that is lost.
                await asyncio.wait([work])
        if not work.done() or (not takes_json and not work.exception() and work.result().status == 200):
            return _stream(call, entrance, work, message_id)
        return _reply(await work)
    except BaseException:
        work.cancel()
        raise


def _open_stream(call: Call, entrance: Entrance) -> None:
    call.nagaya.open_streams.take(entrance)
    call.stream_of = entrance


def _stream(call: Call, entrance: Entrance, work: asyncio.Future[Any], message_id: int | str) -> Stream:
    def failed(problem: NagayaError) -> bytes:
        return frame_of("message", encode(_error(call, problem, message_id)))

    async def frames() -> AsyncGenerator[bytes, None]:
        try:
            answer = await work
            yield frame_of("message", encode(answer.body))
        except NagayaError as problem:
            yield failed(problem)
        finally:
            work.cancel()
            await asyncio.wait([work])

    is_current = call.nagaya.gate.is_current
    return Stream(
        frames(), lambda: is_current(entrance), lambda: None, headers=(SSE,), ends_with_reader=True, last_word=failed
    )


def _reply(answer: Any) -> Reply:
    return Reply(b"", answer.status, ()) if answer.body is None else Reply(encode(answer.body), answer.status)


async def _refused(call: Call, problem: NagayaError, message_id: int | str | None) -> Reply:
    if problem.status >= 500:
        _log.warning("refused", action="http.error", code=problem.code, route=call.route, request_id=call.request_id)
    plain = error_reply(problem, call.language)
    kept = tuple(header for header in plain.headers if header[0] not in (b"www-authenticate", JSON[0]))
    headers = (JSON, *kept, *await challenge(call, problem))
    return Reply(encode(_error(call, problem, message_id)), plain.status, headers)


def _error(call: Call, problem: NagayaError, message_id: int | str | None) -> dict[str, Any]:
    """A refusal in JSON-RPC's shape, with what programs branch on under ``data``."""
    code = PARSE_ERROR if isinstance(problem, MalformedJson) else REFUSED
    data = {"code": problem.code, "type": problem.type, "param": problem.param}
    error = {"code": code, "message": problem.message(call.language), "data": data}
    return {"jsonrpc": "2.0", "id": message_id, "error": error}


def _check_origin(call: Call) -> None:
    """Raise ``OriginRefused`` for pages of places that no operator named: a name that was made to lead here (DNS
    rebinding) is one of them."""
    origin = call.header(b"origin")
    if origin is None:
        return
    settings = call.nagaya.settings
    own = urlsplit(settings.public_url or "")
    if (
        origin not in settings.cors_origins
        and "*" not in settings.cors_origins
        and (not settings.public_url or origin != f"{own.scheme}://{own.netloc}")
    ):
        raise OriginRefused


def _accepted(accept: str | None) -> tuple[bool, bool]:
    """Whether JSON is taken, and whether an event stream is. Raises ``NotAcceptable`` where neither is."""
    if accept is None:
        return True, True
    kinds = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    takes_json = not kinds.isdisjoint(("application/json", "application/*", "*/*"))
    takes_stream = not kinds.isdisjoint(("text/event-stream", "text/*", "*/*"))
    if not takes_json and not takes_stream:
        raise NotAcceptable
    return takes_json, takes_stream


async def _dialogue() -> ModuleType:
    """The protocol's side. Its package is imported in a thread: that takes a second, which everybody would wait for."""
    if not _loaded:
        try:
            _loaded.append(await asyncio.to_thread(import_module, "nagaya.server.mcp.dialogue"))
        except ModuleNotFoundError as missing:
            if (missing.name or "").startswith("nagaya"):
                raise
            raise MissingExtra(feature="/mcp", extra="mcp") from missing
    return _loaded[0]
