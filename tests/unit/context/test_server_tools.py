"""Runs with tools of the server: steps, items, citations, limits, failures, and what is told again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from nagaya.context import response_run, server_tools
from nagaya.context.items import FunctionCall, FunctionCallOutput, Message
from nagaya.context.notices import Notices
from nagaya.context.response_shapes import ResponseIn
from nagaya.context.tool_items import FileSearchCall
from nagaya.errors import InvalidValue
from nagaya.models.driver import Finished, TextDelta, ToolCallDelta, Usage
from nagaya.testing.models import HANG, call, say
from support.inside import inside
from support.searching import Searching

SEARCH = call("file_search", '{"query":"gutter"}')
ROOF = "The gutter of the roof is mended by Ren."


async def events_of(run) -> list[Any]:
    found = []
    while (event := await run.next()) is not None:
        found.append(event)
    return found


async def test_the_model_searches_and_answers_with_a_citation(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, SEARCH, say("Ren mends it [1].")) as house, house.as_user() as tenant:
        tool = Searching(roof=ROOF)
        run = await tenant.responses.begin(ResponseIn(input="Who mends the gutter?"), tools=[tool])
        answer = await run.finish()
        searched, said = answer.output
        assert isinstance(searched, FileSearchCall)
        assert (searched.queries, searched.status) == (["gutter"], "completed")
        assert isinstance(said, Message)
        assert said.content[0].annotations == [
            {"type": "file_citation", "file_id": "file_roof", "filename": "roof.txt", "index": 13}
        ]
        asked_again = house.model.requests[1].turns
        assert asked_again[-2].tool_calls[0].name == "file_search"
        assert asked_again[-1].text == f"[1] roof.txt\n{ROOF}"
        assert answer.usage is not None
        assert answer.usage.input_tokens == 14  # of both questions
        assert tool.closed


async def test_its_stream_has_the_events_of_a_search_in_order_and_is_told_again_just_so(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, SEARCH, say("Ren [1].")) as house, house.as_user() as tenant:
        run = await tenant.responses.begin(ResponseIn(input="Who?"), tools=[Searching(roof=ROOF)])
        told = await events_of(run)
        assert [event.type for event in told] == [
            "response.created", "response.in_progress",
            "response.output_item.added", "response.file_search_call.in_progress",
            "response.file_search_call.searching", "response.file_search_call.completed", "response.output_item.done",
            "response.output_item.added", "response.content_part.added", "response.output_text.delta",
            "response.output_text.delta", "response.output_text.annotation.added", "response.output_text.done",
            "response.content_part.done", "response.output_item.done", "response.completed",
        ]  # fmt: skip
        assert [event.sequence_number for event in told] == list(range(len(told)))
        again = [event async for event in tenant.responses.follow(run.response.id)]
        assert again == told


async def test_what_was_found_is_kept_for_the_next_question_and_shown_to_no_client(tmp_path: Path, monkeypatch):
    scripts = [SEARCH, say("Ren."), say("Still Ren.")]
    async with inside(tmp_path, monkeypatch, *scripts) as house, house.as_user() as tenant:
        chat = await tenant.conversations.create()
        given = ResponseIn(input="Who?", conversation=chat.id)
        await (await tenant.responses.begin(given, tools=[Searching(roof=ROOF)])).finish()
        page = await tenant.conversations.item_page(chat.id)
        shown = b"".join(body[: body.index(b"\n")] for body in page.bodies)
        assert b"file_search_call" in shown
        assert ROOF.encode() not in shown
        given = ResponseIn(input="Sure?", conversation=chat.id)
        await (await tenant.responses.begin(given, tools=[Searching(roof=ROOF)])).finish()
        assert any(ROOF in turn.text for turn in house.model.requests[2].turns)


async def test_without_the_tool_its_old_calls_are_not_sent(tmp_path: Path, monkeypatch):
    scripts = [SEARCH, say("Ren."), say("Ren, I said.")]
    async with inside(tmp_path, monkeypatch, *scripts) as house, house.as_user() as tenant:
        first = await (await tenant.responses.begin(ResponseIn(input="Who?"), tools=[Searching(roof=ROOF)])).finish()
        await tenant.responses.create(ResponseIn(input="Who again?", previous_response_id=first.id))
        turns = house.model.requests[2].turns
        assert [turn.text for turn in turns] == ["Who?", "Ren.", "Who again?"]
        assert not any(turn.tool_calls for turn in turns)


async def test_a_tool_that_fails_is_told_to_the_model_and_the_answer_goes_on(tmp_path: Path, monkeypatch):
    class Broken(Searching):
        async def run(self, call, item, sources):
            raise InvalidValue(at="query", detail="too long")

    async with inside(tmp_path, monkeypatch, SEARCH, say("I cannot search.")) as house, house.as_user() as tenant:
        answer = await (await tenant.responses.begin(ResponseIn(input="Who?"), tools=[Broken()])).finish()
        assert (answer.status, answer.output[0].status) == ("completed", "failed")
        assert house.model.requests[1].turns[-1].text.startswith("Error: ")


async def test_a_tool_that_hangs_fails_in_its_time(tmp_path: Path, monkeypatch):
    class Hanging(Searching):
        async def run(self, call, item, sources):
            await asyncio.sleep(3600)

    monkeypatch.setattr(server_tools, "TOOL_S", 0.05)
    async with inside(tmp_path, monkeypatch, SEARCH, say("No answer.")) as house, house.as_user() as tenant:
        answer = await (await tenant.responses.begin(ResponseIn(input="Who?"), tools=[Hanging()])).finish()
        assert (answer.status, answer.output[0].status) == ("completed", "failed")


async def test_a_model_that_never_stops_calling_must_answer_at_the_last_step(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, SEARCH) as house, house.as_user() as tenant:
        tool = Searching(roof=ROOF)
        given = ResponseIn(input="Who?", max_steps=3)
        answer = await (await tenant.responses.begin(given, tools=[tool])).finish()
        assert len(house.model.requests) == 3
        assert [request.tool_choice for request in house.model.requests] == [None, None, "none"]
        assert len(tool.asked) <= 3
        assert answer.status in ("completed", "incomplete")


async def test_no_more_tools_are_called_than_the_request_allows(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, SEARCH, SEARCH, say("Enough.")) as house, house.as_user() as tenant:
        tool = Searching(roof=ROOF)
        given = ResponseIn(input="Who?", max_tool_calls=1)
        answer = await (await tenant.responses.begin(given, tools=[tool])).finish()
        assert len(tool.asked) == 1
        assert house.model.requests[1].tool_choice == "none"
        assert answer.status in ("completed", "incomplete")


async def test_a_run_that_takes_too_long_fails_and_says_so(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(response_run, "RUN_S", -1.0)
    async with inside(tmp_path, monkeypatch, SEARCH) as house, house.as_user() as tenant:
        run = await tenant.responses.begin(ResponseIn(input="Who?"), tools=[Searching()])
        answer = await run.finish()
        assert answer.status == "failed"
        assert run.problem is not None
        assert run.problem.code == "run_too_long"


async def test_a_call_of_the_clients_own_function_ends_the_run(tmp_path: Path, monkeypatch):
    both = [
        ToolCallDelta(0, "call_a", "file_search", '{"query":"x"}'),
        ToolCallDelta(1, "call_b", "mend", '{"what":"roof"}'),
        Finished("tool_calls", Usage(7, 5), ""),
    ]
    mend = {"type": "function", "name": "mend", "parameters": {"type": "object"}}
    async with inside(tmp_path, monkeypatch, both) as house, house.as_user() as tenant:
        given = ResponseIn(input="Mend it.", tools=[mend])
        answer = await (await tenant.responses.begin(given, tools=[Searching(roof=ROOF)])).finish()
        assert len(house.model.requests) == 1
        assert {type(item) for item in answer.output} == {FunctionCall, FileSearchCall}
        assert answer.status == "completed"


async def test_two_tools_of_one_name_are_refused(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        with pytest.raises(InvalidValue, match="file_search"):
            await tenant.responses.begin(ResponseIn(input="x"), tools=[Searching(), Searching()])


async def test_a_python_function_is_called_with_checked_arguments(tmp_path: Path, monkeypatch):
    def price(item: str, count: int = 1) -> dict[str, int]:
        """The price of some items, in yen."""
        return {"yen": 1200 * count}

    scripts = [call("price", '{"item":"tile","count":3}'), say("3,600 yen.")]
    async with inside(tmp_path, monkeypatch, *scripts) as house, house.as_user() as tenant:
        chat = await tenant.conversations.create()
        answer = await tenant.agents.run("What do 3 tiles cost?", functions=[price], conversation=chat.id)
        asked, gave, said = answer.output
        assert isinstance(asked, FunctionCall)
        assert isinstance(gave, FunctionCallOutput)
        assert (asked.call_id, gave.output) == (gave.call_id, '{"yen":3600}')
        assert said.text == "3,600 yen."
        offered = house.model.requests[0].tools[0]
        assert (offered.name, offered.description) == ("price", "The price of some items, in yen.")
        assert offered.parameters["required"] == ["item"]
        items = await tenant.conversations.items(chat.id, order="asc")
        assert [type(item) for item in items] == [Message, FunctionCall, FunctionCallOutput, Message]
        told = [event async for event in tenant.responses.follow(answer.id)]
        assert [event.sequence_number for event in told] == list(range(len(told)))


@pytest.mark.parametrize("arguments", ['{"item":1}', "{}", "not json", '{"item":"x","tenant":"globex"}', ""])
async def test_arguments_that_do_not_fit_never_reach_the_function(tmp_path: Path, monkeypatch, arguments):
    called = []

    async def price(item: str) -> str:
        called.append(item)
        return "1"

    scripts = [call("price", arguments), say("Sorry.")]
    async with inside(tmp_path, monkeypatch, *scripts) as house, house.as_user() as tenant:
        answer = await tenant.agents.run("Price?", functions=[price])
        assert called == []
        assert answer.output[1].output.startswith("Error: ")


@pytest.mark.parametrize(
    ("problem", "told"), [(ValueError("no such tile"), "no such tile"), (KeyError("k-secret"), "KeyError")]
)
async def test_what_a_function_raises_is_told_without_secrets(tmp_path: Path, monkeypatch, problem, told):
    def price(item: str) -> str:
        raise problem

    scripts = [call("price", '{"item":"x"}'), say("Sorry.")]
    async with inside(tmp_path, monkeypatch, *scripts) as house, house.as_user() as tenant:
        answer = await tenant.agents.run("Price?", functions=[price])
        assert told in answer.output[1].output
        assert "k-secret" not in answer.output[1].output


def untyped(item):
    return item


async def test_a_function_without_annotations_is_refused(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        with pytest.raises(InvalidValue, match="no annotation"):
            await tenant.agents.run("x", functions=[untyped])


async def test_a_run_tells_its_user_what_it_does(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, SEARCH, say("Ren.")) as house, house.as_user() as tenant:
        run = await tenant.responses.begin(ResponseIn(input="Who?"), tools=[Searching(roof=ROOF)])
        await run.finish()
        notices = await Notices(tenant.session).read(0)
        assert [notice.type for notice in notices] == [
            "run.started", "run.step", "run.tool_call", "run.tool_result", "run.step", "run.finished",
        ]  # fmt: skip
        assert {json.loads(notice.data)["response_id"] for notice in notices} == {run.response.id}


async def test_a_plain_answer_tells_nothing(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, say("Hello.")) as house, house.as_user() as tenant:
        await tenant.responses.create("Hello?")
        assert await Notices(tenant.session).read(0) == []


async def test_a_cancelled_run_calls_nothing_more_and_closes_its_tools(tmp_path: Path, monkeypatch):
    slow = [TextDelta("One moment"), HANG]
    async with inside(tmp_path, monkeypatch, slow) as house, house.as_user() as tenant:
        tool = Searching(roof=ROOF)
        run = await tenant.responses.begin(ResponseIn(input="Who?", background=True), tools=[tool])
        await tenant.responses.start_background(run)
        while not house.model.running:
            await asyncio.sleep(0.01)
        await tenant.responses.cancel(run.response.id)
        assert (await tenant.responses.retrieve(run.response.id)).status == "cancelled"
        assert tool.asked == []
