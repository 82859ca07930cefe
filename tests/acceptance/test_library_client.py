"""The unmodified ``openai`` client over the library: files, vector stores, batches, search, and answers that cite."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import VectorStore
from openai.types.vector_stores import VectorStoreFile, VectorStoreFileBatch
from pydantic import BaseModel

from support.server import RunningServer, running

ROOF = "# Roof\n\nThe roof of the warehouse was mended by Kato Roofing in spring.\n"
HEATING = "# 暖房\n\n事務所の暖房は毎年十月に山田設備が点検する。\n"
CANARY = "zq-canary-of-library-7f3a-苔"
POLL_MS = 100


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(tmp_path_factory.mktemp("library")) as server:
        server.tenant("readers")
        server.tenant("strangers")
        yield server


def client_of(server: RunningServer, tenant: str, user: str = "mio", role: str = "user") -> OpenAI:
    return OpenAI(api_key=server.key(tenant, user, role), base_url=f"{server.url}/v1", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def client(library: RunningServer) -> Iterator[OpenAI]:
    with client_of(library, "readers") as made:
        yield made


def known(found: BaseModel) -> BaseModel:
    """Nothing but what the client knows, and Nagaya's own ``shared``."""
    assert set(found.model_extra or {}) <= {"shared", "description"}, found.model_extra
    return found


def filled(client: OpenAI, **texts: str) -> tuple[VectorStore, dict[str, str]]:
    store = client.vector_stores.create(name="house")
    ids = {}
    for name, text in texts.items():
        file = client.files.create(file=(f"{name}.md", text.encode()), purpose="assistants")
        put = client.vector_stores.files.create_and_poll(file.id, vector_store_id=store.id, poll_interval_ms=POLL_MS)
        assert put.status == "completed", put.last_error
        ids[name] = file.id
    return store, ids


def test_a_store_is_made_changed_listed_and_deleted(client: OpenAI):
    made = known(client.vector_stores.create(name="house", metadata={"a": "b"}))
    assert isinstance(made, VectorStore)
    assert (made.status, made.file_counts.total, made.name, made.metadata) == ("completed", 0, "house", {"a": "b"})
    changed = client.vector_stores.update(
        made.id, name="home", expires_after={"anchor": "last_active_at", "days": 7}, metadata={"c": "d"}
    )
    assert (changed.name, changed.metadata, changed.expires_after.days) == ("home", {"c": "d"}, 7)
    assert changed.expires_at == changed.last_active_at + 7 * 86_400
    other = client.vector_stores.create(name="second")
    page = client.vector_stores.list(limit=1)
    assert [one.id for one in page.data] == [other.id]
    assert page.has_more
    assert made.id in [one.id for one in client.vector_stores.list(limit=1)]
    assert client.vector_stores.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.retrieve(made.id)


def test_english_and_japanese_documents_are_uploaded_polled_and_found(client: OpenAI):
    store, ids = filled(client, roof=ROOF, heating=HEATING)
    english = client.vector_stores.search(store.id, query="Who repaired the roof?", rewrite_query=True)
    assert english.data[0].file_id == ids["roof"]
    assert "Kato Roofing" in english.data[0].content[0].text
    japanese = client.vector_stores.search(store.id, query=["暖房の点検", "点検は何月ですか"], max_num_results=1)
    assert [one.file_id for one in japanese.data] == [ids["heating"]]
    assert (
        client.vector_stores.search(
            store.id, query="roof", ranking_options={"score_threshold": 1.0, "ranker": "auto"}
        ).data
        == []
    )
    file = known(client.vector_stores.files.retrieve(ids["roof"], vector_store_id=store.id))
    assert isinstance(file, VectorStoreFile)
    assert file.chunking_strategy.static.max_chunk_size_tokens == 800
    shown = client.vector_stores.files.content(ids["roof"], vector_store_id=store.id)
    assert "Kato Roofing" in "".join(part.text for part in shown.data)
    changed = client.vector_stores.files.update(ids["roof"], vector_store_id=store.id, attributes={"kind": "roof"})
    assert changed.attributes == {"kind": "roof"}
    found = client.vector_stores.search(
        store.id, query="点検 roof", filters={"type": "eq", "key": "kind", "value": "roof"}
    )
    assert {one.file_id for one in found.data} == {ids["roof"]}
    listed = client.vector_stores.files.list(store.id, filter="completed", limit=1)
    assert {one.id for one in listed} == set(ids.values())
    assert client.vector_stores.files.delete(ids["roof"], vector_store_id=store.id).deleted
    assert ids["roof"] not in {one.file_id for one in client.vector_stores.search(store.id, query="roof").data}
    assert client.files.retrieve(ids["roof"]).id == ids["roof"]


def test_a_batch_is_uploaded_and_polled(client: OpenAI):
    store = client.vector_stores.create()
    batch = client.vector_stores.file_batches.upload_and_poll(
        store.id, files=[("a.md", ROOF.encode()), ("b.md", HEATING.encode())], poll_interval_ms=POLL_MS
    )
    assert isinstance(known(batch), VectorStoreFileBatch)
    assert (batch.status, batch.file_counts.completed) == ("completed", 2)
    files = client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id)
    assert len(files.data) == 2
    assert client.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id).id == batch.id


