"""One message at ``/mcp`` and whose it is: what the protocol's side may do for its caller, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from nagaya.context.decode import refusal
from nagaya.errors import NagayaError
from nagaya.server.calls import Call, encode, error_shape, names_a_tenant
from nagaya.server.mcp.tools import TOOLS, Tool
from nagaya.tenancy.principal import Entrance


class Outcome(NamedTuple):
    """What a tool gave back: its result, or in the error shape of every route what was wrong with the call."""

    data: dict[str, Any]
    text: str
    has_failed: bool = False


class Visit:
    """A caller that the gate has admitted, for the length of one message."""

    def __init__(self, call: Call, entrance: Entrance) -> None:
        self._call = call
        self._entrance = entrance

    def tools(self) -> list[Tool]:
        """The tools that the caller's scopes allow."""
        return [tool for tool in TOOLS.values() if tool.needs in self._entrance.principal.scopes]

    async def use(self, tool: Tool, arguments: Mapping[str, Any]) -> Outcome:
        """Call a tool as the caller: counted, limited and refused as its route is.

        What is wrong with the call is told to the model that made it. Raises what is not the call's fault or is the
        caller's: ``Forbidden``, ``TenantMismatch`` for arguments that name another tenant, ``RateLimited``,
        ``SessionClosed`` and every failure of the platform's own.
        """
        nagaya = self._call.nagaya
        nagaya.gate.demand(self._entrance, tool.needs)
        named = [value for name, value in arguments.items() if names_a_tenant(name) and isinstance(value, str)]
        if named:
            self._call.confirm(self._entrance, named)
        try:
            given = msgspec.convert(arguments, tool.takes)
        except msgspec.ValidationError as wrong:
            return self._failed(refusal(wrong))
        try:
            async with await nagaya.inside(self._entrance) as context:
                result = await tool.work(context, given)
        except NagayaError as problem:
            if problem.status >= 500 or problem.status in (401, 429):
                raise
            return self._failed(problem)
        return Outcome(msgspec.to_builtins(result), encode(result).decode())

    def _failed(self, problem: NagayaError) -> Outcome:
        shown = {"error": error_shape(problem, self._call.language)}
        return Outcome(shown, encode(shown).decode(), has_failed=True)
