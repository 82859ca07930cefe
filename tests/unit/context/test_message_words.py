"""Words noted beside messages: a search with them finds what a search without them finds, and nothing of what is gone."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from nagaya.context import message_search, message_words
from nagaya.context.items import Hidden, Message
from nagaya.context.message_words import forget_words, note_words, read_words
from nagaya.context.places import HEAD, ITEM, WORDS, item_sort, partition_of
from nagaya.errors import ConditionFailed, SealBroken
from nagaya.indexes import word_block
from nagaya.indexes.terms import term_counts, term_key
from nagaya.records.sealed_store import SealedStore
from support.inside import inside

VOCABULARY = [
    "zebra",
    "stripes",
    "grass",
    "roof",
    "mended",
    "Kyoto",
    "屋根",
    "修理",
    "京都",
    "会議",
    "資料",
    "ｼﾏｳﾏ",
    "E-14",
    "the",
]


@pytest.fixture
async def house(tmp_path, monkeypatch):
    monkeypatch.setattr(message_search, "QUIET_US", 0)
    async with inside(tmp_path, monkeypatch) as opened:
        yield opened


async def settled(tenant) -> None:
    """Wait until nothing is being noted."""
    async with asyncio.timeout(60):
        while tenant.session.room.noting:
            await asyncio.sleep(0.01)


async def noted(tenant, conversation_id: str) -> list[tuple[int, int]]:
    """The places whose words are noted."""
    words = await read_words(tenant.session, conversation_id)
    return [] if words is None else [(block.first, block.upto) for _, block in words.noted]


async def words_kept(tenant) -> bytes:
    """Every record of words in the room, opened."""
    kept, after = b"", None
    while rows := await tenant.session.records.scan(after=after, limit=500):
        kept += b"".join(record.body for _, record in rows if record.sort.startswith(WORDS) and len(record.sort) == 9)
        after = f"{rows[-1][0].collection}/{rows[-1][0].name}", rows[-1][1].sort
    return kept


def has(kept: bytes, text: str) -> list[bool]:
    """For each term of the text whether its key is in these bytes."""
    return [term_key(term).to_bytes(8, "little") in kept for term in term_counts(text)]


async def everything(tenant, query: str) -> list[tuple]:
    """All that is found, page by page."""
    found, after = [], None
    while True:
        page = await tenant.search(query, types=["conversations"], limit=100, after=after)
        assert page.complete
        found += [(one.score, one.conversation_id, one.item_id, one.snippet) for one in page.data]
        after = page.next_cursor
        if after is None:
            return found


async def test_a_search_has_noted_what_it_read_and_the_next_one_reads_none_of_it(house, monkeypatch):
    async with house.as_user() as tenant:
        made = await tenant.conversations.create(items=[Message.user(f"zebra {number}") for number in range(20)])
        first = await everything(tenant, "zebra")
        await settled(tenant)
        assert await noted(tenant, made.id) == [(0, 20)]
        monkeypatch.setattr(message_search, "item_places", nothing_there)
        assert await everything(tenant, "zebra") == first
        assert len(first) == 20


async def nothing_there(*_given, **_options) -> list:
    return []


async def test_what_comes_after_is_found_at_once_and_noted_with_the_rest(house):
    async with house.as_user() as tenant:
        made = await tenant.conversations.create(items=[Message.user("zebra one")])
        for number in range(3):
            await tenant.conversations.append(made.id, Message.user(f"zebra {number}"))
            assert len(await everything(tenant, "zebra")) == 2 + number
            await settled(tenant)
            assert await noted(tenant, made.id) == [(0, 2 + number)]


async def test_an_append_notes_nothing_and_costs_one_put(house, monkeypatch):
    async with house.as_user() as tenant:
        made = await tenant.conversations.create(items=[Message.user("zebra")] * 1)
        await note_words(tenant.session, made.id)
        await tenant.conversations.append(made.id, Message.user("zebra"))
        calls = []
        for name in ("get", "get_many", "put", "write", "query", "delete"):
            monkeypatch.setattr(SealedStore, name, counted(getattr(SealedStore, name), name, calls))
        await tenant.conversations.append(made.id, Message.user("zebra, too"))
        assert calls == ["put"]


def counted(method, name: str, calls: list[str]):
    def call(self, *given, **options):
        calls.append(name)
        return method(self, *given, **options)

    return call


async def test_a_conversation_that_goes_on_is_left_alone_until_it_has_several_new_messages(house, monkeypatch):
    monkeypatch.setattr(message_search, "QUIET_US", 60_000_000)
    async with house.as_user() as tenant:
        made = await tenant.conversations.create(items=[Message.user("zebra")] * 1)
        for _ in range(message_search.MANY - 1):
            assert not await noted(tenant, made.id)
            await tenant.conversations.append(made.id, Message.user("zebra"))
            await everything(tenant, "zebra")
            await settled(tenant)
        assert await noted(tenant, made.id) == [(0, message_search.MANY)]


@pytest.mark.parametrize("seed", range(6))
async def test_what_is_found_does_not_depend_on_what_is_noted(house, monkeypatch, seed):
    dice = random.Random(seed)
    if seed % 2:
        monkeypatch.setattr(word_block, "MAX_TEXTS", dice.randint(2, 5))
        monkeypatch.setattr(word_block, "MAX_TERMS", dice.randint(4, 8))
    async with house.as_user("yui", "member") as yui, house.as_user("mio", "user") as mio:
        own: dict[str, list[str]] = {}
        for who in (yui, mio):
            for _ in range(3):
                own[(await who.conversations.create()).id] = []
        of = dict(zip(own, [yui] * 3 + [mio] * 3, strict=True))
        for _ in range(60):
            conversation_id = dice.choice(list(own))
            who, items = of[conversation_id], own[conversation_id]
            match dice.randrange(10):
                case 0 if items:
                    item = items.pop(dice.randrange(len(items)))
                    await who.conversations.delete_item(conversation_id, item)
                case 1:
                    shared = dice.random() < 0.7
                    await who.conversations.update(conversation_id, shared=shared)
                case 2:
                    await note_words(yui.session, conversation_id)
                case 3 if dice.random() < 0.3:
                    await who.client_items.clear(conversation_id)
                    items.clear()
                case 4 if items and dice.random() < 0.5:
                    await who.client_items.pop(conversation_id)
                    items.pop()
                case 5 if dice.random() < 0.3:
                    await who.conversations.delete(conversation_id)
                    if dice.random() < 0.7:
                        await who.conversations.restore(conversation_id)
                    else:
                        del own[conversation_id], of[conversation_id]
                case _:
                    said = [
                        " ".join(dice.choices(VOCABULARY, k=dice.randint(1, 12))) for _ in range(dice.randint(1, 6))
                    ]
                    added = await who.conversations.append(conversation_id, *map(Message.user, said))
                    items += [item.id for item in added]
        for query in (
            "zebra stripes",
            "屋根の修理",
            "シマウマ",
            "E14",
            "the",
            "roof 京都 grass",
            dice.choice(VOCABULARY),
        ):
            for who in (yui, mio):
                with_words = await everything(who, query)
                await settled(who)
                assert await everything(who, query) == with_words
        alone = {query: [await everything(who, query) for who in (yui, mio)] for query in VOCABULARY}
        for who, conversation_id in itertools.product((yui, mio), own):
            await settled(who)
            await forget_words(who.session, conversation_id)
        assert not await words_kept(yui)
        for query, found in alone.items():
            assert [await everything(who, query) for who in (yui, mio)] == found


async def test_nothing_of_a_deleted_message_is_left_among_the_words(house):
    async with house.as_user() as tenant:
        made = await tenant.conversations.create(items=[Message.user("zebra"), Message.user("quokka シマウマ")])
        kept, gone = await tenant.conversations.items(made.id, order="asc")
        await note_words(tenant.session, made.id)
        assert all(has(await words_kept(tenant), "zebra quokka シマウマ"))
        await tenant.conversations.delete_item(made.id, gone.id)
        assert not any(has(await words_kept(tenant), "quokka シマウマ"))
        await note_words(tenant.session, made.id)
        left = await words_kept(tenant)
        assert all(has(left, "zebra"))
        assert not any(has(left, "quokka シマウマ"))
        assert [found[2] for found in await everything(tenant, "zebra")] == [kept.id]


@pytest.mark.parametrize("permanent", [False, True])
async def test_nothing_of_a_deleted_conversation_is_left_among_the_words(house, permanent):
    async with house.as_user() as tenant:
        made = await tenant.conversations.create(items=[Message.user("quokka シマウマ")])
        other = await tenant.conversations.create(items=[Message.user("zebra")])
        for one in (made, other):
            await note_words(tenant.session, one.id)
        await tenant.conversations.delete(made.id, permanent=permanent)
        left = await words_kept(tenant)
        assert not any(has(left, "quokka シマウマ"))
        assert all(has(left, "zebra"))
        await note_words(tenant.session, made.id)
        assert not any(has(await words_kept(tenant), "quokka シマウマ"))


async def test_what_a_client_takes_back_is_not_among_the_words(house):
    async with house.as_user() as tenant:
        made = await tenant.conversations.create(items=[Message.user("zebra"), Message.user("quokka")])
        await note_words(tenant.session, made.id)
        await tenant.client_items.pop(made.id)
        await note_words(tenant.session, made.id)
        assert has(await words_kept(tenant), "zebra quokka") == [True, False]
        await tenant.client_items.clear(made.id)
        assert not any(has(await words_kept(tenant), "zebra quokka"))


async def deletes_item(tenant, conversation_id: str) -> None:
    (newest,) = await tenant.conversations.items(conversation_id, limit=1)
    await tenant.conversations.delete_item(conversation_id, newest.id)


async def deletes(tenant, conversation_id: str) -> None:
    await tenant.conversations.delete(conversation_id)


async def purges(tenant, conversation_id: str) -> None:
    await tenant.conversations.delete(conversation_id, permanent=True)


async def pops(tenant, conversation_id: str) -> None:
    await tenant.client_items.pop(conversation_id)


async def clears(tenant, conversation_id: str) -> None:
    await tenant.client_items.clear(conversation_id)


@pytest.mark.parametrize("deleting", [deletes_item, deletes, purges, pops, clears])
async def test_what_is_deleted_while_its_words_are_being_noted_is_not_noted(house, monkeypatch, deleting):
    async with house.as_user() as tenant:
        made = await tenant.conversations.create(items=[Message.user("zebra"), Message.user("quokka")])
        write = SealedStore.write

        async def after_the_deletion(self, partition, changes):
            if any(change.sort.startswith(WORDS) for change in changes):
                monkeypatch.setattr(SealedStore, "write", write)
                await deleting(tenant, made.id)
            await write(self, partition, changes)

        monkeypatch.setattr(SealedStore, "write", after_the_deletion)
        await note_words(tenant.session, made.id)
        assert not any(has(await words_kept(tenant), "quokka"))


async def test_a_kill_between_any_two_writes_leaves_words_that_find_the_same(house, monkeypatch):
    monkeypatch.setattr(word_block, "MAX_TEXTS", 3)
    write = SealedStore.write
    async with house.as_user() as tenant:
        made = await tenant.conversations.create(items=[Message.user(f"zebra {number}") for number in range(10)])
        for allowed in range(5):
            left = [allowed]

            async def until_killed(self, partition, changes, left=left):
                # The platform writes too, such as to its audit log; it is killed in the conversation's writes alone.
                if partition == partition_of(made.id):
                    if not left[0]:
                        raise asyncio.CancelledError
                    left[0] -= 1
                await write(self, partition, changes)

            await forget_words(tenant.session, made.id)
            monkeypatch.setattr(SealedStore, "write", until_killed)
            try:
                await note_words(tenant.session, made.id)
            except asyncio.CancelledError:
                assert len(await noted(tenant, made.id)) == allowed
            finally:
                monkeypatch.setattr(SealedStore, "write", write)
            assert len(await everything(tenant, "zebra")) == 10
            await settled(tenant)
            assert [upto for _, upto in await noted(tenant, made.id)] == [3, 6, 9, 10]


async def test_two_who_note_at_once_do_not_spoil_each_others_work(house):
    async with house.as_user() as tenant:
        made = await tenant.conversations.create(items=[Message.user(f"zebra {number}") for number in range(10)])
        await asyncio.gather(*(note_words(tenant.session, made.id) for _ in range(5)))
        assert await noted(tenant, made.id) == [(0, 10)]
        assert len(await everything(tenant, "zebra")) == 10


async def test_an_append_that_becomes_durable_after_a_later_one_is_found(house):
    async with house.as_user() as tenant:
        made = await tenant.conversations.create(items=[Message.user("zebra 0"), Message.user("zebra 1")])
        records, partition = tenant.session.records, partition_of(made.id)
        late = await records.get(partition, item_sort(0))
        await records.delete(partition, late.sort, expect=late.revision)
        await note_words(tenant.session, made.id)
        assert await noted(tenant, made.id) == [(0, 2)]
        assert len(await everything(tenant, "zebra")) == 1
        await records.put(partition, late.sort, late.body)
        assert len(await everything(tenant, "zebra")) == 2


async def test_many_places_that_may_still_be_filled_are_waited_for_and_old_ones_are_not(house, monkeypatch):
    async with house.as_user() as tenant:
        made = await tenant.conversations.create(items=[Message.user("zebra")] * 1)
        for _ in range(3):
            await tenant.conversations.append(made.id, *[Message.user("zebra") for _ in range(10)])
        records, partition = tenant.session.records, partition_of(made.id)
        for place in range(2, 25):
            row = await records.get(partition, item_sort(place))
            await records.delete(partition, row.sort, expect=row.revision)
        await note_words(tenant.session, made.id)
        assert await noted(tenant, made.id) == [(0, 2)]
        assert len(await everything(tenant, "zebra")) == 8
        await settled(tenant)
        monkeypatch.setattr(message_words, "YOUNG_US", 0)
        await note_words(tenant.session, made.id)
        assert await noted(tenant, made.id) == [(0, 31)]
        assert len(await everything(tenant, "zebra")) == 8


async def test_a_text_of_too_many_words_is_found_and_read_each_time(house):
    async with house.as_user() as tenant:
        long = " ".join(f"w{number}" for number in range(word_block.MAX_TERMS + 10)) + " quokka"
        made = await tenant.conversations.create(items=[Message.user("zebra"), Message.user(long)])
        await note_words(tenant.session, made.id)
        words = await read_words(tenant.session, made.id)
        assert [block.unread for _, block in words.noted] == [[1]]
        assert len(await everything(tenant, "quokka")) == 1


async def test_words_of_another_version_are_made_anew(house, monkeypatch):
    async with house.as_user() as tenant:
        made = await tenant.conversations.create(items=[Message.user("zebra")])
        with monkeypatch.context() as another:
            another.setattr(word_block, "TERMS_VERSION", 77)
            await note_words(tenant.session, made.id)
        assert not await noted(tenant, made.id)
        assert len(await everything(tenant, "zebra")) == 1
        await note_words(tenant.session, made.id)
        assert await noted(tenant, made.id) == [(0, 1)]


async def test_a_long_conversation_has_several_blocks_and_a_hole_in_them_is_read(house, monkeypatch):
    monkeypatch.setattr(word_block, "MAX_TEXTS", 2)
    async with house.as_user() as tenant:
        made = await tenant.conversations.create(items=[Message.user(f"zebra {number}") for number in range(20)])
        await tenant.conversations.append_bodies(made.id, [Hidden(b"{}")])
        await note_words(tenant.session, made.id)
        blocks = [(start, start + 2) for start in range(0, 20, 2)]
        assert await noted(tenant, made.id) == [*blocks[:-1], (18, 21)]
        items = await tenant.conversations.items(made.id, order="asc")
        await tenant.conversations.delete_item(made.id, items[7].id)
        assert await noted(tenant, made.id) == [*blocks[:3], *blocks[4:-1], (18, 21)]
        assert len(await everything(tenant, "zebra")) == 19
        await settled(tenant)
        assert await noted(tenant, made.id) == [*blocks[:-1], (18, 21)]
        assert len(await everything(tenant, "zebra")) == 19


async def test_whoever_may_only_read_has_nothing_noted(house):
    async with house.as_user() as tenant:
        made = await tenant.conversations.create(items=[Message.user("zebra")])
    async with house.as_user(scopes=["nagaya.read"]) as reader:
        assert len(await everything(reader, "zebra")) == 1
        assert not reader.session.room.noting
        assert not await noted(reader, made.id)


async def test_a_head_changed_meanwhile_leaves_the_rest_for_later(house, monkeypatch):
    async with house.as_user() as tenant:
        made = await tenant.conversations.create(items=[Message.user("zebra")])

        async def refused(self, *given):
            raise ConditionFailed

        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(SealedStore, "write", refused)
            await note_words(tenant.session, made.id)
        assert not await noted(tenant, made.id)
        assert len(await everything(tenant, "zebra")) == 1


async def test_words_lie_sealed_in_their_conversations_partition(house, tmp_path):
    async with house.as_user() as tenant:
        made = await tenant.conversations.create(items=[Message.user("quokka")])
        await note_words(tenant.session, made.id)
        rows = await tenant.session.records.query(partition_of(made.id), after=WORDS, before=ITEM, limit=10)
        assert [row.sort for row in rows] == [WORDS + bytes(8), HEAD]
    raw = b"".join(path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file())
    assert term_key("quokka").to_bytes(8, "little") not in raw
    assert b"NgWb" not in raw


async def test_words_that_are_noted_are_found_by_nobody_who_may_not_read_the_conversation(house, monkeypatch):
    async with house.as_user() as mio, house.as_user("ren") as ren, house.as_user("yui", "member") as yui:
        made = await mio.conversations.create(items=[Message.user("quokka")])
        await note_words(mio.session, made.id)
        monkeypatch.setattr(message_search, "item_places", nothing_there)  # by the noted words alone
        shared: dict[bool, list[int]] = {}
        for is_shared in (False, True, False):
            await mio.conversations.update(made.id, shared=is_shared)
            shared[is_shared] = [len(await everything(who, "quokka")) for who in (mio, yui, ren)]
        assert shared == {False: [1, 0, 0], True: [1, 1, 0]}


async def test_words_that_were_moved_to_another_conversation_do_not_open(house):
    async with house.as_user() as tenant:
        made = await tenant.conversations.create(items=[Message.user("quokka")])
        other = await tenant.conversations.create(items=[Message.user("zebra")])
        await note_words(tenant.session, made.id)
        store = tenant.session.records._store
        row = await store.get(f"conversation/{made.id}", WORDS + bytes(8))
        await store.put(f"conversation/{other.id}", row.sort, row.body)
        with pytest.raises(SealBroken):
            await everything(tenant, "quokka")


async def test_each_tenant_notes_and_finds_its_own(house):
    async with house.as_user() as acme:
        await house.nagaya.tenants.create("globex", name="Globex")
        entrance = await house.nagaya.enter(await house.nagaya.tenants.mint("globex", "mio", "tenant_admin"))
        async with house.nagaya.session(entrance) as globex:
            for tenant, said in ((acme, "quokka of acme"), (globex, "quokka of globex")):
                made = await tenant.conversations.create(items=[Message.user(said)])
                await tenant.conversations.update(made.id, shared=True)
                await note_words(tenant.session, made.id)
                assert [found[3] for found in await everything(tenant, "quokka")] == [said]
            assert [found[3] for found in await everything(acme, "quokka")] == ["quokka of acme"]
