import asyncio
import os
import random
import threading
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nagaya.blobs.blob_store import Blobs
from nagaya.errors import (
    BlobTooLarge,
    ConditionFailed,
    Conflict,
    InvalidValue,
    KeyDisabled,
    NotFound,
    SealBroken,
)
from nagaya.records import sealed_blobs
from nagaya.records.envelope import HEAD_BYTES, OVERHEAD_BYTES, TAG_BYTES
from nagaya.records.sealed_blobs import HEADER_BYTES, SealedBlobs, plain_size, sealed_size
from nagaya.records.sealer import Partition
from nagaya.testing.blobs import MemoryBlobs, parts_of

CHUNK = 100
STEP = CHUNK + OVERHEAD_BYTES


class Place:
    """A room's sealed blobs, and the storage beneath them."""

    def __init__(self, house, room="acme", bare=None):
        self.house = house
        self.room = room
        self.bare = bare if bare is not None else MemoryBlobs()

    async def open(self, chunk_bytes=CHUNK):
        if self.room not in self.house.versions.rooms:
            await self.house.versions.rotate(self.house.keys, self.room)
        self.sealer = self.house.sealer(self.room)
        return SealedBlobs(Blobs(self.bare), self.sealer, chunk_bytes=chunk_bytes)

    def chunks(self, name):
        """The stored blob's header and chunks."""
        content = self.bare.contents[name]
        body = content[HEADER_BYTES:]
        return content[:HEADER_BYTES], [body[at : at + STEP] for at in range(0, len(body), STEP)]

    def plant(self, name, header, chunks):
        self.bare.plant(name, header + b"".join(chunks))


@pytest.fixture
def place(house):
    return Place(house)


async def content_of(sealed, name, **options):
    return b"".join([piece async for piece in sealed.read(name, **options)])


async def broken(sealed, name, **options):
    """What a reader got before it was told that the blob is broken."""
    seen = b""
    with pytest.raises(SealBroken):
        async with aclosing(sealed.read(name, **options)) as pieces:
            async for piece in pieces:
                seen += piece
    return seen


# --- promises ---


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 200, 1000, 1050])
@pytest.mark.parametrize("says_size", [True, False])
async def test_a_blob_comes_back_whatever_its_parts(place, size, says_size):
    sealed = await place.open()
    content = os.urandom(size)
    for step in (1, 7, 100, 333, 5000):
        parts = parts_of(b"", *(content[at : at + step] for at in range(0, size, step)))
        written = await sealed.put("files/one", parts, size=size if says_size else None)
        assert written.size == size
        assert await sealed.info("files/one") == written
        assert await content_of(sealed, "files/one") == content
        assert await content_of(sealed, "files/one", seal=written.seal) == content


class CuttingBlobs(MemoryBlobs):
    """A storage that gives the pieces it is asked for, and notes how large they were."""

    def __init__(self):
        super().__init__()
        self.given = []

    async def read_cut(self, name, *, start, end, first, each):
        content = b"".join([piece async for piece in self.read(name, start=start, end=end)])
        for piece in (content[:first], *(content[at : at + each] for at in range(first, len(content), each))):
            self.given.append(len(piece))
            yield piece


@pytest.mark.parametrize("bare", [MemoryBlobs, CuttingBlobs])
@pytest.mark.parametrize("piece_bytes", [1, 46, 47, 48, CHUNK, STEP - 1, STEP, STEP + 1, 3 * STEP])
async def test_a_blob_comes_back_whatever_the_pieces_it_is_read_in(house, monkeypatch, bare, piece_bytes):
    monkeypatch.setattr("nagaya.testing.blobs._PIECE_BYTES", piece_bytes)
    place = Place(house, bare=bare())
    sealed = await place.open()
    for size in (0, 1, 99, 100, 101, 200, 350):
        content = os.urandom(size)
        await sealed.put("one", parts_of(content))
        assert await content_of(sealed, "one") == content
        for start, end in ((0, 100), (0, 101), (50, 250), (100, 200), (199, None), (340, 400)):
            assert await content_of(sealed, "one", start=start, end=end) == content[start:end]


