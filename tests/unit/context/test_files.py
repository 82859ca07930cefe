"""Files that people keep: whose they are, what is kept of them, and that nothing is left of one that is gone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nagaya.context.library import files as library
from nagaya.context.library.files import Files, clean_name, end_files, new_blob, sweep_uploads
from nagaya.context.library.owned import Owned
from nagaya.errors import (
    BlobTooLarge,
    ConditionFailed,
    InvalidValue,
    MissingParameter,
    NotFound,
    StoreFull,
    StoreUnreachable,
    TooSlow,
)
from nagaya.kernel.clock import SystemClock
from nagaya.kernel.ids import new_id
from nagaya.records.sealed_blobs import SealedBlobs
from nagaya.records.sealed_store import SealedStore
from support.inside import inside
from support.naughty import NAUGHTY

CANARY = b"zq-canary-vault-code-9902"


async def parts(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def kept(tenant, name: str = "roof.txt", body: bytes = CANARY, **options):
    return await tenant.files.create(name, parts(body), **options)


async def read(tenant, file_id: str) -> bytes:
    return b"".join([piece async for piece in tenant.files.content(file_id)])


async def left(tenant) -> tuple[list[str], list[str]]:
    """The names of blobs and of partitions that speak of files."""
    blobs = await tenant.session.blobs()
    names = [blob.name async for blob in blobs.list_all()]
    rows = await tenant.session.records.scan(limit=500)
    return names, [partition.collection for partition, _ in rows if partition.collection.startswith("file")]


class Later:
    """The machine's clock, some days ahead."""

    def __init__(self, days: float) -> None:
        self._clock, self._us = SystemClock(), int(days * 86_400_000_000)

    def now_us(self) -> int:
        return self._clock.now_us() + self._us

    def monotonic_s(self) -> float:
        return self._clock.monotonic_s()


