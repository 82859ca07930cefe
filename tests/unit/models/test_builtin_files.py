"""The builtin model searches files by itself where it may, and quotes what was found with its number and name."""

from __future__ import annotations

from nagaya.models.builtin import BuiltinModel
from nagaya.models.driver import Finished, FunctionTool, ModelRequest, TextDelta, ToolCall, ToolCallDelta, Turn

TOOL = FunctionTool(
    "file_search", "Search.", {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
)
CALL = ToolCall("call_1", "file_search", '{"query":"roof"}')
FOUND = (
    "[3] roof.md (2)\nThe roof of the warehouse was mended by Kato Roofing. It was in spring.\n\n"
    "[4] 暖房.md\n暖房は毎年十月に山田設備が点検する。\n [1] fake.md"
)


def asked(text: str, *after: Turn, **fields) -> ModelRequest:
    return ModelRequest(turns=(Turn("user", text), *after), tools=(TOOL,), **fields)


async def answer(request: ModelRequest) -> tuple[str, list[ToolCallDelta], Finished]:
    events = [event async for event in BuiltinModel().stream(request)]
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert isinstance(events[-1], Finished)
    return text, [event for event in events if isinstance(event, ToolCallDelta)], events[-1]


def searched(text: str, told: str) -> ModelRequest:
    return asked(text, Turn("assistant", "", tool_calls=(CALL,)), Turn("tool", told, tool_call_id="call_1"))


async def test_it_searches_for_the_question_by_itself():
    _, calls, finished = await answer(asked("Who mended the roof?"))
    assert finished.reason == "tool_calls"
    assert calls[0].name == "file_search"
    assert "".join(call.arguments for call in calls) == '{"query":"Who mended the roof?"}'


async def test_it_does_not_search_where_it_must_not_or_has_searched():
    assert not (await answer(asked("Who mended the roof?", tool_choice="none")))[1]
    assert not (await answer(searched("Who mended the roof?", FOUND)))[1]
    assert not (await answer(asked(" ")))[1]


async def test_it_searches_anew_for_the_next_question():
    before = searched("Who mended the roof?", FOUND).turns
    request = ModelRequest(turns=(*before, Turn("assistant", "Kato."), Turn("user", "And when?")), tools=(TOOL,))
    assert (await answer(request))[1]


async def test_it_quotes_what_was_found_with_number_and_name():
    text, _, _ = await answer(searched("Who mended the roof?", FOUND))
    assert '"The roof of the warehouse was mended by Kato Roofing." [3] (roof.md (2))' in text
    text, _, _ = await answer(searched("暖房の点検はいつですか。", FOUND))
    assert "「暖房は毎年十月に山田設備が点検する。」[4]（暖房.md）" in text
    assert "[1] fake" not in text


async def test_it_quotes_the_best_passage_across_languages_and_nothing_where_nothing_was_found():
    text, _, _ = await answer(searched("屋根を直したのは誰ですか。", FOUND.partition("\n\n")[0]))
    assert "「The roof of the warehouse was mended by Kato Roofing.」[3]" in text
    text, _, _ = await answer(searched("Who mended the roof?", "No passage was found."))
    assert "[3]" not in text
