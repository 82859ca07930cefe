import asyncio
import os
import re
import ssl

import httpx
import pytest
import trustme

from nagaya.blobs import azblob
from nagaya.blobs.azblob import AzureBlobHouse, azure_place, open_house
from nagaya.blobs.blob_store import Blobs
from nagaya.clouds.azure import AzureAccount
from nagaya.errors import (
    AddressRefused,
    BlobsUnreachable,
    ConditionFailed,
    InvalidValue,
    PermissionMissing,
    RegionRefused,
    SealBroken,
    StoreDamaged,
)
from nagaya.records.sealed_blobs import SealedBlobs
from nagaya.testing.blobs import content_of, parts_of
from parts.azurite import ACCOUNT, Azurite, Principal, azurite  # noqa: F401 - a fixture
from parts.blob_front import BlobFront
from parts.blob_places import make_sealer, surroundings  # noqa: F401 - a fixture

PARTS = [b"a" * 1024 * 1024] * 6
PRINCIPAL = {"tenant_id": "t", "client_id": "c", "client_secret": "s"}


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
async def front(azurite: Azurite, authority):  # noqa: F811 - the fixture
    serve = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(serve)
    async with BlobFront(f"https://127.0.0.1:{azurite.port}", trust=azurite.trust, serve=serve) as made:
        yield made


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Little patience, so that the end of it is seen soon."""
    monkeypatch.setattr(azblob, "_PAUSE_S", 0.01)


@pytest.fixture
async def house(azurite: Azurite, front, authority):  # noqa: F811 - the fixture
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    account = AzureAccount(None, surroundings(), trust=trust)
    url = azurite.new_url().replace(f":{azurite.port}/", f":{front.port}/")
    made = AzureBlobHouse(azure_place(url), account, Principal())
    await made.create("acme")
    yield made
    await made.close()


@pytest.fixture
async def blobs(house):
    return Blobs(await house.open("acme"))


# --- faults ---


async def test_a_small_write_survives_every_fault(blobs, front):
    front.only = re.compile("PUT")
    for fault in ("throttle", "fail", "cut", "lose"):
        for expect in ("", None):
            front.script = [fault]
            written = await blobs.put(fault, parts_of(b"content"), expect=expect)
            assert front.script == []
            assert await blobs.info(fault) == written
        assert await content_of(blobs, fault) == b"content"


@pytest.mark.parametrize("step", ["comp=block&", "comp=blocklist"])
async def test_a_large_write_survives_every_fault(blobs, front, step):
    front.only = re.compile(step)
    for fault in ("throttle", "fail", "cut", "lose"):
        front.script = [fault]
        written = await blobs.put(fault, parts_of(*PARTS), expect="")
        assert front.script == []
        assert await blobs.info(fault) == written
        assert written.size == 6 * 1024 * 1024


async def test_a_read_that_is_cut_off_goes_on_where_it_was(blobs, front):
    content = os.urandom(5_000_000)
    await blobs.put("one", parts_of(content))
    front.only = re.compile("GET")
    for fault in ("half", "cut", "throttle"):
        front.script = [fault, "pass", fault]
        assert await content_of(blobs, "one") == content


async def test_a_read_never_goes_on_in_another_version(blobs):
    await blobs.put("one", parts_of(b"a" * 5_000_000))
    pieces = blobs.read("one")
    assert (await anext(pieces)).startswith(b"a")
    await blobs.put("one", parts_of(b"b" * 5_000_000))
    with pytest.raises(ConditionFailed):
        async for piece in pieces:
            assert piece.strip(b"a") == b""


async def test_a_read_of_a_blob_removed_meanwhile_is_told(blobs):
    await blobs.put("one", parts_of(b"a" * 5_000_000))
    pieces = blobs.read("one")
    await anext(pieces)
    await blobs.delete("one")
    with pytest.raises(ConditionFailed):
        async for _ in pieces:
            pass


async def test_a_storage_that_goes_on_failing_is_unreachable(blobs, front):
    front.script = ["throttle"] * 1000
    for act in (blobs.put("one", parts_of(b"x")), content_of(blobs, "one"), blobs.info("one"), blobs.list()):
        with pytest.raises(BlobsUnreachable):
            await act


async def test_a_missing_permission_is_named(house, blobs, front):
    for act, action in (
        (lambda: blobs.put("one", parts_of(b"x")), "blobs/write"),
        (lambda: blobs.put("one", parts_of(*PARTS)), "blobs/write"),
        (lambda: content_of(blobs, "one"), "blobs/read"),
        (lambda: blobs.info("one"), "blobs/read"),
        (lambda: blobs.list(), "blobs/read"),
        (lambda: blobs.delete("one"), "blobs/delete"),
        (lambda: blobs.presigned_get("one", lifetime_s=60), "generateUserDelegationKey"),
        (lambda: house.create("globex"), "blobs/write"),
    ):
        front.script = ["deny"]
        with pytest.raises(PermissionMissing, match=action):
            await act()


async def test_a_room_that_may_be_written_but_not_listed_is_not_made(house, front):
    front.only, front.script = re.compile("comp=list"), ["deny"]
    with pytest.raises(PermissionMissing):
        await house.create("globex")
    await house.create("globex")


async def test_a_container_that_is_not_there_is_named(azurite: Azurite):  # noqa: F811 - the fixture
    house = azurite.house(f"azblob://127.0.0.1:{azurite.port}/no-such-container?account={ACCOUNT}")
    with pytest.raises(InvalidValue, match="no-such-container"):
        await house.create("acme")
    with pytest.raises((StoreDamaged, InvalidValue)):
        await house.open("acme")
    await house.close()


async def test_a_large_write_that_another_overtakes_wins_or_is_told(blobs):
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def slowly():
        yield b"a" * 5_000_000
        yield b"a"
        reached.set()
        await go_on.wait()

    slow = asyncio.ensure_future(blobs.put("one", slowly()))
    await reached.wait()
    await blobs.put("one", parts_of(b"b" * 5_000_000, b"b"))
    go_on.set()
    with pytest.raises(ConditionFailed):
        await slow
    assert await content_of(blobs, "one") == b"b" * 5_000_001


async def test_a_listing_goes_on_from_any_name(blobs):
    names = [f"{number:03d}" for number in range(90)]
    for name in names:
        await blobs.put(name, parts_of(b"x"))
    for at in range(0, 89):
        page = await blobs.list(after=names[at], limit=1)
        assert [each.name for each in page] == [names[at + 1]]


# --- pre-signed addresses ---


async def test_what_a_presigned_address_gives_is_unreadable_without_the_key(azurite: Azurite, make_sealer):  # noqa: F811 - the fixtures
    house = azurite.house(azurite.new_url())
    await house.create("acme")
    blobs = Blobs(await house.open("acme"))
    sealed = SealedBlobs(blobs, await make_sealer("acme"))
    canary = b"the canary of acme " * 1000
    await sealed.put("one", parts_of(canary))
    address = await blobs.presigned_get("one", lifetime_s=60)
    async with httpx.AsyncClient(trust_env=False, verify=azurite.trust) as client:
        answer = await client.get(address)
        assert answer.status_code == 200, answer.text
        assert b"canary" not in answer.content
        assert answer.content == await content_of(blobs, "one")
        for name in ("one", "two"):
            there = await blobs.presigned_put(name, lifetime_s=60, size=len(answer.content))
            done = await client.put(there, content=answer.content, headers={"x-ms-blob-type": "BlockBlob"})
            assert done.status_code == 201, done.text
        assert b"".join([piece async for piece in sealed.read("one")]) == canary
        with pytest.raises(SealBroken):
            _ = [piece async for piece in sealed.read("two")]
        assert (await client.get(address.replace("/one?", "/two?"))).status_code == 403
        assert (await client.put(address, content=b"x", headers={"x-ms-blob-type": "BlockBlob"})).status_code == 403
    await house.close()


# --- where it may connect to ---


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:9", "localhost:443", "169.254.169.254", "10.0.0.7:9000", "a.internal", "2130706433:1", "168.63.129.16"],
)
async def test_an_address_that_points_inside_is_refused(host):
    with pytest.raises(AddressRefused):
        await open_house(f"azblob://{host}/blobs", surroundings(allowed=(), azure_connection=PRINCIPAL))


async def test_the_platforms_identity_never_goes_to_a_host_of_a_tenants():
    with pytest.raises(InvalidValue):
        await open_house("azblob://storage.evil.example/blobs", surroundings())


@pytest.mark.parametrize(
    "url",
    ["azblob://", "azblob://acct", "azblob://acct/", "azblob://acct/B", "azblob://acct/a--b", "azblob://acct/ab",
     "azblob://acct/blobs/../x", "azblob://acct/blobs/a//b", "azblob://acct/blobs?x=1", "azblob://u@acct/blobs",
     "azblob://acct/blobs?account=A", "azblob://acct/blobs?region=a&region=b", "azblob://acct/blobs/" + "x/" * 150,
     "azblob://a_b/blobs", "s3://acct/blobs"],
)  # fmt: skip
async def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(InvalidValue):
        await open_house(url, surroundings())


async def test_a_region_outside_the_tenants_is_refused():
    for url in ("azblob://account/blobs", "azblob://account/blobs?region=westeurope"):
        with pytest.raises(RegionRefused):
            await open_house(url, surroundings(regions=("japaneast",), azure_connection=PRINCIPAL))
    house = await open_house(
        "azblob://account/blobs?region=japaneast", surroundings(regions=("japaneast",), azure_connection=PRINCIPAL)
    )
    await house.close()


def test_no_rooms_blobs_are_anothers():
    for prefix in ("", "/p"):
        place = azure_place(f"azblob://account/blobs{prefix}")
        rooms = ("acme", "acme-corp", "acme1", "_acme", "_platform")
        assert len({place.name(room, name) for room in rooms for name in ("a", "corp/a", "-corp/a")}) == 15
        assert str(place) == f"azblob://account/blobs{prefix}"


async def test_markers_of_listings_are_kept_in_a_bounded_number(blobs, monkeypatch):
    monkeypatch.setattr(azblob, "_MARKERS", 3)
    for number in range(10):
        await blobs.put(f"{number}", parts_of(b"x"))
    assert [each.name async for each in blobs.list_all(page=1)] == [f"{number}" for number in range(10)]
    for number in range(8):
        await blobs.list(after=f"{number}", limit=1)
    assert len(blobs._driver._markers) <= 3
