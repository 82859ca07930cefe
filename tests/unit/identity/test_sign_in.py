"""An id token becomes a session of the same user; signing out ends it, and nothing outlives its end."""

from __future__ import annotations

import httpx
import pytest

from nagaya.errors import CacheUnreachable, ConditionFailed, InvalidValue, SsoRequired, TokenRefused
from nagaya.gate.enter import Gate
from nagaya.identity import api_keys
from nagaya.identity.authenticator import Authenticator
from nagaya.identity.jwks import KeyCache
from nagaya.identity.local import LocalIssuer
from nagaya.identity.sessions import RecordSessions, SignInSession
from nagaya.identity.sign_in import LIFETIME_S, SignIn, is_session
from nagaya.keys.keyring import Keyring
from nagaya.records.sealed_store import Partition, SealedStore
from nagaya.records.sealer import Sealer
from nagaya.settings import Settings
from nagaya.stores.memory import MemoryStore
from nagaya.stores.store import Store
from nagaya.tenancy.bindings import IssuerBinding, Revocation
from nagaya.tenancy.principal import Principal, Provider, Role, Scope, mint_entrance
from nagaya.testing.clock import ManualClock
from nagaya.testing.identity import IssuerKey, KeyServer, MemorySigningKeys
from nagaya.testing.keys import MemoryKeys, MemoryKeyVersions
from parts.directory import MemoryDirectory, tenant

ISSUER = "https://issuer.example"
KEY = IssuerKey("k1", algorithm="ES256")


class House:
    """One server process's sign-in over a registry in memory."""

    def __init__(self, jwks: KeyCache, clock: ManualClock) -> None:
        self.clock = clock
        self.directory = MemoryDirectory(tenant("acme"), tenant("globex"))
        self.directory.revoke = self._revoke  # type: ignore[attr-defined]  # the registry's own method
        self.local = LocalIssuer(MemorySigningKeys(), clock, issuer="https://nagaya.local")
        self.authenticator = Authenticator(self.directory, jwks, self.local, clock, Settings())
        self.keys, self.versions, self.bare = MemoryKeys(), MemoryKeyVersions(), MemoryStore()
        self.keyring = Keyring("_platform", self.keys, self.versions, clock)
        self.records = SealedStore(Store(self.bare), Sealer("_platform", self.keyring))
        self.sessions = RecordSessions(self.records, clock)
        self.sign_in = SignIn(self.sessions, self.directory, self.local, self.authenticator, clock)
        self.gate = Gate(
            self.authenticator, self.directory, clock,
            check_quota=lambda _: None, check_risk=lambda *_: None, on_refusal=lambda *_: None,
        )  # fmt: skip
        self.revocations: list[Revocation] = []

    async def _revoke(self, revocation: Revocation) -> None:
        self.revocations.append(revocation)
        self.directory.refused[revocation.tenant_id, revocation.kind, revocation.subject] = revocation.not_before_us

    def id_token(self, **claims) -> str:
        now_s = self.clock.now_us() // 1_000_000
        return KEY.sign(
            {
                "iss": ISSUER, "aud": "app", "sub": "mio", "nonce": "n", "iat": now_s, "exp": now_s + 600,
                "groups": ["chiefs"], "amr": ["mfa"], "preferred_username": "Mio", "sid": "theirs", **claims,
            }
        )  # fmt: skip

    async def begin(self, raw: str | None = None, **claims):
        return await self.sign_in.begin(await self.gate.enter(raw or self.id_token(**claims), purpose="login"))


@pytest.fixture
async def house():
    clock = ManualClock()
    async with KeyServer() as server, httpx.AsyncClient(trust_env=False) as client:
        jwks = KeyCache(client, clock, allowed_hosts=("127.0.0.1",))
        made = House(jwks, clock)
        await made.versions.rotate(made.keys, "_platform")
        made.directory.bindings = [
            IssuerBinding(
                issuer=ISSUER, tenant_id="acme", provider=Provider.OIDC, audiences=("app",),
                jwks_url=server.publish(KEY), algorithms=("ES256",), accept_id_tokens=True,
                role_claims={"chiefs": Role.TENANT_ADMIN},
            )
        ]  # fmt: skip
        yield made
        await made.keyring.close()
        await jwks.close()


async def test_a_session_is_the_same_user_as_the_providers_own_tokens(house: House):
    signed_in = await house.begin()
    principal = await house.authenticator.authenticate(signed_in.token)
    theirs = await house.authenticator.authenticate(house.id_token(), purpose="login")
    for name in ("provider", "issuer", "user_id", "user_key", "tenant_id", "role", "mfa", "username", "scopes"):
        assert getattr(principal, name) == getattr(theirs, name), name
    assert principal.session_id == signed_in.session.id != theirs.session_id
    assert is_session(principal)
    assert not is_session(theirs)
    assert len(signed_in.csrf_token) == 43
    assert signed_in.csrf_token != (await house.begin()).csrf_token


