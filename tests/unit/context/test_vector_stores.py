"""Vector stores: what is indexed is found, what is deleted is gone, and an interruption anywhere leaves nothing half."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import msgspec
import pytest

from nagaya.context.library import indexing, stores
from nagaya.context.library.files import Files
from nagaya.context.library.search import Search, Wanted, wanted_of
from nagaya.context.library.shelf import DOOMED, WORK, catalog_of, encode, file_of, file_sort, shelf_of
from nagaya.context.library.stores import ExpiresAfter, FileToAdd, StaticSizes, StaticStrategy, forget_file
from nagaya.errors import EmbeddingsChanged, InvalidValue, NotFound, VectorStoreExpired
from nagaya.indexes.segment import entry_of
from nagaya.indexes.terms import term_key
from nagaya.kernel.ids import new_id
from nagaya.models.model import Embeddings
from nagaya.records.sealed_store import Delete, SealedStore
from support.inside import Inside, inside
from support.library import every_record, everything_kept, indexed, keep, settled, store_with, texts

ROOF = "# Roof\n\nThe roof of the warehouse was mended by Kato Roofing in spring.\n"
HEATING = "# 暖房\n\n事務所の暖房は毎年十月に山田設備が点検する。\n"
LUNCH = "# Lunch\n\nThe canteen serves curry on Fridays.\n"


class Later:
    """A clock that is some seconds ahead."""

    def __init__(self, clock, ahead_s: float) -> None:
        self._clock = clock
        self._ahead_us = int(ahead_s * 1_000_000)

    def now_us(self) -> int:
        return self._clock.now_us() + self._ahead_us

    def monotonic_s(self) -> float:
        return self._clock.monotonic_s()


@pytest.fixture
async def acme(tmp_path, monkeypatch) -> AsyncIterator[Inside]:
    async with inside(tmp_path, monkeypatch) as made:
        yield made


async def found(tenant, store_id: str, query: str, **wanted) -> list:
    return await tenant.library_search.search([store_id], [query], Wanted(**wanted))


async def test_english_and_japanese_documents_are_found_by_what_they_say(acme: Inside):
    async with acme.as_user() as tenant:
        store, files = await store_with(tenant, ("roof.md", ROOF), ("暖房.md", HEATING), ("lunch.md", LUNCH))
        english = await found(tenant, store, "Who repaired the roof?")
        japanese = await found(tenant, store, "暖房の点検はいつですか")
        shown = await tenant.vector_stores.retrieve(store)
    assert english[0].file_id == files[0]
    assert english[0].filename == "roof.md"
    assert "Kato Roofing" in english[0].text
    assert japanese[0].file_id == files[1]
    assert "山田設備" in japanese[0].text
    assert all(0 <= one.score <= 1 for one in english)
    assert (shown.status, shown.file_counts.completed, shown.file_counts.total) == ("completed", 3, 3)
    assert shown.usage_bytes > 0


async def test_a_store_of_another_user_answers_as_one_that_is_not_there(acme: Inside):
    async with acme.as_user("mio") as mio:
        store, (file_id, *_) = await store_with(mio, ("roof.md", ROOF))
    async with acme.as_user("ken") as ken:
        for absent in (store, "vs_" + "0" * 32):
            stores = ken.vector_stores
            for call in (
                stores.retrieve(absent),
                stores.update(absent, name="mine"),
                stores.delete(absent),
                stores.file(absent, file_id),
                stores.list_files(absent),
                stores.content(absent, file_id),
                stores.delete_file(absent, file_id),
                stores.add_file(absent, FileToAdd(file_id)),
                stores.add_batch(absent, [FileToAdd(file_id)]),
                found(ken, absent, "roof"),
            ):
                with pytest.raises(NotFound):
                    await call
        with pytest.raises(NotFound):
            await ken.vector_stores.create(files=[FileToAdd(file_id)])
        assert (await ken.vector_stores.list()).data == []


async def test_nearest_neighbours_are_ones_own_alone(acme: Inside):
    async with acme.as_user("mio") as mio:
        mine, _ = await store_with(mio, ("secret.md", "The canary of Mio is zanzibar-mio-7351.\n"))
    async with acme.as_user("ken") as ken:
        theirs, _ = await store_with(ken, ("other.md", "The canary of Ken is zanzibar-ken-1842.\n"))
        said = texts(await found(ken, theirs, "The canary of Mio is zanzibar-mio-7351", limit=50))
        with pytest.raises(NotFound):
            await ken.library_search.search([theirs, mine], ["zanzibar"], Wanted())
    assert "zanzibar-ken-1842" in said
    assert "zanzibar-mio-7351" not in said


async def test_a_shared_store_is_read_by_members_and_changed_by_its_owner_alone(acme: Inside):
    async with acme.as_user("mio") as mio:
        store, (file_id, *_) = await store_with(mio, ("roof.md", ROOF), shared=True)
    async with acme.as_user("ken", "member") as ken:
        assert "Kato" in texts(await found(ken, store, "roof"))
        assert [one.id for one in (await ken.vector_stores.list(shared=True)).data] == [store]
        with pytest.raises(NotFound):
            await ken.vector_stores.delete_file(store, file_id)
    async with acme.as_user("mio") as mio:
        await mio.vector_stores.update(store, shared=False)
    async with acme.as_user("ken", "member") as ken:
        with pytest.raises(NotFound):
            await found(ken, store, "roof")


async def test_a_deleted_file_leaves_no_text_no_word_and_no_vector(acme: Inside):
    async with acme.as_user() as tenant:
        canary = "quetzalcoatlus-4711"
        store, (gone, kept) = await store_with(
            tenant, ("gone.md", f"The password of the shed is {canary}.\n"), ("roof.md", ROOF)
        )
        assert canary in texts(await found(tenant, store, "password of the shed"))
        words = {term_key(term) for term in entry_of("c", "d", canary).terms}
        parts = await _parts(tenant, store)
        assert any(len(part.segment.postings(word)[0]) for part in parts for word in words)
        await tenant.vector_stores.delete_file(store, gone)
        assert canary not in texts(await found(tenant, store, "password of the shed"))
        with pytest.raises(NotFound):
            await tenant.vector_stores.file(store, gone)
        await settled(tenant)
        parts = await _parts(tenant, store)
        assert not any(len(part.segment.postings(word)[0]) for part in parts for word in words)
        assert [part.segment.document_ids for part in parts] == [[kept]]
        _, catalog = await catalog_of(tenant.session, store)
        blobs = await tenant.session.blobs()
        segments = {blob.name async for blob in blobs.list_all(prefix="segments/")}
        assert segments == {f"segments/{piece.name}" for piece in catalog.pieces}
        await Files(tenant.session, on_delete=[forget_file]).delete(gone)
        assert canary.encode() not in await everything_kept(tenant)
        assert "Kato" in texts(await found(tenant, store, "roof"))


async def _parts(tenant, store: str):
    _, catalog = await catalog_of(tenant.session, store)
    return await (await tenant.session.room.parts.index()).parts(catalog)


async def test_a_deleted_file_of_the_library_leaves_every_store(acme: Inside):
    async with acme.as_user() as tenant:
        store, (file_id, *_) = await store_with(tenant, ("roof.md", ROOF), ("lunch.md", LUNCH))
        other = await tenant.vector_stores.create(files=[FileToAdd(file_id)])
        await indexed(tenant, other.id)
        await Files(tenant.session, on_delete=[forget_file]).delete(file_id)
        for each in (store, other.id):
            assert "Kato" not in texts(await found(tenant, each, "Who mended the roof?"))
            with pytest.raises(NotFound):
                await tenant.vector_stores.file(each, file_id)
        await settled(tenant)
        assert b"Kato" not in await everything_kept(tenant)


async def test_a_deleted_store_leaves_nothing(acme: Inside):
    async with acme.as_user() as tenant:
        store, files = await store_with(tenant, ("roof.md", ROOF), ("lunch.md", LUNCH), name="archaeopteryx")
        await tenant.vector_stores.delete_file(store, files[0])
        await settled(tenant)
        await tenant.vector_stores.delete(store)
        with pytest.raises(NotFound):
            await tenant.vector_stores.retrieve(store)
        with pytest.raises(NotFound):
            await found(tenant, store, "roof")
        await settled(tenant)
        blobs = await tenant.session.blobs()
        assert [blob.name async for blob in blobs.list_all(prefix="segments/")] == []
        rows = await tenant.session.records.scan(limit=1000)
        assert [place for place, _ in rows if place.collection.startswith("vector-") and place.name != "all"] == []
        assert b"archaeopteryx" not in await everything_kept(tenant)


async def test_attributes_choose_and_can_be_changed(acme: Inside):
    async with acme.as_user() as tenant:
        made = await tenant.vector_stores.create()
        files = [await keep(tenant, f"{year}.md", f"The roof report of {year}.\n") for year in (2023, 2024)]
        for year, file_id in zip((2023, 2024), files, strict=True):
            await tenant.vector_stores.add_file(made.id, FileToAdd(file_id, {"year": year}))
        await indexed(tenant, made.id)
        new = wanted_of({"type": "gte", "key": "year", "value": 2024}, None, None)
        hits = await tenant.library_search.search([made.id], ["roof report"], new)
        assert [hit.file_id for hit in hits] == [files[1]]
        await tenant.vector_stores.update_file(made.id, files[0], {"year": 2025})
        hits = await tenant.library_search.search([made.id], ["roof report"], new)
        assert {hit.file_id for hit in hits} == set(files)
        assert {hit.attributes["year"] for hit in hits} == {2024, 2025}


async def test_a_file_that_cannot_be_read_says_why(acme: Inside):
    async with acme.as_user() as tenant:
        store, (corrupt, program, good) = await store_with(
            tenant, ("a.pdf", b"%PDF-1.7 but no more"), ("b.png", b"\x7fELF" + bytes(64)), ("roof.md", ROOF)
        )
        shown = {each: await tenant.vector_stores.file(store, each) for each in (corrupt, program, good)}
        notices = [notice.type for notice in await tenant.notices.read(0)]
    assert (shown[corrupt].status, shown[corrupt].last_error.code) == ("failed", "invalid_file")
    assert (shown[program].status, shown[program].last_error.code) == ("failed", "unsupported_file")
    assert (shown[good].status, shown[good].last_error) == ("completed", None)
    assert notices.count("library.added") == 3
    assert notices.count("library.failed") == 2
    assert notices.count("library.ready") == 1
    assert notices.count("library.indexing") >= 3


async def test_why_a_file_cannot_be_read_is_said_in_the_readers_language(acme: Inside):
    async with acme.as_user() as tenant:
        store, (damaged,) = await store_with(tenant, ("a.pdf", b"%PDF-1.7 but no more"))
        english = (await tenant.vector_stores.file(store, damaged)).last_error
        assert english.message.startswith("The document cannot be read: it is damaged")
        said = [
            (await tenant.vector_stores.file(store, damaged, language="ja")).last_error,
            (await tenant.vector_stores.list_files(store, language="ja")).data[0].last_error,
            (await tenant.vector_stores.update_file(store, damaged, {"a": 1}, language="ja")).last_error,
        ]
        assert all(one.message.startswith("文書を読み取れません: ") for one in said)
        assert {one.code for one in said} == {english.code}
        assert set(msgspec.to_builtins(said[0])) == {"code", "message"}
        # What a release that knew English only has noted.
        revision, file = await file_of(tenant.session, store, damaged)
        old = msgspec.json.decode(encode(file))
        del old["error"]["ja"]
        await tenant.session.records.put(shelf_of(store), file_sort(damaged), msgspec.json.encode(old), expect=revision)
        assert (await tenant.vector_stores.file(store, damaged, language="ja")).last_error == english


async def test_vectors_of_two_models_are_never_mixed(acme: Inside, monkeypatch):
    async with acme.as_user() as tenant:
        store, _ = await store_with(tenant, ("roof.md", ROOF))
        monkeypatch.setattr(Embeddings, "name", property(lambda self: "another-model"))
        with pytest.raises(EmbeddingsChanged, match="another-model"):
            await found(tenant, store, "roof")
        other = await keep(tenant, "lunch.md", LUNCH)
        await tenant.vector_stores.add_file(store, FileToAdd(other))
        await indexed(tenant, store)
        refused = await tenant.vector_stores.file(store, other)
        assert refused.status == "failed"
        assert "another-model" in refused.last_error.message


async def test_a_store_that_nobody_used_expires_with_its_texts(acme: Inside):
    async with acme.as_user() as tenant:
        store, _ = await store_with(tenant, ("roof.md", ROOF), expires_after=ExpiresAfter("last_active_at", 1))
        await settled(tenant)
        tenant.session.clock = Later(tenant.session.clock, 2 * 86_400)
        shown = await tenant.vector_stores.retrieve(store)
        assert shown.status == "expired"
        with pytest.raises(VectorStoreExpired):
            await found(tenant, store, "roof")
        await settled(tenant)
        blobs = await tenant.session.blobs()
        assert [blob.name async for blob in blobs.list_all(prefix="segments/")] == []


async def test_a_batch_can_be_followed_and_cancelled(acme: Inside):
    async with acme.as_user() as tenant:
        store = (await tenant.vector_stores.create()).id
        ids = [await keep(tenant, f"{n}.md", f"Report number {n} on the roof.\n") for n in range(12)]
        sizes = StaticStrategy(StaticSizes(200, 50))
        batch = await tenant.vector_stores.add_batch(store, [FileToAdd(each, {"n": 1}, sizes) for each in ids])
        assert batch.file_counts.total == 12
        await indexed(tenant, store)
        await settled(tenant)
        done = await tenant.vector_stores.batch(store, batch.id)
        assert (done.status, done.file_counts.completed) == ("completed", 12)
        _, catalog = await catalog_of(tenant.session, store)
        assert len(catalog.pieces) < 12  # they were merged
        assert len({hit.file_id for hit in await found(tenant, store, "roof", limit=50)}) == 12
        page = await tenant.vector_stores.list_files(store, batch=batch.id, limit=5)
        assert len(page.data) == 5
        assert page.has_more
        more = [await keep(tenant, f"m{n}.md", "More.\n") for n in range(8)]
        second = await tenant.vector_stores.add_batch(store, [FileToAdd(each) for each in more])
        cancelled = await tenant.vector_stores.cancel_batch(store, second.id)
        assert cancelled.status == "cancelled"
        await settled(tenant)
        ended = await tenant.vector_stores.batch(store, second.id)
        assert ended.file_counts.in_progress == 0
        assert ended.file_counts.cancelled + ended.file_counts.completed == 8


def test_what_a_search_cannot_do_is_refused_by_name():
    for filters, limit, ranking in (
        (None, 0, None),
        (None, 51, None),
        (None, True, None),
        ({"type": "like", "key": "a", "value": "b"}, None, None),
        (None, None, {"ranker": "best"}),
        (None, None, {"score_threshold": 1.5}),
        (None, None, {"score_threshold": "high"}),
        (None, None, {"colour": 1}),
        (None, None, {"hybrid_search": {"embedding_weight": 0, "text_weight": 0}}),
    ):
        with pytest.raises(InvalidValue):
            wanted_of(filters, limit, ranking)
    assert wanted_of(None, None, {"hybrid_search": {"embedding_weight": 1, "text_weight": 3}}).vector_share == 0.25


@pytest.mark.parametrize("stage", ["_claim", "_model", "_written", "_make", "_commit"])
async def test_an_interruption_at_any_stage_leaves_nothing_half_and_is_resumed(acme: Inside, monkeypatch, stage: str):
    """The stage is done to its end, and then the process is no more."""
    async with acme.as_user() as tenant:
        store, _ = await store_with(tenant, ("lunch.md", LUNCH))
        await settled(tenant)
        real = getattr(indexing.Indexing, stage)
        died = asyncio.Event()

        async def dies(self, *args):
            await real(self, *args)
            died.set()
            raise asyncio.CancelledError

        monkeypatch.setattr(indexing.Indexing, stage, dies)
        file_id = await keep(tenant, "roof.md", ROOF)
        await tenant.vector_stores.add_file(store, FileToAdd(file_id))
        await asyncio.wait_for(died.wait(), 30)
        await settled(tenant)
        monkeypatch.setattr(indexing.Indexing, stage, real)
        if stage != "_commit":
            assert "Kato" not in texts(await found(tenant, store, "Who mended the roof?"))
            assert await tenant.vector_stores.content(store, file_id) == []
        # The dead one's claim is waited for; here its time is over at once.
        tenant.session.clock = Later(tenant.session.clock, indexing.BUSY_S + 1)
        await indexed(tenant, store)
        await settled(tenant)
        shown = await tenant.vector_stores.file(store, file_id)
        assert shown.status == "completed"
        hits = await found(tenant, store, "Who mended the roof?", limit=50)
        assert [hit.file_id for hit in hits].count(file_id) == 1
        _, catalog = await catalog_of(tenant.session, store)
        blobs = await tenant.session.blobs()
        segments = {blob.name async for blob in blobs.list_all(prefix="segments/")}
        assert segments == {f"segments/{piece.name}" for piece in catalog.pieces}
        rows = await tenant.session.records.scan(limit=1000)
        documents = {place.name for place, _ in rows if place.collection == "vector-texts"}
        assert len(documents) == 2


@pytest.mark.parametrize("what", ["document", "merge"])
async def test_what_becomes_part_of_a_store_while_another_sweeps_stays_whole(acme: Inside, monkeypatch, what: str):
    """The other looks at the list, the work is done, the other goes on with what it saw."""
    async with acme.as_user() as tenant:
        store, (_, heating) = await store_with(tenant, ("lunch.md", LUNCH), ("heating.md", HEATING))
        await settled(tenant)
        may_finish, is_ready = asyncio.Event(), asyncio.Event()
        sweeping: asyncio.Task | None = None
        spare, look = indexing.spare, indexing.files_of if what == "document" else indexing.catalog_of

        async def in_time(*args):
            is_ready.set()
            await may_finish.wait()
            return await spare(*args)

        async def looked(*args):
            if asyncio.current_task() is not sweeping:
                return await look(*args)
            before = await look(*args)
            may_finish.set()
            await settled(tenant)
            return await look(*args) if what == "document" else before

        monkeypatch.setattr(indexing, "spare", in_time)
        monkeypatch.setattr(indexing, look.__name__, looked)
        if what == "document":
            await tenant.vector_stores.add_file(store, FileToAdd(await keep(tenant, "roof.md", ROOF)))
        else:
            await tenant.vector_stores.delete_file(store, heating)
        await asyncio.wait_for(is_ready.wait(), 30)
        async with acme.as_user("aoi", "tenant_admin") as admin:
            if what == "merge":
                # It takes whoever merges for dead.
                admin.session.clock = Later(admin.session.clock, indexing.BUSY_S + 1)
            sweeping = asyncio.create_task(indexing.Indexing(admin.session).sweep(store))
            await asyncio.wait_for(sweeping, 30)
        if what == "document":
            assert "Kato" in texts(await found(tenant, store, "Who mended the roof?"))
        assert "curry" in texts(await found(tenant, store, "What is there on Fridays?"))


async def test_what_was_taken_for_dead_and_cleared_away_does_not_become_part_of_a_store(acme: Inside, monkeypatch):
    async with acme.as_user() as tenant:
        store, _ = await store_with(tenant, ("lunch.md", LUNCH))
        await settled(tenant)
        may_finish, is_ready = asyncio.Event(), asyncio.Event()
        commit, remove = indexing.Indexing._commit, indexing.remove_all

        async def late(self, *args):
            is_ready.set()
            await may_finish.wait()
            return await commit(self, *args)

        async def removed(*args):
            # The other has begun to clear away, and the one taken for dead comes back.
            may_finish.set()
            await settled(tenant)
            await remove(*args)

        monkeypatch.setattr(indexing.Indexing, "_commit", late)
        file_id = await keep(tenant, "roof.md", ROOF)
        await tenant.vector_stores.add_file(store, FileToAdd(file_id))
        await asyncio.wait_for(is_ready.wait(), 30)
        monkeypatch.setattr(indexing, "remove_all", removed)
        async with acme.as_user("aoi", "tenant_admin") as admin:
            admin.session.clock = Later(admin.session.clock, indexing.BUSY_S + 1)
            assert await indexing.Indexing(admin.session).sweep(store)
        monkeypatch.undo()
        tenant.session.clock = Later(tenant.session.clock, indexing.BUSY_S + 1)
        await indexed(tenant, store)
        await settled(tenant)
        assert (await tenant.vector_stores.file(store, file_id)).status == "completed"
        assert "Kato" in texts(await found(tenant, store, "Who mended the roof?"))
        assert "curry" in texts(await found(tenant, store, "What is there on Fridays?"))


@pytest.mark.parametrize("stage", ["_merge", "sweep"])
async def test_a_deletion_that_is_interrupted_is_done_by_whoever_comes_next(acme: Inside, monkeypatch, stage: str):
    async with acme.as_user() as tenant:
        canary = "ornithomimus-9020"
        store, (gone, _) = await store_with(tenant, ("gone.md", f"It is {canary}.\n"), ("roof.md", ROOF))
        await settled(tenant)
        real = getattr(indexing.Indexing, stage)

        async def dies(self, *args):
            raise asyncio.CancelledError

        monkeypatch.setattr(indexing.Indexing, stage, dies)
        await tenant.vector_stores.delete_file(store, gone)
        await settled(tenant)
        assert canary not in texts(await found(tenant, store, canary))
        monkeypatch.setattr(indexing.Indexing, stage, real)
        await tenant.vector_stores.list()  # takes up what is on the list of work
        await settled(tenant)
        await Files(tenant.session, on_delete=[forget_file]).delete(gone)
        assert canary.encode() not in await everything_kept(tenant)
        _, catalog = await catalog_of(tenant.session, store)
        blobs = await tenant.session.blobs()
        segments = {blob.name async for blob in blobs.list_all(prefix="segments/")}
        assert segments == {f"segments/{piece.name}" for piece in catalog.pieces}


async def test_whoever_kept_others_away_while_a_document_was_made_ends_without_a_word(acme: Inside):
    reported: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    async with acme.as_user() as tenant:
        await store_with(tenant, ("roof.md", ROOF))
        await settled(tenant)
    await asyncio.sleep(0)
    gc.collect()
    assert reported == []


# --- two at once ---------------------------------------------------------------------------------------------------


async def segments_kept(tenant) -> set[str]:
    blobs = await tenant.session.blobs()
    return {blob.name.partition("/")[2] async for blob in blobs.list_all(prefix="segments/")}


@pytest.mark.parametrize("how", ["renewed", "searched"])
async def test_a_store_that_is_used_just_before_its_time_is_over_keeps_its_files(acme: Inside, monkeypatch, how: str):
    """Whoever empties it has seen it as it was before."""
    async with acme.as_user() as tenant, acme.as_user("aoi", "tenant_admin") as in_time:
        store, _ = await store_with(tenant, ("roof.md", ROOF), expires_after=ExpiresAfter("last_active_at", 1))
        await settled(tenant)
        empty = indexing.Indexing._empty

        async def late(self, *args):
            if how == "renewed":
                await in_time.vector_stores.update(store, expires_after=None)
            else:
                in_time.session.clock = Later(in_time.session.clock, 86_000)
                await found(in_time, store, "roof")
            await empty(self, *args)

        monkeypatch.setattr(indexing.Indexing, "_empty", late)
        now = tenant.session.clock
        tenant.session.clock = Later(now, 2 * 86_400)
        await tenant.vector_stores.retrieve(store)
        await settled(tenant)
        tenant.session.clock = Later(now, 86_500)
        assert "Kato" in texts(await found(tenant, store, "Who mended the roof?"))


async def test_a_file_that_is_added_again_while_it_is_taken_out_is_forgotten_when_it_is_deleted(
    acme: Inside, monkeypatch
):
    async with acme.as_user() as tenant:
        canary = "iguanodon-5127"
        store, (file_id, _) = await store_with(tenant, ("gone.md", f"It is {canary}.\n"), ("roof.md", ROOF))
        await settled(tenant)
        write = SealedStore.write

        async def then_added(self, partition, changes):
            await write(self, partition, changes)
            if any(isinstance(change, Delete) and change.sort == file_sort(file_id) for change in changes):
                monkeypatch.setattr(SealedStore, "write", write)
                await tenant.vector_stores.add_file(store, FileToAdd(file_id))
                await indexed(tenant, store)

        monkeypatch.setattr(SealedStore, "write", then_added)
        await tenant.vector_stores.delete_file(store, file_id)
        assert canary in texts(await found(tenant, store, canary))
        await Files(tenant.session, on_delete=[forget_file]).delete(file_id)
        assert canary not in texts(await found(tenant, store, canary))
        await settled(tenant)
        assert canary.encode() not in await everything_kept(tenant)


async def test_work_that_comes_while_a_store_is_found_finished_stays_on_the_list(acme: Inside, monkeypatch):
    """The process to which the work came dies right after."""
    async with acme.as_user() as tenant:
        store = (await tenant.vector_stores.create()).id
        file_id = await keep(tenant, "roof.md", ROOF)
        await indexing.note_work(tenant.session, store)
        delete = SealedStore.delete

        async def late(self, partition, sort, *, expect):
            if partition == WORK:
                monkeypatch.setattr(SealedStore, "delete", delete)
                with monkeypatch.context() as dead:
                    dead.setattr(indexing.Indexing, "begin", lambda *_: None)
                    await tenant.vector_stores.add_file(store, FileToAdd(file_id))
            await delete(self, partition, sort, expect=expect)

        monkeypatch.setattr(SealedStore, "delete", late)
        await indexing.Indexing(tenant.session).finish_all()
        await indexing.Indexing(tenant.session).finish_all()
        assert (await tenant.vector_stores.file(store, file_id)).status == "completed"


async def test_what_is_written_of_a_file_after_its_deletion_was_swept_does_not_stay(acme: Inside, monkeypatch):
    async with acme.as_user() as tenant, acme.as_user("aoi", "tenant_admin") as other:
        canary = "pachycephalosaurus-3308"
        store, _ = await store_with(tenant, ("roof.md", ROOF))
        await settled(tenant)
        written = indexing.Indexing._written
        swept = asyncio.Event()

        async def late(self, *args):
            monkeypatch.setattr(indexing.Indexing, "_written", written)
            await tenant.vector_stores.delete_file(store, file_id)
            await indexing.Indexing(other.session).sweep(store)
            swept.set()
            return await written(self, *args)

        monkeypatch.setattr(indexing.Indexing, "_written", late)
        file_id = await keep(tenant, "gone.md", f"It is {canary}.\n")
        await tenant.vector_stores.add_file(store, FileToAdd(file_id))
        await asyncio.wait_for(swept.wait(), 30)
        await settled(tenant)
        await Files(tenant.session, on_delete=[forget_file]).delete(file_id)
        await tenant.vector_stores.list()  # takes up what is on the list of work
        await settled(tenant)
        assert canary.encode() not in await everything_kept(tenant)
        _, catalog = await catalog_of(tenant.session, store)
        assert await segments_kept(tenant) == {piece.name for piece in catalog.pieces}


@pytest.mark.parametrize("what", ["the file", "the store"])
async def test_what_a_server_that_dies_had_written_of_something_deleted_does_not_stay(
    acme: Inside, monkeypatch, what: str
):
    async with acme.as_user() as tenant, acme.as_user("aoi", "tenant_admin") as other:
        canary = "therizinosaurus-6114"
        store = (await tenant.vector_stores.create()).id
        written, swept = indexing.Indexing._written, asyncio.Event()

        async def dies(self, *args):
            monkeypatch.setattr(indexing.Indexing, "_written", written)
            if what == "the file":
                await other.vector_stores.delete_file(store, file_id)
            else:
                await other.vector_stores.delete(store)
            await indexing.Indexing(other.session).finish_all()
            await written(self, *args)
            swept.set()
            raise asyncio.CancelledError

        monkeypatch.setattr(indexing.Indexing, "_written", dies)
        file_id = await keep(tenant, "gone.md", f"It is {canary}.\n")
        await tenant.vector_stores.add_file(store, FileToAdd(file_id))
        await asyncio.wait_for(swept.wait(), 60)
        await settled(tenant)
        await Files(tenant.session, on_delete=[forget_file]).delete(file_id)
        other.session.clock = Later(other.session.clock, indexing.BUSY_S + 1)
        await indexing.Indexing(other.session).finish_all()
        assert canary.encode() not in await everything_kept(tenant)
        assert await tenant.session.records.query(WORK, limit=1) == []


async def test_what_is_being_made_of_a_store_whose_time_is_over_is_cleared_away_later(acme: Inside, monkeypatch):
    async with acme.as_user() as tenant, acme.as_user("aoi", "tenant_admin") as other:
        store, _ = await store_with(
            tenant, ("lunch.md", LUNCH), ("roof.md", ROOF), expires_after=ExpiresAfter("last_active_at", 1)
        )
        await settled(tenant)
        # As a merge has it that is under way elsewhere, by a clock like ours.
        now = other.session.clock
        other.session.clock = Later(now, 2 * 86_400)
        made = DOOMED + new_id("seg").encode()
        await tenant.session.records.put(shelf_of(store), made, indexing.Indexing(other.session)._until())
        await indexing.note_work(tenant.session, store)
        await indexing.Indexing(other.session).finish_all()
        other.session.clock = Later(now, 2 * 86_400 + indexing.BUSY_S + 1)
        await indexing.Indexing(other.session).finish_all()
        assert await tenant.session.records.get(shelf_of(store), made) is None
        assert await tenant.session.records.query(WORK, limit=1) == []


async def test_a_merge_that_was_taken_for_dead_leaves_no_segment(acme: Inside, monkeypatch):
    async with acme.as_user() as tenant, acme.as_user("aoi", "tenant_admin") as other:
        store, (_, heating) = await store_with(tenant, ("lunch.md", LUNCH), ("heating.md", HEATING))
        await settled(tenant)
        merge = indexing.Indexing._merge_into
        other.session.clock = Later(other.session.clock, indexing.BUSY_S + 1)

        async def late(self, *args):
            monkeypatch.setattr(indexing.Indexing, "_merge_into", merge)
            await indexing.Indexing(other.session).sweep(store)
            await merge(self, *args)

        monkeypatch.setattr(indexing.Indexing, "_merge_into", late)
        await tenant.vector_stores.delete_file(store, heating)
        await settled(tenant)
        assert "curry" in texts(await found(tenant, store, "What is there on Fridays?"))
        await tenant.vector_stores.list()  # takes up what is on the list of work
        await settled(tenant)
        _, catalog = await catalog_of(tenant.session, store)
        assert await segments_kept(tenant) == {piece.name for piece in catalog.pieces}
        assert "curry" in texts(await found(tenant, store, "What is there on Fridays?"))


async def test_a_file_that_is_added_while_its_store_is_removed_leaves_nothing(acme: Inside, monkeypatch):
    async with acme.as_user() as tenant:
        store, _ = await store_with(tenant, ("roof.md", ROOF))
        file_id = await keep(tenant, "lunch.md", LUNCH)
        put_file = stores.Stores._put_file

        async def late(self, *args):
            await tenant.vector_stores.delete(store)
            await settled(tenant)
            await put_file(self, *args)

        monkeypatch.setattr(stores.Stores, "_put_file", late)
        with pytest.raises(NotFound):
            await tenant.vector_stores.add_file(store, FileToAdd(file_id))
        await settled(tenant)
        left = [place for place, _ in await every_record(tenant) if place.collection.startswith("vector-")]
        assert left == []


async def test_a_store_that_is_shared_again_while_it_is_being_unshared_is_listed(acme: Inside, monkeypatch):
    async with acme.as_user("mio", "member") as tenant:
        store, _ = await store_with(tenant, shared=True)
        put = SealedStore.put

        async def then_shared(self, partition, *args, **options):
            given = await put(self, partition, *args, **options)
            if partition == shelf_of(store):
                monkeypatch.setattr(SealedStore, "put", put)
                await tenant.vector_stores.update(store, shared=True)
            return given

        monkeypatch.setattr(SealedStore, "put", then_shared)
        await tenant.vector_stores.update(store, shared=False)
        assert [one.id for one in (await tenant.vector_stores.list(shared=True)).data] == [store]


@pytest.mark.parametrize("what", ["deleted", "unshared"])
async def test_what_is_gone_while_it_is_being_searched_is_not_shown(acme: Inside, monkeypatch, what: str):
    async with acme.as_user() as owner, acme.as_user("ken", "member") as reader:
        store, _ = await store_with(owner, ("roof.md", ROOF), shared=True)
        await settled(owner)
        vectors = Search._vectors

        async def late(self, *args):
            if what == "deleted":
                await owner.vector_stores.delete(store)
            else:
                await owner.vector_stores.update(store, shared=False)
            return await vectors(self, *args)

        monkeypatch.setattr(indexing.Indexing, "begin", lambda *_: None)
        monkeypatch.setattr(Search, "_vectors", late)
        with pytest.raises(NotFound):
            await found(reader, store, "Who mended the roof?")
