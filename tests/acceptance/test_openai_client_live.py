"""The unmodified ``openai`` client, asynchronous, against answers that take their time: background, cancelling,
dropped streams, crashes between a claim and its answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from nagaya.context import idempotency
from nagaya.errors import AnswerCut
from nagaya.settings import Settings
from nagaya.wiring import Nagaya
from support.model_server import ModelServer
from support.server import RunningServer, sse

WHOLE = "Kato mends roofs."


@pytest.fixture
async def client(own_server: RunningServer, model_server: ModelServer) -> AsyncIterator[AsyncOpenAI]:
    try:
        own_server.operate("GET", "/admin/tenants/lively")
    except AssertionError:
        names = ("gate", "quick", "slow", "down", "cut")
        own_server.tenant("lively", models=[model_server.model(name) for name in names])
    model_server.gate.clear()
    key = own_server.key("lively", "mio")
    async with AsyncOpenAI(api_key=key, base_url=f"{own_server.url}/v1", max_retries=0, timeout=30) as made:
        yield made
    model_server.gate.set()


def output_tokens(server: RunningServer) -> int:
    found: int = server.operate("GET", "/admin/tenants/lively/usage")["output_tokens"]
    return found


async def until(check, within_s: float = 30.0):
    """What ``check`` gives once it gives something true."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        found = await check()
        if found:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError("it did not come to pass")


async def test_an_asynchronous_caller_streams_and_pages(client: AsyncOpenAI):
    conversation = (await client.conversations.create()).id
    kinds = [
        event.type
        async for event in await client.responses.create(
            conversation=conversation, input="Hello.", model="quick", stream=True
        )
    ]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    items = [item async for item in client.conversations.items.list(conversation, limit=1)]
    assert len(items) == 2


async def test_a_background_response_is_seen_in_progress_and_then_completed(
    client: AsyncOpenAI, model_server: ModelServer
):
    began = await client.responses.create(input="Hello.", model="gate", background=True)
    assert began.status in ("queued", "in_progress")
    seen = await client.responses.retrieve(began.id)
    assert seen.status in ("queued", "in_progress")
    assert seen.background
    model_server.gate.set()

    async def done():
        found = await client.responses.retrieve(began.id)
        return found if found.status == "completed" else None

    assert (await until(done)).output_text.endswith(WHOLE)


async def test_a_background_response_is_cancelled(client: AsyncOpenAI, model_server: ModelServer):
    began = await client.responses.create(input="Hello.", model="slow", background=True)
    cancelled = await client.responses.cancel(began.id)
    assert cancelled.status == "cancelled"

    async def settled():
        found = await client.responses.retrieve(began.id)
        return found.status == "cancelled"

    await until(settled)
    assert (await client.responses.cancel(began.id)).status == "cancelled"

    async def hung_up():
        return model_server.open_streams == 0

    await until(hung_up)
    plain = await client.responses.create(input="Hello.", model="quick")
    with pytest.raises(openai.BadRequestError):
        await client.responses.cancel(plain.id)


async def test_a_dropped_stream_is_finished_recorded_once_and_metered(
    client: AsyncOpenAI, model_server: ModelServer, own_server: RunningServer
):
    conversation = (await client.conversations.create()).id
    before = output_tokens(own_server)
    stream = await client.responses.create(conversation=conversation, input="Hello.", model="gate", stream=True)
    async for event in stream:
        if event.type == "response.created":
            response_id = event.response.id
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    await asyncio.sleep(0.2)
    model_server.gate.set()

    async def recorded():
        items = [item async for item in client.conversations.items.list(conversation, order="asc")]
        return items if len(items) >= 2 else None

    items = await until(recorded)
    assert items[1].content[0].text.endswith(WHOLE)

    async def completed():
        with contextlib.suppress(openai.NotFoundError):
            return (await client.responses.retrieve(response_id)).status == "completed"

    async def metered():
        return output_tokens(own_server) - before >= 3

    await until(completed)
    await until(metered)
    await asyncio.sleep(0.3)
    assert len([item async for item in client.conversations.items.list(conversation)]) == 2
    assert output_tokens(own_server) - before == 3


