"""The hosted tools of a response, by the ``type`` under which a request names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from nagaya.connections.room import TenantSession
from nagaya.context.mcp_tools import mcp_tools
from nagaya.context.server_tools import ServerTool, Toolbox
from nagaya.usage.meter import Meter

Make = Callable[[TenantSession, Meter, Mapping[str, Any], str], ServerTool]
"""Makes a tool for one run from what the request says of it, at that place of the request. Raises
``invalid_request_error`` for what it does not understand; asks nobody anything yet."""

HOSTED: Final[dict[str, Make]] = {"mcp": mcp_tools}

SECRET_FIELDS: Final = frozenset({"authorization", "headers"})
"""What of a tool's description is never kept nor shown again: it may hold a credential."""


def is_hosted(tool: object) -> bool:
    """Whether a tool in a request is one of the server's."""
    return isinstance(tool, dict) and tool.get("type") in HOSTED


def toolbox_of(
    tools: Sequence[Mapping[str, Any]], session: TenantSession, meter: Meter, more: Sequence[ServerTool] = ()
) -> Toolbox:
    """The server's tools among a request's, and ``more`` that the caller brings in code."""
    made = [
        HOSTED[tool["type"]](session, meter, tool, f"tools[{number}]")
        for number, tool in enumerate(tools)
        if is_hosted(tool)
    ]
    return Toolbox([*made, *more])


def shown_tools(tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tools as a response shows them."""
    return [{name: value for name, value in tool.items() if name not in SECRET_FIELDS} for tool in tools]
