"""A platform's sign-in with three foreign issuers, whose keys are published over HTTP on loopback."""

from __future__ import annotations

import httpx
import pytest

from nagaya.errors import TokenRefused
from nagaya.identity.authenticator import Authenticator
from nagaya.identity.jwks import KeyCache
from nagaya.identity.local import LocalIssuer
from nagaya.settings import Settings
from nagaya.tenancy.bindings import IssuerBinding
from nagaya.tenancy.principal import Provider
from nagaya.testing.identity import IssuerKey, KeyServer, MemorySigningKeys, SetClock
from parts.directory import MemoryDirectory, tenant

NOW_S = 1_800_000_000
POOL = "https://cognito-idp.ap-northeast-1.amazonaws.com/ap-northeast-1_AbCdEf123"
OTHER_POOL = "https://cognito-idp.ap-northeast-1.amazonaws.com/ap-northeast-1_ZyXwVu987"
TID, OID = "6babcaad-604b-40ac-a9d7-9fd97c0b779f", "690222be-ff1a-4d56-abd1-7e4f7d38e474"
V1, V2 = f"https://sts.windows.net/{TID}/", f"https://login.microsoftonline.com/{TID}/v2.0"
OIDC = "https://issuer.example"

COGNITO_KEY = IssuerKey("cognito-1")
ENTRA_KEY = IssuerKey("entra-1", alg=None, issuer="https://login.microsoftonline.com/{tenantid}/v2.0")
ENTRA_V1_KEY = IssuerKey("entra-0", alg=None, issuer="https://sts.windows.net/{tenantid}/", key=COGNITO_KEY.key)
OIDC_KEY = IssuerKey("oidc-1", algorithm="ES256")

TIMES = {"iat": NOW_S, "exp": NOW_S + 3600}
ACCESS = {
    **TIMES,
    "iss": POOL,
    "sub": "u-1",
    "token_use": "access",
    "client_id": "web",
    "origin_jti": "o-1",
    "jti": "j-1",
}
ID = {**TIMES, "iss": POOL, "sub": "u-1", "token_use": "id", "aud": "web"}
ENTRA = {**TIMES, "iss": V2, "aud": "api", "tid": TID, "oid": OID, "ver": "2.0", "scp": "chat", "azp": "spa"}
ENTRA_OLD = {**TIMES, "iss": V1, "aud": "api", "tid": TID, "oid": OID, "ver": "1.0", "scp": "chat", "appid": "spa"}
ENTRA_APP = {
    **TIMES,
    "iss": V2,
    "aud": "api",
    "tid": TID,
    "oid": "app-object",
    "ver": "2.0",
    "idtyp": "app",
    "roles": ["Bot"],
}
PLAIN = {**TIMES, "iss": OIDC, "aud": "api", "sub": "u-1"}


class House:
    """Everything sign-in needs, and what a test may look at."""

    def __init__(self, server: KeyServer, client: httpx.AsyncClient) -> None:
        self.clock = SetClock(NOW_S)
        self.directory = MemoryDirectory(tenant("acme"), tenant("globex"))
        self.server = server
        self.jwks = KeyCache(client, self.clock)
        self.local = LocalIssuer(MemorySigningKeys(), self.clock, issuer="https://nagaya.local")
        self.authenticator = Authenticator(self.directory, self.jwks, self.local, self.clock, Settings())
        server.publish(COGNITO_KEY, path="/cognito")
        server.publish(ENTRA_KEY, ENTRA_V1_KEY, path="/entra")
        server.publish(OIDC_KEY, path="/oidc")
        self.bind(POOL, Provider.COGNITO, "/cognito", audiences=("web",), accept_id_tokens=True)
        for form in (V1, V2):
            self.bind(form, Provider.ENTRA, "/entra", directory=TID)
        self.bind(OIDC, Provider.OIDC, "/oidc", algorithms=("ES256",))

    def bind(self, issuer: str, provider: Provider, path: str, **fields) -> None:
        made = {"tenant_id": "acme", "audiences": ("api",), "jwks_url": self.server.url(path), **fields}
        self.directory.bindings.append(IssuerBinding(issuer=issuer, provider=provider, **made))

    async def refused(self, token: str, purpose="access") -> str:
        with pytest.raises(TokenRefused) as refused:
            await self.authenticator.authenticate(token, purpose=purpose)
        assert self.authenticator.held(token) is None
        assert refused.value.status == 401
        return refused.value.reason

    @property
    def fetches(self) -> int:
        return self.server.requests.total()