async def test_an_id_token_alone_calls_nothing_and_an_access_token_signs_nobody_in(house: House):
    with pytest.raises(TokenRefused):
        await house.gate.enter(house.id_token())
    with pytest.raises(TokenRefused):
        await house.begin(typ="Bearer")


async def test_a_tenant_that_demands_its_own_sign_in_takes_sessions_begun_with_it_alone(house: House):
    house.directory.change("acme", sso_required=True)
    await house.gate.enter((await house.begin()).token)
    local = await house.local.mint(await house.directory.tenant("acme"), "mio")
    with pytest.raises(SsoRequired):
        await house.begin(local)


async def test_a_session_that_was_signed_out_is_refused_and_its_neighbour_is_not(house: House):
    first, second = await house.begin(), await house.begin()
    assert (await house.sign_in.end(first.token)).user_id == "mio"
    for act in (house.authenticator.authenticate, house.sign_in.end, house.begin):
        with pytest.raises(TokenRefused):
            await act(first.token)
    assert house.authenticator.held(first.token) is None
    await house.gate.enter(second.token)
    ended = await house.sessions.get("acme", first.session.id)
    assert ended is not None
    assert ended.revoked_at_us == house.clock.now_us()
    assert not ended.is_open(house.clock.now_us())
    assert second.session.is_open(house.clock.now_us())


@pytest.mark.parametrize("what", ["user", "tenant"])
async def test_who_is_revoked_while_a_session_is_being_begun_has_none(house: House, what: str):
    entrance = await house.gate.enter(house.id_token(), purpose="login")
    house.clock.advance(2)
    revoked_us = house.clock.now_us()
    if what == "user":
        await house._revoke(
            Revocation(
                tenant_id="acme",
                kind="user",
                subject="mio",
                not_before_us=revoked_us,
                expires_at_us=revoked_us + 10**12,
            )
        )
    else:
        house.directory.change("acme", tokens_valid_from_us=revoked_us)
    house.clock.advance(1)
    begun = await house.sign_in.begin(entrance)
    with pytest.raises(TokenRefused):
        await house.gate.enter(begun.token)
    # Who proves anew who he is comes in again.
    await house.gate.enter((await house.begin()).token)


@pytest.mark.parametrize("kind", ["session", "token"])
@pytest.mark.parametrize("when", ["while it is being begun", "afterwards"])
async def test_a_session_ends_with_the_session_or_token_that_it_was_begun_with(house: House, kind: str, when: str):
    begun_with = {"session": "theirs", "token": "their-token"}[kind]
    entrance = await house.gate.enter(house.id_token(jti="their-token"), purpose="login")
    begun = await house.sign_in.begin(entrance) if when == "afterwards" else None
    inside = None if begun is None else await house.gate.enter(begun.token)
    house.clock.advance(1)
    house.directory.refused["acme", kind, begun_with] = house.clock.now_us()
    begun = begun or await house.sign_in.begin(entrance)
    with pytest.raises(TokenRefused):
        await house.gate.enter(begun.token)
    if inside is not None:
        assert not house.gate.is_current(inside)
    await house.gate.enter((await house.begin(jti="another", sid="another")).token)


async def test_a_session_begun_while_its_tenant_is_deleted_is_not_kept(house: House):
    entrance = await house.gate.enter(house.id_token(), purpose="login")
    await house.sessions.forget("acme")
    del house.directory.held["acme"]
    with pytest.raises(TokenRefused):
        await house.sign_in.begin(entrance)
    assert await house.records.query(Partition("session", "acme"), limit=1) == []


async def test_signing_out_at_a_server_whose_clock_is_behind_ends_the_session_too(house: House):
    signed_in = await house.begin()
    house.clock.step_wall_clock(-30)
    await house.sign_in.end(signed_in.token)
    with pytest.raises(TokenRefused):
        await house.authenticator.authenticate(signed_in.token)
    assert house.revocations[0].expires_at_us > signed_in.session.expires_at_us + 60_000_000


async def test_an_entrance_given_before_the_sign_out_ends_with_it(house: House):
    signed_in = await house.begin()
    entrance = await house.gate.enter(signed_in.token)
    assert house.gate.is_current(entrance)
    await house.sign_in.end(signed_in.token)
    assert not house.gate.is_current(entrance)


@pytest.mark.parametrize("subject", ["mio", f"{ISSUER}#mio"])
async def test_revoking_the_user_by_either_name_ends_its_sessions(house: House, subject: str):
    signed_in = await house.begin()
    house.clock.advance(1)
    house.directory.refused["acme", "user", subject] = house.clock.now_us()
    with pytest.raises(TokenRefused):
        await house.gate.enter(signed_in.token)


