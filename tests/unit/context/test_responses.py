"""Answers that fail, are cut, cancelled, left or unrecorded: what is said, what is kept, what is metered."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nagaya.context import idempotency
from nagaya.context.items import FunctionCall, ItemIn, Message
from nagaya.context.response_run import ResponseRun
from nagaya.context.response_shapes import ResponseIn, Telling
from nagaya.context.responses import Responses
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import (
    ContextTooLong,
    Forbidden,
    InvalidValue,
    ModelFailed,
    ModelUnreachable,
    NagayaError,
    NotFound,
    SessionClosed,
    StoreFull,
)
from nagaya.models.driver import Finished, TextDelta, ToolCallDelta, Usage
from nagaya.testing.models import HANG, Wait, call, say
from support.inside import inside

STOP = Finished("stop", Usage(7, 2), "")


async def events_of(run: ResponseRun) -> list[Any]:
    found = []
    while (event := await run.next()) is not None:
        found.append(event)
    return found


async def texts_of(tenant: TenantContext, conversation: str) -> list[str]:
    items = await tenant.conversations.items(conversation, order="asc", limit=100)
    return [item.text for item in items if isinstance(item, Message)]


async def until(check, within_s: float = 30.0) -> None:
    async with asyncio.timeout(within_s):
        while not await check():
            await asyncio.sleep(0.01)


async def test_an_answer_is_recorded_once_and_metered(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, say("One two three.")) as house, house.as_user() as tenant:
        chat = await tenant.conversations.create()
        answer = await tenant.responses.create("Count.", conversation=chat.id)
        assert (answer.status, answer.output_text) == ("completed", "One two three.")
        assert await texts_of(tenant, chat.id) == ["Count.", "One two three."]
        assert await tenant.responses.retrieve(answer.id) == answer
        used = await house.usage()
        assert (used["input_tokens"], used["output_tokens"]) == (7, 3)
        assert house.model.running == 0


@pytest.mark.parametrize(
    "script", [[ModelUnreachable()], [TextDelta("Half "), ModelUnreachable()], [TextDelta("Half ")]]
)
async def test_a_model_that_fails_leaves_the_conversation_as_it_was(tmp_path: Path, monkeypatch, script):
    async with inside(tmp_path, monkeypatch, script) as house, house.as_user() as tenant:
        chat = await tenant.conversations.create()
        run = await tenant.responses.begin(ResponseIn(input="Go.", conversation=chat.id))
        events = await events_of(run)
        assert events[-1].type == "response.failed"
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert isinstance(run.problem, ModelFailed)
        kept = await tenant.responses.retrieve(run.response.id)
        assert kept.status == "failed"
        assert kept.error is not None
        assert await texts_of(tenant, chat.id) == []
        done = [event for event in events if event.type == "response.output_item.done"]
        assert all(event.item.status == "incomplete" for event in done)


async def test_a_fault_of_our_own_is_said_without_its_words(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, [RuntimeError("secret words")]) as house, house.as_user() as tenant:
        answer = await tenant.responses.create("Go.")
        assert answer.status == "failed"
        assert answer.error is not None
        assert "secret" not in answer.error.message


async def test_an_answer_that_cannot_be_recorded_does_not_look_kept(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, say("Kept?")) as house, house.as_user() as tenant:

        async def full(*_: Any, **__: Any) -> None:
            raise StoreFull

        monkeypatch.setattr(Responses, "_record", full)
        run = await tenant.responses.begin(ResponseIn(input="Go."))
        events = await events_of(run)
        assert events[-1].type == "response.failed"
        assert isinstance(run.problem, StoreFull)
        assert await tenant.responses.find(run.response.id) is None


async def test_a_cancelled_run_stops_at_its_next_step_and_is_kept_as_cancelled(tmp_path: Path, monkeypatch):
    script = [piece for _ in range(4_000) for piece in (TextDelta("one "), Wait(0.05))] + say("three four")
    async with inside(tmp_path, monkeypatch, script, say("Hello.")) as house, house.as_user() as tenant:
        run = await tenant.responses.begin(ResponseIn(input="Go.", background=True))
        shown = await tenant.responses.start_background(run)
        assert shown.status in ("queued", "in_progress")

        async def answering() -> bool:
            return house.model.running == 1

        await until(answering)
        await tenant.responses.cancel(shown.id)

        async def settled() -> bool:
            return house.model.running == 0 and (await tenant.responses.retrieve(shown.id)).status == "cancelled"

        await until(settled)
        assert "three" not in (await tenant.responses.retrieve(shown.id)).output_text
        plain = await tenant.responses.create("Go.")
        with pytest.raises(InvalidValue):
            await tenant.responses.cancel(plain.id)


async def test_an_iterator_that_is_left_early_loses_nothing(tmp_path: Path, monkeypatch):
    script = [TextDelta("one "), Wait(0.1), TextDelta("two"), STOP]
    async with inside(tmp_path, monkeypatch, script) as house:
        async with house.as_user() as tenant:
            chat = await tenant.conversations.create()
            stream = tenant.responses.stream(chat.id, "Go.")
            async for event in stream:
                if event.type == "response.output_text.delta":
                    break
            await stream.aclose()  # type: ignore[attr-defined]  # an async generator behind its protocol
        async with house.as_user() as tenant:

            async def recorded() -> bool:
                return len(await texts_of(tenant, chat.id)) == 2

            await until(recorded)
            assert await texts_of(tenant, chat.id) == ["Go.", "one two"]
            assert (await house.usage())["output_tokens"] == 2


async def test_closing_the_platform_lets_an_answer_end(tmp_path: Path, monkeypatch):
    script = [TextDelta("one "), Wait(0.2), TextDelta("two"), STOP]
    async with inside(tmp_path, monkeypatch, script) as house, house.as_user() as tenant:
        chat = await tenant.conversations.create()
        run = await tenant.responses.begin(ResponseIn(input="Go.", conversation=chat.id))
        await run.next()
        run.leave()
        run.leave()
        await house.nagaya.close(deadline_s=60)
    async with inside_again(tmp_path) as nagaya:
        entrance = await nagaya.enter(await nagaya.tenants.mint("acme", "mio"))
        async with nagaya.session(entrance) as tenant:
            assert await texts_of(tenant, chat.id) == ["Go.", "one two"]


def inside_again(folder: Path):
    from nagaya.settings import Settings
    from nagaya.wiring import Nagaya

    return Nagaya.open(settings=Settings(data=str(folder)))


async def test_truncation_drops_the_oldest_turns_until_the_window_holds_them(tmp_path: Path, monkeypatch):
    scripts = [[ContextTooLong()], [ContextTooLong()], say("Fits.")]
    async with inside(tmp_path, monkeypatch, *scripts) as house, house.as_user() as tenant:
        chat = await tenant.conversations.create(items=[Message.user(f"turn {number}") for number in range(9)])
        asked = ResponseIn(input="Last.", conversation=chat.id, truncation="auto", instructions="Be brief.")
        answer = await (await tenant.responses.begin(asked)).finish()
        assert answer.output_text == "Fits."
        lengths = [len(request.turns) for request in house.model.requests]
        assert lengths == sorted(lengths, reverse=True)
        assert len(set(lengths)) == 3
        last = house.model.requests[-1].turns
        assert (last[0].text, last[-1].text) == ("Be brief.", "Last.")
        assert len(await texts_of(tenant, chat.id)) == 11


async def test_without_truncation_a_long_conversation_is_refused(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, [ContextTooLong()]) as house, house.as_user() as tenant:
        run = await tenant.responses.begin(ResponseIn(input="x"))
        await run.finish()
        assert isinstance(run.problem, ContextTooLong)
        assert len(house.model.requests) == 1
        short = await tenant.responses.begin(ResponseIn(input="x", truncation="auto"))
        await short.finish()
        assert isinstance(short.problem, ContextTooLong)


async def test_truncation_leaves_no_tools_answer_without_its_question(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, [ContextTooLong()], say("Fits.")) as house, house.as_user() as tenant:
        given = [
            ItemIn(role="user", content="first"),
            ItemIn(type="function_call", call_id="c", name="f", arguments="{}"),
            ItemIn(type="function_call_output", call_id="c", output="out"),
            ItemIn(role="user", content="second"),
            ItemIn(role="user", content="third"),
            ItemIn(role="user", content="last"),
        ]
        await tenant.responses.create(ResponseIn(input=given, truncation="auto"))
        assert [turn.role for turn in house.model.requests[-1].turns] == ["user", "user", "user"]


async def test_several_function_calls_come_in_order_after_a_text(tmp_path: Path, monkeypatch):
    script = [
        TextDelta("Let me see."),
        ToolCallDelta(0, "c1", "first", '{"a"'),
        ToolCallDelta(1, "c2", "second", "{}"),
        ToolCallDelta(0, arguments=": 1}"),
        Finished("tool_calls", Usage(7, 5), ""),
    ]
    async with inside(tmp_path, monkeypatch, script) as house, house.as_user() as tenant:
        run = await tenant.responses.begin(ResponseIn(input="Go."))
        events = await events_of(run)
        assert [event.sequence_number for event in events] == list(range(len(events)))
        output = run.response.output
        assert [type(item).__name__ for item in output] == ["Message", "FunctionCall", "FunctionCall"]
        calls = [item for item in output if isinstance(item, FunctionCall)]
        assert [(item.call_id, item.name, item.arguments) for item in calls] == [
            ("c1", "first", '{"a": 1}'),
            ("c2", "second", "{}"),
        ]
        added = [event.item.id for event in events if event.type == "response.output_item.added"]
        done = [event.item.id for event in events if event.type == "response.output_item.done"]
        assert sorted(added) == sorted(done)


@pytest.mark.parametrize(("reason", "detail"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
async def test_an_answer_that_was_cut_short_is_incomplete_and_kept(tmp_path: Path, monkeypatch, reason, detail):
    async with inside(tmp_path, monkeypatch, say("Half an", reason=reason)) as house, house.as_user() as tenant:
        chat = await tenant.conversations.create()
        answer = await tenant.responses.create("Go.", conversation=chat.id)
        assert answer.status == "incomplete"
        assert answer.incomplete_details is not None
        assert answer.incomplete_details.reason == detail
        assert len(await texts_of(tenant, chat.id)) == 2


async def test_a_session_that_was_revoked_ends_its_answer(tmp_path: Path, monkeypatch):
    is_revoked = asyncio.Event()
    script = [TextDelta("one "), is_revoked, TextDelta("two "), HANG]
    async with inside(tmp_path, monkeypatch, script) as house:
        entrance = await house.nagaya.enter(await house.nagaya.tenants.mint("acme", "mio"))
        async with house.nagaya.session(entrance) as tenant:
            run = await tenant.responses.begin(ResponseIn(input="Go."))
            await asyncio.sleep(0.01)
            await house.nagaya.tenants.suspend("acme")
            is_revoked.set()
            events = await asyncio.wait_for(events_of(run), 30)
            assert events[-1].type == "response.failed"
            assert isinstance(run.problem, SessionClosed)
            with pytest.raises(SessionClosed):
                _ = tenant.session.records
            assert house.model.running == 0


async def test_a_read_only_key_asks_for_nothing(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user(scopes=["nagaya.read"]) as tenant:
        assert (await tenant.conversations.list()).data == []
        for work in (
            tenant.responses.create("x"),
            tenant.conversations.create(),
            tenant.responses.delete("resp_x"),
            tenant.responses.cancel("resp_x"),
        ):
            with pytest.raises(Forbidden):
                await work
        assert house.model.requests == []


async def test_another_users_response_is_not_found_and_an_administrator_finds_it(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house:
        async with house.as_user("mio") as tenant:
            answer = await tenant.responses.create("x")
        for role in ("user", "member"):
            async with house.as_user("ren", role) as tenant:
                for work in (
                    tenant.responses.retrieve(answer.id),
                    tenant.responses.input_items(answer.id),
                    tenant.responses.delete(answer.id),
                ):
                    with pytest.raises(NotFound):
                        await work
        async with house.as_user("aoi", "tenant_admin") as tenant:
            assert (await tenant.responses.retrieve(answer.id)).id == answer.id


async def test_a_chain_stops_at_a_response_that_was_deleted(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        first = await tenant.responses.create("one")
        second = await tenant.responses.create("two", previous_response_id=first.id)
        await tenant.responses.delete(first.id)
        await tenant.responses.create("three", previous_response_id=second.id)
        assert [turn.text for turn in house.model.requests[-1].turns] == ["two", "Hello.", "three"]
        await tenant.responses.delete(second.id)
        with pytest.raises(NotFound):
            await tenant.responses.create("four", previous_response_id=second.id)


async def test_function_calls_reach_the_model_as_one_turn_with_their_answers(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, call("f", '{"q": 1}'), say("Done.")) as house, house.as_user() as tenant:
        tools = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
        asked = await tenant.responses.create("x", tools=tools)
        output = ItemIn(type="function_call_output", call_id="call_1", output="out")
        await tenant.responses.create(ResponseIn(input=[output], previous_response_id=asked.id, tools=tools))
        roles = [(turn.role, turn.text, len(turn.tool_calls)) for turn in house.model.requests[-1].turns]
        assert roles == [("user", "x", 0), ("assistant", "", 1), ("tool", "out", 0)]


async def test_a_server_that_stops_hard_records_how_far_it_came(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, [TextDelta("one "), HANG]) as house:
        async with house.as_user() as tenant:
            run = await tenant.responses.begin(ResponseIn(input="Go."))
            task = asyncio.ensure_future(run.finish())
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # As whoever sent it does on its way out.
            run.leave()

            async def recorded() -> bool:
                found = await tenant.responses.find(run.response.id)
                return found is not None and (found.status, found.output_text) == ("incomplete", "one ")

            await until(recorded)
            assert house.model.running == 0
            await asyncio.sleep(0.05)
            assert tenant.session.room.leases == 1
        with pytest.raises(NagayaError):
            await tenant.responses.retrieve(run.response.id)


async def test_a_repeat_after_a_crash_between_conversation_and_response_adds_no_turn_twice(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, say("Once.")) as house, house.as_user() as tenant:
        chat = await tenant.conversations.create()
        given = [ItemIn(role="user", content="a"), ItemIn(role="user", content="b")]

        async def attempt() -> ResponseRun:
            held = await idempotency.claim(tenant.session, "key", b"request")
            assert isinstance(held, idempotency.Claim)
            return await tenant.responses.begin(ResponseIn(input=given, conversation=chat.id), held)

        # The first process dies when the turns are in the conversation and the response is not yet recorded.
        append = Responses._append

        async def dying(self: Responses, *args: Any) -> None:
            await append(self, *args)
            await asyncio.sleep(3600)

        monkeypatch.setattr(Responses, "_append", dying)
        first = await attempt()
        dead = asyncio.ensure_future(first.finish())

        async def appended() -> bool:
            return len(await texts_of(tenant, chat.id)) == 3

        await until(appended)
        monkeypatch.setattr(Responses, "_append", append)
        monkeypatch.setattr(idempotency, "LEASE_US", 0)
        # A second later, so that nothing hangs on the moment.
        await asyncio.sleep(1.1)
        second = await attempt()
        answer = await second.finish()
        assert answer.status == "completed"
        assert second.response.id == first.response.id
        assert await texts_of(tenant, chat.id) == ["a", "b", "Once."]
        items = await tenant.conversations.items(chat.id)
        assert items[0].id == answer.output[0].id
        dead.cancel()
        await asyncio.gather(dead, return_exceptions=True)


async def test_what_is_cancelled_just_before_it_ends_is_not_in_its_conversation(tmp_path: Path, monkeypatch):
    """Another server takes the cancellation."""
    async with (
        inside(tmp_path, monkeypatch, say("Kept?")) as house,
        house.as_user() as tenant,
        house.as_user() as other,
    ):
        chat = await tenant.conversations.create()
        append, answered = Responses._append, []

        async def late(self, *args):
            answered.append((await other.responses.cancel(run.response.id)).status)
            await append(self, *args)

        monkeypatch.setattr(Responses, "_append", late)
        run = await tenant.responses.begin(ResponseIn(input="Go.", conversation=chat.id, background=True))
        await tenant.responses.start_background(run)

        async def ended() -> bool:
            return (await tenant.responses.retrieve(run.response.id)).status in ("completed", "cancelled")

        await until(ended)
        kept = await tenant.responses.retrieve(run.response.id)
        assert (kept.status == "cancelled") == ("cancelled" in answered)
        assert await texts_of(tenant, chat.id) == ([] if kept.status == "cancelled" else ["Go.", "Kept?"])


async def test_what_is_cancelled_while_it_is_recorded_how_far_it_has_come_is_cancelled(tmp_path: Path, monkeypatch):
    goes_on = asyncio.Event()
    async with inside(tmp_path, monkeypatch, [Wait(goes_on), *say("Yes.")]) as house, house.as_user() as tenant:
        run = await tenant.responses.begin(ResponseIn(input="Go.", background=True))
        await tenant.responses.start_background(run)
        head = Responses._head

        async def late(self, *args):
            record = await head(self, *args)
            monkeypatch.setattr(Responses, "_head", head)
            assert await self._show(run.response, Telling())
            return record

        monkeypatch.setattr(Responses, "_head", late)
        cancelled = await tenant.responses.cancel(run.response.id)
        goes_on.set()
        assert cancelled.status == "cancelled"
        assert (await tenant.responses.retrieve(run.response.id)).status == "cancelled"
