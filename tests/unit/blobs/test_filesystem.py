import asyncio
import gc
import multiprocessing
import os
import threading

import pytest

from nagaya.blobs import filesystem, room_folder
from nagaya.blobs.blob_store import Blobs
from nagaya.blobs.filesystem import FileBlobHouse, open_house
from nagaya.blobs.room_folder import RoomFolder, Upload
from nagaya.errors import (
    BlobsUnreachable,
    ConditionFailed,
    InvalidValue,
    NotFound,
    StoreDamaged,
    StoreFull,
    StoreReadOnly,
    TenantExists,
    TenantIdInvalid,
)
from nagaya.testing.blobs import content_of, parts_of
from parts.blob_places import surroundings


@pytest.fixture
async def house(tmp_path):
    made = await open_house(f"file://{tmp_path}/blobs", surroundings())
    yield made
    await made.close()


@pytest.fixture
def room(tmp_path):
    return tmp_path / "blobs" / "acme"


@pytest.fixture
async def blobs(house):
    await house.create("acme")
    return Blobs(await house.open("acme"))


# --- where things lie ---


@pytest.mark.parametrize(
    "url", ["file://relative", "file://host/dir", "file:relative", "file:///dir?x=1", "file:///dir#x", "file:///a%00b"]
)
async def test_an_address_that_is_no_absolute_path_is_refused(url):
    with pytest.raises(InvalidValue):
        await open_house(url, surroundings())


async def test_an_address_may_hold_escaped_letters(tmp_path):
    made = await open_house(f"file://{tmp_path}/a%20b", surroundings())
    await made.close()
    assert (tmp_path / "a b").is_dir()


@pytest.mark.parametrize("room", ["..", ".", "", "a/b", "ACME", "acme/../other", ".gone-1", "a" * 64])
async def test_a_room_name_that_leads_elsewhere_is_refused(house, room):
    for act in (house.create, house.open, house.destroy, house.size_bytes):
        with pytest.raises(TenantIdInvalid):
            await act(room)


async def test_files_and_folders_are_their_owners_alone(blobs, room):
    await blobs.put("files/one", parts_of(b"x"))
    for place, folders, files in os.walk(room):
        for each in (*folders, *files):
            assert os.lstat(os.path.join(place, each)).st_mode & 0o077 == 0


async def test_names_that_some_disks_do_not_tell_apart_are_told_apart(blobs, room):
    for name in ("Report", "report", "REPORT", "rEPORT"):
        await blobs.put(name, parts_of(name.encode()))
    names = [each.name.lower() for each in room.iterdir()]
    assert len(names) == len(set(names))
    for name in ("Report", "report", "REPORT", "rEPORT"):
        assert await content_of(blobs, name) == name.encode()


async def test_folders_that_are_empty_go(blobs, room):
    await blobs.put("a/b/c", parts_of(b"x"))
    await blobs.put("a/d", parts_of(b"x"))
    await blobs.delete("a/b/c")
    assert not (room / "a" / "b").exists()
    assert (await blobs.info("a/d")) is not None
    await blobs.delete("a/d")
    assert not (room / "a").exists()


# --- nothing leads out of a room ---


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret@").write_bytes(b"0123456789abcdefthe secret")
    return folder


async def test_a_planted_link_to_a_file_is_not_followed(blobs, room, outside):
    (room / "one@").symlink_to(outside / "secret@")
    with pytest.raises(StoreDamaged):
        await content_of(blobs, "one")
    with pytest.raises(StoreDamaged):
        await blobs.info("one")
    await blobs.put("one", parts_of(b"ours"))
    assert await content_of(blobs, "one") == b"ours"
    assert (outside / "secret@").read_bytes().endswith(b"the secret")


async def test_a_planted_link_to_a_folder_is_not_followed(blobs, room, outside):
    (room / "files").symlink_to(outside)
    for act in (
        content_of(blobs, "files/secret"),
        blobs.put("files/new", parts_of(b"x")),
        blobs.delete("files/secret"),
        blobs.info("files/secret"),
    ):
        with pytest.raises(StoreDamaged):
            await act
    assert await blobs.list() == []
    assert [each.name for each in outside.iterdir()] == ["secret@"]


async def test_a_room_that_is_a_link_does_not_open(house, tmp_path, outside):
    (tmp_path / "blobs" / "acme").symlink_to(outside)
    with pytest.raises(StoreDamaged):
        await house.open("acme")


async def test_a_planted_pipe_or_folder_is_no_blob(blobs, room):
    os.mkfifo(room / "one@")
    (room / "two@").mkdir()
    for name in ("one", "two"):
        with pytest.raises(StoreDamaged):
            await content_of(blobs, name)


