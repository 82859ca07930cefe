"""Sign-in with tokens of a real user pool, keys fetched over HTTP from the AWS stand-in."""

from __future__ import annotations

import time
from dataclasses import dataclass

import httpx
import pytest

from nagaya.errors import TokenRefused
from nagaya.identity.authenticator import Authenticator
from nagaya.identity.jwks import KeyCache
from nagaya.identity.local import LocalIssuer
from nagaya.kernel.clock import SystemClock
from nagaya.settings import Settings
from nagaya.tenancy.bindings import IssuerBinding
from nagaya.tenancy.principal import Provider, Role
from nagaya.testing.identity import MemorySigningKeys
from parts.directory import MemoryDirectory, tenant

pytest_plugins = ["parts.ministack"]

SERVICE = "AWSCognitoIdentityProviderService"
PASSWORD = "Passw0rd!nagaya"


@dataclass
class Pool:
    """One user pool with one app client and one user, who is in one group."""

    id: str
    client: str
    user_sub: str
    access: str
    id_token: str
    jwks_url: str

    @property
    def issuer(self) -> str:
        return f"https://cognito-idp.{self.id.partition('_')[0]}.amazonaws.com/{self.id}"


def make_pool(ministack, name: str) -> Pool:
    def call(operation: str, **body):
        return ministack.call(SERVICE, operation, **body)

    pool = call("CreateUserPool", PoolName=name)["UserPool"]["Id"]
    flows = ["ALLOW_USER_PASSWORD_AUTH", "ALLOW_REFRESH_TOKEN_AUTH"]
    made = call("CreateUserPoolClient", UserPoolId=pool, ClientName="web", ExplicitAuthFlows=flows)
    client = made["UserPoolClient"]["ClientId"]
    email = [{"Name": "email", "Value": "mio@example.jp"}]
    signed_up = call("SignUp", ClientId=client, Username="mio", Password=PASSWORD, UserAttributes=email)
    call("AdminConfirmSignUp", UserPoolId=pool, Username="mio")
    call("CreateGroup", UserPoolId=pool, GroupName="staff")
    call("AdminAddUserToGroup", UserPoolId=pool, Username="mio", GroupName="staff")
    answers = {"USERNAME": "mio", "PASSWORD": PASSWORD}
    tokens = call("InitiateAuth", ClientId=client, AuthFlow="USER_PASSWORD_AUTH", AuthParameters=answers)
    result = tokens["AuthenticationResult"]
    jwks_url = f"{ministack.url}/{pool}/.well-known/jwks.json"
    return Pool(pool, client, signed_up["UserSub"], result["AccessToken"], result["IdToken"], jwks_url)


@pytest.fixture(scope="module")
def pools(ministack):
    return make_pool(ministack, "acme"), make_pool(ministack, "globex")


def bind(pool: Pool, tenant_id: str, **fields) -> IssuerBinding:
    return IssuerBinding(
        issuer=pool.issuer,
        tenant_id=tenant_id,
        provider=Provider.COGNITO,
        audiences=(pool.client,),
        jwks_url=pool.jwks_url,
        accept_id_tokens=True,
        role_claims={"staff": Role.MEMBER},
        **fields,
    )


@pytest.fixture
async def authenticator(pools):
    clock = SystemClock()
    directory = MemoryDirectory(tenant("acme"), tenant("globex"))
    directory.bindings = [bind(pools[0], "acme"), bind(pools[1], "globex")]
    async with httpx.AsyncClient(trust_env=False) as client:
        jwks = KeyCache(client, clock)
        local = LocalIssuer(MemorySigningKeys(), clock, issuer="https://nagaya.local")
        yield Authenticator(directory, jwks, local, clock, Settings())
        await jwks.close()


async def test_an_access_token_of_each_pool_enters_its_own_tenant(authenticator, pools):
    for pool, tenant_id in zip(pools, ("acme", "globex"), strict=True):
        got = await authenticator.authenticate(pool.access)
        assert (got.tenant_id, got.user_id, got.username) == (tenant_id, pool.user_sub, "mio")
        assert (got.role, got.provider, got.issuer) == (Role.MEMBER, Provider.COGNITO, pool.issuer)
        assert got.session_id
        assert abs(got.issued_at_us / 1e6 - time.time()) < 120
        assert authenticator.held(pool.access) == got


async def test_an_id_token_serves_to_sign_in_and_for_nothing_else(authenticator, pools):
    got = await authenticator.authenticate(pools[0].id_token, purpose="login")
    assert (got.tenant_id, got.user_id, got.email) == ("acme", pools[0].user_sub, "mio@example.jp")
    with pytest.raises(TokenRefused):
        await authenticator.authenticate(pools[0].id_token)
    with pytest.raises(TokenRefused):
        await authenticator.authenticate(pools[0].access, purpose="login")


async def test_a_pool_whose_client_is_not_bound_is_refused(authenticator, pools, ministack):
    stranger = make_pool(ministack, "stranger")
    with pytest.raises(TokenRefused, match="not valid here") as refused:
        await authenticator.authenticate(stranger.access)
    assert refused.value.reason == "issuer is unknown"


async def test_a_token_with_another_pools_signature_is_refused(authenticator, pools):
    head, payload, _ = pools[0].access.split(".")
    other_head, _, other_signature = pools[1].access.split(".")
    for forged in (f"{head}.{payload}.{other_signature}", f"{other_head}.{payload}.{other_signature}"):
        with pytest.raises(TokenRefused):
            await authenticator.authenticate(forged)