async def test_sessions_end_when_their_provider_is_unbound_or_bound_to_another_tenant(house: House):
    signed_in = await house.begin()
    await house.gate.enter(signed_in.token)
    binding = house.directory.bindings.pop()
    house.authenticator.on_registry_change("acme", "issuers")
    with pytest.raises(TokenRefused):
        await house.gate.enter(signed_in.token)
    house.directory.bindings.append(
        IssuerBinding(
            issuer=ISSUER, tenant_id="globex", provider=Provider.OIDC, audiences=("app",), jwks_url=binding.jwks_url
        )
    )
    with pytest.raises(TokenRefused):
        await house.gate.enter(signed_in.token)
    house.directory.bindings.append(binding)
    await house.gate.enter(signed_in.token)


async def test_no_session_begets_another(house: House):
    signed_in = await house.begin()
    with pytest.raises(InvalidValue):
        await house.begin(signed_in.token)


async def test_an_api_key_begins_no_session(house: House):
    shown, record = api_keys.create(
        tenant_id="acme", name="k", user_id="bot", role=Role.USER, now_us=house.clock.now_us()
    )
    house.directory.keys[record.key_id] = record
    with pytest.raises(InvalidValue):
        await house.begin(shown)
    with pytest.raises(InvalidValue):
        await house.sign_in.end(shown)


async def test_a_local_token_begins_a_session_that_ends_no_later_than_it(house: House):
    acme = await house.directory.tenant("acme")
    token = await house.local.mint(acme, "mio", lifetime_s=600)
    house.clock.advance(100)
    signed_in = await house.begin(token)
    principal = await house.authenticator.authenticate(signed_in.token)
    assert (principal.provider, principal.user_key) == (Provider.LOCAL, "mio")
    assert signed_in.session.expires_at_us <= (await house.authenticator.authenticate(token)).expires_at_us


async def test_a_session_lasts_a_working_day_or_what_the_tenant_allows(house: House):
    signed_in = await house.begin()
    assert signed_in.session.expires_at_us == house.clock.now_us() + LIFETIME_S * 1_000_000
    house.directory.change("acme", max_token_lifetime_s=900)
    short = await house.begin()
    assert short.session.expires_at_us == house.clock.now_us() + 900 * 1_000_000
    house.clock.advance(899)
    await house.gate.enter(short.token)
    house.clock.advance(100)
    with pytest.raises(TokenRefused):
        await house.gate.enter(short.token)
    assert await house.sessions.get("acme", short.session.id) is None


async def test_it_is_noted_when_a_session_was_last_used_to_the_minute(house: House):
    signed_in = await house.begin()
    principal = await house.authenticator.authenticate(signed_in.token)
    for wait_s, expected_s in ((59, 0), (1, 60), (59, 60), (61, 180)):
        house.clock.advance(wait_s)
        await house.sign_in.current(principal)
        kept = await house.sessions.get("acme", signed_in.session.id)
        assert kept is not None
        assert (kept.seen_at_us - kept.created_at_us) // 1_000_000 == expected_s
    await house.sessions.seen("acme", signed_in.session.id, 5)
    assert await house.sessions.get("acme", signed_in.session.id) == kept


async def test_a_caller_without_a_session_has_none(house: House):
    acme = await house.directory.tenant("acme")
    for session_id in (None, "theirs"):
        token = await house.local.mint(acme, "mio", session_id=session_id)
        principal = await house.authenticator.authenticate(token)
        assert await house.sign_in.current(principal) is None
        with pytest.raises(InvalidValue):
            await house.sign_in.end(token)


async def test_a_store_that_lost_a_session_lets_it_be_used_and_ended(house: House):
    signed_in = await house.begin()
    house.bare.__init__()
    principal = await house.authenticator.authenticate(signed_in.token)
    assert await house.sign_in.current(principal) is None
    await house.sign_in.end(signed_in.token)
    with pytest.raises(TokenRefused):
        await house.authenticator.authenticate(signed_in.token)


async def test_signing_in_and_out_hold_though_the_sessions_cache_is_away(house: House, monkeypatch: pytest.MonkeyPatch):
    async def away(*_: object) -> None:
        raise CacheUnreachable

    for method in ("add", "get", "seen", "revoke"):
        monkeypatch.setattr(house.sessions, method, away)
    signed_in = await house.begin()
    assert await house.sign_in.current(await house.authenticator.authenticate(signed_in.token)) is None
    await house.sign_in.end(signed_in.token)
    with pytest.raises(TokenRefused):
        await house.authenticator.authenticate(signed_in.token)


