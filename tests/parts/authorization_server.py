"""An OAuth 2.1 authorization server of the tests' own, over HTTP on loopback.

Each of its realms is an issuer with keys, clients and users of its own. It speaks metadata discovery (RFC 8414), registration
(RFC 7591), codes with PKCE (RFC 7636), resource indicators (RFC 8707), the issuer in its answer (RFC 9207), refresh
tokens, and signs access tokens as RFC 9068 has them. It is strict: what a client leaves out or gets wrong is refused.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from nagaya.testing.identity import IssuerKey
from parts.loopback import on_loopback

WELL_KNOWN = "/.well-known/oauth-authorization-server"


class Grant(NamedTuple):
    """What somebody allowed a client: who, which client, for what, and how the code must be proved."""

    user: str
    client_id: str
    resource: str
    scope: str
    redirect_uri: str = ""
    challenge: str = ""


class Realm:
    """One issuer. ``passwords`` are its users', ``asked`` counts requests, ``scopes`` are those it knows.

    ``audience`` stands in every token in place of the resource that was asked for, as at issuers that know no
    resource indicators. ``issued_ago_s`` is how old a token is when it is given.
    """

    def __init__(self, server: AuthorizationServer, name: str) -> None:
        self.name = name
        self._server = server
        self.key = IssuerKey(f"{name}-1")
        self.passwords = {"mio": "roof-and-tea"}
        self.scopes = ("nagaya.read", "nagaya.write")
        self.life_s = 3600
        self.issued_ago_s = 0
        self.audience: str | None = None
        self.asked: Counter[str] = Counter()
        self.scopes_asked: list[str] = []
        self._clients: dict[str, list[str]] = {}
        self._waiting: dict[str, tuple[Grant, str]] = {}
        self._codes: dict[str, Grant] = {}
        self._refreshes: dict[str, Grant] = {}

    @property
    def issuer(self) -> str:
        return f"{self._server.url}/{self.name}"

    def access_token(self, audience: str, *, user: str = "mio", scope: str = "", **claims: Any) -> str:
        """An access token; ``claims`` take the place of those that it would have."""
        issued = int(time.time()) - self.issued_ago_s
        made = {
            "iss": self.issuer, "aud": audience, "sub": user, "client_id": "client", "iat": issued,
            "exp": issued + self.life_s, "jti": secrets.token_hex(8),
        }  # fmt: skip
        return self.key.sign(made | ({"scope": scope} if scope else {}) | claims, typ="at+jwt")

    async def metadata(self, request: Request) -> Response:
        self.asked["metadata"] += 1
        return JSONResponse(
            {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "registration_endpoint": f"{self.issuer}/register",
                "jwks_uri": f"{self.issuer}/keys",
                "scopes_supported": list(self.scopes),
                "response_types_supported": ["code"],
                "grant_types_supported": ["authorization_code", "refresh_token"],
                "token_endpoint_auth_methods_supported": ["none"],
                "code_challenge_methods_supported": ["S256"],
                "authorization_response_iss_parameter_supported": True,
            }
        )

    async def keys(self, request: Request) -> Response:
        self.asked["keys"] += 1
        return JSONResponse({"keys": [self.key.public()]})

    async def register(self, request: Request) -> Response:
        self.asked["register"] += 1
        wanted = await request.json()
        if not wanted.get("redirect_uris"):
            return _refused("invalid_redirect_uri")
        client_id = secrets.token_hex(8)
        self._clients[client_id] = wanted["redirect_uris"]
        return JSONResponse({**wanted, "client_id": client_id, "token_endpoint_auth_method": "none"}, 201)

    async def authorize(self, request: Request) -> Response:
        """The page to sign in on, or a refusal: shown where nobody knows whom to send it to, else sent back."""
        self.asked["authorize"] += 1
        wanted = request.query_params
        client_id, redirect_uri = wanted.get("client_id", ""), wanted.get("redirect_uri", "")
        if redirect_uri not in self._clients.get(client_id, ()):
            return _refused("invalid_client")
        scope = wanted.get("scope", "")
        self.scopes_asked.append(scope)
        state = wanted.get("state", "")
        if not set(scope.split()) <= set(self.scopes):
            return _back(redirect_uri, error="invalid_scope", state=state, iss=self.issuer)
        if (
            wanted.get("response_type") != "code"
            or wanted.get("code_challenge_method") != "S256"
            or not (wanted.get("code_challenge") and state and wanted.get("resource"))
        ):
            return _back(redirect_uri, error="invalid_request", state=state, iss=self.issuer)
        ticket = secrets.token_hex(8)
        grant = Grant("", client_id, wanted["resource"], scope, redirect_uri, wanted["code_challenge"])
        self._waiting[ticket] = grant, state
        return HTMLResponse(f'<form method="post" action="{self.issuer}/sign-in" data-ticket="{ticket}"></form>')

    async def sign_in(self, request: Request) -> Response:
        self.asked["sign-in"] += 1
        form = await request.form()
        user = str(form.get("user"))
        if user not in self.passwords or self.passwords[user] != form.get("password"):
            return _refused("access_denied", 401)
        grant, state = self._waiting.pop(str(form.get("ticket")))
        code = secrets.token_urlsafe(16)
        self._codes[code] = grant._replace(user=user)
        return _back(grant.redirect_uri, code=code, state=state, iss=self.issuer)

    async def token(self, request: Request) -> Response:
        form = {name: str(value) for name, value in (await request.form()).items()}
        kind = form.get("grant_type", "")
        self.asked[kind] += 1
        if kind == "authorization_code":
            # A code is good once, whatever comes with it.
            grant = self._codes.pop(form.get("code", ""), None)
            if grant is None or form.get("redirect_uri") != grant.redirect_uri or not _proves(form, grant):
                return _refused("invalid_grant")
        elif kind == "refresh_token":
            grant = self._refreshes.pop(form.get("refresh_token", ""), None)
            if grant is None:
                return _refused("invalid_grant")
        else:
            return _refused("unsupported_grant_type")
        if form.get("client_id") != grant.client_id:
            return _refused("invalid_grant")
        if form.get("resource") != grant.resource:
            return _refused("invalid_target")
        refresh = secrets.token_urlsafe(16)
        self._refreshes[refresh] = grant
        audience = self.audience or grant.resource
        token = self.access_token(audience, user=grant.user, scope=grant.scope, client_id=grant.client_id)
        given = {"access_token": token, "token_type": "Bearer", "expires_in": self.life_s, "refresh_token": refresh}
        return JSONResponse(
            given | ({"scope": grant.scope} if grant.scope else {}), headers={"cache-control": "no-store"}
        )


class AuthorizationServer:
    """Where it is, and the realms that it has."""

    def __init__(self) -> None:
        self.port = 0
        self._realms: dict[str, Realm] = {}
        self.app = Starlette(
            routes=[
                Route(f"{WELL_KNOWN}/{{realm}}", self._led(Realm.metadata)),
                Route("/{realm}/keys", self._led(Realm.keys)),
                Route("/{realm}/register", self._led(Realm.register), methods=["POST"]),
                Route("/{realm}/authorize", self._led(Realm.authorize)),
                Route("/{realm}/sign-in", self._led(Realm.sign_in), methods=["POST"]),
                Route("/{realm}/token", self._led(Realm.token), methods=["POST"]),
            ]
        )

    def realm(self) -> Realm:
        """A new one."""
        name = f"realm-{len(self._realms)}"
        self._realms[name] = Realm(self, name)
        return self._realms[name]

    def _led(self, work: Callable[[Realm, Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            realm = self._realms.get(request.path_params["realm"])
            return Response(status_code=404) if realm is None else await work(realm, request)

        return answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def _proves(form: dict[str, str], grant: Grant) -> bool:
    digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == grant.challenge


def _back(redirect_uri: str, **parameters: str) -> Response:
    return RedirectResponse(f"{redirect_uri}?{urlencode(parameters)}", 302)


def _refused(error: str, status: int = 400) -> Response:
    return JSONResponse({"error": error}, status)


@contextmanager
def running_authorization_server() -> Iterator[AuthorizationServer]:
    """The server in a thread of its own."""
    server = AuthorizationServer()
    with on_loopback(server.app) as server.port:
        yield server
