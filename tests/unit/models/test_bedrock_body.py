"""What Bedrock is asked: a conversation of any shape in the one shape that Converse takes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.errors import AnswerNotUnderstood, ModelRefusedRequest
from nagaya.models.bedrock_body import Reading, converse_body, whole_events
from nagaya.models.driver import FunctionTool, ModelRequest, TextDelta, ToolCall, ToolCallDelta, Turn

TOOL = FunctionTool("look_up", "Looks.", {"type": "object"})
OTHER = FunctionTool("other")


def messages(*turns: Turn, tools: tuple[FunctionTool, ...] = (TOOL,), **more: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = converse_body(ModelRequest(turns, tools=tools, **more), "m").body["messages"]
    return found


def calls(*ids: str, text: str = "") -> Turn:
    return Turn("assistant", text, tool_calls=tuple(ToolCall(call_id, "look_up", "{}") for call_id in ids))


def result(call_id: str, text: str = "red") -> Turn:
    return Turn("tool", text, tool_call_id=call_id)


def test_turns_of_one_speaker_become_one_message_and_blank_ones_none() -> None:
    assert messages(Turn("user", "a"), Turn("user", "b"), Turn("assistant", " \n"), Turn("user", "c")) == [
        {"role": "user", "content": [{"text": "a"}, {"text": "b"}, {"text": "c"}]}
    ]


@pytest.mark.parametrize("turns", [(), (Turn("system", "Be brief."),), (Turn("user", ""),)])
def test_a_conversation_of_nothing_still_begins_with_a_user(turns: tuple[Turn, ...]) -> None:
    assert messages(*turns) == [{"role": "user", "content": [{"text": "…"}]}]


def test_a_conversation_whose_beginning_was_left_out_begins_with_a_user() -> None:
    assert [message["role"] for message in messages(Turn("assistant", "a"), Turn("user", "b"))] == [
        "user", "assistant", "user",
    ]  # fmt: skip


def test_calls_made_in_two_turns_stand_before_all_their_results() -> None:
    found = messages(
        Turn("user", "q"), calls("a", text="One."), Turn("system", "x"), calls("b"), result("b"), result("a"),
        Turn("user", "And?"),
    )  # fmt: skip
    assert [[next(iter(block)) for block in message["content"]] for message in found] == [
        ["text"], ["text", "toolUse", "toolUse"], ["toolResult", "toolResult", "text"],
    ]  # fmt: skip


def test_a_call_without_its_result_and_a_result_without_its_call_are_told_in_words() -> None:
    found = messages(Turn("user", "q"), calls("a", "b"), result("b"), result("b", "twice"), result("c", "blue"))
    assert found[1]["content"][0] == {"text": "[called look_up with {}]"}
    assert [block["toolUse"]["toolUseId"] for block in found[1]["content"][1:]] == ["b"]
    assert found[2]["content"][1:] == [{"text": "[a function gave: twice]"}, {"text": "[a function gave: blue]"}]
    assert messages(result("a")) == [{"role": "user", "content": [{"text": "[a function gave: red]"}]}]
    assert messages(Turn("user", "q"), calls("a"), Turn("user", "stop"), result("a"))[-1]["content"][-1] == {
        "text": "[a function gave: red]"
    }


@pytest.mark.parametrize("more", [{"tools": ()}, {"tool_choice": "none"}])
def test_who_offers_no_tools_sends_no_blocks_of_tools(more: dict[str, Any]) -> None:
    request = ModelRequest(
        (Turn("user", "q"), calls("a"), result("a")),
        **({"tools": (TOOL,)} | more),
    )
    body = converse_body(request, "m").body
    assert "toolConfig" not in body
    assert "toolUse" not in str(body)
    assert "[a function gave: red]" in str(body)


@pytest.mark.parametrize("arguments", ["", "{}", "[1]", "{not json", '{"a": NaN}', '"\ud800"'])
def test_arguments_are_an_object_whatever_a_model_wrote(arguments: str) -> None:
    turn = Turn("assistant", "", tool_calls=(ToolCall("a", "look_up", arguments),))
    wanted = {} if arguments in ("", "{}") else {"arguments": arguments}
    assert messages(Turn("user", "q"), turn, result("a", ""))[1]["content"][0]["toolUse"]["input"] == wanted


def test_a_result_of_nothing_is_said_to_be_one() -> None:
    assert messages(Turn("user", "q"), calls("a"), result("a", " "))[2]["content"][0]["toolResult"]["content"] == [
        {"text": "(no output)"}
    ]


def test_ids_and_names_of_other_vendors_are_made_to_fit_and_stay_apart() -> None:
    long = "n" * 100
    request = ModelRequest((Turn("user", "q"),), tools=(FunctionTool(long), FunctionTool(long + "x"), TOOL))
    asked = converse_body(request, "m")
    sent = [tool["toolSpec"]["name"] for tool in asked.body["toolConfig"]["tools"]]
    assert len(set(sent)) == 3
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in sent)
    assert [asked.names[name] for name in sent] == [long, long + "x", "look_up"]


@pytest.mark.parametrize(
    ("choice", "sent", "offered"),
    [
        (None, None, 2),
        ("auto", None, 2),
        ("required", {"any": {}}, 2),
        ({"type": "function", "function": {"name": "look_up"}}, {"tool": {"name": "look_up"}}, 2),
        ({"type": "function", "name": "look_up"}, {"tool": {"name": "look_up"}}, 2),
        ({"type": "custom"}, None, 2),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "other"}]},
            {"any": {}},
            1,
        ),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "other"}]}, None, 1),
        ({"type": "allowed_tools", "mode": "required", "tools": []}, None, 0),
    ],
)
def test_the_choice_among_tools_is_said_in_converses_words(choice: Any, sent: Any, offered: int) -> None:
    request = ModelRequest((Turn("user", "q"),), tools=(TOOL, OTHER), tool_choice=choice)
    config = converse_body(request, "m").body.get("toolConfig", {"tools": []})
    assert config.get("toolChoice") == sent
    assert len(config["tools"]) == offered


def test_what_is_asked_of_the_form_is_said_in_converses_words() -> None:
    schema = {"type": "json_schema", "name": "n", "description": "d", "schema": {"type": "object"}, "strict": True}
    body = converse_body(ModelRequest((Turn("user", "q"),), response_format=schema), "m").body
    assert body["outputConfig"]["textFormat"]["structure"]["jsonSchema"] == {
        "schema": '{"type":"object"}', "name": "n", "description": "d",
    }  # fmt: skip
    body = converse_body(ModelRequest((Turn("user", "q"),), response_format={"type": "json_object"}), "m").body
    assert "JSON" in body["system"][0]["text"]
    body = converse_body(ModelRequest((Turn("user", "q"),), response_format={"type": "text"}), "m").body
    assert body.keys() == {"modelId", "messages"}


def test_what_converse_has_no_place_for_is_left_out() -> None:
    request = ModelRequest(
        (Turn("user", "q"),), seed=7, user="u", reasoning_effort="low", parallel_tool_calls=False, temperature=2.0,
        top_p=0.5, stop=("", "END"),
    )  # fmt: skip
    body = converse_body(request, "m").body
    assert body.keys() == {"modelId", "messages", "inferenceConfig"}
    assert body["inferenceConfig"] == {"temperature": 1.0, "topP": 0.5, "stopSequences": ["END"]}


@pytest.mark.parametrize(
    "url", ["https://x.example/a.png", "data:image/bmp;base64,AAAA", "data:image/png;base64,A", "data:image/png,é"]
)
def test_a_picture_that_converse_does_not_take_is_refused_with_a_reason(url: str) -> None:
    with pytest.raises(ModelRefusedRequest) as raised:
        messages(Turn("user", "q", images=(url,)))
    assert "x.example" not in raised.value.message("en")


ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool"])
IDS = st.sampled_from(["a", "b", "call|1", ""])
TURNS = st.builds(
    Turn,
    role=ROLES,
    text=st.sampled_from(["", " ", "x"]),
    tool_calls=st.lists(st.builds(ToolCall, IDS, st.just("look_up"), st.just("{}")), max_size=3).map(tuple),
    tool_call_id=st.none() | IDS,
)


@given(st.lists(TURNS, max_size=12))
def test_any_conversation_keeps_to_converses_rules(turns: list[Turn]) -> None:
    turns = [turn if turn.role == "assistant" else Turn(turn.role, turn.text, (), turn.tool_call_id) for turn in turns]
    found = messages(*turns)
    assert [message["role"] for message in found] == [("user", "assistant")[at % 2] for at in range(len(found))]
    for at, message in enumerate(found):
        assert message["content"]
        assert all(block.get("text", "x").strip() for block in message["content"])
        used = [block["toolUse"]["toolUseId"] for block in message["content"] if "toolUse" in block]
        after = found[at + 1]["content"] if at + 1 < len(found) else []
        given_back = [block["toolResult"]["toolUseId"] for block in after if "toolResult" in block]
        assert sorted(used) == sorted(given_back)
        assert len(set(used)) == len(used)
    assert not [block for block in found[0]["content"] if "toolResult" in block]


def test_events_that_are_not_for_clients_are_passed_over() -> None:
    reading = Reading({})
    for event in (
        {"messageStart": {"role": "assistant"}},
        {"contentBlockStart": {"start": {"image": {"format": "png"}}, "contentBlockIndex": 0}},
        {"contentBlockDelta": {"delta": {"reasoningContent": {"text": "Hm."}}, "contentBlockIndex": 0}},
        {"contentBlockDelta": {"delta": {"SDK_UNKNOWN_MEMBER": {"name": "new"}}, "contentBlockIndex": 0}},
        {"contentBlockStop": {"contentBlockIndex": 0}},
        {"somethingNew": {}},
    ):
        assert reading.events(event) == []
    assert reading.reason is None
    assert reading.usage.estimated


def test_two_calls_of_one_answer_are_told_apart() -> None:
    reading = Reading({"a_1": "a.1"})
    events = []
    for block, name in ((1, "a_1"), (2, "b")):
        events += reading.events({"contentBlockStart": {
            "start": {"toolUse": {"toolUseId": f"t{block}", "name": name}}, "contentBlockIndex": block,
        }})  # fmt: skip
    for block in (2, 1):
        delta = {"toolUse": {"input": f'{{"at":{block}}}'}}
        events += reading.events({"contentBlockDelta": {"delta": delta, "contentBlockIndex": block}})
        events += reading.events({"contentBlockStop": {"contentBlockIndex": block}})
    assert events == [
        ToolCallDelta(0, "t1", "a.1"), ToolCallDelta(1, "t2", "b"),
        ToolCallDelta(1, arguments='{"at":2}'), ToolCallDelta(0, arguments='{"at":1}'),
    ]  # fmt: skip


def test_a_delta_without_its_content_is_not_passed_over() -> None:
    with pytest.raises(AnswerNotUnderstood):
        Reading({}).events({"contentBlockDelta": {}})


def test_a_whole_answer_is_read_as_a_streamed_one() -> None:
    content = [
        {"text": "I look."},
        {"toolUse": {"toolUseId": "t", "name": "look_up", "input": {"q": "roof"}}},
        {"reasoningContent": {"reasoningText": {"text": "Hm."}}},
    ]
    answer = {"output": {"message": {"content": content}}, "stopReason": "tool_use", "usage": {"inputTokens": 3}}
    reading = Reading({})
    events = [ours for event in whole_events(answer) for ours in reading.events(event)]
    assert events == [
        TextDelta("I look."), ToolCallDelta(0, "t", "look_up"), ToolCallDelta(0, arguments='{"q":"roof"}'),
    ]  # fmt: skip
    assert reading.reason == "tool_calls"
    assert reading.usage.input_tokens == 3
