import asyncio

import pytest

from nagaya.blobs import blob_store
from nagaya.blobs.blob_store import Blobs
from nagaya.blobs.driver import MAX_BLOB_BYTES
from nagaya.errors import BlobsUnreachable, BlobTooLarge, InvalidValue, SessionClosed
from nagaya.testing.blobs import MemoryBlobs, content_of, parts_of
from support.loop_time import LoopTime


class Presigning(MemoryBlobs):
    """Storage that gives addresses."""

    async def presigned_get(self, name, *, lifetime_s):
        await self._answer(name)
        return f"https://storage.example/{name}?for={lifetime_s}"

    async def presigned_put(self, name, *, lifetime_s, size):
        await self._answer(name)
        return f"https://storage.example/{name}?for={lifetime_s}&size={size}"


class Slow(MemoryBlobs):
    """Storage that takes its time over every part it is given."""

    def __init__(self, takes):
        super().__init__()
        self.takes = takes

    async def put(self, name, parts, *, expect=None):
        async def slowly():
            async for part in parts:
                await self.takes()
                yield part

        return await super().put(name, slowly(), expect=expect)


@pytest.fixture
def bare():
    return Presigning()


def _calls(blobs):
    return {
        "put": lambda: blobs.put("one", parts_of(b"x")),
        "read": lambda: content_of(blobs, "one"),
        "info": lambda: blobs.info("one"),
        "delete": lambda: blobs.delete("one"),
        "list": lambda: blobs.list(),
        "presigned_get": lambda: blobs.presigned_get("one", lifetime_s=60),
        "presigned_put": lambda: blobs.presigned_put("one", lifetime_s=60, size=1),
    }


@pytest.mark.parametrize("call", sorted(_calls(None)))
async def test_a_storage_that_does_not_answer_is_unreachable(bare, call):
    blobs = Blobs(bare, deadline_s=0.02)
    await blobs.put("one", parts_of(b"x"))
    bare.gate.clear()
    with pytest.raises(BlobsUnreachable):
        await _calls(blobs)[call]()


@pytest.mark.parametrize("call", sorted(_calls(None)))
async def test_a_connection_that_breaks_is_unreachable(bare, call):
    blobs = Blobs(bare)
    await blobs.put("one", parts_of(b"x"))
    bare.failing = ConnectionResetError()
    with pytest.raises(BlobsUnreachable):
        await _calls(blobs)[call]()


@pytest.mark.parametrize("call", sorted(_calls(None)))
async def test_nothing_is_done_after_closing(bare, call):
    blobs = Blobs(bare)
    await blobs.close()
    with pytest.raises(SessionClosed):
        await _calls(blobs)[call]()


async def test_the_deadline_is_for_each_part_and_not_for_the_whole(monkeypatch):
    time = LoopTime(monkeypatch)
    blobs = Blobs(Slow(lambda: time.passes(0.03)), deadline_s=0.1)
    written = await blobs.put("one", parts_of(*[b"x"] * 6))
    assert written.size == 6


async def test_a_storage_that_stalls_on_a_part_is_unreachable():
    blobs = Blobs(Slow(asyncio.Event().wait), deadline_s=0.02)
    with pytest.raises(BlobsUnreachable):
        await blobs.put("one", parts_of(b"x"))


async def test_a_slow_client_is_not_the_storages_fault(bare):
    async def slowly():
        for _ in range(3):
            await asyncio.sleep(0.05)
            yield b"x"

    written = await Blobs(bare, deadline_s=0.02).put("one", slowly())
    assert written.size == 3


@pytest.mark.parametrize("error", [TimeoutError, ConnectionResetError, ValueError])
async def test_a_failure_of_the_maker_stays_its_own(bare, error):
    async def failing():
        yield b"x"
        raise error("the client's")

    with pytest.raises(error, match="the client's"):
        await Blobs(bare).put("one", failing())
    assert bare.contents == {}


async def test_a_blob_past_the_limit_is_refused_before_it_is_sent(bare, monkeypatch):
    monkeypatch.setattr(blob_store, "MAX_BLOB_BYTES", 10)
    with pytest.raises(BlobTooLarge):
        await Blobs(bare).put("one", parts_of(b"x" * 6, b"x" * 5))
    assert bare.contents == {}


async def test_a_reader_that_stalls_in_the_middle_is_told(bare):
    blobs = Blobs(bare, deadline_s=0.02)
    await blobs.put("one", parts_of(bytes(200_000)))
    pieces = blobs.read("one")
    await anext(pieces)
    bare.gate.clear()
    with pytest.raises(BlobsUnreachable):
        await anext(pieces)


@pytest.mark.parametrize("limit", [0, -1, 1001])
async def test_a_page_out_of_bounds_is_refused(bare, limit):
    with pytest.raises(InvalidValue):
        await Blobs(bare).list(limit=limit)


@pytest.mark.parametrize("text", ["a b", "a\\b", "é", "x" * 513, "a\n"])
async def test_a_list_from_a_place_that_is_none_is_refused(bare, text):
    for where in ({"prefix": text}, {"after": text}):
        with pytest.raises(InvalidValue):
            await Blobs(bare).list(**where)


async def test_addresses_are_for_a_short_time_and_a_true_size(bare):
    blobs = Blobs(bare)
    assert await blobs.presigned_get("one", lifetime_s=60) == "https://storage.example/one?for=60"
    assert await blobs.presigned_put("one", lifetime_s=3600, size=5) == "https://storage.example/one?for=3600&size=5"
    for lifetime_s in (0, 3601):
        with pytest.raises(InvalidValue):
            await blobs.presigned_put("one", lifetime_s=lifetime_s, size=5)
    for size in (-1, MAX_BLOB_BYTES + 1):
        with pytest.raises(BlobTooLarge):
            await blobs.presigned_put("one", lifetime_s=60, size=size)


async def test_a_storage_without_addresses_gives_none():
    blobs = Blobs(MemoryBlobs())
    assert await blobs.presigned_get("one", lifetime_s=60) is None
    assert await blobs.presigned_put("one", lifetime_s=60, size=5) is None


async def test_a_driver_that_is_no_generator_will_do(bare):
    class Pieces:
        def __init__(self):
            self.left = [b"a", b"b"]

        def __aiter__(self):
            return self

        async def __anext__(self):
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop(0)

    bare.read = lambda name, *, start, end: Pieces()
    assert await content_of(Blobs(bare), "one") == b"ab"
