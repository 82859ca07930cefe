"""The portable class: deadlines, an end that can be trusted, and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from nagaya.errors import (
    AnswerCut,
    AnswerEndless,
    AnswerNotUnderstood,
    ContextTooLong,
    InvalidValue,
    ModelFailed,
    ModelUnreachable,
)
from nagaya.models import model as module
from nagaya.models.driver import Finished, ModelEvent, ModelRequest, TextDelta, ToolCallDelta, Turn, Usage
from nagaya.models.model import MAX_TEXT_CHARACTERS, MAX_TEXTS, Embeddings, Gathering, Model
from nagaya.testing.models import HANG, ScriptedEmbeddings, ScriptedModel, Wait, call, say

ASK = ModelRequest(turns=(Turn("user", "Who mends the roof?"),))
END = Finished("stop", Usage(3, 2), "m")


async def test_a_model_that_stays_silent_is_unreachable_within_its_deadline() -> None:
    driver = ScriptedModel([HANG])
    with pytest.raises(ModelUnreachable):
        await Model(driver, deadline_s=0.02).complete(ASK)
    assert driver.running == 0
    assert driver.cancelled == 1


async def test_a_model_that_falls_silent_midway_is_unreachable_within_the_idle_deadline() -> None:
    driver = ScriptedModel([TextDelta("a"), HANG])
    with pytest.raises(ModelUnreachable):
        await Model(driver, deadline_s=30, idle_s=0.02).complete(ASK)
    assert driver.running == 0


async def test_an_answer_that_drips_for_ever_is_cut_by_the_total_deadline() -> None:
    driver = ScriptedModel([step for _ in range(1000) for step in (TextDelta("a"), Wait(0.005))])
    with pytest.raises(ModelUnreachable):
        await Model(driver, deadline_s=30, total_s=0.05).complete(ASK)
    assert driver.running == 0


async def test_an_answer_without_a_pause_is_cut_by_the_total_deadline_too() -> None:
    with pytest.raises(ModelUnreachable):
        await Model(ScriptedModel([TextDelta("a")] * 1000), deadline_s=30, total_s=0.0001).complete(ASK)


async def test_a_long_requests_usage_is_estimated_beside_the_loop() -> None:
    long = ModelRequest((Turn("user", "word " * 50_000),))
    usage = (
        await Model(ScriptedModel([TextDelta("a"), Finished("stop", Usage(0, 0), "m")])).complete(long)
    ).finished.usage
    assert usage.input_tokens > 40_000


async def test_an_answer_that_never_ends_is_cut_by_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER_CHARACTERS", 10)
    with pytest.raises(AnswerEndless, match="after 10 characters"):
        await Model(ScriptedModel([TextDelta("a" * 6)] * 3)).complete(ASK)


async def test_an_answer_that_ends_without_its_last_event_is_an_error_and_not_a_short_answer() -> None:
    with pytest.raises(AnswerCut):
        await Model(ScriptedModel([TextDelta("half")])).complete(ASK)


async def test_what_comes_after_the_last_event_is_not_passed_on() -> None:
    events = [event async for event in Model(ScriptedModel([TextDelta("a"), END, TextDelta("b")])).stream(ASK)]
    assert events == [TextDelta("a"), END]


async def test_empty_pieces_are_not_passed_on() -> None:
    events = [event async for event in Model(ScriptedModel([TextDelta(""), TextDelta("a"), END])).stream(ASK)]
    assert events == [TextDelta("a"), END]


async def test_a_vendors_words_do_not_reach_the_caller_or_the_log() -> None:
    driver = ScriptedModel([ValueError("the prompt was: my diagnosis")])
    with pytest.raises(ModelFailed) as raised:
        await Model(driver).complete(ASK)
    assert "diagnosis" not in str(raised.value) + str(raised.value.facts)
    assert raised.value.__suppress_context__


async def test_a_networks_error_means_unreachable() -> None:
    with pytest.raises(ModelUnreachable):
        await Model(ScriptedModel([ConnectionResetError()])).complete(ASK)


async def test_our_own_errors_pass_unchanged() -> None:
    with pytest.raises(ContextTooLong):
        await Model(ScriptedModel([ContextTooLong()])).complete(ASK)


async def test_closing_the_stream_closes_the_drivers_before_it_returns() -> None:
    driver = ScriptedModel([TextDelta("a"), TextDelta("b"), HANG])
    stream = Model(driver).stream(ASK)
    await anext(stream)
    await stream.aclose()
    assert driver.running == 0
    assert driver.cancelled == 1


async def test_a_reader_that_stops_at_the_last_event_leaves_nothing_open() -> None:
    driver = ScriptedModel(say("a b"))
    stream = Model(driver).stream(ASK)
    async for event in stream:
        if isinstance(event, Finished):
            assert driver.running == 0
            break
    await stream.aclose()


async def test_a_cancelled_reader_cancels_the_driver() -> None:
    driver = ScriptedModel([TextDelta("a"), HANG])
    task = asyncio.create_task(Model(driver).complete(ASK))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert driver.running == 0


class Stubborn:
    """A driver whose stream has no ``aclose``, or one that fails or hangs."""

    name = "stubborn"

    def __init__(self, close: str) -> None:
        self._close = close

    def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        how = self._close

        class Events:
            def __aiter__(self) -> AsyncIterator[ModelEvent]:
                return self

            async def __anext__(self) -> ModelEvent:
                return END

        class Closing(Events):
            async def aclose(self) -> None:
                if how == "hangs":
                    await asyncio.sleep(3600)
                raise ValueError("no")

        return Events() if how == "absent" else Closing()

    async def close(self) -> None: ...


@pytest.mark.parametrize("close", ["absent", "fails", "hangs"])
async def test_a_driver_that_cannot_close_its_stream_does_not_spoil_the_answer(
    close: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE_S", 0.01)
    assert (await Model(Stubborn(close)).complete(ASK)).finished == END


async def test_a_driver_that_fails_at_once_is_mapped_too() -> None:
    class Broken(ScriptedModel):
        def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
            raise KeyError("x")

    with pytest.raises(AnswerNotUnderstood, match="KeyError"):
        await Model(Broken()).complete(ASK)


async def test_calls_are_put_together_from_their_pieces_in_order_of_index() -> None:
    script = [
        ToolCallDelta(1, "b", "second", "{"),
        ToolCallDelta(0, "a", "first", "{}"),
        ToolCallDelta(1, None, None, "}"),
        END,
    ]
    answer = await Model(ScriptedModel(script)).complete(ASK)
    assert [(one.call_id, one.name, one.arguments) for one in answer.tool_calls] == [
        ("a", "first", "{}"),
        ("b", "second", "{}"),
    ]
    assert answer.finished.reason == "tool_calls", "a server that says stop after a call is corrected"


async def test_a_call_without_an_id_gets_one() -> None:
    answer = await Model(ScriptedModel([ToolCallDelta(0, None, "f", "{}"), END])).complete(ASK)
    assert answer.tool_calls[0].call_id == "call_0"


async def test_usage_is_estimated_where_the_model_did_not_count() -> None:
    silent = Finished("stop", Usage(0, 0), "m")
    usage = (await Model(ScriptedModel([TextDelta("Kato Roofing does."), silent])).complete(ASK)).finished.usage
    assert usage.estimated
    assert usage.input_tokens > 4
    assert usage.output_tokens > 2


async def test_only_the_missing_half_of_usage_is_estimated() -> None:
    half = Finished("stop", Usage(50, 0, cached_tokens=9), "m")
    usage = (await Model(ScriptedModel([TextDelta("Kato Roofing does."), half])).complete(ASK)).finished.usage
    assert (usage.input_tokens, usage.cached_tokens, usage.estimated) == (50, 9, True)
    assert usage.output_tokens > 2


async def test_a_scripted_call_comes_through() -> None:
    answer = await Model(ScriptedModel(call("look_up", '{"q":"roof"}'))).complete(ASK)
    assert answer.tool_calls[0].arguments == '{"q":"roof"}'


async def test_closing_a_model_closes_its_driver() -> None:
    driver = ScriptedModel()
    model = Model(driver)
    assert model.name == "scripted"
    await model.close()
    assert driver.closed


def test_gathering_counts_what_was_said_so_far() -> None:
    gathered = Gathering()
    for event in (TextDelta("abc"), ToolCallDelta(0, "c", "fn", "{}"), END):
        gathered.add(event)
    assert gathered.size == 7
    assert gathered.text == "abc"


def test_what_was_gathered_is_what_was_said_line_ends_and_all_and_may_be_asked_for_midway() -> None:
    gathered, said = Gathering(), ""
    for text in ("a\r", "\nb\r\n", "屋根", "\r", "🏠", "\ud83c", "\udfe0"):
        gathered.add(TextDelta(text))
        said += text
        assert gathered.text == said
    assert gathered.size == len(said)


@pytest.mark.parametrize(
    "texts", [[], ["a"] * (MAX_TEXTS + 1), ["x" * (MAX_TEXT_CHARACTERS + 1)]], ids=["none", "many", "long"]
)
async def test_embeddings_of_no_text_too_many_or_too_long_ones_are_refused(texts: list[str]) -> None:
    with pytest.raises(InvalidValue):
        await Embeddings(ScriptedEmbeddings()).embed(texts)


class Odd(ScriptedEmbeddings):
    def __init__(self, how: str) -> None:
        super().__init__(4)
        self.how = how

    async def embed(self, texts: Sequence[str]) -> tuple[Sequence[Sequence[float]], int]:
        match self.how:
            case "few":
                return [], 0
            case "short":
                return [[1.0]], 0
            case "slow":
                await asyncio.sleep(3600)
        raise ValueError("texts were: my diagnosis")


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("few", AnswerNotUnderstood),
        ("short", AnswerNotUnderstood),
        ("slow", ModelUnreachable),
        ("bad", AnswerNotUnderstood),
    ],
)
async def test_vectors_of_the_wrong_number_or_size_or_too_late_are_errors(how: str, error: type[Exception]) -> None:
    embeddings = Embeddings(Odd(how), deadline_s=0.02)
    with pytest.raises(error) as raised:
        await embeddings.embed(["a"])
    assert type(raised.value) is error
    assert "diagnosis" not in str(raised.value)
    assert (embeddings.name, embeddings.dimensions) == ("scripted-embeddings", 4)