async def test_a_storage_that_can_cut_is_asked_for_whole_chunks_and_believed_in_nothing(house):
    place = Place(house, bare=CuttingBlobs())
    sealed = await place.open()
    content = os.urandom(250)
    await sealed.put("one", parts_of(content))
    assert await content_of(sealed, "one") == content
    assert place.bare.given == [HEADER_BYTES + STEP + HEAD_BYTES, STEP, 50 + TAG_BYTES]
    stored = place.bare.contents["one"]
    for cut in range(len(stored)):
        place.bare.plant("one", stored[:cut])
        assert content.startswith(await broken(sealed, "one"))
        place.bare.plant("one", stored[:cut] + bytes([stored[cut] ^ 1]) + stored[cut + 1 :])
        assert content.startswith(await broken(sealed, "one"))


@pytest.mark.parametrize(("byte_s", "beside"), [(1.0, True), (0.0, False)])
async def test_a_cipher_that_is_slow_on_this_machine_leaves_the_loop_free(place, monkeypatch, byte_s, beside):
    threads = set()
    real = sealed_blobs._timed

    def noticed(size, work, *arguments):
        if size >= 200_000:
            threads.add(threading.current_thread() is not threading.main_thread())
        return real(size, work, *arguments)

    monkeypatch.setattr(sealed_blobs, "_timed", noticed)
    sealed = await place.open(chunk_bytes=256 * 1024)
    content = os.urandom(700_000)
    for number in range(3):
        monkeypatch.setattr(sealed_blobs._Pace, "byte_s", byte_s)
        await sealed.put(f"{number}", parts_of(content), size=len(content))
        monkeypatch.setattr(sealed_blobs._Pace, "byte_s", byte_s)
        assert await content_of(sealed, f"{number}", start=300_000, end=300_010) == content[300_000:300_010]
    assert beside in threads


@settings(max_examples=150, deadline=None)
@given(
    size=st.integers(0, 520),
    start=st.integers(0, 560),
    length=st.one_of(st.none(), st.integers(1, 560)),
    says_size=st.booleans(),
)
def test_any_range_is_just_that_range(make_house, size, start, length, says_size):
    async def check():
        sealed = await Place(make_house()).open()
        content = random.Random(size).randbytes(size)
        await sealed.put("one", parts_of(content), size=size if says_size else None)
        end = None if length is None else start + length
        assert await content_of(sealed, "one", start=start, end=end) == content[start:end]

    asyncio.run(check())


async def test_a_range_fetches_only_the_chunks_that_hold_it(place):
    sealed = await place.open()
    await sealed.put("one", parts_of(bytes(1000)))
    place.bare.reads.clear()
    await content_of(sealed, "one", start=350, end=450)
    assert place.bare.reads == [("one", 0, HEADER_BYTES), ("one", HEADER_BYTES + 3 * STEP, HEADER_BYTES + 5 * STEP + 1)]


@given(size=st.integers(0, 10**13), chunk_bytes=st.integers(1, 2**24))
def test_the_size_in_clear_follows_from_the_stored_size(size, chunk_bytes):
    assert plain_size(sealed_size(size, chunk_bytes), chunk_bytes) == size


async def test_a_list_knows_sizes_without_a_key_or_a_read(place):
    sealed = await place.open()
    sizes = {"a": 0, "b/1": 100, "b/2": 101, "b/3": 950}
    for name, size in sizes.items():
        await sealed.put(name, parts_of(bytes(size)))
    await place.house.keys.disable("acme")
    place.sealer.drop_keys()
    place.bare.reads.clear()
    assert {each.name: each.size for each in await sealed.list()} == sizes
    assert [each.name async for each in sealed.list_all(prefix="b/")] == ["b/1", "b/2", "b/3"]
    assert [each.name for each in await sealed.list(prefix="b/", after="b/1", limit=1)] == ["b/2"]
    assert place.bare.reads == []
    await sealed.delete("a")
    assert "a" not in place.bare.contents


