"""The portable store: deadlines and errors; and what SQLite's and the system's errors become."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import apsw
import pytest

from nagaya.errors import InvalidValue, NagayaError, StoreDamaged, StoreFull, StoreReadOnly, StoreUnreachable
from nagaya.stores import sqlite_format
from nagaya.stores.driver import Change, Later, Row, ScannedRow
from nagaya.stores.memory import MemoryHouse
from nagaya.stores.store import Store


class Stuck:
    """A driver that never answers, or answers with an error of the network's."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    async def _answer(self) -> None:
        if self._error is not None:
            raise self._error
        await asyncio.Event().wait()

    async def get(self, partition: str, sort: bytes) -> Row | None:
        await self._answer()
        return None

    async def write(self, partition: str, changes: Sequence[Change]) -> None:
        await self._answer()

    async def query(
        self, partition: str, *, after: bytes, before: bytes, limit: int, descending: bool
    ) -> Sequence[Row]:
        await self._answer()
        return []

    async def scan(self, *, after: tuple[str, bytes] | None, limit: int) -> Sequence[ScannedRow]:
        await self._answer()
        return []

    async def close(self) -> None:
        return None


@pytest.mark.parametrize("driver", [Stuck(), Stuck(ConnectionResetError()), Stuck(TimeoutError())])
async def test_a_store_that_does_not_answer_is_unreachable(driver: Stuck) -> None:
    store = Store(driver, deadline_s=0.01)
    for call in (
        store.get("p", b"k"),
        store.get_many("p", [b"k", b"l"]),
        store.put("p", b"k", b""),
        store.delete("p", b"k", 1),
        store.query("p"),
        store.scan(),
    ):
        with pytest.raises(StoreUnreachable):
            await call


class Near(Stuck):
    """Records one to four; the even ones are at hand, the others must be asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bytes] = []

    def get_now(self, partition: str, sort: bytes) -> Row | Literal[Later.LATER] | None:
        return Later.LATER if sort[0] % 2 else self._row(sort)

    async def get(self, partition: str, sort: bytes) -> Row | None:
        self.asked.append(sort)
        await asyncio.sleep(0)
        return self._row(sort)

    def _row(self, sort: bytes) -> Row | None:
        return Row(sort, 1, b"body") if 1 <= sort[0] <= 4 else None


async def test_several_records_come_in_the_order_asked_for_and_only_what_is_not_at_hand_is_fetched() -> None:
    driver = Near()
    store = Store(driver)
    rows = await store.get_many("p", [b"\x04", b"\x01", b"\x06", b"\x03", b"\x07"])
    assert [None if row is None else row.sort for row in rows] == [b"\x04", b"\x01", None, b"\x03", None]
    assert driver.asked == [b"\x01", b"\x03", b"\x07"]
    assert await store.get_many("p", [b"\x02"]) == [Row(b"\x02", 1, b"body")]
    assert await store.get_many("p", []) == []
    with pytest.raises(InvalidValue):
        await store.get_many("p", [b"\x01", b""])


async def test_a_caller_who_gives_up_is_not_told_that_the_store_is_unreachable() -> None:
    task = asyncio.create_task(Store(Stuck()).get("p", b"k"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_room_in_memory_exists_until_it_is_destroyed() -> None:
    house = MemoryHouse()
    await house.create("acme")
    assert await house.exists("acme")
    await house.destroy("acme")
    assert not await house.exists("acme")
    assert await house.size_bytes("acme") == 0


@pytest.mark.parametrize(
    ("number", "meaning"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EROFS, StoreReadOnly),
        (errno.EACCES, StoreReadOnly),
        (errno.ENOENT, StoreDamaged),
        (errno.EIO, StoreUnreachable),
        (errno.EMFILE, StoreUnreachable),
    ],
)
def test_the_systems_errors_have_one_meaning_each(number: int, meaning: type[NagayaError]) -> None:
    assert type(sqlite_format.file_error(OSError(number, ""), "acme")) is meaning


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (apsw.FullError, StoreFull),
        (apsw.CorruptError, StoreDamaged),
        (apsw.NotADBError, StoreDamaged),
        (apsw.ReadOnlyError, StoreReadOnly),
        (apsw.IOError, StoreUnreachable),
        (apsw.BusyError, StoreUnreachable),
        (apsw.CantOpenError, StoreUnreachable),
        (apsw.NoMemError, StoreUnreachable),
    ],
)
def test_sqlites_errors_have_one_meaning_each(
    tmp_path: Path, error: type[apsw.Error], meaning: type[NagayaError]
) -> None:
    sqlite_format.make(tmp_path, "acme")
    assert type(sqlite_format.sqlite_error(error(), None, tmp_path / "acme")) is meaning


def test_a_damaged_store_is_named_by_its_room_and_never_by_a_path(tmp_path: Path) -> None:
    for language in ("en", "ja"):
        said = sqlite_format.sqlite_error(apsw.CorruptError(), None, tmp_path / "acme").message(language)
        assert "acme" in said
        assert str(tmp_path) not in said
