"""How a checkpoint is taken apart: what is told apart, what is joined, and what comes back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AnyMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from nagaya.integrations.langgraph.messages import MessageSerializer, print_of
from nagaya.integrations.langgraph.pieces import (
    MAX_RUNS,
    Recalled,
    Stored,
    Telling,
    needed,
    put_together,
    recall,
    remains,
    take_apart,
)

SERDE = JsonPlusSerializer()


def mark(piece: tuple[str, bytes]) -> bytes:
    return repr(piece).encode()


class Log:
    """Checkpoints one after another in a dictionary; each put with what its parent's is remembered by."""

    def __init__(self) -> None:
        self.stored: dict[bytes, Stored] = {}
        self.recalled: dict[str, Recalled] = {}
        self.serialised = 0

    def put(self, values: dict[str, Any], versions: dict[str, int]) -> bytes:
        def serialise(value: Any) -> tuple[str, bytes]:
            self.serialised += 1
            return SERDE.dumps_typed(value)

        place = len(self.stored).to_bytes(4, "big")
        telling = Telling(serialise, mark, print_of)
        taken = take_apart(place, values, versions, versions, self.recalled, telling)
        self.recalled = taken.recalled
        self.stored[place] = Stored("", b"", ("null", b""), taken.channels, taken.sources, taken.pieces)
        return place

    def get(self, place: bytes) -> dict[str, Any]:
        stored = self.stored[place]
        sources = [stored.pieces, *(self.stored[source].pieces for source in stored.sources)]
        return put_together(
            stored, None, sources.__getitem__, SERDE.loads_typed, lambda pieces: list(map(SERDE.loads_typed, pieces))
        )


VALUES = st.lists(st.lists(st.integers(0, 12).map(str), max_size=30), min_size=1, max_size=25)


@given(VALUES)
def test_every_state_of_a_list_comes_back_whatever_was_done_to_it(states: list[list[str]]) -> None:
    log = Log()
    places = [log.put({"it": state}, {"it": version}) for version, state in enumerate(states)]
    assert [log.get(place)["it"] for place in places] == states
    assert all(len(held.runs) <= MAX_RUNS for each in log.stored.values() for held in each.channels.values())


@given(VALUES, st.data())
def test_what_remains_of_deleted_checkpoints_is_just_what_the_others_need(
    states: list[list[str]], data: st.DataObject
) -> None:
    log = Log()
    places = [log.put({"it": state}, {"it": version}) for version, state in enumerate(states)]
    kept = set(data.draw(st.lists(st.sampled_from(places), unique=True)))
    wanted = needed(log.stored, kept)
    log.stored = {
        place: each if place in kept else remains(each, wanted[place])
        for place, each in log.stored.items()
        if place in kept or place in wanted
    }
    assert [log.get(place)["it"] for place in places if place in kept] == [
        state for place, state in zip(places, states, strict=True) if place in kept
    ]


def test_a_long_conversation_is_read_from_a_few_records_and_written_a_few_times() -> None:
    log = Log()
    said = [f"message {n}" for n in range(1000)]
    for n in range(1, 1001):
        last = log.put({"said": said[:n]}, {"said": n})
    assert log.get(last) == {"said": said}
    assert len(log.stored[last].sources) < 32
    assert sum(len(each.pieces) for each in log.stored.values()) < 8 * 1000


def test_messages_that_did_not_change_are_not_serialised_again() -> None:
    log = Log()
    said: list[AnyMessage] = []
    for n in range(7):
        said.append(HumanMessage(f"message {n}", id=f"{n}"))
        log.put({"said": list(said)}, {"said": n})
    assert log.serialised == 7
    said[3].content = "changed in its place"
    said[4].additional_kwargs["changed"] = True
    last = log.put({"said": list(said)}, {"said": 8})
    assert log.serialised == 9, "the changed ones alone"
    assert log.get(last)["said"] == said


