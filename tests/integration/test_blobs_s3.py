import asyncio
import os
import re

import httpx
import pytest

from nagaya.blobs import s3
from nagaya.blobs.blob_store import Blobs
from nagaya.blobs.s3 import open_house
from nagaya.blobs.s3_account import s3_place, statements
from nagaya.errors import (
    AddressRefused,
    BlobsUnreachable,
    ConditionFailed,
    ConnectionSecretInvalid,
    InvalidValue,
    PermissionMissing,
    RegionRefused,
    SealBroken,
)
from nagaya.records.sealed_blobs import SealedBlobs
from nagaya.testing.blobs import content_of, parts_of
from parts.blob_front import BlobFront
from parts.blob_places import bare_s3, bucket, make_sealer, s3_url, surroundings, unfinished_uploads  # noqa: F401 - fixtures
from parts.ministack import ministack  # noqa: F401 - a fixture
from support.naughty import with_another_end

LARGE = 6 * 1024 * 1024
PARTS = [b"a" * 1024 * 1024] * 6


@pytest.fixture
async def front(ministack):  # noqa: F811 - the fixture
    async with BlobFront(ministack.url) as made:
        yield made


@pytest.fixture
async def house(s3_url, front):  # noqa: F811 - the fixture
    made = await open_house(f"{s3_url.partition('?')[0]}?endpoint=http://127.0.0.1:{front.port}", surroundings())
    await made.create("acme")
    yield made
    await made.close()


@pytest.fixture
async def blobs(house):
    return Blobs(await house.open("acme"))


@pytest.fixture
def short(monkeypatch):
    """Little patience, so that the end of it is seen soon."""
    for call in (s3._Bucket.call, s3._Bucket.answered):
        monkeypatch.setattr(call, "__defaults__", (0.4,))


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


@pytest.mark.parametrize("step", ["uploads$", "partNumber=1", "partNumber=2", r"POST .*uploadId"])
async def test_a_large_write_survives_every_fault(blobs, front, s3_url, step):  # noqa: F811 - the fixture
    front.only = re.compile(step)
    for fault in ("throttle", "fail", "cut", "lose"):
        front.script = [fault]
        written = await blobs.put(fault, parts_of(*PARTS), expect="")
        assert front.script == []
        assert await blobs.info(fault) == written
        assert written.size == LARGE
        if (fault, step) != ("lose", "uploads$"):
            # An upload whose beginning was never heard of is left to the bucket's lifecycle rule.
            assert await unfinished_uploads(s3_url) == []


async def test_a_read_that_is_cut_off_goes_on_where_it_was(blobs, front):
    content = os.urandom(3_000_000)
    await blobs.put("one", parts_of(content))
    front.only = re.compile("GET")
    for fault in ("half", "cut", "throttle"):
        front.script = [fault, "pass", fault]
        assert await content_of(blobs, "one") == content
        front.script = [fault]
        assert await content_of(blobs, "one", start=100, end=2_000_000) == content[100:2_000_000]


async def test_a_read_that_is_cut_off_never_goes_on_in_another_version(blobs, front):
    await blobs.put("one", parts_of(b"a" * 3_000_000))
    front.only, front.script = re.compile("GET"), ["half"]
    pieces = blobs.read("one")
    assert (await anext(pieces)).startswith(b"a")
    await blobs.put("one", parts_of(b"b" * 3_000_000))
    with pytest.raises(ConditionFailed):
        async for piece in pieces:
            assert piece.strip(b"a") == b""


async def test_a_read_of_a_blob_removed_while_it_was_cut_off_is_told(blobs, front):
    await blobs.put("one", parts_of(b"a" * 3_000_000))
    front.only, front.script = re.compile("GET"), ["half"]
    pieces = blobs.read("one")
    await anext(pieces)
    await blobs.delete("one")
    with pytest.raises(ConditionFailed):
        async for _ in pieces:
            pass


async def test_a_read_that_is_always_cut_off_ends(blobs, front):
    await blobs.put("one", parts_of(b"a" * 3_000_000))
    front.only, front.script = re.compile("GET"), ["half"] * 20
    with pytest.raises(BlobsUnreachable):
        await content_of(blobs, "one")


async def test_a_storage_that_goes_on_throttling_is_unreachable(house, blobs, front, short):
    front.script = ["throttle"] * 1000
    for act in (
        blobs.put("one", parts_of(b"x")),
        content_of(blobs, "one"),
        blobs.info("one"),
        blobs.list(),
        blobs.delete("one"),
    ):
        with pytest.raises(BlobsUnreachable):
            await act


async def test_an_upload_that_cannot_be_finished_is_aborted(blobs, front, s3_url, short):  # noqa: F811 - the fixture
    front.only, front.script = re.compile("partNumber=2"), ["throttle"] * 1000
    with pytest.raises(BlobsUnreachable):
        await blobs.put("large", parts_of(*PARTS))
    assert await blobs.list() == []
    assert await unfinished_uploads(s3_url) == []


async def test_an_upload_cancelled_while_a_part_is_on_its_way_is_aborted(blobs, front, s3_url):  # noqa: F811 - the fixture
    front.only, front.script = re.compile("partNumber=2"), ["hang"]
    work = asyncio.ensure_future(blobs.put("large", parts_of(*PARTS)))
    await front.hanging.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert await unfinished_uploads(s3_url) == []


async def test_a_missing_permission_is_named(house, blobs, front):
    front.only = re.compile("acme|globex")
    for act in (
        lambda: blobs.put("one", parts_of(b"x")),
        lambda: content_of(blobs, "one"),
        lambda: house.create("globex"),
        lambda: blobs.put("large", parts_of(*PARTS)),
    ):
        front.script = ["deny"]
        with pytest.raises(PermissionMissing):
            await act()


