"""API keys: shown once, stored hashed, scoped, expiring, revocable."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.errors import InvalidValue, TokenRefused
from nagaya.identity import api_keys
from nagaya.tenancy.principal import ALL_SCOPES, Provider, Role, Scope
from parts.directory import MemoryDirectory

NOW_US = 1_800_000_000_000_000
FIELDS = {"tenant_id": "acme", "name": "ci", "user_id": "bot", "role": Role.USER, "now_us": NOW_US}


def made(**fields):
    directory = MemoryDirectory()
    shown, record = api_keys.create(**{**FIELDS, **fields})
    directory.keys[record.key_id] = record
    return shown, record, directory


async def test_a_key_opens_what_it_was_made_for_and_is_stored_as_a_hash():
    shown, record, directory = made(scopes=(Scope.WRITE, Scope.READ))
    got = await api_keys.verify(shown, directory, NOW_US)
    assert (got.tenant_id, got.user_id, got.role, got.provider) == ("acme", "bot", Role.USER, Provider.API_KEY)
    assert got.scopes == {Scope.READ, Scope.WRITE}
    assert got.token_id == record.key_id
    assert record.sha256 == hashlib.sha256(shown.encode()).digest()
    assert shown.startswith(f"nk_{record.key_id}_")
    assert shown.encode() not in msgspec.json.encode(record)
    assert api_keys.looks_like_key(shown)
    assert not api_keys.looks_like_key("eyJ")


def test_no_two_keys_are_alike_and_each_has_the_same_form():
    keys = [api_keys.create(**FIELDS)[0] for _ in range(50)]
    assert len(set(keys)) == 50
    assert {len(key) for key in keys} == {70}
    for byte in (b"\x00", b"\xff"):
        shown, record = api_keys.create(**FIELDS, entropy=lambda n, byte=byte: byte * n)
        assert api_keys.key_id_of(shown) == record.key_id


async def test_an_operators_key_has_no_tenant():
    shown, _, directory = made(tenant_id=None, role=Role.OPERATOR)
    got = await api_keys.verify(shown, directory, NOW_US)
    assert (got.role, got.tenant_id, got.scopes) == (Role.OPERATOR, None, ALL_SCOPES)


async def test_a_typing_mistake_is_told_without_a_look_up():
    shown, _, directory = made()
    typos = [shown[:place] + ("a" if shown[place] != "a" else "b") + shown[place + 1 :] for place in range(3, 70)]
    typos += [shown[:-1], shown + "a", shown.upper(), f" {shown}", shown + "\n", "nk_", "nk__", shown.replace("_", "-")]
    for typo in typos:
        with pytest.raises(TokenRefused):
            await api_keys.verify(typo, directory, NOW_US)
    assert directory.asked == []


async def test_a_well_formed_key_with_another_secret_is_refused():
    _, record, directory = made()
    other, _ = api_keys.create(**FIELDS, entropy=lambda n: b"\x07" * n)
    body = f"nk_{record.key_id}_{other.split('_')[2][:43]}"
    forged = body + api_keys._checksum(body)
    with pytest.raises(TokenRefused) as refused:
        await api_keys.verify(forged, directory, NOW_US)
    assert refused.value.reason == "API key is unknown"
    with pytest.raises(TokenRefused) as absent:
        await api_keys.verify(other, directory, NOW_US)
    assert absent.value.reason == refused.value.reason


@pytest.mark.parametrize(
    "change",
    [
        {"revoked_at_us": 1},
        {"expires_at_us": NOW_US},
        {"role": Role.OPERATOR},
        {"tenant_id": None},
    ],
)
async def test_a_key_that_is_revoked_expired_or_tampered_with_in_the_registry_is_refused(change):
    shown, record, directory = made()
    directory.keys[record.key_id] = msgspec.structs.replace(record, **change)
    with pytest.raises(TokenRefused):
        await api_keys.verify(shown, directory, NOW_US)


@pytest.mark.parametrize(
    "fields",
    [
        {"tenant_id": None},
        {"role": Role.OPERATOR},
        {"lifetime_s": 0},
        {"lifetime_s": api_keys.LONGEST_LIFETIME_S + 1},
        {"name": ""},
        {"name": "a\nb"},
        {"user_id": "x" * 201},
        {"scopes": ()},
    ],
)
def test_a_key_that_makes_no_sense_is_not_made(fields):
    with pytest.raises(InvalidValue):
        api_keys.create(**{**FIELDS, **fields})


@given(st.text(max_size=100).map(lambda text: "nk_" + text))
async def test_garbage_is_refused_and_nothing_else_happens(text):
    with pytest.raises(TokenRefused):
        await api_keys.verify(text, MemoryDirectory(), NOW_US)