async def test_a_size_that_does_not_come_true_writes_nothing(place):
    sealed = await place.open()
    for said, sent in ((10, 9), (10, 11), (0, 1), (100, 0), (100, 350)):
        with pytest.raises(InvalidValue):
            await sealed.put("one", parts_of(*[b"x"] * sent), size=said)
    with pytest.raises(BlobTooLarge):
        await sealed.put("one", parts_of(b"x"), size=2**50)
    assert place.bare.contents == {}


async def test_conditions_hold_for_sealed_blobs(place):
    sealed = await place.open()
    first = await sealed.put("one", parts_of(b"first"), expect="")
    with pytest.raises(ConditionFailed):
        await sealed.put("one", parts_of(b"second"), expect="")
    second = await sealed.put("one", parts_of(b"second"), expect=first.version)
    assert second.seal != first.seal
    with pytest.raises(ConditionFailed):
        await sealed.put("one", parts_of(b"third"), expect=first.version)
    assert await content_of(sealed, "one") == b"second"


async def test_what_is_not_there_is_not_found(place):
    sealed = await place.open()
    assert await sealed.info("none") is None
    for options in ({}, {"start": 5}, {"start": 5, "end": 6}):
        with pytest.raises(NotFound):
            await content_of(sealed, "none", **options)


@pytest.mark.parametrize(("start", "end"), [(-1, None), (5, 5), (5, 4)])
async def test_a_range_that_is_none_is_refused(place, start, end):
    sealed = await place.open()
    with pytest.raises(InvalidValue):
        await content_of(sealed, "one", start=start, end=end)


@pytest.mark.parametrize("chunk_bytes", [0, -1, 2**24 + 1])
async def test_a_chunk_size_out_of_bounds_is_refused(place, chunk_bytes):
    with pytest.raises(InvalidValue):
        await place.open(chunk_bytes)


async def test_blobs_of_former_keys_and_of_other_chunk_sizes_still_open(place):
    sealed = await place.open()
    await sealed.put("one", parts_of(b"a" * 250))
    await place.house.versions.rotate(place.house.keys, "acme")
    again = await place.open(chunk_bytes=37)
    await again.put("two", parts_of(b"b" * 250))
    assert await content_of(again, "one") == b"a" * 250
    assert await content_of(sealed, "two", start=100, end=120) == b"b" * 20
    assert (await sealed.info("two")).size == 250


async def test_a_disabled_key_opens_and_seals_nothing(place):
    sealed = await place.open()
    await sealed.put("one", parts_of(b"x" * 250))
    await place.house.keys.disable("acme")
    place.sealer.drop_keys()
    with pytest.raises(KeyDisabled):
        await content_of(sealed, "one")
    with pytest.raises(KeyDisabled):
        await sealed.put("two", parts_of(b"x"))
    assert list(place.bare.contents) == ["one"]


async def test_a_key_withdrawn_in_the_middle_of_a_read_ends_it_there(place):
    sealed = await place.open()
    await sealed.put("one", parts_of(b"x" * 1000))
    async with aclosing(sealed.read("one")) as pieces:
        assert await anext(pieces) == b"x" * 100
        await place.house.keys.disable("acme")
        place.sealer.drop_keys()
        with pytest.raises(KeyDisabled):
            await anext(pieces)


async def test_the_storage_never_sees_a_clear_byte(place):
    sealed = await place.open()
    canary = b"canary-0123456789"
    await sealed.put("one", parts_of(canary * 50))
    assert canary not in place.bare.contents["one"]
    assert b"canary" not in place.bare.contents["one"]


# --- attacks ---