def test_the_builtin_model_answers_from_the_files_and_cites_them_in_a_stream(client: OpenAI):
    store, ids = filled(client, roof=ROOF, heating=HEATING)
    tools: Any = [{"type": "file_search", "vector_store_ids": [store.id]}]
    for question, name, says in (
        ("Who mended the roof of the warehouse?", "roof", "Kato Roofing"),
        ("事務所の暖房は誰が点検しますか。", "heating", "山田設備"),
    ):
        with client.responses.stream(
            model="nagaya-builtin", input=question, tools=tools, include=["file_search_call.results"]
        ) as stream:
            types = [event.type for event in stream]
            answer = stream.get_final_response()
        for kind in ("in_progress", "searching", "completed"):
            assert f"response.file_search_call.{kind}" in types
        assert "response.output_text.annotation.added" in types
        searched, said = answer.output
        assert searched.type == "file_search_call"
        assert any(says in result.text for result in searched.results)
        assert says in answer.output_text
        assert ids[name] in {note.file_id for note in said.content[0].annotations}
    plain = client.responses.create(model="nagaya-builtin", input="Who mended the roof?", tools=tools)
    assert plain.output[0].results is None
    none = client.responses.create(model="nagaya-builtin", input="Who?", tools=tools, tool_choice="none")
    assert [item.type for item in none.output] == ["message"]


def test_rows_8_and_9_foreign_stores_files_and_batches_answer_as_absent_ones(library: RunningServer, client: OpenAI):
    store, ids = filled(client, roof=f"{ROOF}{CANARY}\n")
    batch = client.vector_stores.file_batches.create(store.id, file_ids=list(ids.values()))
    file = ids["roof"]
    absent = {
        name: value[:-32] + "0" * 32 for name, value in (("store", store.id), ("file", file), ("batch", batch.id))
    }
    for tenant, user in (("strangers", "mio"), ("readers", "ken")):
        raw = library.client(library.key(tenant, user))
        own = raw.post("/v1/vector_stores", json={}).json()["id"]

        def told(store_id: str, file_id: str, batch_id: str, raw: httpx.Client = raw, own: str = own):
            at = f"/v1/vector_stores/{store_id}"
            tool = {"type": "file_search", "vector_store_ids": [store_id]}
            calls = [
                ("GET", at, None), ("POST", at, {"name": "mine"}), ("DELETE", at, None),
                ("POST", f"{at}/search", {"query": "roof"}), ("GET", f"{at}/files", None),
                ("POST", f"{at}/files", {"file_id": file_id}), ("GET", f"{at}/files/{file_id}", None),
                ("POST", f"{at}/files/{file_id}", {"attributes": {}}), ("DELETE", f"{at}/files/{file_id}", None),
                ("GET", f"{at}/files/{file_id}/content", None), ("POST", f"{at}/file_batches", {"file_ids": [file_id]}),
                ("GET", f"{at}/file_batches/{batch_id}", None), ("GET", f"{at}/file_batches/{batch_id}/files", None),
                ("POST", f"{at}/file_batches/{batch_id}/cancel", None),
                ("POST", f"/v1/vector_stores/{own}/files", {"file_id": file_id}),
                ("GET", f"/v1/vector_stores/{own}/file_batches/{batch_id}", None),
                ("POST", "/v1/vector_stores", {"file_ids": [file_id]}),
                ("POST", "/v1/responses", {"model": "nagaya-builtin", "input": "roof?", "tools": [tool]}),
            ]  # fmt: skip
            replies = [raw.request(method, path, json=body) for method, path, body in calls]
            return [(reply.status_code, reply.text) for reply in replies]

        foreign = told(store.id, file, batch.id)
        assert [status for status, _ in foreign] == [404] * len(foreign)
        assert foreign == told(absent["store"], absent["file"], absent["batch"])
        assert CANARY not in json.dumps(foreign, ensure_ascii=False)
    assert client.vector_stores.retrieve(store.id).file_counts.total == 1


def test_row_22_nearest_neighbours_are_the_callers_own(library: RunningServer, client: OpenAI):
    filled(client, secret=f"The word of the readers is {CANARY}.\n")
    with client_of(library, "strangers") as stranger:
        store, ids = filled(stranger, own="Strangers have no such word.\n")
        found = stranger.vector_stores.search(
            store.id, query=f"The word of the readers is {CANARY}", max_num_results=50
        )
        assert {one.file_id for one in found.data} == set(ids.values())
        assert CANARY not in str([one.model_dump() for one in found.data])


def test_no_word_of_a_document_lies_open_on_the_disk_or_in_the_log(library: RunningServer, client: OpenAI):
    filled(client, secret=f"{CANARY} is written here and nowhere else.\n")
    assert CANARY not in library.log()
    for path in Path(library.data).rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert CANARY.encode() not in content, path
            assert b"NgSx" not in content, path


def test_a_killed_server_takes_up_its_indexing_where_it_was(tmp_path: Path):
    with running(tmp_path) as server:
        server.tenant("readers")
        key = server.key("readers")
        with OpenAI(api_key=key, base_url=f"{server.url}/v1", max_retries=0, timeout=60) as client:
            ids = [
                client.files.create(file=(f"{n}.md", f"# {n}\n\n{ROOF * 40}".encode()), purpose="assistants").id
                for n in range(4)
            ]
            store = client.vector_stores.create(file_ids=ids).id
        server.kill()
        server.start()
        with OpenAI(api_key=key, base_url=f"{server.url}/v1", max_retries=0, timeout=60) as client:
            for file_id in ids:
                done = client.vector_stores.files.poll(file_id, vector_store_id=store, poll_interval_ms=POLL_MS)
                assert done.status == "completed", done.last_error
            found = client.vector_stores.search(store, query="Who mended the roof?", max_num_results=50)
            assert {one.file_id for one in found.data} == set(ids)
