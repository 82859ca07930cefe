"""MCP servers over streamable HTTP, through the ``mcp`` package: every connection goes to a checked address.

What a server sends is never checked against the schemas it also sends: their patterns could keep the loop busy for
ever. Redirects are followed inside its own origin only, and the new connection is checked like the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import httpx2
import mcp_types
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from nagaya.errors import AnswerNotUnderstood, NagayaError, ToolServerFailed
from nagaya.kernel.egress import EgressPolicy
from nagaya.models.tool_server import (
    MAX_LIST_BYTES,
    MAX_OUTPUT_CHARACTERS,
    MAX_TOOLS,
    Address,
    OfferedTool,
    Told,
)
from nagaya.models.transport import CheckedTransport

CONNECT_S: Final = 10.0
LIST_S: Final = 30.0
"""How long a server may take to say what it offers."""
CLOSE_S: Final = 5.0
READ_S: Final = 300.0
"""Seconds without a byte; the run's own limit for a call is shorter."""
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
_MAX_PAGES: Final = 16
_Answer = TypeVar("_Answer")


class McpServer:
    """One server for one run. Its connection lives in a task of its own: the run may go on in another than began it."""

    def __init__(self, address: Address, egress: EgressPolicy) -> None:
        self._address = address
        self._transport = _Watched(
            egress,
            api_key="",
            user_agent="Nagaya",
            headers=address.headers,
            passed=(b"mcp-", b"last-event-id"),
            limit_bytes=MAX_ANSWER_BYTES,
        )
        self._owner: asyncio.Task[None] | None = None
        self._client: asyncio.Future[Client] | None = None
        self._is_done = asyncio.Event()

    async def tools(self) -> Sequence[OfferedTool]:
        return await self._answered(self._tools, LIST_S)

    async def call(self, name: str, arguments: dict[str, Any]) -> Told:
        async def ask(client: Client) -> Told:
            params = mcp_types.CallToolRequestParams(name=name, arguments=arguments)
            request = mcp_types.CallToolRequest(params=params)
            return _told(await client.session.send_request(request, mcp_types.CallToolResult))

        return await self._answered(ask, None)

    async def _tools(self, client: Client) -> Sequence[OfferedTool]:
        found: list[OfferedTool] = []
        size, cursor = 0, None
        for _ in range(_MAX_PAGES):
            request = mcp_types.ListToolsRequest(params=mcp_types.PaginatedRequestParams(cursor=cursor))
            page = await client.session.send_request(request, mcp_types.ListToolsResult)
            for tool in page.tools:
                annotations = tool.annotations.model_dump(exclude_none=True, by_alias=True) if tool.annotations else {}
                size += len(tool.name) + len(json.dumps([tool.description, tool.input_schema, annotations]))
                read_only = annotations.get("readOnlyHint") is True
                found.append(
                    OfferedTool(tool.name, tool.description, tool.input_schema, annotations or None, read_only)
                )
            if len(found) > MAX_TOOLS or size > MAX_LIST_BYTES:
                raise ToolServerFailed(host=self._address.host, problem="it offers too many tools")
            cursor = page.next_cursor
            if cursor is None:
                return found
        raise ToolServerFailed(host=self._address.host, problem="its list of tools does not end")

    async def _answered(self, ask: Callable[[Client], Awaitable[_Answer]], limit_s: float | None) -> _Answer:
        self._transport.problem = None
        try:
            async with asyncio.timeout(limit_s):
                return await ask(await self._connected())
        except NagayaError:
            raise
        except TimeoutError as late:
            raise ToolServerFailed(host=self._address.host, problem="it does not answer in time") from late
        except Exception as problem:
            raise self._failure(problem) from None

    def _failure(self, problem: Exception) -> NagayaError:
        seen = self._transport.problem
        if isinstance(seen, AnswerNotUnderstood):
            return ToolServerFailed(host=self._address.host, problem="its answer is too long or compressed")
        if isinstance(seen, NagayaError):
            return seen
        if seen is not None:
            said = str(seen) if isinstance(seen, _Refused) else "it cannot be reached"
            return ToolServerFailed(host=self._address.host, problem=said)
        if isinstance(problem, MCPError):
            return ToolServerFailed(host=self._address.host, problem=f"it answers with error {problem.code}")
        return ToolServerFailed(host=self._address.host, problem="its answer is not of the protocol")

    async def _connected(self) -> Client:
        if self._client is None:
            self._client = asyncio.get_running_loop().create_future()
            self._owner = asyncio.create_task(self._own(self._client))
        return await asyncio.shield(self._client)

    async def _own(self, client: asyncio.Future[Client]) -> None:
        try:
            async with (
                _http(self._transport) as http,
                Client(streamable_http_client(self._address.url, http_client=http)) as opened,
            ):
                client.set_result(opened)
                await self._is_done.wait()
        except Exception as problem:
            if not client.done():
                client.set_exception(problem)
                # Whoever asked may have stopped waiting.
                client.exception()
        finally:
            client.cancel()

    async def close(self) -> None:
        self._is_done.set()
        owner, self._owner = self._owner, None
        if owner is not None:
            _, late = await asyncio.wait([owner], timeout=CLOSE_S if self._client and self._client.done() else 0)
            for task in late:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await self._transport.aclose()


class _Refused(Exception):
    """The server's status, in words."""


class _Watched(CheckedTransport):
    """Remembers why the last request failed: the package tells its caller less than the truth."""

    problem: Exception | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            response = await super().handle_async_request(request)
        except Exception as problem:
            self.problem = problem
            raise
        if response.status_code in (401, 403):
            self.problem = _Refused("it refuses the credential")
        elif 300 <= response.status_code < 400:
            self.problem = _Refused("it redirects elsewhere")
        elif response.status_code >= 500:
            self.problem = _Refused(f"it answers with status {response.status_code}")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _WatchedBody(response.stream, self)
        return response


class _WatchedBody(httpx2.AsyncByteStream):
    """The body of an answer, of which it is remembered that it was too long."""

    def __init__(self, body: httpx2.AsyncByteStream, transport: _Watched) -> None:
        self._body = body
        self._transport = transport

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._body:
                yield part
        except AnswerNotUnderstood as problem:
            self._transport.problem = problem
            raise

    async def aclose(self) -> None:
        await self._body.aclose()


@contextlib.asynccontextmanager
async def _http(transport: CheckedTransport) -> AsyncIterator[httpx2.AsyncClient]:
    timeout = httpx2.Timeout(READ_S, connect=CONNECT_S)
    async with httpx2.AsyncClient(transport=transport, timeout=timeout, trust_env=False) as http:
        yield http


def _told(result: mcp_types.CallToolResult) -> Told:
    """A result as text; what is no text is named only."""
    parts = []
    for block in result.content:
        if isinstance(block, mcp_types.TextContent):
            parts.append(block.text)
        elif isinstance(block, mcp_types.EmbeddedResource) and isinstance(
            block.resource, mcp_types.TextResourceContents
        ):
            parts.append(block.resource.text)
        else:
            parts.append(f"[{block.type}]")
    if not parts and result.structured_content is not None:
        parts.append(json.dumps(result.structured_content, ensure_ascii=False))
    return Told("\n".join(parts)[:MAX_OUTPUT_CHARACTERS], result.is_error)