async def test_a_room_that_may_be_written_but_not_listed_is_not_made(house, front):
    front.only, front.script = re.compile("list-type"), ["deny"]
    with pytest.raises(PermissionMissing):
        await house.create("globex")
    await house.create("globex")


async def test_a_bucket_that_is_not_there_is_named(ministack):  # noqa: F811 - the fixture
    house = await open_house(f"s3://no-such-bucket-here?endpoint={ministack.url}", surroundings())
    with pytest.raises(InvalidValue, match="no-such-bucket-here"):
        await house.create("acme")
    await house.close()


async def test_destroying_a_room_ends_uploads_that_others_left(house, front, s3_url):  # noqa: F811 - the fixture
    place = s3_place(s3_url)
    async with bare_s3(place.endpoint) as client:
        for room in ("acme", "acme-corp"):
            await client.create_multipart_upload(Bucket=place.bucket, Key=place.key(room, "left"))
    await house.destroy("acme")
    assert await unfinished_uploads(s3_url) == [place.key("acme-corp", "left")]


# --- pre-signed addresses ---


async def test_what_a_presigned_address_gives_is_unreadable_without_the_key(blobs, make_sealer):  # noqa: F811 - the fixture
    sealed = SealedBlobs(blobs, await make_sealer("acme"))
    canary = b"the canary of acme " * 1000
    await sealed.put("one", parts_of(canary))
    address = await blobs.presigned_get("one", lifetime_s=60)
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(address)
        assert answer.status_code == 200
        assert b"canary" not in answer.content
        assert answer.content == await content_of(blobs, "one")
        # The same bytes, sent by an address, are the same blob; under another name they are none.
        for name in ("one", "two"):
            there = await blobs.presigned_put(name, lifetime_s=60, size=len(answer.content))
            done = await client.put(there, content=answer.content, headers={"x-ms-blob-type": "BlockBlob"})
            assert done.status_code == 200, done.text
        assert b"".join([piece async for piece in sealed.read("one")]) == canary
        with pytest.raises(SealBroken):
            _ = [piece async for piece in sealed.read("two")]
        # Changed in any way, an address is none.
        assert (await client.get(address.replace("/one", "/two"))).status_code == 403
        assert (await client.get(with_another_end(address))).status_code == 403


# --- where it may connect to ---


@pytest.mark.parametrize(
    "endpoint",
    ["http://127.0.0.1:9", "https://127.0.0.1", "https://localhost", "https://169.254.169.254", "https://10.0.0.7:9000",
     "https://[::1]", "https://2130706433", "http://minio.example", "https://a.internal", "https://[::ffff:169.254.169.254]"],
)  # fmt: skip
async def test_an_endpoint_that_points_inside_is_refused(endpoint):
    with pytest.raises(AddressRefused):
        await open_house(f"s3://bucket?endpoint={endpoint}", surroundings(allowed=()))


async def test_a_name_that_resolves_inside_is_refused_when_it_is_connected_to():
    given = surroundings(allowed=())

    async def inside(host, port):
        return ["169.254.169.254"]

    given.egress._resolver = inside
    house = await open_house("s3://bucket?endpoint=https://minio.example", given)
    with pytest.raises(AddressRefused):
        await house.create("acme")
    await house.close()


@pytest.mark.parametrize(
    "endpoint",
    ["ftp://minio.example", "minio.example", "https://", "https://u:p@minio.example", "https://minio.example/path",
     "https://minio.example?x", "https://minio.example:99999"],
)  # fmt: skip
async def test_an_endpoint_that_is_none_is_refused(endpoint):
    with pytest.raises(InvalidValue):
        await open_house(f"s3://bucket?endpoint={endpoint}", surroundings())


async def test_the_platforms_credentials_never_go_to_an_endpoint_of_a_tenants(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-platforms")
    for secret in (None, {"access_key_id": "x"}, "text"):
        with pytest.raises(ConnectionSecretInvalid):
            await open_house("s3://bucket?endpoint=https://minio.example", surroundings(s3_connection=secret))


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3://Bucket", "s3://a", "s3://bucket..x", "s3://bucket/../x", "s3://bucket/a//b", "s3://bucket/a b",
     "s3://bucket?other=1", "s3://arn:aws:s3:::bucket", "s3://-bucket", "s3://bucket/" + "x/" * 150, "file://bucket"],
)  # fmt: skip
async def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(InvalidValue):
        await open_house(url, surroundings())


async def test_a_region_outside_the_tenants_is_refused():
    for url in ("s3://bucket?region=us-east-1", "s3://bucket?region=us-east-1&endpoint=https://minio.example"):
        with pytest.raises(RegionRefused):
            await open_house(url, surroundings(regions=("ap-northeast-1",)))


# --- what a room's credentials may do ---


def test_a_rooms_session_policy_reaches_its_own_keys_alone():
    allow, listing = statements(s3_place("s3://bucket/some/prefix"), "acme", "aws")
    assert allow["Resource"] == "arn:aws:s3:::bucket/some/prefix/acme/*"
    assert "s3:*" not in allow["Action"]
    assert listing["Condition"] == {"StringLike": {"s3:prefix": "some/prefix/acme/*"}}
    assert statements(s3_place("s3://bucket"), "_platform", "aws-cn")[0]["Resource"] == "arn:aws-cn:s3:::bucket/*"


def test_no_rooms_keys_are_anothers():
    for prefix in ("", "/p"):
        place = s3_place(f"s3://bucket{prefix}")
        rooms = ("acme", "acme-corp", "acme1", "_acme", "_platform")
        keys = {place.key(room, name) for room in rooms for name in ("a", "corp/a", "-corp/a")}
        assert len(keys) == 15
        assert str(place) == f"s3://bucket{prefix}"