async def test_a_dropped_stream_with_an_idempotency_key_is_answered_to_the_repeat(
    client: AsyncOpenAI, model_server: ModelServer
):
    conversation = (await client.conversations.create()).id
    body = {"conversation": conversation, "input": "Hello.", "model": "gate", "stream": True}
    headers = {"authorization": f"Bearer {client.api_key}", "idempotency-key": "dropped"}
    async with httpx.AsyncClient(base_url=str(client.base_url), timeout=30) as raw:
        async with raw.stream("POST", "responses", json=body, headers=headers) as reply:
            async for text in reply.aiter_text():
                if "output_text.delta" in text:
                    break
        busy = await raw.post("responses", json=body, headers=headers)
        assert busy.status_code == 409
        assert busy.json()["error"]["code"] == "idempotency_in_progress"
        assert busy.headers["retry-after"]
        model_server.gate.set()

        async def answered():
            reply = await raw.post("responses", json=body, headers=headers)
            return sse(reply.text) if reply.status_code == 200 else None

        events = await until(answered)
    assert events[-1]["type"] == "response.completed"
    items = [item async for item in client.conversations.items.list(conversation)]
    assert len(items) == 2


async def test_a_dropped_chat_stream_ends_at_the_model_too(client: AsyncOpenAI, model_server: ModelServer):
    stream = await client.chat.completions.create(
        model="slow", messages=[{"role": "user", "content": "Count."}], stream=True
    )
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    assert model_server.open_streams >= 1
    await stream.close()

    async def hung_up():
        return model_server.open_streams == 0

    await until(hung_up, 20.0)


async def test_a_model_that_fails_is_said_plainly_and_the_response_is_recorded_as_failed(
    client: AsyncOpenAI, own_server: RunningServer, model_server: ModelServer
):
    # Tenants with one model each, which have no other to turn to.
    for name in ("down", "cut"):
        own_server.tenant(f"only-{name}", models=[model_server.model(name)])
    client = client.with_options(api_key=own_server.key("only-down"))
    conversation = (await client.conversations.create()).id
    with pytest.raises(openai.APIStatusError) as failed:
        await client.responses.create(input="Hello.", model="down", conversation=conversation)
    assert failed.value.status_code in (502, 503)
    # A turn that failed is not part of the conversation.
    assert [item async for item in client.conversations.items.list(conversation)] == []
    client = client.with_options(api_key=own_server.key("only-cut"))
    kinds, last = [], None
    japanese = {"Accept-Language": "ja"}
    async for event in await client.responses.create(input="Hello.", model="cut", stream=True, extra_headers=japanese):
        kinds.append(event.type)
        last = event
    assert kinds[-1] == "response.failed"
    assert last is not None
    kept = await client.responses.retrieve(last.response.id)
    assert kept.status == "failed"
    # In the language of whoever asked.
    assert kept.error is not None
    assert kept.error.message == AnswerCut().message("ja")
    assert last.response.error == kept.error


async def test_a_repeat_after_a_crash_between_claim_and_answer_finishes_what_was_begun(tmp_path, monkeypatch):
    async with Nagaya.open(settings=Settings(data=str(tmp_path))) as nagaya:
        await nagaya.tenants.create("acme", name="Acme")
        entrance = await nagaya.enter(await nagaya.tenants.mint("acme", "mio"))
        async with nagaya.session(entrance) as tenant:
            first = await idempotency.claim(tenant.session, "crash", b"request")
            assert isinstance(first, idempotency.Claim)
            made = await tenant.conversations.create(conversation_id=first.id("conv"))
            # The process died here. While the lease runs nobody else may begin; after it somebody must.
            with pytest.raises(Exception, match="still being answered"):
                await idempotency.claim(tenant.session, "crash", b"request")
            monkeypatch.setattr(idempotency, "LEASE_US", 0)
            second = await idempotency.claim(tenant.session, "crash", b"request")
            assert isinstance(second, idempotency.Claim)
            assert (await tenant.conversations.create(conversation_id=second.id("conv"))).id == made.id
            await second.finish(200, b"{}")
            # The first attempt, if it lives after all, changes nothing any more.
            await first.finish(500, b"late")
            await first.abandon()
            again = await idempotency.claim(tenant.session, "crash", b"request")
            assert again == idempotency.Answer(200, b"{}")
            assert len((await tenant.conversations.list()).data) == 1
