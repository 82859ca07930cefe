"""How mem0's clients are answered: an error has ``detail`` beside ``error``, since that is what they show."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from nagaya.errors import Mem0CallNotOffered, NagayaError
from nagaya.server.calls import Call, Handler, Reply, error_reply

Mem0Handler = Callable[[Call], Awaitable[Reply]]


def for_mem0(handler: Mem0Handler) -> Handler:
    """The handler as a route whose refusals mem0's clients can show."""

    async def route(call: Call) -> Reply:
        try:
            return await handler(call)
        except NagayaError as error:
            if error.status >= 500:
                raise
            reply = error_reply(error, call.language)
            told = msgspec.json.decode(reply.body) | {"detail": error.message(call.language)}
            return reply._replace(body=msgspec.json.encode(told))

    # The document of every route takes its summary from here.
    route.__doc__ = handler.__doc__
    return route


def not_offered(call_name: str) -> Handler:
    """A route for what mem0's clients can ask and nothing here does. It is refused, never silently taken."""

    async def refuse(call: Call) -> Reply:
        await call.enter()
        raise Mem0CallNotOffered(call=call_name)

    refuse.__doc__ = f"Refused: mem0's {call_name} are not offered here."
    return for_mem0(refuse)
