"""Blob storage for tests, and the contract that every blob storage keeps."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from typing import ClassVar

import pytest

from nagaya.blobs.blob_store import Blobs
from nagaya.blobs.driver import BlobDriver, BlobHouse, BlobInfo, CutsBlobs, PresignsBlobs
from nagaya.blobs.names import MAX_NAME, MAX_SEGMENT, check_name, check_room
from nagaya.errors import ConditionFailed, InvalidValue, NotFound, SessionClosed, StoreDamaged, TenantExists

NOT_NAMES = (
    "", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "../b", "a/./b", ".a", "a.", "a b", "a\\b", "a\0", "é", "a\n",
    "a:b", "a%2e", "!room", "x" * (MAX_NAME + 1), "x" * (MAX_SEGMENT + 1),
)  # fmt: skip
"""Names that lead elsewhere, or that some storage would take for others."""

_PIECE_BYTES = 64 * 1024


class MemoryBlobs:
    """One room's blobs in memory. ``gate`` holds answers back; ``failing`` is raised by every call while it is set."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.versions: dict[str, str] = {}
        self.reads: list[tuple[str, int, int | None]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failing: Exception | None = None
        self._numbers = itertools.count(1)

    async def put(self, name: str, parts: AsyncIterator[bytes], *, expect: str | None = None) -> BlobInfo:
        collected = [part async for part in parts]
        await self._answer(name)
        if expect is not None and expect != self.versions.get(name, ""):
            raise ConditionFailed
        self.plant(name, b"".join(collected))
        return self._info(name)

    async def read(self, name: str, *, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        await self._answer(name)
        self.reads.append((name, start, end))
        if name not in self.contents:
            raise NotFound("file")
        content = self.contents[name][start:end]
        for at in range(0, len(content), _PIECE_BYTES):
            await self._answer(name)
            yield content[at : at + _PIECE_BYTES]

    async def info(self, name: str) -> BlobInfo | None:
        await self._answer(name)
        return self._info(name) if name in self.contents else None

    async def delete(self, name: str) -> None:
        await self._answer(name)
        self.contents.pop(name, None)
        self.versions.pop(name, None)

    async def list(self, *, prefix: str = "", after: str = "", limit: int = 1000) -> Sequence[BlobInfo]:
        await self._answer("list")
        names = sorted(name for name in self.contents if name.startswith(prefix) and name > after)
        return [self._info(name) for name in names[:limit]]

    async def close(self) -> None:
        """Nothing is held open."""

    def plant(self, name: str, content: bytes) -> None:
        """Put bytes there behind everybody's back, as whoever owns the storage could."""
        self.contents[name] = content
        self.versions[name] = f"v{next(self._numbers)}"

    def _info(self, name: str) -> BlobInfo:
        return BlobInfo(name, len(self.contents[name]), self.versions[name])

    async def _answer(self, name: str) -> None:
        check_name(name)
        await self.gate.wait()
        if self.failing is not None:
            raise self.failing


class MemoryBlobHouse:
    """Rooms in memory."""

    def __init__(self) -> None:
        self.rooms: dict[str, MemoryBlobs] = {}

    async def create(self, room: str) -> None:
        if check_room(room) in self.rooms:
            raise TenantExists(value=room)
        self.rooms[room] = MemoryBlobs()

    async def open(self, room: str) -> MemoryBlobs:
        try:
            return self.rooms[check_room(room)]
        except KeyError:
            raise StoreDamaged(place=room) from None

    async def destroy(self, room: str) -> None:
        self.rooms.pop(check_room(room), None)

    async def size_bytes(self, room: str) -> int:
        return sum(map(len, self.rooms[check_room(room)].contents.values()))

    async def close(self) -> None:
        """Nothing is held open."""


async def parts_of(*parts: bytes) -> AsyncIterator[bytes]:
    """The parts, one after the other."""
    for part in parts:
        yield part


async def content_of(blobs: Blobs, name: str, *, start: int = 0, end: int | None = None) -> bytes:
    """A blob, or a range of it, as one byte string."""
    return b"".join([piece async for piece in blobs.read(name, start=start, end=end)])


class BlobContract:
    """What every blob storage promises. Inherit, supply the fixture ``blob_house`` (with no room) and declare traits.

    ``large_bytes`` is a size that the adapter sends in several parts. ``page_blobs`` is how many blobs the listing test
    writes: more than one of the vendor's own pages, where that can be had quickly.
    """

    large_bytes: ClassVar[int] = 12 * 1024 * 1024 + 17
    page_blobs: ClassVar[int] = 25
    presigns: ClassVar[bool] = False

    ROOM = "acme"
    OTHER = "acme-corp"

    @pytest.fixture
    async def driver(self, blob_house: BlobHouse) -> AsyncIterator[BlobDriver]:
        await blob_house.create(self.ROOM)
        opened = await blob_house.open(self.ROOM)
        yield opened
        await opened.close()

    @pytest.fixture
    def blobs(self, driver: BlobDriver) -> Blobs:
        return Blobs(driver)

    # --- writing and reading ---

    async def test_a_blob_comes_back_byte_for_byte(self, blobs: Blobs) -> None:
        for size in (0, 1, 70_000):
            content = os.urandom(size)
            written = await blobs.put("files/one", parts_of(content[:7], b"", content[7:]))
            assert written.name == "files/one"
            assert written.size == size
            assert await blobs.info("files/one") == written
            assert await content_of(blobs, "files/one") == content

    async def test_a_large_blob_goes_up_and_down_in_pieces(self, blobs: Blobs) -> None:
        content = os.urandom(self.large_bytes)
        step = 1024 * 1024 + 63
        written = await blobs.put("large", parts_of(*_cut(content, step)))
        assert written.size == len(content)
        assert await blobs.info("large") == written
        pieces = [piece async for piece in blobs.read("large")]
        assert b"".join(pieces) == content
        assert max(map(len, pieces)) <= 2 * 1024 * 1024
        middle = len(content) // 2
        assert await content_of(blobs, "large", start=middle, end=middle + 100) == content[middle : middle + 100]

    async def test_a_range_is_just_that_range(self, blobs: Blobs) -> None:
        content = os.urandom(100)
        await blobs.put("one", parts_of(content))
        for start, end in ((0, None), (0, 1), (0, 100), (0, 5000), (1, 2), (50, None), (99, 100), (99, 5000)):
            assert await content_of(blobs, "one", start=start, end=end) == content[start:end]

    async def test_pieces_end_where_the_reader_wants_them_if_the_storage_can_cut(
        self, driver: BlobDriver, blobs: Blobs
    ) -> None:
        content = os.urandom(1000)
        await blobs.put("one", parts_of(content))
        for start, end in ((0, None), (3, 400), (999, None), (1000, None)):
            pieces = [piece async for piece in blobs.read("one", start=start, end=end, cut=(10, 70))]
            wanted = content[start:end]
            assert b"".join(pieces) == wanted
            if isinstance(driver, CutsBlobs):
                assert pieces == [piece for piece in (wanted[:10], *_cut(wanted[10:], 70)) if piece]

    async def test_a_range_past_the_end_is_empty(self, blobs: Blobs) -> None:
        await blobs.put("one", parts_of(b"x" * 100))
        await blobs.put("empty", parts_of())
        for name, start, end in (("one", 100, None), ("one", 5000, 6000), ("empty", 0, None), ("empty", 0, 10)):
            assert await content_of(blobs, name, start=start, end=end) == b""

    async def test_a_range_that_is_none_is_refused(self, blobs: Blobs) -> None:
        await blobs.put("one", parts_of(b"x" * 100))
        for start, end in ((-1, None), (5, 5), (5, 4)):
            with pytest.raises(InvalidValue):
                await content_of(blobs, "one", start=start, end=end)

    async def test_what_was_never_written_is_not_found(self, blobs: Blobs) -> None:
        assert await blobs.info("none") is None
        for start, end in ((0, None), (5, 10)):
            with pytest.raises(NotFound):
                await content_of(blobs, "none", start=start, end=end)

    async def test_writing_again_replaces_and_changes_the_version(self, blobs: Blobs) -> None:
        first = await blobs.put("one", parts_of(b"first"))
        second = await blobs.put("one", parts_of(b"second, longer"))
        assert first.version != second.version
        assert await content_of(blobs, "one") == b"second, longer"
        assert await blobs.info("one") == second

    async def test_a_removed_blob_is_gone_and_may_be_removed_again(self, blobs: Blobs) -> None:
        await blobs.put("files/one", parts_of(b"x"))
        for _ in range(2):
            await blobs.delete("files/one")
        assert await blobs.info("files/one") is None
        assert await blobs.list() == []
        with pytest.raises(NotFound):
            await content_of(blobs, "files/one")

    async def test_a_reader_left_early_leaves_the_blob_as_it_was(self, blobs: Blobs) -> None:
        content = os.urandom(3 * 1024 * 1024)
        await blobs.put("one", parts_of(content))
        for _ in range(3):
            pieces = blobs.read("one")
            assert content.startswith(await anext(pieces))
            await pieces.aclose()
        assert await content_of(blobs, "one") == content

    async def test_a_reader_never_sees_two_versions_in_one(self, blobs: Blobs) -> None:
        former, latter = b"a" * 3_000_000, b"b" * 3_000_000
        await blobs.put("one", parts_of(former))
        pieces = blobs.read("one")
        seen = await anext(pieces)
        await blobs.put("one", parts_of(latter))
        try:
            seen += b"".join([piece async for piece in pieces])
        except ConditionFailed:
            return  # refused in the middle is honest too
        assert seen in (former, latter)

    # --- conditions ---

    async def test_what_must_be_absent_is_written_once(self, blobs: Blobs) -> None:
        for first in (b"x" * 10, b""):
            written = await blobs.put("one", parts_of(first), expect="")
            with pytest.raises(ConditionFailed):
                await blobs.put("one", parts_of(b"y"), expect="")
            assert await content_of(blobs, "one") == first
            assert await blobs.info("one") == written
            await blobs.delete("one")
        await blobs.put("one", parts_of(b"again"), expect="")

    async def test_a_stale_version_replaces_nothing(self, blobs: Blobs) -> None:
        first = await blobs.put("one", parts_of(b"first"))
        second = await blobs.put("one", parts_of(b"second"), expect=first.version)
        with pytest.raises(ConditionFailed):
            await blobs.put("one", parts_of(b"third"), expect=first.version)
        assert await content_of(blobs, "one") == b"second"
        await blobs.delete("one")
        with pytest.raises(ConditionFailed):
            await blobs.put("one", parts_of(b"fourth"), expect=second.version)
        assert await blobs.info("one") is None

    async def test_conditions_hold_for_a_large_blob_too(self, blobs: Blobs) -> None:
        content = os.urandom(self.large_bytes)
        first = await blobs.put("large", parts_of(*_cut(content, 1024 * 1024)), expect="")
        for expect in ("", "another"):
            with pytest.raises(ConditionFailed):
                await blobs.put("large", parts_of(*_cut(bytes(self.large_bytes), 1024 * 1024)), expect=expect)
        assert await blobs.info("large") == first
        second = await blobs.put("large", parts_of(*_cut(content[::-1], 1024 * 1024)), expect=first.version)
        assert await blobs.info("large") == second
        assert await content_of(blobs, "large") == content[::-1]

    async def test_of_many_who_write_at_once_one_wins(self, blobs: Blobs) -> None:
        contents = [b"%d" % number * 1000 for number in range(8)]
        done = await asyncio.gather(
            *(blobs.put("one", parts_of(content), expect="") for content in contents), return_exceptions=True
        )
        winners = [content for content, result in zip(contents, done, strict=True) if isinstance(result, BlobInfo)]
        assert len(winners) == 1
        assert all(isinstance(result, BlobInfo | ConditionFailed) for result in done)
        assert await content_of(blobs, "one") == winners[0]

    # --- whole or not at all ---

    @pytest.mark.parametrize("large", [False, True])
    async def test_an_upload_that_breaks_off_leaves_nothing(self, blobs: Blobs, large: bool) -> None:
        before = await blobs.put("one", parts_of(b"before"))

        async def broken() -> AsyncIterator[bytes]:
            yield bytes(self.large_bytes if large else 100)
            raise ConnectionResetError("the client went away")

        for name in ("one", "two"):
            with pytest.raises(ConnectionResetError):
                await blobs.put(name, broken())
        assert await blobs.list() == [before]
        assert await content_of(blobs, "one") == b"before"
        await self.check_no_leftovers(blobs)

    async def test_a_cancelled_upload_leaves_nothing(self, blobs: Blobs) -> None:
        reached, never = asyncio.Event(), asyncio.Event()

        async def stuck() -> AsyncIterator[bytes]:
            yield bytes(self.large_bytes)
            reached.set()
            await never.wait()

        work = asyncio.ensure_future(blobs.put("one", stuck()))
        async with asyncio.timeout(20):
            await reached.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert await blobs.list() == []
        await self.check_no_leftovers(blobs)

    async def check_no_leftovers(self, blobs: Blobs) -> None:
        """Overridden by adapters that can look for unfinished uploads."""

    # --- names and lists ---

    async def test_names_are_listed_in_the_order_of_their_bytes(self, blobs: Blobs) -> None:
        names = ["a", "a-b", "a.b", "a/b", "a/c/d", "a0", "A", "B/a", "a_b", "aa", "b", "_", "-", "Z9", "z"]
        for name in names:
            await blobs.put(name, parts_of(name.encode()))
        ordered = sorted(names)
        assert [each.name for each in await blobs.list()] == ordered
        for at, name in enumerate(ordered):
            assert [each.name for each in await blobs.list(after=name)] == ordered[at + 1 :]
            assert [each.name for each in await blobs.list(after=name, limit=2)] == ordered[at + 1 : at + 3]
        for prefix in ("a", "a/", "a/c", "A", "zz", "B/"):
            assert [each.name for each in await blobs.list(prefix=prefix)] == [
                name for name in ordered if name.startswith(prefix)
            ]
        assert [each.name for each in await blobs.list(prefix="a", after="a/b")] == ["a/c/d", "a0", "a_b", "aa"]
        assert [await content_of(blobs, name) for name in names] == [name.encode() for name in names]

    async def test_a_long_list_is_complete_page_by_page(self, blobs: Blobs) -> None:
        names = [f"files/{number:05d}" for number in range(self.page_blobs)]
        for at in range(0, len(names), 16):
            await asyncio.gather(*(blobs.put(name, parts_of(name.encode())) for name in names[at : at + 16]))
        for page in (7, 1000):
            listed = [each async for each in blobs.list_all(prefix="files/", page=page)]
            assert [each.name for each in listed] == names
        assert listed[3] == await blobs.info(names[3])

    async def test_the_longest_name_is_a_name(self, blobs: Blobs) -> None:
        segment = "A" * MAX_SEGMENT
        name = "/".join([segment] * 5)[:MAX_NAME]
        await blobs.put(name, parts_of(b"x"))
        assert [each.name for each in await blobs.list()] == [name]
        assert await content_of(blobs, name) == b"x"

    async def test_a_name_that_could_lead_elsewhere_is_refused(self, driver: BlobDriver) -> None:
        blobs = Blobs(driver)
        for name in NOT_NAMES:
            with pytest.raises(InvalidValue):
                await blobs.put(name, parts_of(b"x"))
            with pytest.raises(InvalidValue):
                await content_of(blobs, name)
            with pytest.raises(InvalidValue):
                await blobs.delete(name)
            # The driver does not rely on its caller for this.
            with pytest.raises(InvalidValue):
                await driver.put(name, parts_of(b"x"))
            with pytest.raises(InvalidValue):
                await driver.info(name)

    # --- rooms ---

    async def test_another_room_sees_nothing(self, blob_house: BlobHouse, blobs: Blobs) -> None:
        await blob_house.create(self.OTHER)
        other = Blobs(await blob_house.open(self.OTHER))
        await blobs.put("one", parts_of(b"acme's"))
        assert await other.info("one") is None
        assert await other.list() == []
        await other.delete("one")
        await other.put("one", parts_of(b"another's"))
        await blob_house.destroy(self.OTHER)
        assert await content_of(blobs, "one") == b"acme's"
        assert [each.name for each in await blobs.list()] == ["one"]

    async def test_a_room_is_made_once(self, blob_house: BlobHouse) -> None:
        await blob_house.create(self.ROOM)
        with pytest.raises(TenantExists):
            await blob_house.create(self.ROOM)

    async def test_a_room_that_was_never_made_does_not_open(self, blob_house: BlobHouse) -> None:
        with pytest.raises(StoreDamaged):
            await blob_house.open("never-made")

    async def test_a_destroyed_room_is_gone_and_may_be_destroyed_again(self, blob_house: BlobHouse) -> None:
        await blob_house.create(self.ROOM)
        blobs = Blobs(await blob_house.open(self.ROOM))
        for number in range(5):
            await blobs.put(f"files/{number}", parts_of(b"x" * 100))
        assert await blob_house.size_bytes(self.ROOM) >= 500
        for _ in range(2):
            await blob_house.destroy(self.ROOM)
        with pytest.raises(StoreDamaged):
            await blob_house.open(self.ROOM)
        await blob_house.create(self.ROOM)
        assert await Blobs(await blob_house.open(self.ROOM)).list() == []

    async def test_closing_twice_is_no_error_and_ends_all_use(self, blobs: Blobs) -> None:
        for _ in range(2):
            await blobs.close()
        with pytest.raises(SessionClosed):
            await blobs.info("one")

    # --- pre-signed addresses ---

    async def test_pre_signed_addresses_are_given_where_the_storage_has_them(
        self, blobs: Blobs, driver: BlobDriver
    ) -> None:
        assert isinstance(driver, PresignsBlobs) is self.presigns
        await blobs.put("one", parts_of(b"x"))
        for address in (
            await blobs.presigned_get("one", lifetime_s=60),
            await blobs.presigned_put("two", lifetime_s=60, size=5),
        ):
            assert (address is not None) is self.presigns
        for lifetime_s in (0, 3601):
            with pytest.raises(InvalidValue):
                await blobs.presigned_get("one", lifetime_s=lifetime_s)


def _cut(content: bytes, step: int) -> Iterable[bytes]:
    return (content[at : at + step] for at in range(0, len(content), step))
