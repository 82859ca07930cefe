"""Drawers: what a program keeps for one user, in whose name, and what the store learns of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nagaya.context.drawers import MAX_CHANGES, Delete, Drawer, Put
from nagaya.errors import ConditionFailed, Forbidden, SessionClosed
from nagaya.tenancy.principal import Scope
from support.inside import inside


async def test_records_of_a_folder_are_put_changed_read_and_removed(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        folder = await tenant.drawer("notes").folder("roof")
        assert await folder.put(b"a", b"1") == 1
        assert await folder.put(b"a", b"2", expect=1) == 2
        with pytest.raises(ConditionFailed):
            await folder.put(b"a", b"3", expect=1)
        await folder.write([Put(b"b", b"4"), Put(b"c", b"5")])
        assert [row.body for row in await folder.query(after=b"a")] == [b"4", b"5"]
        assert [row and row.body for row in await folder.get_many([b"c", b"x", b"a"])] == [b"5", None, b"2"]
        await folder.write([Delete(b"b", 1)])
        await folder.remove(b"a")
        await folder.remove(b"a")
        assert [row.sort for row in await folder.query(descending=True)] == [b"c"]


async def test_a_folder_is_cleared_whole_or_in_part_however_much_is_in_it(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        folder = await tenant.drawer("notes").folder("many")
        for first in range(0, 250, 50):
            await folder.write([Put(bytes([number]), b"x") for number in range(first, first + 50)])
        await folder.clear(after=bytes([9]), before=bytes([240]))
        assert len(await folder.query(limit=1000)) == 10 + 10
        await folder.clear()
        await folder.clear()
        assert await folder.query() == []
        assert MAX_CHANGES < 230, "or it was one batch"


async def test_what_somebody_changes_meanwhile_is_removed_all_the_same(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        folder = await tenant.drawer("notes").folder("busy")
        await folder.write([Put(b"a", b"1"), Put(b"b", b"1")])
        real, changed = type(tenant.session.records).write, []

        async def write(records, partition, changes):
            if len(changed) < 2:
                changed.append(await folder.put(b"b", b"2", expect=1 + len(changed)))
            await real(records, partition, changes)

        monkeypatch.setattr(type(tenant.session.records), "write", write)
        await folder.clear()
        assert changed == [2, 3]
        assert await folder.query() == []


async def test_names_are_told_apart_by_user_program_and_each_other(tmp_path: Path, monkeypatch):
    async with (
        inside(tmp_path, monkeypatch) as house,
        house.as_user("mio") as mio,
        house.as_user("ren") as ren,
        house.as_user("mio") as again,
    ):
        names = [
            (await mio.drawer("notes").folder("a", "b")).name,
            (await mio.drawer("notes").folder("b", "a")).name,
            (await mio.drawer("notes").folder("ab")).name,
            (await mio.drawer("notes").folder('a","b')).name,
            (await mio.drawer("other").folder("a", "b")).name,
            (await ren.drawer("notes").folder("a", "b")).name,
        ]
        assert len(set(names)) == len(names)
        assert (await again.drawer("notes").folder("a", "b")).name == names[0]
        mark = await mio.drawer("notes").mark("a", "b")
        assert len(mark) == 32
        assert mark != await ren.drawer("notes").mark("a", "b")
        assert mark.hex() not in names
        await (await mio.drawer("notes").folder("a")).put(b"k", b"mine")
        assert await (await ren.drawer("notes").folder("a")).get(b"k") is None


async def test_a_key_that_may_only_read_writes_nothing_and_one_that_may_not_read_reads_nothing(
    tmp_path: Path, monkeypatch
):
    async with inside(tmp_path, monkeypatch) as house:
        async with house.as_user("mio", scopes=[Scope.READ]) as reader:
            folder = await reader.drawer("notes").folder("a")
            assert await folder.get(b"k") is None
            for work in (
                folder.put(b"k", b"x"),
                folder.write([Put(b"k", b"x")]),
                folder.clear(),
            ):
                with pytest.raises(Forbidden):
                    await work
        async with house.as_user("mio", scopes=[Scope.WRITE]) as writer:
            folder = await writer.drawer("notes").folder("a")
            await folder.put(b"k", b"x")
            for work in (folder.get(b"k"), folder.get_many([b"k"]), folder.query()):
                with pytest.raises(Forbidden):
                    await work


async def test_a_folder_ends_with_its_session(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house:
        async with house.as_user() as tenant:
            drawer = Drawer(tenant.session, "notes")
            folder = await drawer.folder("a")
        for work in (folder.get(b"k"), folder.put(b"k", b"x"), drawer.folder("b")):
            with pytest.raises(SessionClosed):
                await work
