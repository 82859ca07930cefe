"""The OpenAI Agents SDK's memory over a tenant: driven by the SDK's own runner, item by item, and whose it is."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENAI_AGENTS_DISABLE_TRACING", "1")

import pytest
from agents import Agent, ModelSettings, OpenAIResponsesModel, RunConfig, Runner, function_tool
from agents.memory import Session, SessionSettings
from agents.testing import ScriptedModel
from openai import AsyncOpenAI
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText
from openai.types.responses.response_reasoning_item import ResponseReasoningItem, Summary

from nagaya import Message, Nagaya
from nagaya.context.drawers import Folder
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import NotFound, SessionClosed
from nagaya.integrations.openai_agents import NagayaSession
from support.planted import Planted
from support.two_tenants import entered

CANARY = "zq-canary-in-an-agents-session-苔"
QUIET = RunConfig(tracing_disabled=True)


def said(text: str, id_: str = "msg_1") -> ResponseOutputMessage:
    part = ResponseOutputText(text=text, type="output_text", annotations=[], logprobs=[])
    return ResponseOutputMessage(id=id_, type="message", role="assistant", status="completed", content=[part])


ITEMS: list[Any] = [
    {"role": "user", "content": "Who mends the roof?"},
    {"type": "message", "role": "user", "content": "誰が屋根を直しますか？\n\n改行"},
    {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
    {"content": [{"text": "hello", "type": "input_text"}, {"type": "input_image", "image_url": "https://x.example/a.png", "detail": "auto"}], "role": "user"},
    {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [{"type": "output_text", "text": "Sato.", "annotations": [], "logprobs": []}]},
    {"id": "msg_2", "type": "message", "role": "assistant", "status": "incomplete", "content": [{"type": "output_text", "text": "Sa", "annotations": [{"type": "url_citation", "url": "https://x.example", "start_index": 0, "end_index": 1, "title": "t"}]}]},
    {"id": "msg_3", "type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "status": "completed", "phase": "final_answer"},
    {"role": "assistant", "content": "Plain."},
    {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "weather", "arguments": '{"city": "京都"}'},
    {"type": "function_call", "call_id": "call_2", "name": "weather", "arguments": "{}", "status": "in_progress", "provider_data": {"a": [1, None, True]}},
    {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
    {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "wet"}]},
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "thinking"}], "encrypted_content": "gAAA=="},
    {"type": "reasoning", "id": "rs_2", "summary": []},
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "roof"}},
    {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot", "image_url": "data:image/png;base64,AA=="}},
    {"type": "item_reference", "id": "msg_1"},
    {"type": "compaction", "id": "cmp_1", "encrypted_content": "gAAA"},
    {"something": "of tomorrow", "n": 1, "x": 1.5, "nothing": None, "true": True},
    {"role": "user", "content": []},
    {"role": "user", "content": ""},
    {"role": "user", "content": [{"type": "input_text", "text": "1", "extra": 1}]},
    {"role": "tool", "content": "not a role"},
]  # fmt: skip


async def test_every_item_comes_back_equal_one_by_one_and_together(tenant: TenantContext) -> None:
    one_by_one, together = NagayaSession("one by one", tenant), NagayaSession("together", tenant)
    for item in ITEMS:
        await one_by_one.add_items([item])
    await together.add_items(ITEMS)
    for session in (one_by_one, together):
        found: Any = await session.get_items()
        assert found == ITEMS
        assert [list(item) for item in found] == [list(item) for item in ITEMS], "keys in their order"
        for limit in range(len(ITEMS) + 2):
            assert await session.get_items(limit) == (ITEMS[-limit:] if limit else [])
    for item in reversed(ITEMS):
        assert await together.pop_item() == item
    assert await together.pop_item() is None
    assert await together.get_items() == []


async def test_texts_that_are_more_than_texts_are_kept_as_texts_and_what_is_no_json_is_refused(
    tenant: TenantContext,
) -> None:
    class Text(str):
        __slots__ = ()

    session = NagayaSession("s", tenant)
    await session.add_items([{"role": "user", "content": Text("hello")}, {"type": "new", "x": (Text("a"), 1)}])  # type: ignore[list-item, typeddict-item]  # of tomorrow
    assert await session.get_items() == [{"role": "user", "content": "hello"}, {"type": "new", "x": ["a", 1]}]
    for bad in ({"role": "user", "content": object()}, object()):
        with pytest.raises(TypeError):
            await session.add_items([bad])  # type: ignore[list-item]  # not an item
    assert len(await session.get_items()) == 2


async def test_a_session_is_what_the_sdk_asks_for_and_its_settings_hold(tenant: TenantContext) -> None:
    session = NagayaSession("s", tenant, session_settings=SessionSettings(limit=2))
    assert isinstance(session, Session)
    assert await session.get_items() == []
    assert await session.conversation_id() is None
    await session.clear_session()
    await session.add_items([])
    assert await session.conversation_id() is None
    await session.add_items(ITEMS[:5])
    assert await session.get_items() == ITEMS[3:5]
    assert await session.get_items(4) == ITEMS[1:5]
    assert await session.get_items(-1) == ITEMS[:5]


async def test_known_items_are_items_of_the_conversation_for_everybody_who_may_read_it(tenant: TenantContext) -> None:
    session = NagayaSession("s", tenant)
    await session.add_items(ITEMS)
    conversation = await session.conversation_id()
    assert conversation is not None
    items = await tenant.conversations.items(conversation, order="asc", limit=100)
    assert [item.text for item in items if isinstance(item, Message)][:2] == [ITEMS[0]["content"], ITEMS[1]["content"]]
    assert len(items) == 16
    assert len(await tenant.conversations.all_items(conversation)) == 16
    assert (await tenant.conversations.retrieve(conversation)).metadata == {"session_id": "s"}


async def test_what_was_said_otherwise_in_the_conversation_is_there_for_the_agent(tenant: TenantContext) -> None:
    chat = await tenant.conversations.create(items=[Message.user("Who mends the roof?")])
    session = NagayaSession(chat.id, tenant)
    await session.add_items([{"role": "assistant", "content": "Sato."}])
    part = {"type": "input_text", "text": "Who mends the roof?"}
    assert await session.get_items() == [
        {"type": "message", "role": "user", "status": "completed", "content": [part]},
        {"role": "assistant", "content": "Sato."},
    ]


async def test_a_cleared_session_goes_on_empty_and_a_popped_one_where_it_was(tenant: TenantContext) -> None:
    session, other = NagayaSession("s", tenant), NagayaSession("s", tenant)
    for round_ in range(3):
        await session.add_items([*ITEMS[:3], *ITEMS[14:16]])
        assert await other.get_items() == [*ITEMS[:3], *ITEMS[14:16]]
        assert await other.pop_item() == ITEMS[15]
        await other.add_items([ITEMS[round_]])
        assert await session.get_items(2) == [ITEMS[14], ITEMS[round_]]
        await session.clear_session()
        assert await session.get_items() == await other.get_items() == []
    conversation = await session.conversation_id()
    assert conversation is not None
    assert await tenant.conversations.items(conversation) == []


async def test_more_items_than_a_page_holds_are_read_in_order_with_what_was_deleted_left_out(
    tenant: TenantContext,
) -> None:
    session = NagayaSession("s", tenant)
    given: list[Any] = [
        ITEMS[14] | {"id": f"ws_{n}"} if n % 3 == 0 else {"role": "user", "content": f"{n}"} for n in range(450)
    ]
    await session.add_items(given)
    assert await session.get_items() == given
    assert await session.get_items(430) == given[20:]
    conversation = await session.conversation_id()
    assert conversation is not None
    newest = await tenant.conversations.items(conversation, limit=100)
    for item in newest[:90]:
        await tenant.conversations.delete_item(conversation, item.id)
    left = await session.get_items()
    assert [item for item in left if item.get("type") == "web_search_call"] == given[::3]
    assert [item for item in left if "role" in item] == [item for item in given if "role" in item][:-90]


async def test_two_processes_that_begin_one_session_share_one_conversation(tenant: TenantContext) -> None:
    sessions = [NagayaSession("s", tenant) for _ in range(4)]
    await asyncio.gather(
        *(session.add_items([{"role": "user", "content": f"{n}"}]) for n, session in enumerate(sessions))
    )
    assert len({await session.conversation_id() for session in sessions}) == 1
    assert sorted(str(item["content"]) for item in await sessions[0].get_items()) == ["0", "1", "2", "3"]
    assert len((await tenant.conversations.list()).data) == 1


async def test_a_session_whose_conversation_was_deleted_begins_anew_but_an_id_is_gone(tenant: TenantContext) -> None:
    session = NagayaSession("s", tenant)
    await session.add_items(ITEMS[:1])
    former = await session.conversation_id()
    assert former is not None
    await tenant.conversations.delete(former)
    assert await session.get_items() == []
    await session.add_items(ITEMS[1:2])
    assert await NagayaSession("s", tenant).get_items() == ITEMS[1:2]
    by_id = NagayaSession(former, tenant)
    for work in (by_id.get_items(), by_id.add_items(ITEMS[:1]), by_id.pop_item(), by_id.clear_session()):
        with pytest.raises(NotFound):
            await work


async def test_two_processes_whose_session_was_deleted_begin_one_anew(
    tenant: TenantContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, other = NagayaSession("s", tenant), NagayaSession("s", tenant)
    await session.add_items(ITEMS[:1])
    former = await session.conversation_id()
    assert former is not None
    await tenant.conversations.delete(former)
    gone, get = NagayaSession._gone, Folder.get

    async def then_begun(self: Folder, sort: bytes) -> Any:
        found = await get(self, sort)
        monkeypatch.setattr(Folder, "get", get)
        await other.add_items(ITEMS[1:2])
        return found

    def looks_next(self: NagayaSession) -> None:
        gone(self)
        monkeypatch.setattr(NagayaSession, "_gone", gone)
        monkeypatch.setattr(Folder, "get", then_begun)

    monkeypatch.setattr(NagayaSession, "_gone", looks_next)
    await session.add_items(ITEMS[2:3])
    assert await NagayaSession("s", tenant).get_items() == ITEMS[1:3]


@pytest.mark.parametrize(("tenant_id", "user"), [("acme", "ren"), ("globex", "mio")])
async def test_a_session_of_another_user_or_tenant_is_not_found_nor_changed(
    nagaya: Nagaya, tenant_id: str, user: str
) -> None:
    async with (
        nagaya.session(await entered(nagaya)) as mine,
        nagaya.session(await entered(nagaya, tenant_id, user)) as other,
    ):
        session = NagayaSession("secret", mine)
        await session.add_items([{"role": "user", "content": CANARY}])
        conversation = await session.conversation_id()
        assert conversation is not None
        by_name = NagayaSession("secret", other)
        assert await by_name.get_items() == []
        assert await by_name.pop_item() is None
        await by_name.clear_session()
        await by_name.add_items([{"role": "user", "content": "theirs"}])
        by_id = NagayaSession(conversation, other)
        for work in (by_id.get_items(), by_id.add_items(ITEMS[:1]), by_id.pop_item(), by_id.clear_session()):
            with pytest.raises(NotFound):
                await work
        assert await session.get_items() == [{"role": "user", "content": CANARY}]
        # A shared conversation may be read by a member of its tenant, but not written.
        await mine.conversations.update(conversation, shared=True)
        with pytest.raises(NotFound):
            await by_id.add_items(ITEMS[:1])


async def test_nothing_of_a_session_can_be_read_in_the_store(nagaya: Nagaya, tmp_path: Path) -> None:
    async with nagaya.session(await entered(nagaya)) as tenant:
        session = NagayaSession(f"name-{CANARY}", tenant)
        await session.add_items([{"role": "user", "content": CANARY}, {"type": "of tomorrow", "text": CANARY}])
    with pytest.raises(SessionClosed):
        await session.get_items()
    await nagaya.close()
    stored = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert CANARY.encode() not in stored


@function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


async def test_the_runner_keeps_and_reads_a_whole_talk_with_tools(nagaya: Nagaya) -> None:
    call = ResponseFunctionToolCall(
        type="function_call", id="fc_1", call_id="call_1", name="weather", arguments='{"city":"Kyoto"}'
    )
    thought = ResponseReasoningItem(type="reasoning", id="rs_1", summary=[Summary(type="summary_text", text="hm")])
    model = ScriptedModel([[thought, call], [said("Sunny.")], [said("Again sunny.", "msg_2")]])
    agent = Agent(name="a", model=model, tools=[weather])
    entrance = await entered(nagaya)
    async with nagaya.session(entrance) as tenant:
        first = await Runner.run(agent, "Weather?", session=NagayaSession("s", tenant), run_config=QUIET)
        assert first.final_output == "Sunny."
    async with nagaya.session(entrance) as tenant:
        session = NagayaSession("s", tenant)
        kept = await session.get_items()
        assert kept == first.to_input_list()
        second = await Runner.run(agent, "And now?", session=session, run_config=QUIET)
        assert second.final_output == "Again sunny."
        assert model.last_call is not None
        assert [item.get("type", item.get("role")) for item in model.last_call.input] == [
            "user", "reasoning", "function_call", "function_call_output", "message", "user",
        ]  # fmt: skip
        assert len(await session.get_items()) == 7
        streamed = Runner.run_streamed(
            Agent(name="a", model=ScriptedModel([[said("Bye.", "msg_3")]])), "Bye", session=session, run_config=QUIET
        )
        async for _ in streamed.stream_events():
            pass
        assert len(await session.get_items()) == 9


async def test_an_agent_whose_model_is_the_tenants_own_over_http(nagaya: Nagaya, acme: Planted) -> None:
    client = AsyncOpenAI(base_url=f"{acme.server.url}/v1", api_key=acme.user_key, max_retries=0)
    try:
        model = OpenAIResponsesModel("nagaya-builtin", client)
        agent = Agent(name="a", model=model, model_settings=ModelSettings(store=False))
        async with nagaya.session(await entered(nagaya)) as tenant:
            session = NagayaSession("s", tenant)
            await Runner.run(agent, "Sato mends the roof on Friday.", session=session, run_config=QUIET)
            result = await Runner.run(agent, "Who mends the roof?", session=session, run_config=QUIET)
            assert "Sato mends the roof on Friday." in result.final_output
            kept = await session.get_items()
            assert [item.get("role") for item in kept] == ["user", "assistant"] * 2
            assert kept[-2:] == result.to_input_list()[-2:]
    finally:
        await client.close()
