"""An Entra ID for tests: client credentials, with real expiry, and as many refusals as a test asks for."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from aiohttp import web

TENANT = "6babcaad-604b-40ac-a9d7-9fd97c0b779f"


@dataclass(frozen=True)
class Issued:
    """A token: whose it is, for what, and until when (seconds since 1970)."""

    client_id: str
    scope: str
    ends_at: float


class Entra:
    """Its token endpoint. ``clients`` maps client ids to their secrets; ``asked`` counts requests for tokens."""

    def __init__(self) -> None:
        self.clients: dict[str, str] = {}
        self.tokens: dict[str, Issued] = {}
        self.lifetime_s = 3600
        self.asked = 0
        self.failing: int | None = None

    async def answer(self, request: web.Request) -> web.Response:
        if request.method != "POST" or request.path != f"/{TENANT}/oauth2/v2.0/token":
            return web.json_response({"error": "invalid_request"}, status=404)
        self.asked += 1
        form = await request.post()
        if self.failing is not None:
            return web.json_response({"error": "temporarily_unavailable"}, status=self.failing)
        client = str(form.get("client_id"))
        if form.get("grant_type") != "client_credentials" or self.clients.get(client) != form.get("client_secret"):
            said = "AADSTS7000215: Invalid client secret provided."
            return web.json_response({"error": "invalid_client", "error_description": said}, status=401)
        token = secrets.token_urlsafe(24)
        self.tokens[token] = Issued(client, str(form["scope"]), time.time() + self.lifetime_s)
        return web.json_response({"token_type": "Bearer", "access_token": token, "expires_in": self.lifetime_s})

    def holder(self, token: str, resource: str) -> str | None:
        """The client that a token belongs to, or None where it has ended or is for another resource.

        A token is taken a second past its end, for it may have been on its way.
        """
        found = self.tokens.get(token)
        if found is None or found.ends_at + 1 <= time.time() or found.scope != f"{resource}/.default":
            return None
        return found.client_id
