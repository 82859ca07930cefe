"""A server of a tenant's own that offers tools: what it is asked, and how one is reached."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from nagaya.errors import InvalidValue, MissingExtra
from nagaya.kernel.egress import EgressPolicy

MAX_TOOLS: Final = 128
"""Tools that one server may offer; models choose badly long before."""
MAX_LIST_BYTES: Final = 512 * 1024
"""All names, descriptions and schemas of a server's tools, as JSON."""
MAX_OUTPUT_CHARACTERS: Final = 100_000
"""What a tool gives back is cut to this before a model is told."""
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_OURS: Final = frozenset({
    "host", "accept", "accept-encoding", "connection", "content-type", "content-length", "transfer-encoding", "te",
    "upgrade", "keep-alive", "proxy-authorization", "proxy-connection", "trailer", "expect", "user-agent",
})  # fmt: skip
_MAX_HEADERS: Final = 32
_MAX_HEADER_CHARACTERS: Final = 8192


class OfferedTool(NamedTuple):
    """A tool as its server describes it: data from outside. ``is_read_only`` is only what the server says."""

    name: str
    description: str | None
    input_schema: dict[str, Any]
    annotations: dict[str, Any] | None
    is_read_only: bool


class Told(NamedTuple):
    """What a tool gave back, cut to ``MAX_OUTPUT_CHARACTERS``."""

    text: str
    has_failed: bool


class ToolServer(Protocol):
    """One connection, for one run; nothing is sent before the first question."""

    async def tools(self) -> Sequence[OfferedTool]:
        """What the server offers. Raises ``ToolServerFailed`` and ``AddressRefused``; may be repeated."""
        ...

    async def call(self, name: str, arguments: dict[str, Any]) -> Told:
        """Call a tool once; it may do anything, so it is never repeated. Raises as :meth:`tools`."""
        ...

    async def close(self) -> None:
        """Let go of the connection. May be called again."""
        ...


class Address(NamedTuple):
    """Where a server is and what is sent with every request; ``headers`` may hold a credential."""

    url: str
    host: str
    port: int
    headers: Mapping[str, str] = MappingProxyType({})

    def __repr__(self) -> str:
        return f"Address({self.host}:{self.port})"


def check_address(url: str, headers: Mapping[str, str], egress: EgressPolicy, at: str) -> Address:
    """The address, where it may be asked at all. Raises ``InvalidValue`` and ``AddressRefused``.

    Only ``https`` leaves this machine, except to hosts that the operator has allowed.
    """
    place = f"{at}.server_url"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise InvalidValue(param=place, at=place, detail="not a URL") from None
    if parts.scheme not in ("http", "https") or not host or len(url) > 2048 or not url.isprintable():
        raise InvalidValue(param=place, at=place, detail="expected an https:// URL")
    if "@" in parts.netloc or parts.fragment:
        detail = "it may hold neither a user name, a password nor a fragment"
        raise InvalidValue(param=place, at=place, detail=detail)
    egress.check(host, port)
    if parts.scheme == "http" and not egress.allows(host, port):
        raise InvalidValue(param=place, at=place, detail="expected an https:// URL")
    if len(headers) > _MAX_HEADERS:
        raise InvalidValue(param=f"{at}.headers", at=f"{at}.headers", detail=f"at most {_MAX_HEADERS} headers")
    for name, value in headers.items():
        known = _HEADER.fullmatch(name) and name.lower() not in _OURS and not name.lower().startswith("mcp-")
        fits = len(value) <= _MAX_HEADER_CHARACTERS and value.isascii() and value.isprintable()
        if not known or not fits:
            raise InvalidValue(param=f"{at}.headers", at=f"{at}.headers", detail="a header that may not be sent")
    return Address(url, host, port, headers)


async def open_tool_server(address: Address, egress: EgressPolicy) -> ToolServer:
    """The server's client, to be closed by the caller; its packages are imported now. Raises ``MissingExtra``."""
    try:
        adapter = await asyncio.to_thread(import_module, "nagaya.models.mcp_client")
    except ModuleNotFoundError as missing:
        raise MissingExtra(feature="An MCP server's tools", extra="mcp") from missing
    server: ToolServer = adapter.McpServer(address, egress)
    return server
