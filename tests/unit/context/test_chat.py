"""Chat completions and embeddings of one caller: what is refused, what is metered, what is asked of the model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nagaya.context.chat import ChatIn
from nagaya.context.decode import decode
from nagaya.context.embedding import EmbeddingsIn
from nagaya.errors import (
    InvalidType,
    InvalidValue,
    MalformedJson,
    MissingParameter,
    ModelUnreachable,
    NotFound,
    UnknownParameter,
    UnsupportedParameter,
)
from nagaya.models.driver import TextDelta
from nagaya.testing.models import HANG, call, say
from support.inside import inside


def chat(**fields: Any) -> ChatIn:
    body = {"messages": [{"role": "user", "content": "Hello."}], **fields}
    return decode(msgspec.json.encode(body), ChatIn)


async def test_a_whole_answer_is_metered_and_nothing_is_kept(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, say("One two.")) as house, house.as_user() as tenant:
        answer = await tenant.chat.create(chat())
        assert (answer.text, answer.choices[0].finish_reason) == ("One two.", "stop")
        used = await house.usage()
        assert (used["input_tokens"], used["output_tokens"]) == (7, 2)
        assert (await tenant.conversations.list()).data == []


async def test_a_stream_that_is_left_is_hung_up_and_metered_by_what_came(tmp_path: Path, monkeypatch):
    script = [TextDelta("one "), TextDelta("two "), HANG]
    async with inside(tmp_path, monkeypatch, script) as house, house.as_user() as tenant:
        chunks = tenant.chat.stream(chat(stream=True))
        seen = [await anext(chunks) for _ in range(3)]
        assert seen[-1].choices[0].delta.content == "two "
        await chunks.aclose()
        assert house.model.running == 0
        assert house.model.cancelled == 1
        used = await house.usage()
        assert used["output_tokens"] == 2
        assert used["input_tokens"] > 0, "who reads to the last word but one has asked all the same"


async def test_a_stream_that_fails_at_once_costs_nothing(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, [ModelUnreachable()]) as house, house.as_user() as tenant:
        with pytest.raises(ModelUnreachable):
            await anext(tenant.chat.stream(chat(stream=True)))
        used = await house.usage()
        assert (used["input_tokens"], used["output_tokens"]) == (0, 0)


async def test_a_stream_that_fails_raises_and_is_metered_by_what_came(tmp_path: Path, monkeypatch):
    script = [TextDelta("one "), ModelUnreachable()]
    async with inside(tmp_path, monkeypatch, script) as house, house.as_user() as tenant:
        with pytest.raises(ModelUnreachable):
            async for _ in tenant.chat.stream(chat(stream=True)):
                pass
        assert (await house.usage())["output_tokens"] == 1


async def test_a_stream_gives_its_usage_to_whoever_asks(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, say("One two.")) as house, house.as_user() as tenant:
        asked = chat(stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in tenant.chat.stream(asked)]
        assert chunks[-1].choices == []
        assert chunks[-1].usage.total_tokens == 9
        assert all(chunk.usage is None for chunk in chunks[:-1])
        assert house.model.running == 0


async def test_a_function_call_streams_in_pieces(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, call("find", '{"q": "roof"}')) as house, house.as_user() as tenant:
        tools = [{"type": "function", "function": {"name": "find"}}]
        chunks = [chunk async for chunk in tenant.chat.stream(chat(stream=True, tools=tools))]
        pieces = [piece for chunk in chunks for choice in chunk.choices for piece in choice.delta.tool_calls or []]
        assert pieces[0].id == "call_1"
        assert "".join(piece.function.arguments or "" for piece in pieces) == '{"q": "roof"}'
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        assert house.model.requests[0].tools[0].name == "find"


async def test_every_role_reaches_the_model_as_it_was_said(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        messages = [
            {"role": "system", "content": "Be kind."},
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
            {"role": "user", "content": [{"type": "text", "text": "See"}, {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "out"},
            {"role": "assistant", "content": None, "refusal": "No."},
        ]  # fmt: skip
        await tenant.chat.create(chat(messages=messages, stop="x", max_completion_tokens=5, seed=1, temperature=0.5))
        request = house.model.requests[0]
        assert [(turn.role, turn.text) for turn in request.turns] == [
            ("system", "Be kind."), ("developer", "Be brief."), ("user", "See"), ("assistant", ""), ("tool", "out"), ("assistant", "No."),
        ]  # fmt: skip
        assert request.turns[2].images == ("https://x.example/a.png",)
        assert request.turns[3].tool_calls[0].name == "f"
        assert (request.stop, request.max_output_tokens, request.seed, request.temperature) == (("x",), 5, 1, 0.5)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"messages": []}, MissingParameter),
        ({"messages": [{"role": "user"}]}, MissingParameter),
        ({"messages": [{"role": "tool", "content": "x"}]}, MissingParameter),
        ({"n": 2}, InvalidValue),
        ({"metadata": {"x": "y" * 513}}, InvalidValue),
        ({"stream_options": {"include_usage": True}}, InvalidValue),
        ({"store": True}, InvalidValue),
        ({"temperature": 2.1}, InvalidValue),
        ({"top_p": -0.1}, InvalidValue),
        ({"presence_penalty": 3}, InvalidValue),
        ({"max_tokens": 0}, InvalidValue),
        ({"stop": ["a"] * 5}, InvalidValue),
        ({"tools": [{"type": "web_search"}]}, InvalidValue),
        ({"tools": [{"type": "function"}]}, MissingParameter),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, InvalidValue),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 1}}]}, InvalidType),
        ({"tool_choice": "maybe"}, InvalidValue),
        ({"tool_choice": {"type": "function"}}, InvalidValue),
        ({"logprobs": True}, UnsupportedParameter),
        ({"modalities": ["audio"]}, UnsupportedParameter),
        ({"functions": [{}]}, UnsupportedParameter),
        ({"model": "another"}, NotFound),
    ],
)
async def test_what_cannot_be_done_is_refused_before_the_model_is_asked(tmp_path: Path, monkeypatch, fields, kind):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        with pytest.raises(kind):
            await tenant.chat.create(chat(**fields))
        with pytest.raises(kind):
            await anext(tenant.chat.stream(chat(**fields)))
        assert house.model.requests == []


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        (b'{"messages": 1}', InvalidType, "messages"),
        (b"{}", MissingParameter, "messages"),
        (b'{"messages": [], "tenant": 1}', UnknownParameter, "tenant"),
        (b'{"messages": [{"role": "user", "content": "x", "to": "y"}]}', UnknownParameter, "messages[0].to"),
        (b'{"messages": [{"role": "robot", "content": "x"}]}', InvalidValue, "messages[0].role"),
        (b"{", MalformedJson, None),
        (b'{"messages": [], "user": "\xff"}', MalformedJson, None),
        (b"[" * 100, MalformedJson, None),
    ],
)
def test_a_body_at_fault_is_named_by_its_path(body, kind, param):
    with pytest.raises(kind) as refused:
        decode(body, ChatIn)
    assert refused.value.param == param
    assert refused.value.status == 400


async def test_embeddings_refuse_what_has_none(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch) as house, house.as_user() as tenant:
        for given, kind in (
            (EmbeddingsIn(input=""), InvalidValue),
            (EmbeddingsIn(input=["a", ""]), InvalidValue),
            (EmbeddingsIn(input=[1, 2]), InvalidValue),
            (EmbeddingsIn(input="a", model="none"), NotFound),
            (EmbeddingsIn(input="a", dimensions=7), InvalidValue),
        ):
            with pytest.raises(kind):
                await tenant.embeddings.create(given)


async def test_a_cancelled_caller_leaves_nothing_running(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, [TextDelta("one "), HANG]) as house, house.as_user() as tenant:
        asking = asyncio.ensure_future(tenant.chat.create(chat()))
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert house.model.running == 0