async def test_a_blob_cut_at_any_byte_is_broken(place):
    sealed = await place.open()
    content = os.urandom(250)
    for said in (250, None):
        await sealed.put("one", parts_of(content), size=said)
        stored = place.bare.contents["one"]
        for cut in range(len(stored)):
            place.bare.plant("one", stored[:cut])
            assert content.startswith(await broken(sealed, "one"))


async def test_a_blob_cut_between_two_chunks_is_broken_also_for_a_range(place):
    sealed = await place.open()
    content = os.urandom(450)
    for said in (450, None):
        await sealed.put("one", parts_of(content), size=said)
        header, chunks = place.chunks("one")
        for kept in range(len(chunks)):
            place.plant("one", header, chunks[:kept])
            for start, end in ((0, None), (kept * 100, None), (kept * 100, kept * 100 + 1), (440, 450), (440, None)):
                await broken(sealed, "one", start=start, end=end)
            if said is not None:
                with pytest.raises(SealBroken):
                    await sealed.info("one")


async def test_bytes_after_the_end_are_broken(place):
    sealed = await place.open()
    for size in (0, 50, 100, 250):
        for said in (size, None):
            await sealed.put("one", parts_of(bytes(size)), size=said)
            header, chunks = place.chunks("one")
            for more in (b"\0", chunks[0], chunks[-1], header):
                place.plant("one", header, [*chunks, more])
                await broken(sealed, "one")
                await broken(sealed, "one", start=size)


@pytest.mark.parametrize("place_of_byte", [0, 2, 3, 7, 20, 47, 60, 80])
async def test_a_flipped_byte_is_broken(place, place_of_byte):
    sealed = await place.open()
    content = os.urandom(250)
    await sealed.put("one", parts_of(content))
    stored = place.bare.contents["one"]
    for begin, intact in ((0, 0), (HEADER_BYTES, 0), (HEADER_BYTES + STEP, 100), (HEADER_BYTES + 2 * STEP, 200)):
        at = begin + place_of_byte
        place.bare.plant("one", stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :])
        assert await broken(sealed, "one") == content[:intact]


async def test_chunks_left_out_moved_or_repeated_are_broken(place):
    sealed = await place.open()
    for said in (450, None):
        await sealed.put("one", parts_of(os.urandom(450)), size=said)
        header, chunks = place.chunks("one")
        zero, one, two, three, last = chunks
        for changed in (
            [one, zero, two, three, last],
            [zero, one, one, three, last],
            [zero, one, three, last],
            [zero, one, two, two, three, last],
            [zero, one, two, last, three],
            [zero, last],
            [last],
            [last, zero, one, two, three],
            [zero, one, two, three, three],
            [zero, one, two, three, last, last],
        ):
            place.plant("one", header, changed)
            await broken(sealed, "one")


async def test_a_chunk_of_another_blob_is_broken(place):
    sealed = await place.open()
    for name in ("one", "two"):
        await sealed.put(name, parts_of(os.urandom(350)), size=350)
    header, chunks = place.chunks("one")
    other_header, others = place.chunks("two")
    for number, other in enumerate(others):
        place.plant("one", header, [*chunks[:number], other, *chunks[number + 1 :]])
        await broken(sealed, "one")
        await broken(sealed, "one", start=number * 100, end=number * 100 + 1)
    place.plant("one", other_header, others)
    assert await broken(sealed, "one") == b""
    place.plant("one", other_header, chunks)
    assert await broken(sealed, "one") == b""


async def test_a_chunk_of_a_former_version_is_broken(place):
    sealed = await place.open()
    await sealed.put("one", parts_of(b"a" * 350), size=350)
    former_header, former = place.chunks("one")
    await sealed.put("one", parts_of(b"b" * 350), size=350)
    header, chunks = place.chunks("one")
    for number, old in enumerate(former):
        place.plant("one", header, [*chunks[:number], old, *chunks[number + 1 :]])
        assert await broken(sealed, "one") == b"b" * 100 * number
        await broken(sealed, "one", start=number * 100, end=number * 100 + 10)
    place.plant("one", former_header, chunks)
    await broken(sealed, "one")


