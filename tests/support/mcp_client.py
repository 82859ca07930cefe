"""The ``mcp`` package's own client at a running server's ``/mcp``, and its messages as they stand on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import httpx2
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from support.server import RunningServer

MODES = ("2026-07-28", "auto", "legacy")
"""The era in which each message stands alone, the client's own choice, and the era of the handshake."""
BOTH = "application/json, text/event-stream"


@asynccontextmanager
async def connected(server: RunningServer, key: str, mode: str = "auto", **headers: str) -> AsyncIterator[Client]:
    """A client with that key. What the server answers is checked by the client against the tools' own schemas."""
    headers["authorization"] = f"Bearer {key}"
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(f"{server.url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


def call_of(tool: str, arguments: dict[str, Any] | None = None, message_id: int | str = 1) -> dict[str, Any]:
    """A tool call as a client of the handshake's era sends it."""
    params = {"name": tool, "arguments": arguments or {}}
    return {"jsonrpc": "2.0", "id": message_id, "method": "tools/call", "params": params}


def post(client: httpx.Client, message: Any, **headers: str) -> httpx.Response:
    """Send a message, or bytes that are none, as a client does."""
    headers = {"accept": BOTH, "content-type": "application/json"} | headers
    if isinstance(message, bytes):
        return client.post("/mcp", content=message, headers=headers)
    return client.post("/mcp", json=message, headers=headers)


def assert_refused(reply: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The reply is a refusal in JSON-RPC's shape, with the platform's code under ``data``; its inside."""
    assert reply.status_code == status, reply.text[:300]
    assert reply.headers.get("x-request-id")
    body = reply.json()
    assert (body["jsonrpc"], set(body)) == ("2.0", {"jsonrpc", "id", "error"})
    error: dict[str, Any] = body["error"]
    assert set(error) == {"code", "message", "data"}
    assert isinstance(error["code"], int)
    assert error["message"]
    assert error["data"]["code"] == code, reply.text
    return error
