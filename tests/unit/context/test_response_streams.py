"""A response's stream told again: by whom ever it is read, however late, the events are those of the first stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from openai.types.responses import ResponseError as TheirError

from nagaya.context import response_records, response_run, responses
from nagaya.context.response_shapes import ResponseIn
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import (
    ContextTooLong,
    InvalidValue,
    ModelRateLimited,
    ModelUnreachable,
    NagayaError,
    NotFound,
    StoreFull,
)
from nagaya.models.driver import Finished, TextDelta, ToolCallDelta, Usage
from nagaya.settings import Settings
from nagaya.testing.models import HANG, Wait, call, say
from nagaya.wiring import Nagaya
from support.inside import inside

STOP = Finished("stop", Usage(7, 2), "")
CALLS = [
    TextDelta("Let me "),
    TextDelta("see."),
    ToolCallDelta(0, "c1", "first", '{"a"'),
    ToolCallDelta(1, "c2", "second", "{}"),
    ToolCallDelta(0, arguments=": 1}"),
    Finished("tool_calls", Usage(7, 5), "another-model"),
]
SCRIPTS = {
    "a text": say("One two three. 屋根を直す 👩‍👧."),
    "nothing": [STOP],
    "an argument-less call": [ToolCallDelta(0, "c1", "f"), Finished("tool_calls", Usage(1, 1), "")],
    "a call": call("f", '{"q": 1}'),
    "calls after a text": CALLS,
    "a text after a call": [*CALLS[2:3], TextDelta("And "), TextDelta("so."), STOP],
    "a cut text": say("Half an", reason="length"),
    "a failure in the middle": [TextDelta("Half "), ModelUnreachable()],
    "a failure at once": [ModelRateLimited()],
}


async def all_of(events: AsyncIterator[Any]) -> list[dict[str, Any]]:
    return [msgspec.to_builtins(event) async for event in events]


async def until(check: Callable[[], Awaitable[bool]], within_s: float = 30.0) -> None:
    async with asyncio.timeout(within_s):
        while not await check():
            await asyncio.sleep(0.01)


async def first_stream(tenant: TenantContext, **given: Any) -> list[dict[str, Any]]:
    run = await tenant.responses.begin(ResponseIn(input="Go.", **given))
    events = []
    while (event := await run.next()) is not None:
        # Taken down at once: what is shown later must not change what was shown.
        events.append(msgspec.to_builtins(event))
    return events


@pytest.mark.parametrize("name", SCRIPTS)
async def test_a_recorded_response_is_told_again_event_by_event(tmp_path: Path, monkeypatch, name):
    async with inside(tmp_path, monkeypatch, SCRIPTS[name]) as house, house.as_user() as tenant:
        told = await first_stream(tenant)
        assert [event["sequence_number"] for event in told] == list(range(len(told)))
        made = told[-1]["response"]["id"]
        assert await all_of(tenant.responses.follow(made)) == told
        for after in range(len(told) + 1):
            assert await all_of(tenant.responses.follow(made, after=after)) == told[after + 1 :]


async def test_a_background_response_is_queued_and_followed_by_any_number_of_readers(tmp_path: Path, monkeypatch):
    script = [TextDelta("one "), Wait(0.1), TextDelta("two "), Wait(0.1), TextDelta("three"), STOP]
    async with inside(tmp_path, monkeypatch, script) as house, house.as_user() as tenant:
        shown = await tenant.responses.start_background(
            await tenant.responses.begin(ResponseIn(input="Go.", background=True))
        )
        assert shown.status == "queued"
        early = asyncio.ensure_future(all_of(tenant.responses.follow(shown.id)))
        left = tenant.responses.follow(shown.id)
        seen = [await anext(left) for _ in range(6)]
        await left.aclose()
        rest = await all_of(tenant.responses.follow(shown.id, after=seen[-1].sequence_number))
        told = await early
        assert told == [msgspec.to_builtins(event) for event in seen] + rest
        assert [event["type"] for event in told[:3]] == ["response.created", "response.queued", "response.in_progress"]
        assert [event["response"]["status"] for event in told[:3]] == ["queued", "queued", "in_progress"]
        assert told[-1]["type"] == "response.completed"
        assert await all_of(tenant.responses.follow(shown.id)) == told
        assert tenant.session.room.runs == {}


async def test_another_process_follows_a_background_response_to_its_end(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(response_run, "PROGRESS_S", 0.0)
    monkeypatch.setattr(responses, "FOLLOW_S", 0.01)
    was_read = asyncio.Event()
    script = [*CALLS[:2], was_read, *CALLS[2:4], Wait(0.2), *CALLS[4:]]
    async with inside(tmp_path, monkeypatch, script) as house, house.as_user() as tenant:
        shown = await tenant.responses.start_background(
            await tenant.responses.begin(ResponseIn(input="Go.", background=True))
        )
        here = asyncio.ensure_future(all_of(tenant.responses.follow(shown.id)))
        async with Nagaya.open(settings=Settings(data=str(tmp_path))) as other:
            entrance = await other.enter(await other.tenants.mint("acme", "mio"))
            async with other.session(entrance) as elsewhere:
                partial = []

                async def said_half() -> bool:
                    partial.append(await elsewhere.responses.retrieve(shown.id))
                    return partial[-1].output_text == "Let me see." and partial[-1].status == "in_progress"

                follower = elsewhere.responses.follow(shown.id)
                there = asyncio.ensure_future(all_of(follower))
                await until(said_half)
                was_read.set()
                told = await there
        assert told == await here
        assert told[-1]["response"]["model"] == "another-model"
        assert told[0]["response"]["model"] == "scripted"


async def test_a_response_cancelled_by_another_process_stops_here(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(response_run, "PROGRESS_S", 0.0)
    script = [piece for _ in range(400) for piece in (TextDelta("on "), Wait(0.05))] + [STOP]
    async with inside(tmp_path, monkeypatch, script) as house, house.as_user() as tenant:
        chat = await tenant.conversations.create()
        shown = await tenant.responses.start_background(
            await tenant.responses.begin(ResponseIn(input="Go.", background=True, conversation=chat.id))
        )
        follower = asyncio.ensure_future(all_of(tenant.responses.follow(shown.id)))
        async with Nagaya.open(settings=Settings(data=str(tmp_path))) as other:
            entrance = await other.enter(await other.tenants.mint("acme", "mio"))
            async with other.session(entrance) as elsewhere:
                assert (await elsewhere.responses.cancel(shown.id)).status == "cancelled"
        told = await asyncio.wait_for(follower, 30)
        assert told[-1]["response"]["status"] == "cancelled"
        assert house.model.running == 0
        assert (await tenant.responses.retrieve(shown.id)).status == "cancelled"
        assert await tenant.conversations.items(chat.id) == []
        assert (await house.usage())["input_tokens"] > 0, "what was asked and half answered is billed all the same"


async def test_a_background_response_that_is_deleted_does_not_come_back(tmp_path: Path, monkeypatch):
    script = [TextDelta("one "), Wait(0.1), TextDelta("two"), STOP]
    async with inside(tmp_path, monkeypatch, script) as house, house.as_user() as tenant:
        chat = await tenant.conversations.create()
        shown = await tenant.responses.start_background(
            await tenant.responses.begin(ResponseIn(input="Go.", background=True, conversation=chat.id))
        )
        await tenant.responses.delete(shown.id)

        async def over() -> bool:
            return tenant.session.room.runs == {} and house.model.running == 0

        await until(over)
        assert await tenant.responses.find(shown.id) is None
        assert await tenant.conversations.items(chat.id) == []


async def test_a_background_response_whose_server_is_gone_has_failed_and_says_why(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, [HANG]) as house, house.as_user() as tenant:
        shown = await tenant.responses.start_background(
            await tenant.responses.begin(ResponseIn(input="Go.", background=True))
        )
        monkeypatch.setattr(response_records, "BACKGROUND_LEASE_US", -1)
        lost = await tenant.responses.retrieve(shown.id)
        assert lost.status == "failed"
        assert lost.error is not None
        tenant.session.room.runs.clear()
        japanese = NagayaError().message("ja")
        assert japanese.encode() in await tenant.responses.retrieve_wire(shown.id, language="ja")
        followed = await all_of(tenant.responses.follow(shown.id, language="ja"))
        assert followed[-1]["type"] == "response.failed"
        assert followed[-1]["response"]["error"]["message"] == japanese


async def test_nobody_else_follows_a_response(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house:
        async with house.as_user("mio") as tenant:
            made = await tenant.responses.create("x")
        async with house.as_user("ren") as tenant:
            with pytest.raises(NotFound):
                await anext(tenant.responses.follow(made.id))


@pytest.mark.parametrize("problem", [ModelUnreachable(), ModelRateLimited(), ContextTooLong(), StoreFull()])
async def test_a_failed_response_names_one_of_openais_codes_and_ours(tmp_path: Path, monkeypatch, problem):
    async with inside(tmp_path, monkeypatch, [problem]) as house, house.as_user() as tenant:
        error = (await tenant.responses.create("Go.")).error
        assert error is not None
        assert error.code in get_args(TheirError.model_fields["code"].annotation)
        assert error.type == problem.code


async def test_a_responses_metadata_has_the_limits_of_a_conversations(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        for metadata in ({str(number): "x" for number in range(17)}, {"x" * 65: "x"}, {"x": "x" * 513}):
            with pytest.raises(InvalidValue):
                await tenant.responses.begin(ResponseIn(input="x", metadata=metadata))
        assert house.model.requests == []