def test_a_channel_that_did_not_change_is_not_even_looked_at() -> None:
    log = Log()
    log.put({"a": "x", "b": "y"}, {"a": 1, "b": 1})
    values, versions = {"a": object(), "b": "z"}, {"a": 1, "b": 2}
    taken = take_apart(b"next", values, versions, {"b": 2}, log.recalled, Telling(SERDE.dumps_typed, mark, print_of))
    assert [piece for _, piece in taken.pieces] == [SERDE.dumps_typed("z")[1]]


def test_what_is_recalled_from_the_records_is_where_the_pieces_are() -> None:
    log = Log()
    for n in range(1, 12):
        last = log.put({"said": [f"{m}" for m in range(n)], "other": n}, {"said": n, "other": n})
    stored = log.stored[last]
    sources = [stored.pieces, *(log.stored[source].pieces for source in stored.sources)]
    again = recall(last, stored, {"said": 11, "other": 11}, sources.__getitem__, mark)
    assert {name: (each.places, each.by_mark) for name, each in again.items()} == {
        name: (each.places, each.by_mark) for name, each in log.recalled.items()
    }


def ai(**more: Any) -> AIMessage:
    return AIMessage("x", id="1", **more)


CALL = {"name": "weather", "args": {"city": "Kyoto"}, "id": "call_1", "type": "tool_call"}
PLAIN: list[AnyMessage] = [
    HumanMessage("x"),
    HumanMessage("y"),
    HumanMessage("x", id="1"),
    HumanMessage("x", name="mio"),
    HumanMessage("", name="x"),
    HumanMessage([]),
    SystemMessage("x"),
    ai(),
    ToolMessage("x", tool_call_id="call_1"),
    ToolMessage("x", tool_call_id="call_2"),
    ToolMessage("x", tool_call_id="call_1", status="error"),
]
OTHERS: list[Any] = [
    HumanMessage([{"type": "text", "text": "x"}, "y"]),
    HumanMessage("x", extra=1),
    ai(tool_calls=[CALL]),
    ai(additional_kwargs={"n": 1}),
    ai(additional_kwargs={"n": b"1", "nested": HumanMessage("inside")}),
    ai(response_metadata={"model": "m"}, usage_metadata={"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}),
    ai(invalid_tool_calls=[{"name": "a", "args": "{", "id": "1", "error": "e", "type": "invalid_tool_call"}]),
    ToolMessage("x", tool_call_id="call_1", artifact={"a": Document("d")}),
    ChatMessage("x", role="r"),
    Document("d", metadata={"a": 1}),
    {"a": HumanMessage("x")},
    "x",
    1,
    None,
]


def test_messages_of_one_print_have_one_serialised_form() -> None:
    prints = [print_of(message) for message in PLAIN]
    assert None not in prints
    assert len(set(prints)) == len({SERDE.dumps_typed(message)[1] for message in PLAIN}) == len(PLAIN)
    assert [print_of(message.model_copy(deep=True)) for message in PLAIN] == prints


@pytest.mark.parametrize("value", OTHERS, ids=repr)
def test_what_a_print_could_not_tell_has_none(value: object) -> None:
    assert print_of(value) is None


@pytest.mark.parametrize("value", [*PLAIN, *OTHERS, [*PLAIN, *OTHERS]], ids=lambda value: repr(value)[:40])
def test_everything_is_rebuilt_as_langgraphs_own_serialiser_does(value: object) -> None:
    ours = MessageSerializer(allowed_msgpack_modules=None)
    piece = ours.dumps_typed(value)
    assert piece == SERDE.dumps_typed(value)
    rebuilt, theirs = ours.loads_typed(piece), JsonPlusSerializer(allowed_msgpack_modules=None).loads_typed(piece)
    assert rebuilt == theirs
    assert type(rebuilt) is type(theirs)
    if hasattr(rebuilt, "model_dump"):
        assert rebuilt.model_dump() == theirs.model_dump()
        assert rebuilt.model_fields_set == theirs.model_fields_set
        assert repr(rebuilt) == repr(theirs)
    allowing = ours.with_msgpack_allowlist([("somewhere", "Else")])
    assert isinstance(allowing, MessageSerializer)
    assert allowing.loads_typed(piece) == theirs