async def test_a_whole_former_version_is_refused_by_its_seal(place):
    sealed = await place.open()
    await sealed.put("one", parts_of(b"a" * 350))
    former = place.bare.contents["one"]
    latest = await sealed.put("one", parts_of(b"b" * 350))
    place.bare.plant("one", former)
    assert await broken(sealed, "one", seal=latest.seal) == b""
    assert await broken(sealed, "one", start=10, end=20, seal=latest.seal) == b""
    assert (await sealed.info("one")).seal != latest.seal


async def test_another_tenants_blob_under_the_same_name_is_broken(place):
    sealed = await place.open()
    other_place = Place(place.house, "acme-corp")
    other = await other_place.open()
    await sealed.put("one", parts_of(b"a" * 350))
    await other.put("one", parts_of(b"b" * 350))
    place.bare.plant("one", other_place.bare.contents["one"])
    assert await broken(sealed, "one") == b""
    with pytest.raises(SealBroken):
        await sealed.info("one")


async def test_a_blob_under_another_name_is_broken(place):
    sealed = await place.open()
    await sealed.put("one", parts_of(b"a" * 350))
    place.bare.plant("two", place.bare.contents["one"])
    assert await broken(sealed, "two") == b""


async def test_a_record_is_no_header_and_a_plain_file_no_blob(place):
    sealed = await place.open()
    for planted in (b"", b"plain text " * 100, await place.sealer.seal(Partition("blob", "one"), b"x", 1, b"y" * 28)):
        place.bare.plant("one", planted)
        assert await broken(sealed, "one") == b""
        assert await broken(sealed, "one", start=1) == b""


@pytest.mark.parametrize("body", [b"", b"x" * 27, b"\0" * 28, b"\xff" * 28])
async def test_a_header_that_makes_no_sense_is_broken(place, body):
    sealed = await place.open()
    header = await place.sealer.seal(Partition("blob", "one"), b"blob-head", 0, body)
    place.bare.plant("one", header + b"x" * 500)
    assert await broken(sealed, "one") == b""
    assert await broken(sealed, "one", start=1) == b""


async def test_a_header_that_lies_about_its_chunks_is_broken(place):
    """Only who holds the key can write one; the reader goes by it nowhere."""
    sealed = await place.open()
    written = await sealed.put("one", parts_of(b"x" * 250))
    _, chunks = place.chunks("one")
    for chunk_bytes, size in ((100, 251), (100, 249), (101, 250)):
        body = chunk_bytes.to_bytes(4, "big") + bytes.fromhex(written.seal) + size.to_bytes(8, "big")
        place.plant("one", await place.sealer.seal(Partition("blob", "one"), b"blob-head", 0, body), chunks)
        await broken(sealed, "one")
    short = await place.sealer.seal(Partition("blob", "one"), b"blob-chunk" + bytes.fromhex(written.seal), 0, b"x" * 50)
    body = (50).to_bytes(4, "big") + bytes.fromhex(written.seal) + (2**64 - 1).to_bytes(8, "big")
    header = await place.sealer.seal(Partition("blob", "one"), b"blob-head", 0, body)
    place.bare.plant("one", header + short)
    await broken(sealed, "one")


# --- what happens meanwhile ---


class Rewritten(MemoryBlobs):
    """Storage in which a blob is another one as soon as its header was read, ``times`` times."""

    def __init__(self, contents, times):
        super().__init__()
        self.following = list(contents)
        self.times = times

    async def read(self, name, *, start=0, end=None):
        async for piece in super().read(name, start=start, end=end):
            yield piece
        if end == HEADER_BYTES and self.times:
            self.times -= 1
            self.plant(name, self.following[self.times % len(self.following)])


