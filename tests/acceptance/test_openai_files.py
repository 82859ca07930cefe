"""Files with the unmodified ``openai`` client, every body checked against the client's own types."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import FileDeleted, FileObject

from support.server import RunningServer

BODY = "屋根の修理は加藤組。\n".encode() * 200_000


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[OpenAI]:
    server.tenant("openai-files")
    with OpenAI(
        api_key=server.key("openai-files", "mio"), base_url=f"{server.url}/v1", max_retries=0, timeout=60
    ) as made:
        yield made


def known(found: FileObject) -> FileObject:
    assert set(found.model_extra or {}) <= {"shared"}
    return FileObject.model_validate(found.model_dump(), strict=True)


def test_a_file_is_made_found_read_and_deleted(client: OpenAI):
    made = known(client.files.create(file=("屋根 見積.txt", io.BytesIO(BODY)), purpose="user_data"))
    assert (made.filename, made.bytes, made.purpose, made.status) == (
        "屋根 見積.txt",
        len(BODY),
        "user_data",
        "processed",
    )
    assert made.expires_at is None
    assert known(client.files.retrieve(made.id)) == made
    told = client.files.content(made.id)
    assert hashlib.sha256(told.read()).digest() == hashlib.sha256(BODY).digest()
    assert told.response.headers["content-type"] == "application/octet-stream"
    assert told.response.headers["x-content-type-options"] == "nosniff"
    assert told.response.headers["content-disposition"].startswith("attachment;")
    gone = client.files.delete(made.id)
    assert FileDeleted.model_validate(gone.model_dump(), strict=True) == FileDeleted(
        id=made.id, deleted=True, object="file"
    )
    for refused in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            refused(made.id)


def test_lists_are_paged_filtered_and_ordered(client: OpenAI):
    purposes = ("assistants", "vision", "user_data", "assistants", "vision")
    made = [client.files.create(file=(f"{n}.txt", b"x"), purpose=purpose).id for n, purpose in enumerate(purposes)]
    assert [each.id for each in client.files.list(limit=2)][:5] == made[::-1]
    assert [known(each).id for each in client.files.list(order="asc").data][-5:] == made
    assert [each.id for each in client.files.list(purpose="vision", order="asc").data] == [made[1], made[4]]
    first = client.files.list(limit=3, order="asc", after=made[0])
    assert [each.id for each in first.data] == made[1:4]
    assert first.has_more
    assert [each.id for each in first.get_next_page().data] == made[4:]
    for each in made:
        client.files.delete(each)


def test_a_file_can_have_a_term(client: OpenAI):
    made = client.files.create(
        file=("a.txt", b"x"), purpose="vision", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.expires_at == made.created_at + 3600
    for seconds in (3599, 2_592_001):
        with pytest.raises(openai.BadRequestError, match="expires_after"):
            client.files.create(
                file=("a.txt", b"x"), purpose="vision", expires_after={"anchor": "created_at", "seconds": seconds}
            )


def test_what_cannot_be_kept_says_why(client: OpenAI):
    for purpose, words in (("batch", "batches"), ("fine-tune", "fine-tuning"), ("evals", "evaluations")):
        with pytest.raises(openai.BadRequestError, match=words) as refused:
            client.files.create(file=("a.jsonl", b"{}"), purpose=purpose)
        assert refused.value.param == "purpose"
    with pytest.raises(openai.BadRequestError, match="255"):
        client.files.create(file=("a" * 256, b"x"), purpose="vision")
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve("file_" + "0" * 32)


def test_a_repeat_with_an_idempotency_key_makes_one_file(client: OpenAI):
    before = len(client.files.list().data)
    key = {"Idempotency-Key": "upload-once"}
    first = client.files.create(file=("once.txt", b"once"), purpose="vision", extra_headers=key)
    assert client.files.create(file=("once.txt", b"once"), purpose="vision", extra_headers=key) == first
    assert len(client.files.list().data) == before + 1
    with pytest.raises(openai.UnprocessableEntityError):
        client.files.create(file=("other.txt", b"other"), purpose="vision", extra_headers=key)


async def test_the_same_with_the_asynchronous_client(client: OpenAI):
    async with AsyncOpenAI(api_key=client.api_key, base_url=client.base_url, max_retries=0, timeout=60) as other:
        made = known(await other.files.create(file=("plan.md", BODY), purpose="assistants"))
        assert known(await other.files.retrieve(made.id)) == made
        assert made.id in [each.id async for each in other.files.list(limit=2)]
        assert (await other.files.content(made.id)).read() == BODY
        assert (await other.files.delete(made.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await other.files.content(made.id)