@pytest.mark.parametrize(
    "claims",
    [
        {"idp": "oidc"}, {"idp_iss": ISSUER}, {"idp": "local", "idp_iss": ISSUER}, {"idp": "api_key", "idp_iss": ISSUER},
        {"idp": ["oidc"], "idp_iss": ISSUER}, {"idp": "oidc", "idp_iss": 7}, {"idp": "oidc", "idp_iss": "\n"},
    ],
)  # fmt: skip
async def test_a_token_that_names_no_proper_provider_is_refused(house: House, claims):
    acme = await house.directory.tenant("acme")
    token = await house.local._mint(
        acme, "mio", Role.USER, claims, lifetime_s=60, scopes=("nagaya.read",), mfa=False, session_id=None
    )
    with pytest.raises(TokenRefused):
        await house.authenticator.authenticate(token)


@pytest.mark.parametrize(
    ("provider", "user_id"), [(Provider.COGNITO, "5f-sub"), (Provider.ENTRA, "tid:oid"), (Provider.OIDC, "mio")]
)
async def test_whoever_vouched_the_sessions_token_says_so(house: House, provider: Provider, user_id: str):
    acme = await house.directory.tenant("acme")
    issuer = f"https://{provider.value}.example"
    house.directory.bindings.append(
        IssuerBinding(
            issuer=issuer, tenant_id="acme", provider=provider, audiences=("app",), jwks_url="https://k.example"
        )
    )
    now_us = house.clock.now_us()
    principal = Principal(
        provider=provider, issuer=issuer, user_id=user_id, tenant_id="acme", role=Role.MEMBER,
        scopes=frozenset({Scope.READ}), issued_at_us=now_us, expires_at_us=now_us + 1, session_id="theirs",
    )  # fmt: skip
    entrance = mint_entrance(tenant=acme, principal=principal, admitted_at_s=0.0)
    signed_in = await house.sign_in.begin(entrance)
    found = await house.authenticator.authenticate(signed_in.token)
    for name in ("provider", "issuer", "user_id", "user_key", "role", "scopes", "mfa", "username"):
        assert getattr(found, name) == getattr(principal, name), name


# --- the store ---


def session(number: int, house: House, *, lasts_s: int = 60, tenant_id: str = "acme") -> SignInSession:
    now_us = house.clock.now_us()
    return SignInSession(
        id=f"sess_{number:032x}", tenant_id=tenant_id, user="mio", created_at_us=now_us, seen_at_us=now_us,
        expires_at_us=now_us + lasts_s * 1_000_000,
    )  # fmt: skip


async def test_a_session_is_found_in_its_own_tenant_only(house: House):
    await house.sessions.add(session(1, house))
    assert await house.sessions.get("acme", f"sess_{1:032x}") == session(1, house)
    assert await house.sessions.get("globex", f"sess_{1:032x}") is None
    await house.sessions.revoke("globex", f"sess_{1:032x}", 5)
    assert await house.sessions.get("acme", f"sess_{1:032x}") == session(1, house)


async def test_sessions_that_have_run_out_are_removed_as_new_ones_come(house: House):
    for number in range(40):
        await house.sessions.add(session(number, house, lasts_s=60 if number % 2 else 6000))
    house.clock.advance(61)
    for number in range(40, 44):
        await house.sessions.add(session(number, house))
    left = [record.sort for record in await house.records.query(Partition("session", "acme"), limit=100)]
    assert len(left) == 24


async def test_the_first_end_of_a_session_counts_and_two_servers_overwrite_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    await house.sessions.add(session(1, house))
    other = RecordSessions(house.records, house.clock)
    put, calls = house.records.put, 0

    async def interrupted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 1:
            await other.revoke("acme", f"sess_{1:032x}", 7)
        return await put(*args, **kwargs)

    monkeypatch.setattr(house.records, "put", interrupted)
    await house.sessions.seen("acme", f"sess_{1:032x}", house.clock.now_us() + 5)
    await house.sessions.revoke("acme", f"sess_{1:032x}", 9)
    kept = await house.sessions.get("acme", f"sess_{1:032x}")
    assert kept is not None
    assert (kept.revoked_at_us, kept.seen_at_us) == (7, house.clock.now_us() + 5)


async def test_a_record_that_others_change_for_ever_is_an_error_in_the_end(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    await house.sessions.add(session(1, house))

    async def lost(*_: object, **__: object) -> None:
        raise ConditionFailed

    monkeypatch.setattr(house.records, "put", lost)
    with pytest.raises(ConditionFailed):
        await house.sessions.revoke("acme", f"sess_{1:032x}", 9)


async def test_two_servers_tidying_up_at_once_do_no_harm(house: House, monkeypatch: pytest.MonkeyPatch):
    await house.sessions.add(session(1, house))
    house.clock.advance(61)

    async def lost(*_: object, **__: object) -> None:
        raise ConditionFailed

    monkeypatch.setattr(house.records, "write", lost)
    await house.sessions.add(session(2, house))
    assert await house.sessions.get("acme", f"sess_{2:032x}") is not None
