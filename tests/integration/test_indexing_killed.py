"""``kill -9`` of the server at every stage of indexing and of deleting. Started again, with nobody asking for anything,
it finishes or clears away by itself: nothing is double, nothing lost, nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
from openai import OpenAI

from nagaya.context.library.shelf import catalog_of, files_of
from nagaya.settings import Settings
from nagaya.wiring import Nagaya
from support.faults import DIE_AFTER, SHORTEN
from support.library import every_record, everything_kept
from support.server import RunningServer, running

PATIENT_S = 120.0
"""Longer than a busy machine takes to find that a server died, and to finish its work."""
SOON = " ".join(
    (
        "nagaya.context.library.indexing:BUSY_S=4",
        "nagaya.context.library.indexing:_RENEW_S=1",
        "nagaya.wiring.unfinished:FIRST_S=1",
        "nagaya.wiring.platform:_TAKE_UP_S=0.5",
    )
)
LUNCH = "# Lunch\n\nThe canteen serves curry on Fridays.\n"
CANARY = "zq-canary-of-the-killed-88c1"
ROOF = "".join(f"# Part {n}\n\nRoof number {n} was mended by {CANARY} in the year {1900 + n}.\n\n" for n in range(200))
"""More chunks than are embedded and written together."""

INDEXING = "nagaya.context.library.indexing:Indexing"
STORES = "nagaya.context.library.stores:Stores"
BLOBS = "nagaya.records.sealed_blobs:SealedBlobs"

WHILE_INDEXING = {
    "noted as work": "nagaya.context.library.stores:note_work:1",
    "the file is in the store": f"{STORES}._put_file:1",
    "claimed": f"{INDEXING}._claim:1",
    "the document was read": "nagaya.extraction.extractor:_Process.begin:1",
    "its text came": "nagaya.extraction.extractor:_Process.answer:2",
    "embedded": "nagaya.models.model:Embeddings.embed:1",
    "some chunks were written": f"{INDEXING}._written:1",
    "the segment was written": f"{BLOBS}.put:1",
    "it is part of the store": f"{INDEXING}._commit:1",
    "its leftovers were cleared": f"{INDEXING}.sweep:2",
}
WHILE_DELETING = {
    "the file left the store": ("file", f"{STORES}._take_out:1"),
    "a segment was written without it": ("file", f"{BLOBS}.put:1"),
    "segments were merged": ("file", f"{INDEXING}._merge:1"),
    "its chunks were removed": ("file", "nagaya.context.library.indexing:remove_all:1"),
    "the store was marked": ("store", f"{STORES}.delete:1"),
    "the store was emptied": ("store", f"{INDEXING}._empty:1"),
    "the store was buried": ("store", f"{INDEXING}._bury:1"),
    "the library's file left its stores": ("library", "nagaya.context.library.files:_note_ending:1"),
    "the library's bytes were removed": ("library", f"{BLOBS}.delete:1"),
}
IN_SHORT = {"the segment was written", "segments were merged"}


def stages(names: Any) -> list[Any]:
    return [pytest.param(name, marks=[] if name in IN_SHORT else pytest.mark.long) for name in names]


class House(NamedTuple):
    """A server with a store in which ``lunch`` is indexed, and ``roof`` uploaded."""

    server: RunningServer
    key: str
    store: str
    lunch: str
    roof: str

    def client(self) -> OpenAI:
        return OpenAI(api_key=self.key, base_url=f"{self.server.url}/v1", max_retries=0, timeout=PATIENT_S)


def ready(server: RunningServer, *, with_roof: bool) -> House:
    server.tenant("readers")
    key = server.key("readers")
    with OpenAI(api_key=key, base_url=f"{server.url}/v1", max_retries=0, timeout=PATIENT_S) as client:
        ids = [
            client.files.create(file=(name, text.encode()), purpose="assistants").id
            for name, text in (("lunch.md", LUNCH), ("roof.md", ROOF))
        ]
        store = client.vector_stores.create(name="house").id
        for file_id in ids if with_roof else ids[:1]:
            put = client.vector_stores.files.create_and_poll(file_id, vector_store_id=store, poll_interval_ms=100)
            assert put.status == "completed", put.last_error
    server.stop()
    return House(server, key, store, *ids)


def dies(house: House, place: str, act: Any) -> None:
    """Start the server, do ``act`` with a client, and see the server die of it; then start it without the fault."""
    house.server.environment[DIE_AFTER] = place
    house.server.start()
    with house.client() as client, contextlib.suppress(openai.APIConnectionError):
        act(client)
    assert house.server.ended_by_itself(PATIENT_S) == -9
    del house.server.environment[DIE_AFTER]
    house.server.start()


def looked(house: House) -> tuple[dict[str, str], list[str], list[str], bool, bytes]:
    """Statuses of the store's files, the documents whose chunks are kept, segments that are kept without being the
    store's or the reverse, whether work is left, and every word that is kept. Looking asks for no work."""

    async def look() -> Any:
        async with Nagaya.open(settings=Settings(data=str(house.server.data))) as nagaya:
            entrance = await nagaya.enter(await nagaya.tenants.mint("readers", "aoi", "tenant_admin"))
            async with nagaya.session(entrance) as tenant:
                statuses = {file.file_id: file.status for _, file in await files_of(tenant.session, house.store)}
                _, catalog = await catalog_of(tenant.session, house.store)
                rows = await every_record(tenant)
                documents = sorted({place.name for place, _ in rows if place.collection == "vector-texts"})
                left = any(place.collection == "vector-store-work" for place, _ in rows)
                blobs = await tenant.session.blobs()
                kept = {blob.name async for blob in blobs.list_all(prefix="segments/")}
                wrong = sorted(kept ^ {f"segments/{piece.name}" for piece in catalog.pieces})
                return statuses, documents, wrong, left, await everything_kept(tenant)

    return asyncio.run(look())


