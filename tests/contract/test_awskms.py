"""AWS KMS keeps the key contract, on two stand-ins: one has the cryptography, the other the states of keys."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import aiobotocore.session
import pytest

from nagaya.errors import (
    InvalidValue,
    KeyAccessRefused,
    KeyDestroyed,
    KeyDisabled,
    KeyMissing,
    NotFound,
    RegionRefused,
    SealBroken,
)
from nagaya.keys.awskms import AwsKeys, OwnedAwsKeys, open_keys
from nagaya.keys.driver import KeyContext, KeyControl, KeyDriver
from nagaya.testing.keys import KeyContract
from parts.aws import REGION, point_at, surroundings

pytest_plugins = ["parts.ministack", "parts.moto"]

_numbers = itertools.count(1)
ACME = KeyContract.ACME


async def new_kms_key() -> str:
    async with aiobotocore.session.get_session().create_client("kms", region_name=REGION) as client:
        return (await client.create_key())["KeyMetadata"]["KeyId"]


async def change(operation: str, key: str, **request) -> None:
    async with aiobotocore.session.get_session().create_client("kms", region_name=REGION) as client:
        await getattr(client, operation)(KeyId=key, **request)


class _OnMoto:
    """moto leaves out the message by which this answer of KMS is told from a missing permission."""

    def __init__(self, keys: AwsKeys) -> None:
        self.generate, self.close, self._unwrap = keys.generate, keys.close, keys.unwrap

    async def unwrap(self, wrapped: bytes, context: KeyContext) -> bytes:
        try:
            return await self._unwrap(wrapped, context)
        except KeyAccessRefused:
            raise SealBroken from None


class TestIntegrity(KeyContract):
    """On moto, which encrypts and authenticates. It knows no disabled keys."""

    has_control = False

    @pytest.fixture
    async def keys(self, moto_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KeyDriver]:
        point_at(monkeypatch, moto_url)
        self.kms_key = await new_kms_key()
        keys = await open_keys(f"awskms://{self.kms_key}?region={REGION}", surroundings())
        assert not isinstance(keys, KeyControl)
        yield _OnMoto(keys)
        await keys.close()

    async def test_a_wrapped_key_does_not_choose_the_key_that_opens_it(self, keys: KeyDriver) -> None:
        other = await open_keys(f"awskms://{await new_kms_key()}?region={REGION}", surroundings())
        _, wrapped = await other.generate(self.ACME)
        with pytest.raises(SealBroken):
            await keys.unwrap(wrapped, self.ACME)
        await other.close()


class TestStates:
    """On ministack, whose keys are disabled and deleted as AWS's are. Its encryption is none."""

    control = KeyContract.control
    has_control = True
    ACME = KeyContract.ACME
    FOREIGN = KeyContract.FOREIGN
    _refused = KeyContract._refused

    test_a_generated_key_unwraps_to_itself = KeyContract.test_a_generated_key_unwraps_to_itself
    test_two_generated_keys_differ = KeyContract.test_two_generated_keys_differ
    test_many_at_once_get_their_own_keys = KeyContract.test_many_at_once_get_their_own_keys
    test_a_disabled_key_refuses_everything_until_it_is_enabled = (
        KeyContract.test_a_disabled_key_refuses_everything_until_it_is_enabled
    )
    test_disabling_one_key_leaves_the_others_alone = KeyContract.test_disabling_one_key_leaves_the_others_alone
    test_a_destroyed_key_stays_destroyed = KeyContract.test_a_destroyed_key_stays_destroyed
    test_a_key_that_never_was_cannot_be_disabled = KeyContract.test_a_key_that_never_was_cannot_be_disabled
    test_closing_twice_is_no_error = KeyContract.test_closing_twice_is_no_error

    @pytest.fixture
    async def keys(self, ministack, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OwnedAwsKeys]:
        point_at(monkeypatch, ministack.url)
        url = f"awskms://alias/test{next(_numbers)}?region={REGION}&owned=true"
        keys = await open_keys(url, surroundings())
        assert isinstance(keys, OwnedAwsKeys)
        yield keys
        await keys.close()

    async def test_servers_that_make_a_tenants_key_at_once_share_it(self, keys: OwnedAwsKeys) -> None:
        made = await asyncio.gather(*(keys.generate(ACME) for _ in range(6)))
        for plain, wrapped in made:
            assert await keys.unwrap(wrapped, ACME) == plain

    async def test_destroying_what_never_was_is_no_error(self, keys: OwnedAwsKeys) -> None:
        await keys.destroy("never-made")
        with pytest.raises(NotFound):
            await keys.generate(ACME._replace(key="../up"))


class TestACustomersKey:
    """What its owner does to it in KMS holds here at once."""

    @pytest.fixture
    async def key(self, ministack, monkeypatch: pytest.MonkeyPatch) -> str:
        point_at(monkeypatch, ministack.url)
        return await new_kms_key()

    @pytest.fixture
    async def keys(self, key: str) -> AsyncIterator[AwsKeys]:
        keys = await open_keys(f"awskms://{key}?region={REGION}", surroundings())
        yield keys
        await keys.close()

    async def test_a_key_that_its_owner_disables_refuses(self, key: str, keys: AwsKeys) -> None:
        plain, wrapped = await keys.generate(ACME)
        await change("disable_key", key)
        with pytest.raises(KeyDisabled):
            await keys.unwrap(wrapped, ACME)
        with pytest.raises(KeyDisabled):
            await keys.generate(ACME)
        await change("enable_key", key)
        assert await keys.unwrap(wrapped, ACME) == plain

    async def test_a_key_that_its_owner_deletes_counts_as_destroyed(self, key: str, keys: AwsKeys) -> None:
        _, wrapped = await keys.generate(ACME)
        await change("schedule_key_deletion", key, PendingWindowInDays=7)
        with pytest.raises(KeyDestroyed):
            await keys.unwrap(wrapped, ACME)

    async def test_a_key_that_is_not_there_is_named(self, key: str) -> None:
        keys = await open_keys(f"awskms://alias/none?region={REGION}", surroundings())
        with pytest.raises(KeyMissing, match="alias/none"):
            await keys.generate(ACME)
        with pytest.raises(KeyMissing):
            await keys.unwrap(b"x" * 100, ACME)
        await keys.close()

    async def test_what_is_too_long_to_be_a_wrapped_key_is_not_sent(self, keys: AwsKeys) -> None:
        for wrapped in (b"", b"x" * 7000):
            with pytest.raises(SealBroken):
                await keys.unwrap(wrapped, ACME)


ARN = f"arn:aws:kms:{REGION}:123456789012:key/0c7b1b4e-0000-4000-8000-000000000000"


@pytest.mark.parametrize(
    "url",
    [
        "awskms://", "awskms://../x?region=us-east-1", f"awskms://{ARN}?region=us-east-1", "awskms://k?owned=true",
        f"awskms://k?region={REGION}&owned=true", f"awskms://k?region={REGION}&owned=yes", f"awskms://k?where={REGION}",
        f"awskms://alias/a?region={REGION}&owned=true&deletion_days=3", f"awskms://k?region={REGION}&region={REGION}",
        "awskm://k",
    ],
)  # fmt: skip
async def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidValue):
        await open_keys(url, surroundings())


async def test_a_key_outside_the_tenants_regions_is_refused() -> None:
    with pytest.raises(RegionRefused, match="us-east-1"):
        await open_keys(f"awskms://{ARN}", surroundings(regions=("us-east-1",)))
    with pytest.raises(RegionRefused):
        await open_keys("awskms://k?region=us-east-1.evil.example", surroundings())
