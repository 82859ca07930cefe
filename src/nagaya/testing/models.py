"""For people who write a model adapter: a scripted fake, and the contract that every adapter must keep.

A test file subclasses :class:`ModelContract`, supplies a ``driver`` fixture, and declares what the backend can do::

    class TestMyModel(ModelContract):
        traits = ModelTraits(calls_functions=False)

        @pytest.fixture
        async def driver(self): ...
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import ClassVar

import msgspec
import pytest

from nagaya.errors import ModelFailed, ModelUnreachable
from nagaya.models.driver import (
    EmbeddingDriver,
    Finished,
    FunctionTool,
    ModelDriver,
    ModelEvent,
    ModelRequest,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Turn,
    Usage,
)
from nagaya.models.model import Embeddings, Model


class Wait(msgspec.Struct, frozen=True):
    """A step of a script: wait this many seconds before the next event."""

    seconds: float


Step = ModelEvent | Wait | asyncio.Event | Exception
HANG = Wait(3600.0)
"""A step that never ends, unless the stream is cancelled."""


def say(text: str, *, reason: str = "stop", usage: Usage | None = None) -> list[Step]:
    """A script that answers with ``text``, word by word."""
    words = [TextDelta(piece) for piece in text.replace(" ", " \0").split("\0") if piece]
    return [*words, msgspec.convert({"reason": reason, "usage": usage or Usage(7, len(words)), "model": ""}, Finished)]


def call(name: str, arguments: str, *, call_id: str = "call_1") -> list[Step]:
    """A script that calls a function, its arguments in two pieces."""
    middle = len(arguments) // 2
    return [
        ToolCallDelta(0, call_id, name, arguments[:middle]),
        ToolCallDelta(0, arguments=arguments[middle:]),
        Finished("tool_calls", Usage(7, 5), ""),
    ]


class ScriptedModel:
    """A model that does what the test says: every request takes the next script; the last one is repeated.

    A script is a list of events, waits, asyncio's events that the test sets, and exceptions to raise. ``requests``
    holds what was asked, ``cancelled`` counts the streams that were closed before their script ended, ``running`` the
    streams that are open.
    """

    def __init__(self, *scripts: Iterable[Step], name: str = "scripted") -> None:
        self.name = name
        self.requests: list[ModelRequest] = []
        self.cancelled = 0
        self.running = 0
        self.closed = False
        self._scripts = [list(script) for script in scripts] or [say("Hello.")]

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """Play the next script."""
        script = self._scripts[min(len(self.requests), len(self._scripts) - 1)]
        self.requests.append(request)
        self.running += 1
        ended = False
        try:
            for step in script:
                if isinstance(step, Wait):
                    await asyncio.sleep(step.seconds)
                elif isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    ended = True
                    raise step
                elif isinstance(step, Finished):
                    ended = True
                    yield msgspec.structs.replace(step, model=step.model or self.name)
                else:
                    yield step
            ended = True
        finally:
            self.running -= 1
            self.cancelled += not ended

    async def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True


class ScriptedEmbeddings:
    """Embeddings without a model: unit vectors made from character counts. Equal texts get equal vectors."""

    name = "scripted-embeddings"

    def __init__(self, dimensions: int = 8) -> None:
        self.dimensions = dimensions

    async def embed(self, texts: Sequence[str]) -> tuple[Sequence[Sequence[float]], int]:
        """A vector per text, and a token per character."""
        rows = []
        for text in texts:
            row = [1.0] + [0.0] * (self.dimensions - 1)
            for mark in text:
                row[ord(mark) % self.dimensions] += 1.0
            length = sum(value * value for value in row) ** 0.5
            rows.append([value / length for value in row])
        return rows, sum(map(len, texts))


class ModelTraits(msgspec.Struct, frozen=True):
    """What a backend can do. A test that needs a missing trait is skipped by the trait's name."""

    calls_functions: bool = True
    """Calls ``look_up(q)`` when ``tool_choice`` forces it."""
    writes_json: bool = True
    """Answers with JSON when ``response_format`` asks for it."""
    obeys_limit: bool = True
    """Ends with reason ``length`` when ``max_output_tokens`` is 5 and the answer is longer."""
    obeys_stop: bool = True
    """Does not write the text of ``stop``."""
    counts_tokens: bool = True
    """Gives its own usage."""


