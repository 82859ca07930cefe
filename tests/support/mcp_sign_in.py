"""A program that signs in to ``/mcp`` by OAuth, as the ``mcp`` package's own provider does, and the browser it opens."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import httpx2
from mcp.client.auth import OAuthClientProvider, TokenStorage
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken

from support.server import RunningServer

REDIRECT = "http://127.0.0.1:3030/callback"


class Program(TokenStorage):
    """What the program keeps, whose browser it opens, and every request that it sent, with the answer's status."""

    def __init__(self, user: str = "mio", password: str = "roof-and-tea") -> None:
        self.tokens: OAuthToken | None = None
        self.client_info: OAuthClientInformationFull | None = None
        self.sent: list[tuple[str, str, int]] = []
        self.challenges: list[str] = []
        self.failed_sign_ins: list[str] = []
        self._user = user
        self._password = password
        self._came_back: dict[str, str] = {}

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client_info

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client_info = client_info

    def statuses(self, path: str) -> list[int]:
        return [status for _, sent, status in self.sent if sent == path]

    async def open_browser(self, url: str) -> None:
        """What the person does in it: sign in on the page that is shown."""
        async with httpx2.AsyncClient(timeout=30) as browser:
            shown = await browser.get(url)
            ticket = re.search(r'action="([^"]+)" data-ticket="([^"]+)"', shown.text)
            if ticket is not None:
                form = {"user": self._user, "password": self._password, "ticket": ticket[2]}
                shown = await browser.post(ticket[1], data=form)
        place = urlsplit(shown.headers.get("location", ""))
        self._came_back = {name: values[0] for name, values in parse_qs(place.query).items()}

    async def come_back(self) -> AuthorizationCodeResult:
        came = self._came_back
        if "code" not in came:
            self.failed_sign_ins.append(came.get("error", "access_denied"))
        return AuthorizationCodeResult(code=came.get("code", ""), state=came.get("state"), iss=came.get("iss"))


class _Names(httpx2.AsyncBaseTransport):
    """Leads every name that ends in ``.example`` to the server, as its owner's DNS would; the rest go where they say."""

    def __init__(self, server: RunningServer, program: Program) -> None:
        self._server = server
        self._program = program
        self._wire = httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        if request.url.host.endswith(".example"):
            # The Host header was set from the name, and stays.
            request.url = request.url.copy_with(host="127.0.0.1", port=self._server.port)
        reply = await self._wire.handle_async_request(request)
        self._program.sent.append((request.method, path, reply.status_code))
        if "www-authenticate" in reply.headers:
            self._program.challenges.append(reply.headers["www-authenticate"])
        return reply

    async def aclose(self) -> None:
        await self._wire.aclose()


@asynccontextmanager
async def signing_in(
    server: RunningServer, host: str, program: Program, mode: str = "auto", scope: str | None = None
) -> AsyncIterator[Client]:
    """A client of ``/mcp`` at a host name, that signs in when it is asked to."""
    place = f"http://{host}/mcp"
    about = OAuthClientMetadata(
        client_name="assistant",
        redirect_uris=[REDIRECT],
        grant_types=["authorization_code", "refresh_token"],
        response_types=["code"],
        token_endpoint_auth_method="none",
        scope=scope,
    )
    provider = OAuthClientProvider(place, about, program, program.open_browser, program.come_back)
    async with (
        httpx2.AsyncClient(transport=_Names(server, program), auth=provider, timeout=60) as http,
        Client(streamable_http_client(place, http_client=http), mode=mode) as client,
    ):
        yield client
