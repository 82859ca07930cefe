"""Conversations: who sees which, pages with gaps, places taken at once, and idempotent appends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nagaya.context import idempotency
from nagaya.context.idempotency import Answer, Claim, claim
from nagaya.context.items import Message
from nagaya.context.places import item_sort, partition_of
from nagaya.errors import (
    ConditionFailed,
    Forbidden,
    IdempotencyInProgress,
    IdempotencyMismatch,
    InvalidValue,
    NotFound,
    SealBroken,
    StoreUnreachable,
)
from nagaya.records.sealed_store import SealedStore
from support.inside import inside


def messages(*texts: str) -> list[Message]:
    return [Message.user(text) for text in texts]


async def test_a_shared_conversation_is_read_by_members_and_written_by_its_owner(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house:
        async with house.as_user("mio") as tenant:
            chat = (await tenant.conversations.create(title="Roof", items=messages("a"))).id
        async with house.as_user("yui", "member") as tenant:
            with pytest.raises(NotFound):
                await tenant.conversations.retrieve(chat)
        async with house.as_user("mio") as tenant:
            await tenant.conversations.update(chat, shared=True)
        async with house.as_user("yui", "member") as tenant:
            assert (await tenant.conversations.retrieve(chat)).title == "Roof"
            assert [shown.id for shown in (await tenant.conversations.list(shared=True)).data] == [chat]
            assert (await tenant.conversations.list()).data == []
            for work in (
                tenant.conversations.append(chat, *messages("b")),
                tenant.conversations.update(chat, title="Mine"),
                tenant.conversations.delete(chat),
                tenant.responses.create("x", conversation=chat),
            ):
                with pytest.raises(NotFound):
                    await work
        async with house.as_user("ren", "user") as tenant:
            with pytest.raises(NotFound):
                await tenant.conversations.items(chat)
            with pytest.raises(Forbidden):
                await tenant.conversations.list(shared=True)
        async with house.as_user("mio") as tenant:
            await tenant.conversations.update(chat, shared=False)
        async with house.as_user("yui", "member") as tenant:
            assert (await tenant.conversations.list(shared=True)).data == []
            with pytest.raises(NotFound):
                await tenant.conversations.items(chat)


async def test_a_tenants_administrator_reads_and_changes_all_of_its_tenant(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house:
        async with house.as_user("mio") as tenant:
            chat = (await tenant.conversations.create()).id
        async with house.as_user("aoi", "tenant_admin") as tenant:
            assert (await tenant.conversations.list()).data == []
            assert [shown.id for shown in (await tenant.conversations.list(user="mio")).data] == [chat]
            await tenant.conversations.append(chat, *messages("from above"))
            await tenant.conversations.update(chat, archived=True)
            await tenant.conversations.delete(chat)
        async with house.as_user("mio") as tenant:
            assert (await tenant.conversations.list(user="mio")).data == []
            with pytest.raises(Forbidden):
                await tenant.conversations.list(user="aoi")
            with pytest.raises(NotFound):
                await tenant.conversations.retrieve(chat)


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_pages_close_over_deleted_items(tmp_path: Path, monkeypatch, order, limit):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        chat = (await tenant.conversations.create()).id
        items = await tenant.conversations.append(chat, *messages(*"abcdefghijklmno"))
        for doomed in (items[0], items[3], items[4], items[5], items[6], items[14]):
            await tenant.conversations.delete_item(chat, doomed.id)
        expected = list("bchijklmn") if order == "asc" else list("nmlkjihcb")
        found: list[str] = []
        after = None
        while True:
            page = await tenant.conversations.item_page(chat, after=after, limit=limit, order=order)
            found += [
                item.text for item in await tenant.conversations.items(chat, after=after, limit=limit, order=order)
            ]
            after = page.last_id
            if not page.has_more:
                break
        assert found == expected
        with pytest.raises(NotFound):
            await tenant.conversations.items(chat, after=items[3].id)
        for item in await tenant.conversations.append(chat, *messages("p")):
            await tenant.conversations.delete_item(chat, item.id)
        assert [i.text for i in await tenant.conversations.append(chat, *messages("q"))] == ["q"]


async def test_a_list_goes_on_behind_archived_ones(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        made = [(await tenant.conversations.create(title=str(number))).id for number in range(9)]
        for number in (0, 2, 3, 4, 8):
            await tenant.conversations.update(made[number], archived=True)
        found, cursor = [], None
        while True:
            page = await tenant.conversations.list(archived=False, limit=2, after=cursor, order="asc")
            found += [shown.title for shown in page.data]
            cursor = page.cursor
            if cursor is None:
                break
        assert found == ["1", "5", "6", "7"]
        after = await tenant.conversations.list(after=made[5], limit=3, order="asc")
        assert [shown.title for shown in after.data] == ["6", "7", "8"]


async def test_two_processes_that_append_at_once_both_find_a_place(tmp_path: Path, monkeypatch):
    from nagaya.settings import Settings
    from nagaya.wiring import Nagaya

    async with inside(tmp_path, monkeypatch) as house, Nagaya.open(settings=Settings(data=str(tmp_path))) as other:
        token = await house.nagaya.tenants.mint("acme", "mio")
        async with (
            house.nagaya.session(await house.nagaya.enter(token)) as one,
            other.session(await other.enter(token)) as two,
        ):
            chat = (await one.conversations.create()).id

            async def write(tenant, name: str) -> list[str]:
                acknowledged = []
                for number in range(15):
                    text = f"{name}{number:02d}"
                    await tenant.conversations.append(chat, *messages(text, text))
                    acknowledged.append(text)
                return acknowledged

            written = await asyncio.gather(write(one, "a"), write(two, "b"))
            texts = [item.text for item in await two.conversations.all_items(chat)]
            assert len(texts) == 60
            for name, acknowledged in zip("ab", written, strict=True):
                assert [text for text in texts if text[0] == name][::2] == acknowledged
            await one.conversations.delete(chat, permanent=True)
            with pytest.raises(NotFound):
                await two.conversations.append(chat, *messages("late"))
            assert await two.session.records.query(partition_of(chat), after=b"", before=b"i", limit=5) == []


async def test_what_is_too_much_is_refused(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        chat = (await tenant.conversations.create()).id
        for work in (
            tenant.conversations.append(chat, *messages(*("x" * 21))),
            tenant.conversations.create(items=messages(*("x" * 21))),
            tenant.conversations.create(metadata={str(n): "x" for n in range(17)}),
            tenant.conversations.create(metadata={"k" * 65: "x"}),
            tenant.conversations.create(metadata={"k": "x" * 513}),
            tenant.conversations.update(chat, metadata={"k": "x" * 513}),
            tenant.conversations.items(chat, limit=0),
            tenant.conversations.items(chat, limit=101),
        ):
            with pytest.raises(InvalidValue):
                await work
        for bad in ("", "conv_", "conv_" + "g" * 32, "item_" + "0" * 32, "conv_" + "0" * 33):
            with pytest.raises(NotFound):
                await tenant.conversations.retrieve(bad)
        for bad in ("", "item_x", "item_" + "0" * 32, "item_" + "f" * 32):
            with pytest.raises(NotFound):
                await tenant.conversations.item(chat, bad)


async def test_an_item_in_another_place_does_not_open(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        chat = (await tenant.conversations.create(items=messages("a", "b"))).id
        store = tenant.session.records._store
        rows = [await store.get(f"conversation/{chat}", item_sort(place)) for place in (0, 1)]
        assert rows[0] is not None
        assert rows[1] is not None
        await store.put(f"conversation/{chat}", item_sort(2), rows[0].body, 0)
        with pytest.raises(SealBroken):
            await tenant.conversations.items(chat)


# --- idempotency ---


async def test_a_claim_keeps_others_out_until_it_is_answered(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        first = await claim(tenant.session, "key", b"one")
        assert isinstance(first, Claim)
        with pytest.raises(IdempotencyInProgress) as busy:
            await claim(tenant.session, "key", b"one")
        assert busy.value.retry_after_s
        with pytest.raises(IdempotencyMismatch):
            await claim(tenant.session, "key", b"two")
        await first.finish(200, "屋根".encode())
        assert await claim(tenant.session, "key", b"one") == Answer(200, "屋根".encode())
        with pytest.raises(IdempotencyMismatch):
            await claim(tenant.session, "key", b"two")
        given_back = await claim(tenant.session, "other", b"one")
        assert isinstance(given_back, Claim)
        await given_back.abandon()
        await given_back.abandon()
        assert isinstance(await claim(tenant.session, "other", b"two"), Claim)


async def test_a_claim_whose_holder_died_is_taken_over_with_the_same_ids(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        first = await claim(tenant.session, "key", b"one")
        monkeypatch.setattr(idempotency, "LEASE_US", 0)
        second = await claim(tenant.session, "key", b"one")
        assert isinstance(first, Claim)
        assert isinstance(second, Claim)
        assert first.id("conv") == second.id("conv")
        assert first.id("item", 0) != first.id("item", 1) != second.id("conv")
        await first.finish(200, b"late")
        assert isinstance(await claim(tenant.session, "key", b"one"), Claim)


async def test_an_answer_is_forgotten_after_a_day_and_the_key_is_new(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        first = await claim(tenant.session, "key", b"one")
        assert isinstance(first, Claim)
        await first.finish(200, b"{}")
        monkeypatch.setattr(idempotency, "KEEP_US", 0)
        again = await claim(tenant.session, "key", b"two")
        assert isinstance(again, Claim)
        assert again.id("conv") != first.id("conv")


async def test_of_ten_repeats_at_once_one_holds_the_claim(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        outcomes = await asyncio.gather(
            *(claim(tenant.session, "key", b"one") for _ in range(10)), return_exceptions=True
        )
        assert sum(isinstance(outcome, Claim) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, IdempotencyInProgress) for outcome in outcomes) == 9


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "\x00"])
async def test_a_key_that_is_none_is_refused(tmp_path: Path, monkeypatch, key):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        with pytest.raises(InvalidValue):
            await claim(tenant.session, key, b"one")


async def test_items_with_ids_of_their_own_are_appended_once(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        chat = (await tenant.conversations.create()).id
        held = await claim(tenant.session, "key", b"one")
        assert isinstance(held, Claim)

        def again() -> list[Message]:
            items = messages("a", "b")
            for number, item in enumerate(items):
                item.id = held.id("item", number)
            return items

        await tenant.conversations.append_bodies(chat, again(), keep_ids=True)
        await tenant.conversations.append(chat, *messages("between"))
        for _ in range(2):
            with pytest.raises(ConditionFailed):
                await tenant.conversations.append_bodies(chat, again(), keep_ids=True)
        assert [item.text for item in await tenant.conversations.all_items(chat)] == ["a", "b", "between"]
        assert (await tenant.conversations.item(chat, held.id("item", 1))).id == held.id("item", 1)


@pytest.mark.parametrize("what", ["deleted", "removed", "its term was set"])
async def test_what_ended_through_a_session_from_before_a_change_of_the_tenant_is_read_and_appended_to_no_more(
    tmp_path: Path, monkeypatch, what: str
):
    """Such a session goes on in the room that the tenant had before; those that come have another."""
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as before:
        chat = (await before.conversations.create()).id
        await house.nagaya.tenants.change("acme", {"restore_days": 3})
        async with house.as_user() as after:
            for text in ("a", "b", "c"):
                await after.conversations.append(chat, *messages(text))
                await after.conversations.items(chat)
            now_us = after.session.clock.now_us()
            if what == "its term was set":
                await before.conversations.update(chat, expires_at=now_us // 1_000_000 + 60)
                monkeypatch.setattr(after.session.clock, "now_us", lambda: now_us + 120 * 1_000_000, raising=False)
            else:
                await before.conversations.delete(chat, permanent=what == "removed")
            for _ in range(3):
                await asyncio.sleep(0.05)  # the log of what was written is tended beside
                with pytest.raises(NotFound):
                    await after.conversations.items(chat)
                with pytest.raises(NotFound):
                    await after.conversations.append(chat, *messages("d"))


@pytest.mark.parametrize("what", ["deleted", "removed", "its term was set"])
async def test_what_ended_though_nobody_said_so_is_read_and_appended_to_no_more(tmp_path: Path, monkeypatch, what: str):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        chat = (await tenant.conversations.create()).id
        for text in ("a", "b", "c"):
            await tenant.conversations.append(chat, *messages(text))
            await tenant.conversations.items(chat)
        name = "put" if what == "its term was set" else "write"
        method = getattr(SealedStore, name)

        async def lost(self, partition, *args, **options):
            await method(self, partition, *args, **options)
            if partition == partition_of(chat):
                raise StoreUnreachable

        now_us = tenant.session.clock.now_us()
        with monkeypatch.context() as cut, pytest.raises(StoreUnreachable):
            cut.setattr(SealedStore, name, lost)
            if what == "its term was set":
                await tenant.conversations.update(chat, expires_at=now_us // 1_000_000 + 60)
            else:
                await tenant.conversations.delete(chat, permanent=what == "removed")
        monkeypatch.setattr(tenant.session.clock, "now_us", lambda: now_us + 120 * 1_000_000, raising=False)
        await asyncio.sleep(0.05)  # the log of what was written is tended beside
        with pytest.raises(NotFound):
            await tenant.conversations.items(chat)
        with pytest.raises(NotFound):
            await tenant.conversations.append(chat, *messages("d"))
