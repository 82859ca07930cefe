"""The bytes of a streamed chat completion: cut anywhere, ended as servers end lines, with all that they say beside it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from nagaya.models.chat_chunks import ErrorInStream, EventData, Said
from nagaya.models.driver import ModelEvent, TextDelta, ToolCallDelta, Usage


def chunk(delta: dict[str, Any] | None, *, index: int = 0, reason: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": index, "delta": delta, "finish_reason": reason}]
    return b"data: " + json.dumps({"choices": choices, **more}, ensure_ascii=False).encode() + b"\n\n"


def heard(*parts: bytes) -> tuple[Said, list[ModelEvent]]:
    said = Said("asked")
    return said, [event for part in parts for event in said.events(part)]


BODY = (
    b": a comment\n\n"
    b"event: message\nid: 7\nretry: 10\ndata: one\n\n"
    b"data:two\ndata\ndata:  three\n\n"
    b"event: nothing\n\n\n"
    b"data: \xe5\xb1\x8b\xe6\xa0\xb9\n\n"
    b"data: cut off"
)
DATA = [b"one", b"two\n\n three", "屋根".encode()]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_body_is_split_alike_wherever_it_is_cut_and_however_its_lines_end(end: bytes, size: int) -> None:
    body = BODY.replace(b"\n", end)
    split = EventData()
    assert [data for at in range(0, len(body), size) for data in split.feed(body[at : at + size])] == DATA


def test_parts_that_are_whole_events_and_parts_that_are_not_may_follow_each_other() -> None:
    split = EventData()
    parts = [
        b"data: 1\n\n",
        b"data: 2\n",
        b"data: 3\n\n",
        b"\n",
        b"data: 4\n\ndata: 5\n\n",
        b"data: 6\r",
        b"\n\r\n",
        b"data: 7\n\n",
    ]
    assert [data for part in parts for data in split.feed(part)] == [b"1", b"2\n3", b"4", b"5", b"6", b"7"]


def test_a_line_in_many_pieces_is_joined_once() -> None:
    split = EventData()
    assert not split.feed(b"data: ")
    for _ in range(100_000):
        assert not split.feed(b"x" * 100)
    assert split.feed(b"\n\n") == [b"x" * 10_000_000]


def test_words_refusals_and_calls_become_events_in_order() -> None:
    said, events = heard(
        chunk({"role": "assistant", "content": ""}, model="served"),
        chunk({"content": "Kato "}) + chunk({"content": None, "refusal": "no", "reasoning_content": "hm"}),
        chunk(
            {"tool_calls": [{"index": 1, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{"}}]}
        ),
        chunk({"tool_calls": [{"index": None, "function": {"arguments": None}}, {"index": 1}]}),
        chunk({"content": "another answer"}, index=1),
        chunk({}, reason="tool_calls", model=""),
    )
    assert events == [
        TextDelta("Kato "),
        TextDelta("no"),
        ToolCallDelta(1, "c1", "f", "{"),
        ToolCallDelta(0, None, None, ""),
        ToolCallDelta(1, None, None, ""),
    ]
    assert (said.model, said.reason, said.usage, said.is_whole) == ("served", "tool_calls", None, False)


def test_nothing_is_heard_after_the_end() -> None:
    said, events = heard(chunk({"content": "a"}) + b"data: [DONE]\n\n" + chunk({"content": "b"}))
    assert events == [TextDelta("a")]
    assert said.is_whole


def test_choices_that_say_nothing_and_fields_that_are_null_are_passed_over() -> None:
    said, events = heard(
        b'data: {"choices": null, "usage": null, "error": null, "model": null}\n\n',
        b'data: {"choices": [{"index": 0, "content_filter_results": {}}, {"delta": {"content": "a"}}]}\n\n',
    )
    assert events == [TextDelta("a")]
    assert said.model == "asked"


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"prompt_tokens": 4, "completion_tokens": 2}, Usage(4, 2)),
        ({"prompt_tokens": 4, "completion_tokens": None, "prompt_tokens_details": None}, Usage(4, 0)),
        (
            {
                "prompt_tokens": 40,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
            Usage(40, 5, 8, 2),
        ),
        ({"prompt_tokens": 4, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": None}}, Usage(4, 1)),
        ({"prompt_tokens": None, "completion_tokens": 1}, None),
        ({"total_tokens": 3}, None),
        ("many", None),
    ],
)
def test_usage_is_read_with_care(given: object, read: Usage | None) -> None:
    assert heard(chunk(None, usage=given))[0].usage == read


def test_usage_that_comes_early_is_not_forgotten_for_an_empty_one() -> None:
    early, late = chunk({"content": "a"}, usage={"prompt_tokens": 3, "completion_tokens": 1}), chunk({}, usage={})
    assert heard(early, late)[0].usage == Usage(3, 1)


def test_an_error_in_the_stream_comes_after_what_was_said_before_it() -> None:
    said = Said("asked")
    events = said.events(chunk({"content": "a"}) + b'data: {"error": {"message": "boom", "code": "x"}}\n\n')
    assert next(events) == TextDelta("a")
    with pytest.raises(ErrorInStream) as raised:
        next(events)
    assert raised.value.body == {"message": "boom", "code": "x"}
    assert "boom" not in str(raised.value)


@pytest.mark.parametrize(
    "data", [b"{not json", b"17", b'{"choices": [17]}', b'{"choices": [{"delta": {"content": [1]}}]}', b"\xff"]
)
def test_what_is_no_chunk_is_an_error(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        heard(b"data: " + data + b"\n\n")