LOOK_UP = FunctionTool(
    "look_up",
    "Look something up.",
    {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
)


class ModelContract:
    """The promises of a model adapter. The backend must answer any question with at least twelve words."""

    traits: ClassVar[ModelTraits] = ModelTraits()

    @pytest.fixture
    def driver(self) -> ModelDriver:
        """The adapter under test, ready to be asked."""
        pytest.fail("a subclass supplies the driver fixture")

    @pytest.fixture
    async def model(self, driver: ModelDriver) -> AsyncIterator[Model]:
        """The driver inside its portable class."""
        model = Model(driver, deadline_s=20.0)
        yield model
        await model.close()

    request_ = ModelRequest(turns=(
        Turn("system", "Answer from the conversation."),
        Turn("user", "The roof of the old warehouse was mended by Kato Roofing in the spring of last year."),
        Turn("assistant", "I have noted it."),
        Turn("user", "Who mended the roof? 屋根は誰が直しましたか。"),
    ))  # fmt: skip

    def need(self, trait: str) -> None:
        """Skip the test where the backend lacks a trait."""
        if not getattr(self.traits, trait):
            pytest.skip(f"the backend lacks the trait {trait}")

    async def test_a_stream_has_text_and_ends_with_one_finished(self, driver: ModelDriver) -> None:
        events = [event async for event in driver.stream(self.request_)]
        assert isinstance(events[-1], Finished)
        assert sum(isinstance(event, Finished) for event in events) == 1
        assert "".join(event.text for event in events if isinstance(event, TextDelta))
        assert events[-1].reason == "stop"
        assert events[-1].model

    async def test_a_collected_answer_is_the_streamed_one(self, model: Model) -> None:
        streamed = [event async for event in model.stream(self.request_)]
        answer = await model.complete(self.request_)
        assert answer.text == "".join(event.text for event in streamed if isinstance(event, TextDelta))
        assert answer.finished == streamed[-1]

    async def test_an_answer_comes_in_several_pieces(self, model: Model) -> None:
        assert sum([isinstance(event, TextDelta) async for event in model.stream(self.request_)]) > 2

    async def test_usage_is_counted_or_said_to_be_estimated(self, model: Model) -> None:
        usage = (await model.complete(self.request_)).finished.usage
        assert usage.input_tokens > 0
        assert usage.output_tokens > 0
        assert usage.estimated is not self.traits.counts_tokens

    async def test_a_closed_stream_leaves_no_task_and_the_model_usable(self, model: Model) -> None:
        before = asyncio.all_tasks()
        stream = model.stream(self.request_)
        await anext(stream)
        await stream.aclose()
        await _until_only(before)
        assert (await model.complete(self.request_)).text

    async def test_a_cancelled_reader_leaves_no_task_and_the_model_usable(self, model: Model) -> None:
        before = asyncio.all_tasks()
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in model.stream(self.request_):
                begun.set()
                await asyncio.sleep(3600)

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await _until_only(before)
        assert (await model.complete(self.request_)).text

    async def test_concurrent_streams_do_not_mix(self, model: Model) -> None:
        wanted = await model.complete(self.request_)
        answers = await asyncio.gather(*(model.complete(self.request_) for _ in range(8)))
        assert {answer.text for answer in answers} == {wanted.text}

    async def test_a_forced_function_is_called_with_arguments_that_parse(self, model: Model) -> None:
        self.need("calls_functions")
        asked = msgspec.structs.replace(self.request_, tools=(LOOK_UP,), tool_choice="required")
        answer = await model.complete(asked)
        assert answer.finished.reason == "tool_calls"
        (called,) = answer.tool_calls
        assert called.name == "look_up"
        assert called.call_id
        assert isinstance(msgspec.json.decode(called.arguments)["q"], str)

    async def test_a_functions_result_is_accepted(self, model: Model) -> None:
        self.need("calls_functions")
        turns = (
            *self.request_.turns,
            Turn("assistant", "", tool_calls=(ToolCall("call_1", "look_up", '{"q":"roof"}'),)),
            Turn("tool", "The roof was mended by Kato Roofing.", tool_call_id="call_1"),
        )
        answer = await model.complete(msgspec.structs.replace(self.request_, turns=turns, tools=(LOOK_UP,)))
        assert answer.text

    async def test_json_is_written_when_asked_for(self, model: Model) -> None:
        self.need("writes_json")
        answer = await model.complete(msgspec.structs.replace(self.request_, response_format={"type": "json_object"}))
        assert isinstance(msgspec.json.decode(answer.text), dict)

    async def test_a_limit_of_tokens_ends_the_answer_and_says_so(self, model: Model) -> None:
        self.need("obeys_limit")
        answer = await model.complete(msgspec.structs.replace(self.request_, max_output_tokens=5))
        assert answer.finished.reason == "length"
        assert answer.finished.usage.output_tokens <= 5

    async def test_a_stop_text_is_not_written(self, model: Model) -> None:
        self.need("obeys_stop")
        whole = (await model.complete(self.request_)).text
        mark = whole.split()[3]
        answer = await model.complete(msgspec.structs.replace(self.request_, stop=(mark,)))
        assert mark not in answer.text
        assert answer.finished.reason == "stop"

    async def test_text_of_every_kind_passes(self, model: Model) -> None:
        naughty = "NUL \0, RTL \u202e, emoji 👩‍👩‍👧, 「日本語」, <script>, {{x}}, ' OR 1=1 --, \ufeff"
        answer = await model.complete(msgspec.structs.replace(self.request_, turns=(Turn("user", naughty),)))
        assert answer.finished.reason in ("stop", "length")

    async def test_closing_twice_is_harmless(self, driver: ModelDriver) -> None:
        await driver.close()
        await driver.close()


async def _until_only(tasks: set[asyncio.Task[object]]) -> None:
    """Wait, a second at most, until no other tasks are left: generators are finalised in a tick or two of their own."""
    async with asyncio.timeout(1):
        while not asyncio.all_tasks() <= tasks:  # noqa: ASYNC110  # the end of a task nobody holds sets no event
            await asyncio.sleep(0.01)


class UnreachableModelContract:
    """What an adapter to a server does when there is none: supply a ``driver`` that points at a closed port."""

    @pytest.fixture
    def driver(self) -> ModelDriver:
        """The adapter under test."""
        pytest.fail("a subclass supplies the driver fixture")

    async def test_a_server_that_is_away_is_unreachable_and_not_a_crash(self, driver: ModelDriver) -> None:
        with pytest.raises(ModelUnreachable) as raised:
            await Model(driver, deadline_s=20.0).complete(ModelContract.request_)
        assert isinstance(raised.value, ModelFailed)
        await driver.close()


class EmbeddingContract:
    """The promises of an embedding adapter."""

    understands: ClassVar[bool] = True
    """Whether texts that mean the same lie nearer to each other than texts that do not."""

    @pytest.fixture
    def driver(self) -> EmbeddingDriver:
        """The adapter under test."""
        pytest.fail("a subclass supplies the driver fixture")

    async def test_every_text_gets_a_unit_vector_of_the_stated_size(self, driver: EmbeddingDriver) -> None:
        assert isinstance(driver, EmbeddingDriver)
        vectors, tokens = await Embeddings(driver).embed(["cat", "猫", "", "x" * 5000])
        assert [len(vector) for vector in vectors] == [driver.dimensions] * 4
        assert all(abs(sum(value * value for value in vector) - 1) < 1e-3 for vector in vectors)
        assert tokens > 0

    async def test_the_same_text_gets_the_same_vector_wherever_it_stands(self, driver: EmbeddingDriver) -> None:
        (alone,), _ = await driver.embed(["The roof is red."])
        among, _ = await driver.embed(["Something else.", "The roof is red.", "もう一つ。"])
        assert _cosine(alone, among[1]) > 0.999

    async def test_more_texts_than_a_batch_come_back_in_order(self, driver: EmbeddingDriver) -> None:
        texts = [f"text number {number % 7}" for number in range(300)]
        vectors, _ = await Embeddings(driver).embed(texts)
        assert len(vectors) == 300
        assert _cosine(vectors[0], vectors[294]) > 0.999

    async def test_meaning_is_near_across_languages(self, driver: EmbeddingDriver) -> None:
        if not self.understands:
            pytest.skip("the backend lacks the trait understands")
        vectors, _ = await driver.embed(["The cat sleeps.", "猫が眠っている。", "The invoice is due in June."])
        assert _cosine(vectors[0], vectors[1]) > _cosine(vectors[0], vectors[2]) + 0.2


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
