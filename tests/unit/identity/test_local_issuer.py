"""The local issuer: a tenant's own issuer string, keys that turn over and are shared by processes."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from nagaya.errors import (
    ConditionFailed,
    Forbidden,
    InvalidValue,
    IssuerUnreachable,
    StoreUnreachable,
    TokenRefused,
)
from nagaya.identity import local as room
from nagaya.identity.jws import check_signature, read_object, read_token
from nagaya.identity.local import LocalIssuer, principal_of
from nagaya.identity.signing_keys import (
    AHEAD_S,
    LONGEST_LIFETIME_S,
    ROTATION_S,
    Ring,
    new_signing_key,
    read_ring,
    turned,
)
from nagaya.tenancy.principal import ALL_SCOPES, Provider, Role, Scope
from nagaya.testing.identity import MemorySigningKeys, SetClock
from parts.directory import MemoryDirectory, tenant

ISSUER = "https://nagaya.example"
ACME = tenant("acme")


@pytest.fixture
def clock():
    return SetClock()


@pytest.fixture
def store():
    return MemorySigningKeys()


@pytest.fixture
def issuer(store, clock):
    return LocalIssuer(store, clock, issuer=ISSUER)


async def opened(issuer: LocalIssuer, clock: SetClock, token: str, of=ACME):
    signed = read_token(token)
    check_signature(signed, await issuer.key(signed.key_id), ["ES256"])
    claims = read_object(signed.payload, "payload")
    return principal_of(claims, issuer=issuer.issuer_of(of.id), tenant=of, now_us=clock.now_us(), skew_s=60)


async def test_a_minted_token_speaks_for_its_user_in_its_tenant(issuer, clock):
    clock.move_s(0.123456)
    token = await issuer.mint(ACME, "mio", Role.MEMBER, scopes=[Scope.READ], mfa=True, session_id="s-1")
    got = await opened(issuer, clock, token)
    assert (got.tenant_id, got.user_id, got.role, got.provider) == ("acme", "mio", Role.MEMBER, Provider.LOCAL)
    assert (got.scopes, got.mfa, got.session_id, got.issuer) == ({Scope.READ}, True, "s-1", f"{ISSUER}/acme")
    assert got.issued_at_us == clock.now_us()  # to the microsecond, so that a revocation tells before from after
    plain = await opened(issuer, clock, await issuer.mint(ACME, "mio"))
    assert (plain.role, plain.scopes, plain.mfa, plain.session_id) == (Role.USER, ALL_SCOPES, False, None)
    assert plain.token_id != got.token_id


def test_the_tenant_comes_from_the_issuer_string_alone(issuer):
    assert issuer.tenant_of(f"{ISSUER}/acme") == "acme"
    for other in (
        ISSUER,
        f"{ISSUER}/",
        f"{ISSUER}/acme/x",
        f"{ISSUER}/acme/",
        "https://evil.example/acme",
        f"{ISSUER}acme",
    ):
        assert issuer.tenant_of(other) is None
    assert LocalIssuer(MemorySigningKeys(), SetClock(), issuer=f"{ISSUER}/").issuer_of("acme") == f"{ISSUER}/acme"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"role": Role.OPERATOR}, Forbidden),
        ({"lifetime_s": 9}, InvalidValue),
        ({"lifetime_s": 86_401}, InvalidValue),
        ({"user": ""}, InvalidValue),
        ({"user": "a\x00"}, InvalidValue),
        ({"user": "x" * 1025}, InvalidValue),
        ({"session_id": "a\nb"}, InvalidValue),
        ({"scopes": []}, InvalidValue),
    ],
)
async def test_a_token_that_makes_no_sense_is_not_minted(issuer, arguments, error):
    with pytest.raises(error):
        await issuer.mint(ACME, **{"user": "mio", **arguments})


@pytest.mark.parametrize(
    "change",
    [
        {"iss": f"{ISSUER}/globex"},
        {"aud": "other"},
        {"aud": ["nagaya"]},
        {"role": "operator"},
        {"role": "root"},
        {"role": None},
        {"role": ["user"]},
        {"sub": ""},
        {"jti": None},
        {"iat_us": 5},
        {"iat_us": True},
        {"iat_us": "1"},
        {"since_us": True},
        {"since_us": "1"},
        {"begun_sid": 7},
        {"begun_jti": ""},
        {"exp": 1_800_000_000 + 90_000},
    ],
)
async def test_claims_that_do_not_agree_are_refused_even_under_our_signature(issuer, clock, change):
    claims = read_object(read_token(await issuer.mint(ACME, "mio")).payload, "payload")
    read = {"issuer": f"{ISSUER}/acme", "tenant": ACME, "now_us": clock.now_us(), "skew_s": 60}
    assert principal_of(claims, **read).user_id == "mio"
    without = {name: value for name, value in claims.items() if name != "iat_us"}
    assert principal_of(without, **read).issued_at_us == 1_800_000_000_000_000
    with pytest.raises(TokenRefused):
        principal_of({**claims, **change}, **read)


async def test_a_longer_life_is_minted_where_the_tenant_opted_in(issuer, clock):
    patient = tenant("acme", max_token_lifetime_s=10 * 86_400)
    token = await issuer.mint(patient, "mio", lifetime_s=10 * 86_400)
    assert (await opened(issuer, clock, token, patient)).user_id == "mio"
    with pytest.raises(TokenRefused):
        await opened(issuer, clock, token, ACME)  # and no longer where it opted out again
    for_ever = tenant("acme", max_token_lifetime_s=365 * 86_400)
    with pytest.raises(InvalidValue):
        await issuer.mint(for_ever, "mio", lifetime_s=LONGEST_LIFETIME_S + 1)


async def test_a_tenant_of_short_lives_gets_short_tokens_without_asking(issuer, clock):
    hasty = tenant("acme", max_token_lifetime_s=600)
    got = await opened(issuer, clock, await issuer.mint(hasty, "mio"), hasty)
    assert got.expires_at_us == clock.now_us() + (600 + 60) * 1_000_000


async def test_the_published_keys_show_no_private_half(issuer):
    jwks = await issuer.jwks()
    assert [sorted(key) for key in jwks["keys"]] == [["alg", "crv", "kid", "kty", "use", "x", "y"]]


async def test_a_key_is_published_a_day_before_it_signs_and_kept_until_its_tokens_have_ended(issuer, clock):
    patient = tenant("acme", max_token_lifetime_s=LONGEST_LIFETIME_S)
    first = await issuer.mint(patient, "mio")
    clock.move_s(ROTATION_S - AHEAD_S)
    assert read_token(await issuer.mint(patient, "mio")).key_id == read_token(first).key_id
    published = [key["kid"] for key in (await issuer.jwks())["keys"]]
    assert len(published) == 2
    clock.move_s(AHEAD_S - 1)
    last = await issuer.mint(patient, "mio", lifetime_s=LONGEST_LIFETIME_S)
    assert read_token(last).key_id == published[0]
    clock.move_s(room.RELOAD_S)
    assert read_token(await issuer.mint(patient, "mio")).key_id == published[1]
    clock.move_s(LONGEST_LIFETIME_S - room.RELOAD_S)
    assert (await opened(issuer, clock, last, patient)).user_id == "mio"
    clock.move_s(2 * 3600)
    await issuer.refresh()
    with pytest.raises(TokenRefused):
        await issuer.key(published[0])


def test_a_ring_that_slept_for_a_year_wakes_with_a_key_that_signs():
    ring = turned(Ring(), new_signing_key, now_us=0)
    later_us = 365 * 86_400 * 1_000_000
    woken = turned(ring, new_signing_key, now_us=later_us)
    assert woken.signing(later_us) == ring.keys[0]
    assert woken.keys[1].signs_from_us == later_us + AHEAD_S * 1_000_000
    assert turned(woken, new_signing_key, now_us=later_us) is woken
    assert woken.signing(-1) is None


async def test_a_clock_that_was_set_back_leaves_a_key_to_sign_with(issuer, clock):
    await issuer.mint(ACME, "mio")
    clock.set_wall_s(1_700_000_000)
    assert (await opened(issuer, clock, await issuer.mint(ACME, "mio"))).user_id == "mio"


async def test_a_token_minted_by_one_process_opens_in_another_at_once(store, clock):
    here, there = (LocalIssuer(store, clock, issuer=ISSUER) for _ in range(2))
    assert (await opened(there, clock, await here.mint(ACME, "mio"))).user_id == "mio"
    assert store.revision == 1


class SlowSigningKeys(MemorySigningKeys):
    async def load(self):
        found = await super().load()
        await asyncio.sleep(0.01)
        return found


async def test_two_processes_that_start_together_agree_on_one_key(clock):
    store = SlowSigningKeys()
    issuers = [LocalIssuer(store, clock, issuer=ISSUER) for _ in range(4)]
    tokens = await asyncio.gather(*(issuer.mint(ACME, "mio") for issuer in issuers))
    assert len({read_token(token).key_id for token in tokens}) == 1
    assert store.revision == 1


async def test_a_flood_of_unknown_key_ids_reads_the_ring_once_a_window(issuer, store, clock):
    await issuer.mint(ACME, "mio")
    clock.move_s(room.UNKNOWN_WINDOW_S)
    before = store.loads
    for number in range(100):
        with pytest.raises(TokenRefused):
            await issuer.key(f"u{number}")
    assert store.loads == before + 1


async def test_many_callers_of_a_cold_issuer_read_the_ring_once(clock):
    store = SlowSigningKeys()
    issuer = LocalIssuer(store, clock, issuer=ISSUER)
    await asyncio.gather(*(issuer.refresh() for _ in range(20)))
    assert store.loads == 1


async def test_a_store_that_fails_matters_only_to_a_process_without_keys(issuer, store, clock):
    good = store.load

    async def broken():
        raise StoreUnreachable

    store.load = broken
    with pytest.raises(IssuerUnreachable):
        await issuer.mint(ACME, "mio")
    store.load = good
    await issuer.mint(ACME, "mio")
    store.load = broken
    clock.move_s(room.RELOAD_S)
    assert (await opened(issuer, clock, await issuer.mint(ACME, "mio"))).user_id == "mio"


async def test_a_ring_that_cannot_be_read_is_not_replaced(store, clock):
    store.content, store.revision = b"not a ring", 1
    with pytest.raises(IssuerUnreachable):
        await LocalIssuer(store, clock, issuer=ISSUER).mint(ACME, "mio")
    assert store.content == b"not a ring"


async def test_an_issuer_that_never_wins_gives_up(issuer, store):
    async def lose(content, *, expect):
        raise ConditionFailed

    store.save = lose
    with pytest.raises(IssuerUnreachable):
        await issuer.refresh()


async def test_the_stored_ring_is_whole(issuer, store):
    await issuer.refresh()
    ring = read_ring(store.content)
    assert [key.jwk["kty"] for key in ring.keys] == ["EC"]
    with pytest.raises(msgspec.ValidationError):
        read_ring(b"[]")


def test_the_memory_registry_of_these_tests_knows_no_stranger():
    with pytest.raises(Exception, match="No such tenant"):
        asyncio.run(MemoryDirectory().tenant("acme"))