@pytest.fixture
async def versions(place):
    sealed = await place.open()
    found = {}
    for letter in (b"a", b"b"):
        await sealed.put("one", parts_of(letter * 350), size=350)
        found[letter] = place.bare.contents["one"]
    return found


async def test_a_range_of_a_blob_rewritten_meanwhile_is_of_one_version(place, versions):
    place.bare = Rewritten([versions[b"b"]], times=1)
    place.bare.plant("one", versions[b"a"])
    assert await content_of(await place.open(), "one", start=90, end=210) == b"b" * 120


async def test_a_blob_rewritten_without_end_is_a_conflict(place, versions):
    place.bare = Rewritten(versions.values(), times=100)
    place.bare.plant("one", versions[b"a"])
    with pytest.raises(Conflict):
        await content_of(await place.open(), "one", start=90, end=210)


async def test_the_info_of_a_blob_rewritten_meanwhile_is_of_one_version(place):
    sealed = await place.open()
    await sealed.put("one", parts_of(b"a" * 150), size=150)
    former = place.bare.contents["one"]
    await sealed.put("one", parts_of(b"b" * 350), size=350)
    latter = place.bare.contents["one"]
    for times in (1, 100):
        place.bare = Rewritten([former, latter], times=times)
        place.bare.plant("one", former if times == 1 else latter)
        reader = await place.open()
        real, place.bare.info = place.bare.info, _stale(place.bare, latter if times == 1 else None)
        if times == 1:
            assert (await reader.info("one")).size == 150
        else:
            with pytest.raises((Conflict, SealBroken)):
                await reader.info("one")
        place.bare.info = real


def _stale(bare, first):
    """An ``info`` that says at first what was true a moment ago."""
    real = bare.info
    calls = []

    async def info(name):
        calls.append(name)
        found = await real(name)
        if first is not None:
            return found._replace(size=len(first), version="stale") if len(calls) == 1 else found
        return found._replace(size=found.size + len(calls), version=f"v{len(calls)}")

    return info


async def test_a_blob_removed_between_two_looks_is_absent(place):
    sealed = await place.open()
    await sealed.put("one", parts_of(b"a" * 150))

    async def info(name):
        found = await MemoryBlobs.info(place.bare, name)
        place.bare.contents.clear()
        return found

    place.bare.info = info
    assert await sealed.info("one") is None


async def test_a_blob_removed_while_its_end_is_being_proven_is_not_found(place):
    sealed = await place.open()
    await sealed.put("one", parts_of(b"a" * 150))

    async def info(name):
        place.bare.contents.clear()
        return None

    place.bare.info = info
    with pytest.raises(NotFound):
        await content_of(sealed, "one", start=900)


async def test_a_storage_that_says_one_size_and_gives_another_is_broken(place):
    sealed = await place.open()
    await sealed.put("one", parts_of(b"a" * 150))

    async def info(name):
        found = await MemoryBlobs.info(place.bare, name)
        return found._replace(size=found.size + 5000)

    place.bare.info = info
    await broken(sealed, "one", start=900)


async def test_a_storage_that_gives_more_than_was_asked_changes_nothing(place):
    sealed = await place.open()
    content = os.urandom(950)
    await sealed.put("one", parts_of(content))
    real = place.bare.read

    def read(name, *, start=0, end=None):
        return real(name, start=start, end=None if start else end)

    place.bare.read = read
    assert await content_of(sealed, "one", start=150, end=350) == content[150:350]


async def test_a_cancelled_upload_leaves_nothing(place):
    sealed = await place.open(chunk_bytes=256 * 1024)
    reached, never = asyncio.Event(), asyncio.Event()

    async def stuck():
        yield bytes(600_000)
        reached.set()
        await never.wait()

    work = asyncio.ensure_future(sealed.put("one", stuck()))
    await reached.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert place.bare.contents == {}
