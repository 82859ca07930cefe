"""What the door does to every reply, whoever made it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nagaya.server.app import Application
from nagaya.settings import Settings

PATHS = ("/healthz", "/v1/models", "/nowhere", "/openapi.json")


@pytest.fixture
async def application(tmp_path: Path) -> AsyncIterator[Application]:
    made = Application(Settings(data=str(tmp_path)))
    async with made.nagaya:
        yield made


async def headers_of(application: Application, path: str) -> dict[bytes, bytes]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": [],
        "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2), "root_path": "",
    }  # fmt: skip
    await application(scope, receive, send)
    return dict(sent[0]["headers"])


@pytest.mark.parametrize("path", PATHS)
async def test_while_draining_every_reply_sends_its_client_to_another_connection(application: Application, path: str):
    assert b"connection" not in await headers_of(application, path)
    application.nagaya.ready = False
    assert (await headers_of(application, path))[b"connection"] == b"close"


@pytest.mark.parametrize("path", PATHS)
async def test_every_reply_has_its_id_and_the_headers_of_safety(application: Application, path: str):
    found = await headers_of(application, path)
    assert found[b"x-request-id"].startswith(b"req_")
    assert found[b"x-content-type-options"] == b"nosniff"
    assert found[b"cache-control"] == b"no-store"