async def test_a_file_comes_back_as_it_was_given(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        body = [b"x" * 700_000, b"", CANARY, b"y" * 900_000]
        made = await tenant.files.create("屋根 見積.txt", parts(*body), purpose="assistants")
        assert (made.filename, made.bytes, made.purpose) == ("屋根 見積.txt", 1_600_000 + len(CANARY), "assistants")
        assert await tenant.files.retrieve(made.id) == made
        assert await read(tenant, made.id) == b"".join(body)
        empty = await kept(tenant, body=b"")
        assert (empty.bytes, await read(tenant, empty.id)) == (0, b"")
    raw = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert CANARY not in raw
    assert "見積".encode() not in raw


async def test_a_file_is_its_owners_unless_it_is_shared(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user("mio") as mio:
        own, shared = await kept(mio), await kept(mio, "all.txt", shared=True)
        seen = {"ren/user": (), "yui/member": (shared,), "aoi/tenant_admin": (own, shared)}
        for person, files in seen.items():
            async with house.as_user(*person.split("/")) as other:
                for each in (own, shared):
                    if each in files:
                        assert await read(other, each.id) == CANARY
                    else:
                        for refused in (other.files.retrieve, other.files.delete, lambda it, who=other: read(who, it)):
                            with pytest.raises(NotFound, match="file"):
                                await refused(each.id)
                        with pytest.raises(NotFound):
                            await other.files.list(after=each.id)
                assert (await other.files.list()).data == []
        async with house.as_user("yui", "member") as member:
            assert (await member.files.list(shared=True)).data == [shared]
            with pytest.raises(NotFound):
                await member.files.delete(shared.id)
        async with house.as_user("aoi", "tenant_admin") as admin:
            assert (await admin.files.list(user="mio")).data == [shared, own]
            await admin.files.delete(own.id)
        with pytest.raises(NotFound):
            await mio.files.retrieve(own.id)


async def test_lists_go_on_from_an_id_or_a_cursor(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        made = [await kept(tenant, f"{n}.txt", purpose=["vision", "user_data"][n % 2]) for n in range(5)]
        first = await tenant.files.list(limit=2, order="asc")
        assert (first.data, bool(first.cursor)) == (made[:2], True)
        assert (await tenant.files.list(limit=9, order="asc", after=first.cursor)).data == made[2:]
        assert (await tenant.files.list(limit=9, after=made[3].id)).data == made[2::-1]
        assert (await tenant.files.list(purpose="user_data", order="asc")).data == made[1::2]
        with pytest.raises(NotFound):
            await tenant.files.list(limit=9, order="desc", after=first.cursor)
        async with house.as_user("ren") as other:
            with pytest.raises(NotFound):
                await other.files.list(limit=9, order="asc", after=first.cursor)
        with pytest.raises(InvalidValue):
            await tenant.files.list(limit=10_001)


async def test_nothing_is_left_of_a_deleted_file(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        made, told = await kept(tenant, shared=True), []

        async def forget(session, file_id):
            told.append(file_id)
            if len(told) == 1:
                raise RuntimeError("killed here")

        files = Files(tenant.session, on_delete=[forget])
        with pytest.raises(RuntimeError):
            await files.delete(made.id)
        with pytest.raises(NotFound):
            await files.retrieve(made.id)
        assert (await files.list()).data == []
        await files.delete(made.id)
        assert told == [made.id, made.id]
        with pytest.raises(NotFound):
            await files.delete(made.id)
        tenant.session.clock = Later(1)
        await end_files(tenant.session)
        assert await left(tenant) == ([], [])


async def test_a_deletion_that_was_cut_off_and_a_term_that_is_over_are_finished_by_the_daily_work(
    tmp_path: Path, monkeypatch
):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        ending, cut = await kept(tenant, expires_after_s=3600), await kept(tenant)
        assert ending.expires_at == ending.created_at + 3600
        staying = await kept(tenant, expires_after_s=2_592_000)

        async def forget(session, file_id):
            raise RuntimeError("killed here")

        with pytest.raises(RuntimeError):
            await Files(tenant.session, on_delete=[forget]).delete(cut.id)
        tenant.session.clock = Later(0.1)
        with pytest.raises(NotFound):
            await tenant.files.retrieve(ending.id)
        assert await end_files(tenant.session) == 2
        assert await end_files(tenant.session) == 0
        assert [name.startswith(f"file/{staying.id}.") for name in (await left(tenant))[0]] == [True]
        assert (await tenant.files.list()).data == [staying]


async def test_an_upload_that_fails_leaves_nothing(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:

        async def cut() -> AsyncIterator[bytes]:
            yield CANARY * 100_000
            raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            await tenant.files.create("cut.txt", cut())
        monkeypatch.setattr(library, "MAX_FILE_BYTES", 1000)
        with pytest.raises(BlobTooLarge):
            await tenant.files.create("large.txt", parts(b"x" * 900, b"x" * 101))
        assert (await tenant.files.create("fits.txt", parts(b"x" * 1000))).bytes == 1000
        for wrong in ({"purpose": "batch"}, {"purpose": "dance"}, {"expires_after_s": 5}):
            with pytest.raises(InvalidValue):
                await kept(tenant, **wrong)
        with pytest.raises(MissingParameter):
            await kept(tenant, purpose="")
        assert len((await left(tenant))[0]) == 1


async def test_a_store_that_takes_no_head_gets_no_blob_either(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:

        async def full(*_, **__):
            raise StoreFull

        with monkeypatch.context() as patched:
            patched.setattr(type(tenant.session.records), "put", full)
            with pytest.raises(StoreFull):
                await kept(tenant)
        assert await left(tenant) == ([], [])


async def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:

        async def full(self, name, given, **_):
            async for _part in given:
                raise StoreFull

        with monkeypatch.context() as patched:
            patched.setattr(SealedBlobs, "put", full)
            with pytest.raises(StoreFull):
                await kept(tenant)
        assert await left(tenant) == ([], [])


async def test_the_bytes_of_an_upload_that_a_crash_cut_off_are_swept_a_day_later(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        seen = await kept(tenant)
        await (await tenant.session.blobs()).put(new_blob(new_id("file")), parts(CANARY))
        await (await tenant.session.blobs()).put("file/of-somebody-else", parts(CANARY))
        assert await sweep_uploads(tenant.session) == 0
        tenant.session.clock = Later(1.1)
        assert await sweep_uploads(tenant.session) == 1
        assert await sweep_uploads(tenant.session) == 0
        assert await read(tenant, seen.id) == CANARY
        assert len((await left(tenant))[0]) == 2


async def test_repeating_with_the_same_id_gives_the_file_made_before(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        new = new_id("file")
        first = await kept(tenant, file_id=new)
        assert await kept(tenant, "other.txt", b"other", file_id=new) == first
        assert await read(tenant, new) == CANARY
        assert len((await left(tenant))[0]) == 1


async def test_of_two_uploads_with_one_id_at_once_one_is_kept_whole(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        new = new_id("file")

        async def overtaken() -> AsyncIterator[bytes]:
            yield b"the slow one"
            await kept(tenant, "quick.txt", file_id=new)

        assert (await tenant.files.create("slow.txt", overtaken(), file_id=new)).filename == "quick.txt"
        assert await read(tenant, new) == CANARY
        assert len((await left(tenant))[0]) == 1


def test_names_keep_what_can_be_shown_and_lead_nowhere():
    assert clean_name("../../etc/passwd") == "passwd"
    assert clean_name("C:\\Users\\mio\\見積書（最終）.xlsx") == "見積書（最終）.xlsx"
    assert clean_name("nul\x00in\ud800side\u202egpj.exe") == "nulinsidegpj.exe"
    assert clean_name("..") == clean_name("/") == clean_name("\x00") == clean_name("") == "file"
    assert clean_name("a" * 255) == "a" * 255
    with pytest.raises(InvalidValue):
        clean_name("a" * 256)
    for text in NAUGHTY:
        if len(text) <= 255:
            cleaned = clean_name(text)
            cleaned.encode()
            assert cleaned
            assert not set(cleaned) & set("/\\\r\n\x00")


async def test_a_head_that_is_written_late_names_no_bytes_that_are_gone(tmp_path: Path, monkeypatch):
    """The store did not answer in time, and does what it was asked after that."""
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        put = SealedStore.put
        late: list[tuple] = []

        async def lost(self, partition, sort, body, *, expect=0):
            if partition.collection == "file" and not late:
                late.append((partition, sort, body))
                raise StoreUnreachable
            return await put(self, partition, sort, body, expect=expect)

        monkeypatch.setattr(SealedStore, "put", lost)
        with pytest.raises(StoreUnreachable):
            await kept(tenant)
        with contextlib.suppress(ConditionFailed):
            await put(tenant.session.records, *late[0])
        for each in (await tenant.files.list()).data:
            assert await read(tenant, each.id) == CANARY
        tenant.session.clock = Later(1.1)
        await end_files(tenant.session)
        assert await left(tenant) == ([], [])


async def test_an_upload_that_takes_a_day_is_refused_before_its_bytes_are_taken_for_lost(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        add = Owned.add

        async def swept_before(self, head):
            await sweep_uploads(tenant.session)
            return await add(self, head)

        async def slowly() -> AsyncIterator[bytes]:
            yield CANARY
            tenant.session.clock = Later(1.1)

        monkeypatch.setattr(Owned, "add", swept_before)
        with pytest.raises(TooSlow):
            await tenant.files.create("slow.txt", slowly())
        assert (await tenant.files.list()).data == []
        assert (await left(tenant))[0] == []