async def test_what_is_not_ours_is_not_listed(blobs, room):
    await blobs.put("one", parts_of(b"x"))
    for name in (".DS_Store", "notes.txt", "a b@", "é@", "UPPER@"):
        (room / name).write_bytes(b"x" * 30)
    assert [each.name for each in await blobs.list()] == ["one"]


async def test_a_file_too_short_to_be_a_blob_is_said_to_be_damaged(blobs, room):
    (room / "one@").write_bytes(b"short")
    assert (await blobs.info("one")).version == "damaged"
    assert await content_of(blobs, "one") == b""
    await blobs.put("one", parts_of(b"x"), expect="damaged")
    assert await content_of(blobs, "one") == b"x"


async def test_a_room_that_was_removed_is_damaged_not_empty(blobs, room, house):
    await house.destroy("acme")
    for act in (blobs.info("one"), blobs.list(), blobs.put("one", parts_of(b"x")), blobs.delete("one")):
        with pytest.raises(StoreDamaged):
            await act


async def test_a_room_without_its_lock_is_damaged(blobs, room):
    (room / ".lock").unlink()
    with pytest.raises(StoreDamaged):
        await blobs.put("one", parts_of(b"x"))


async def test_a_room_whose_name_is_taken_by_a_file_is_taken(house, tmp_path):
    (tmp_path / "blobs" / "acme").write_bytes(b"")
    with pytest.raises(TenantExists):
        await house.create("acme")
    assert [each.name for each in (tmp_path / "blobs").iterdir()] == ["acme"]


# --- crashes ---


def _crash(place, reached):
    upload = Upload(RoomFolder(place), "one")
    upload.write([b"half a blob"])
    reached.set()
    threading.Event().wait()


async def test_a_crash_in_the_middle_of_a_write_leaves_no_half_blob(blobs, house, room):
    context = multiprocessing.get_context("fork")
    reached = context.Event()
    process = context.Process(target=_crash, args=(room, reached))
    process.start()
    try:
        assert await asyncio.to_thread(reached.wait, 60)
        # It lives: its draft is left alone.
        again = Blobs(await house.open("acme"))
        assert len(list((room / ".parts").iterdir())) == 1
        assert await again.list() == []
    finally:
        process.kill()
        process.join(30)
        process.close()
    again = Blobs(await house.open("acme"))
    assert list((room / ".parts").iterdir()) == []
    assert await again.list() == []
    await again.put("one", parts_of(b"whole"), expect="")


async def test_an_interrupted_removal_is_finished_at_the_next_start(house, tmp_path):
    gone = tmp_path / "blobs" / ".gone-0123"
    gone.mkdir()
    (gone / "one@").write_bytes(b"x")
    again = await open_house(f"file://{tmp_path}/blobs", surroundings())
    await again.close()
    assert not gone.exists()


async def test_a_room_without_a_place_for_drafts_makes_one(blobs, room):
    (room / ".parts").rmdir()  # as after a backup that leaves out empty folders
    await blobs.put("one", parts_of(b"x"))
    assert await content_of(blobs, "one") == b"x"


# --- failures ---


@pytest.mark.parametrize(
    ("number", "error"),
    [(28, StoreFull), (122, StoreFull), (30, StoreReadOnly), (13, StoreReadOnly), (5, BlobsUnreachable)],
)
async def test_what_the_disk_says_is_told_and_nothing_is_left(blobs, room, monkeypatch, number, error):
    def fails(handle, part):
        raise OSError(number, "no")

    monkeypatch.setattr(room_folder.os, "write", fails)
    with pytest.raises(error):
        await blobs.put("one", parts_of(b"x"))
    monkeypatch.undo()
    assert await blobs.list() == []
    assert list((room / ".parts").iterdir()) == []


async def test_a_failure_while_a_room_is_made_leaves_nothing(house, tmp_path, monkeypatch):
    def fails(self, target):
        raise OSError(5, "no")

    monkeypatch.setattr(room_folder.Path, "rename", fails)
    with pytest.raises(OSError, match="no"):
        await house.create("acme")
    monkeypatch.undo()
    assert list((tmp_path / "blobs").iterdir()) == []


async def test_a_write_abandoned_before_its_turn_writes_nothing(blobs, room):
    upload = Upload(RoomFolder(room), "one")
    upload.abandon()
    with pytest.raises(ConditionFailed):
        upload.commit([b"x"], None)
    upload.abandon()
    assert await blobs.list() == []
    assert list((room / ".parts").iterdir()) == []


