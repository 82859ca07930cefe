"""A tenant's models in order: which one answers, and when."""

from __future__ import annotations

import asyncio

import pytest

from nagaya.errors import ContentFiltered, ModelRefusedKey, ModelUnreachable
from nagaya.kernel.breaker import Breaker
from nagaya.models.driver import ModelRequest, TextDelta, Turn
from nagaya.models.line import ModelInLine, ModelLine
from nagaya.models.model import Model
from nagaya.testing.clock import ManualClock
from nagaya.testing.models import HANG, ScriptedModel, say

REQUEST = ModelRequest(turns=(Turn(role="user", text="Who mends the roof?"),))


def line_of(*models: ScriptedModel, clock: ManualClock | None = None) -> ModelLine:
    moment = clock or ManualClock()
    return ModelLine([ModelInLine(Model(model), Breaker(moment, failures=3)) for model in models])


async def test_the_next_model_answers_where_the_first_is_out_and_the_answer_names_it():
    first, second = ScriptedModel([ModelUnreachable()], name="first"), ScriptedModel(say("Kato."), name="second")
    answer = await line_of(first, second).complete(REQUEST)
    assert answer.text == "Kato."
    assert answer.finished.model == "second"
    assert first.requests == second.requests == [REQUEST]


async def test_the_first_model_answers_alone_where_it_is_there():
    first, second = ScriptedModel(say("Kato."), name="first"), ScriptedModel(say("Sato."), name="second")
    line = line_of(first, second)
    assert line.name == "first"
    assert (await line.complete(REQUEST)).finished.model == "first"
    assert second.requests == []


async def test_a_refused_key_is_an_outage_and_a_filtered_answer_is_not():
    second = ScriptedModel(say("Kato."))
    assert (await line_of(ScriptedModel([ModelRefusedKey()]), second).complete(REQUEST)).text == "Kato."
    with pytest.raises(ContentFiltered):
        await line_of(ScriptedModel([ContentFiltered()]), second).complete(REQUEST)
    assert len(second.requests) == 1


async def test_half_an_answer_is_never_continued_by_another_model():
    first = ScriptedModel([TextDelta("Ka"), ModelUnreachable()])
    second = ScriptedModel(say("Sato."))
    with pytest.raises(ModelUnreachable):
        await line_of(first, second).complete(REQUEST)
    assert second.requests == []


async def test_the_last_outage_is_raised_where_all_are_out():
    with pytest.raises(ModelRefusedKey):
        await line_of(ScriptedModel([ModelUnreachable()]), ScriptedModel([ModelRefusedKey()])).complete(REQUEST)


async def test_a_model_that_keeps_failing_is_not_asked_again_until_its_rest_is_over():
    clock = ManualClock()
    first, second = ScriptedModel([ModelUnreachable()]), ScriptedModel(say("Kato."))
    line = line_of(first, second, clock=clock)
    for _ in range(6):
        await line.complete(REQUEST)
    assert len(first.requests) == 3
    clock.advance(1.0)
    await line.complete(REQUEST)
    assert len(first.requests) == 4
    assert len(second.requests) == 7


async def test_a_dropped_stream_is_cancelled_at_the_model_and_says_nothing_of_its_health():
    first = ScriptedModel([TextDelta("Ka"), HANG])
    stream = line_of(first).stream(REQUEST)
    assert await anext(stream) == TextDelta("Ka")
    await stream.aclose()
    assert (first.cancelled, first.running) == (1, 0)


async def test_a_cancelled_wait_for_the_first_word_leaves_nothing_open():
    first = ScriptedModel([HANG])
    task = asyncio.ensure_future(line_of(first).complete(REQUEST))
    while not first.running:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (first.cancelled, first.running) == (1, 0)