def settled(house: House) -> tuple[dict[str, str], list[str], list[str], bytes]:
    """What there is once no work is left, as :func:`looked` tells it."""
    ends_s = time.monotonic() + PATIENT_S
    while True:
        statuses, documents, wrong, left, words = looked(house)
        if not left and "in_progress" not in statuses.values():
            return statuses, documents, wrong, words
        assert time.monotonic() < ends_s, f"{statuses} {documents} {wrong}\n{house.server.log()[-3000:]}"
        time.sleep(0.5)


@pytest.mark.parametrize("stage", stages(WHILE_INDEXING))
def test_indexing_that_was_killed_is_finished_by_the_next_server(tmp_path: Path, stage: str):
    with running(tmp_path, **{SHORTEN: SOON}) as server:
        house = ready(server, with_roof=False)
        dies(
            house,
            WHILE_INDEXING[stage],
            lambda client: client.vector_stores.files.create(house.store, file_id=house.roof),
        )
        statuses, documents, wrong, _ = settled(house)
        # Whoever was told nothing may find that nothing was done.
        told_nothing = stage == "noted as work"
        expected = [house.lunch] if told_nothing else [house.lunch, house.roof]
        assert statuses == dict.fromkeys(expected, "completed")
        assert (len(documents), wrong) == (len(expected), [])
        with house.client() as client:
            if not told_nothing:
                found = client.vector_stores.search(house.store, query="Who mended roof number 7?", max_num_results=50)
                texts = [one.content[0].text for one in found.data if one.file_id == house.roof]
                assert texts
                assert len(texts) == len(set(texts))
                shown = client.vector_stores.files.content(house.roof, vector_store_id=house.store)
                assert all(any(f"Part {n}\n" in part.text for part in shown.data) for n in range(200))
            again = client.vector_stores.search(house.store, query="What does the canteen serve?")
            assert again.data[0].file_id == house.lunch


@pytest.mark.parametrize("stage", stages(WHILE_DELETING))
def test_a_deletion_that_was_killed_is_finished_by_the_next_server(tmp_path: Path, stage: str):
    what, place = WHILE_DELETING[stage]
    with running(tmp_path, **{SHORTEN: SOON}) as server:
        house = ready(server, with_roof=True)

        def act(client: OpenAI) -> None:
            if what == "file":
                client.vector_stores.files.delete(house.roof, vector_store_id=house.store)
            elif what == "store":
                client.vector_stores.delete(house.store)
            else:
                client.files.delete(house.roof)

        dies(house, place, act)
        with house.client() as client:
            if what == "library":
                # Not acknowledged: whoever asked asks again.
                with contextlib.suppress(openai.NotFoundError):
                    client.files.delete(house.roof)
            statuses, documents, wrong, words = settled(house)
            if what == "store":
                assert (statuses, documents, wrong) == ({}, [], [])
                with pytest.raises(openai.NotFoundError):
                    client.vector_stores.retrieve(house.store)
            else:
                assert (statuses, len(documents), wrong) == ({house.lunch: "completed"}, 1, [])
                found = client.vector_stores.search(house.store, query="Who mended roof number 7?", max_num_results=50)
                assert {one.file_id for one in found.data} <= {house.lunch}
            if what != "library":
                client.files.delete(house.roof)
                words = settled(house)[3]
            assert CANARY.encode() not in words
