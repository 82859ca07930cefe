"""Tools of an MCP server that a request names: listed before the first question, called where the model asks.

The server is the caller's choice and its words are data. It is told the arguments that the model gives and the
headers that the request brought, and nothing else of the tenant; what it says changes only what the model reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.context.decode import refusal
from nagaya.context.server_tools import ToolOutcome, failure
from nagaya.context.tool_items import McpApprovalRequest, McpCall, McpListTools, McpTool, ToolItem
from nagaya.context.turns import mcp_name
from nagaya.errors import InvalidValue, NagayaError, SessionClosed, UnsupportedParameter
from nagaya.models.driver import FunctionTool, ToolCall
from nagaya.models.tool_server import OfferedTool, ToolServer
from nagaya.usage.meter import Meter

_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_FUNCTION: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class _Filter(msgspec.Struct, forbid_unknown_fields=True):
    tool_names: list[str] | None = None
    read_only: bool | None = None

    def fits(self, tool: OfferedTool) -> bool:
        return (self.tool_names is None or tool.name in self.tool_names) and (
            self.read_only is None or tool.is_read_only is self.read_only
        )


class _Approval(msgspec.Struct, forbid_unknown_fields=True):
    always: _Filter | None = None
    never: _Filter | None = None


class _McpIn(msgspec.Struct, forbid_unknown_fields=True):
    """The tool as OpenAI's Responses API describes it."""

    type: Literal["mcp"]
    server_label: str
    server_url: str | None = None
    server_description: str | None = None
    allowed_tools: list[str] | _Filter | None = None
    authorization: str | None = None
    headers: dict[str, str] | None = None
    require_approval: Literal["always", "never"] | _Approval | None = None
    allowed_callers: list[Literal["direct", "programmatic"]] | None = None
    connector_id: Any = None
    tunnel_id: Any = None
    defer_loading: bool | None = None


class McpTools:
    """One server's tools in one run. What needs an approval ends the run until the client has answered."""

    def __init__(self, session: TenantSession, given: _McpIn, at: str) -> None:
        headers = dict(given.headers or {})
        if given.authorization:
            if any(name.lower() == "authorization" for name in headers):
                detail = "not together with an Authorization header"
                raise InvalidValue(param=f"{at}.authorization", at=f"{at}.authorization", detail=detail)
            headers["authorization"] = f"Bearer {given.authorization}"
        self.label = given.server_label
        self._given = given
        self._session = session
        self._address = session.tool_server_address(given.server_url or "", headers, at)
        self._server: ToolServer | None = None
        self._offered: dict[str, OfferedTool] = {}
        self._approved: dict[str, McpApprovalRequest] = {}

    @property
    def functions(self) -> Sequence[FunctionTool]:
        return [
            FunctionTool(name=name, description=tool.description, parameters=tool.input_schema)
            for name, tool in self._offered.items()
        ]

    def may_offer(self, name: str) -> bool:
        """Whether a function may be this server's, before it was asked."""
        return name.startswith(mcp_name(self.label, ""))

    def work_in(self, session: TenantSession) -> None:
        """Open the connection in this session, which lasts as long as the run."""
        self._session = session

    def approve(self, requests: Collection[McpApprovalRequest]) -> None:
        """These calls may be made, each once and as it was shown."""
        self._approved |= {each.id: each for each in requests}

    async def prepare(self, item_id: str) -> ToolItem:
        try:
            self._server = await self._session.tool_server(self._address)
            offered = [tool for tool in await self._server.tools() if self._is_allowed(tool)]
        except SessionClosed:
            raise
        except NagayaError as problem:
            return McpListTools(id=item_id, server_label=self.label, error=problem.message("en"))
        # A name that models do not take is not offered; of two with one name the first is.
        for tool in offered:
            name = mcp_name(self.label, tool.name)
            if _FUNCTION.fullmatch(name):
                self._offered.setdefault(name, tool)
        tools = [
            McpTool(tool.name, tool.input_schema, tool.description, tool.annotations) for tool in self._offered.values()
        ]
        return McpListTools(id=item_id, server_label=self.label, tools=tools)

    def _is_allowed(self, tool: OfferedTool) -> bool:
        allowed = self._given.allowed_tools
        if allowed is None:
            return True
        return tool.name in allowed if isinstance(allowed, list) else allowed.fits(tool)

    def _needs_approval(self, tool: OfferedTool) -> bool:
        """Unless the request says otherwise every call does, as at OpenAI."""
        rule = self._given.require_approval
        if not isinstance(rule, _Approval):
            return rule != "never"
        if rule.always is not None and rule.always.fits(tool):
            return True
        return rule.never is None or not rule.never.fits(tool)

    def begin(self, call: ToolCall, item_id: str) -> ToolItem:
        tool = self._offered[call.name]
        approved = self._approved.pop(call.call_id, None)
        if approved is not None and (approved.name, approved.arguments) != (tool.name, call.arguments):
            approved = None
        if approved is None and self._needs_approval(tool):
            return McpApprovalRequest(id=item_id, server_label=self.label, name=tool.name, arguments=call.arguments)
        return McpCall(
            id=item_id,
            server_label=self.label,
            name=tool.name,
            arguments=call.arguments,
            approval_request_id=approved.id if approved is not None else None,
        )

    async def run(self, call: ToolCall, item: ToolItem | None, sources: int) -> ToolOutcome:
        if not isinstance(item, McpCall):
            return ToolOutcome("The call waits for an approval.", item, pending=True)
        assert self._server is not None  # it has listed the tool
        try:
            arguments = json.loads(call.arguments or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            return failure(item, "The arguments are not a JSON object.")
        told = await self._server.call(item.name, arguments)
        if told.has_failed:
            return failure(item, told.text or "The tool failed.")
        return ToolOutcome(told.text, msgspec.structs.replace(item, output=told.text))

    async def close(self) -> None:
        """Close the connection. May be called again."""
        server, self._server = self._server, None
        if server is not None:
            await server.close()


def mcp_tools(session: TenantSession, meter: Meter, tool: Mapping[str, Any], at: str) -> McpTools:
    """The tools of the server that ``tool`` names. Raises ``invalid_request_error`` and ``AddressRefused``."""
    try:
        given = msgspec.convert(tool, _McpIn)
    except msgspec.ValidationError as wrong:
        raise refusal(wrong, at) from None
    for name in ("connector_id", "tunnel_id", "defer_loading"):
        if getattr(given, name):
            raise UnsupportedParameter(param=f"{at}.{name}", at=f"{at}.{name}")
    if not _LABEL.fullmatch(given.server_label) or "__" in given.server_label:
        place = f"{at}.server_label"
        detail = "expected 1 to 32 of A-Z, a-z, 0-9, '-' and '_', without '__'"
        raise InvalidValue(param=place, at=place, detail=detail)
    return McpTools(session, given, at)