async def test_a_write_cancelled_while_it_is_being_moved_in_is_whole_or_not_there(blobs, room, monkeypatch):
    reached, go_on = threading.Event(), threading.Event()
    real = RoomFolder.move_in

    def slow(self, draft, name, expect):
        reached.set()
        go_on.wait(30)
        real(self, draft, name, expect)

    monkeypatch.setattr(RoomFolder, "move_in", slow)
    work = asyncio.ensure_future(blobs.put("one", parts_of(b"whole")))
    assert await asyncio.to_thread(reached.wait, 60)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    go_on.set()
    async with asyncio.timeout(30):
        while await blobs.info("one") is None:
            await asyncio.sleep(0.01)
    assert await content_of(blobs, "one") == b"whole"
    assert list((room / ".parts").iterdir()) == []


async def test_a_reader_that_was_closed_reads_no_more(blobs, room):
    await blobs.put("one", parts_of(b"x"))
    reading = room_folder.Reading(RoomFolder(room), "one", 0, None)
    assert reading.next(1) == b"x"
    for _ in range(2):
        reading.close()
    assert reading.next(1) == b""
    with pytest.raises(NotFound):
        room_folder.Reading(RoomFolder(room), "two", 0, None).next(1)


async def test_a_disk_that_fails_behind_a_reader_who_left_is_nobodys_business(blobs, monkeypatch):
    await blobs.put("one", parts_of(bytes(1_000_000)))
    real = room_folder.os.pread
    failed = threading.Event()

    def failing(handle, size, at):
        if at > filesystem.PIECE_BYTES:
            failed.set()
            raise OSError(5, "no")
        return real(handle, size, at)

    monkeypatch.setattr(room_folder.os, "pread", failing)
    pieces = blobs.read("one")
    assert len(await anext(pieces)) == filesystem.PIECE_BYTES
    assert await asyncio.to_thread(failed.wait, 30)
    await asyncio.sleep(0.05)
    await pieces.aclose()
    gc.collect()  # nobody asks for the failure of what was read ahead; it must not be reported either
    again = blobs.read("one")
    await anext(again)
    with pytest.raises(BlobsUnreachable):
        await anext(again)


async def test_what_vanishes_while_it_is_listed_is_left_out(blobs, room, monkeypatch):
    for name in ("a", "b/c", "d"):
        await blobs.put(name, parts_of(b"x"))
    real = room_folder.os.open

    def vanishing(path, flags, *rest, **options):
        if path in ("a@", "b"):
            raise FileNotFoundError(path)
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(room_folder.os, "open", vanishing)
    assert [each.name for each in await blobs.list()] == ["d"]


@pytest.mark.parametrize("when", ["before it is opened", "after"])
async def test_a_room_opens_while_a_writer_gives_its_draft_up(blobs, house, room, monkeypatch, when):
    draft = room / ".parts" / ("0" * 32)
    draft.touch()
    call = os.listdir if when == "before it is opened" else room_folder.fcntl.flock

    def then_gone(*arguments):
        given = call(*arguments)
        if when != "after" or arguments[1] & room_folder.fcntl.LOCK_NB:
            draft.unlink()
        return given

    if when == "after":
        monkeypatch.setattr(room_folder.fcntl, "flock", then_gone)
    else:
        monkeypatch.setattr(room_folder.os, "listdir", then_gone)
    await house.open("acme")
    monkeypatch.undo()
    assert list((room / ".parts").iterdir()) == []


async def test_a_size_counts_what_is_there_and_not_what_vanishes(blobs, house, monkeypatch):
    await blobs.put("one", parts_of(b"x" * 1000))
    assert await house.size_bytes("acme") == 1016
    monkeypatch.setattr(filesystem.os, "lstat", _raising(FileNotFoundError))
    assert await house.size_bytes("acme") == 0
    assert await house.size_bytes("never-made") == 0


def _raising(error):
    def fails(*arguments):
        raise error

    return fails


async def test_two_processes_replace_one_version_once(tmp_path, room):
    """Two houses over one folder have nothing in common but the disk."""
    houses = [FileBlobHouse(tmp_path / "blobs") for _ in range(2)]
    await houses[0].prepare()
    await houses[0].create("acme")
    rooms = [Blobs(await each.open("acme")) for each in houses]
    version = (await rooms[0].put("one", parts_of(b"0"))).version
    for number in range(10):
        done = await asyncio.gather(
            *(each.put("one", parts_of(b"%d" % number), expect=version) for each in rooms), return_exceptions=True
        )
        won = [each for each in done if not isinstance(each, ConditionFailed)]
        assert len(won) == 1
        version = won[0].version
    for each in houses:
        await each.close()
