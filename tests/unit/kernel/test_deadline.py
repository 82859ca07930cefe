"""A deadline that costs nothing where nothing is waited for, and holds where something is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nagaya.kernel.deadline import Patience, within
from support.loop_time import LoopTime


async def test_work_that_never_waits_needs_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def quick() -> int:
        return 7

    monkeypatch.setattr(asyncio, "timeout", None)
    assert await within(1, quick()) == 7


async def test_work_that_waits_several_times_gives_its_result() -> None:
    async def slow() -> str:
        for _ in range(3):
            await asyncio.sleep(0.001)
        return "done"

    assert await within(60, slow()) == "done"


async def test_work_past_its_deadline_is_cancelled() -> None:
    ended = []

    async def stuck() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(TimeoutError):
        await within(0.01, stuck())
    assert ended == [True]


async def test_work_that_tidies_up_when_it_is_cancelled_may_wait_for_that() -> None:
    tidied = []

    async def careful() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
            tidied.append(True)

    with pytest.raises(TimeoutError):
        await within(0.01, careful())
    assert tidied == [True]


async def test_work_that_swallows_a_cancellation_gives_its_result_to_the_caller_who_is_cancelled() -> None:
    async def stubborn() -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return 1
        return 0

    task = asyncio.ensure_future(within(10, stubborn()))
    await asyncio.sleep(0.001)
    task.cancel()
    assert await task == 1


@pytest.mark.parametrize("waits", [False, True])
async def test_an_error_of_the_work_is_the_callers(waits: bool) -> None:
    async def broken() -> None:
        if waits:
            await asyncio.sleep(0.001)
        raise KeyError("x")

    with pytest.raises(KeyError):
        await within(60, broken())


async def test_a_cancelled_caller_cancels_the_work() -> None:
    async def stuck() -> None:
        await asyncio.Event().wait()

    task = asyncio.ensure_future(within(10, stuck()))
    await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_patience_ends_each_of_many_waits_and_none_that_is_over():
    patience, stuck = Patience(), asyncio.Event()
    for _ in range(3):
        with patience.of(10):
            await asyncio.sleep(0.001)
        with pytest.raises(TimeoutError), patience.of(0.01):
            await stuck.wait()
    with patience.of(0.01):
        pass  # a machine that stops for a moment would end a wait
    await asyncio.sleep(0.05)
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_patience_leaves_errors_and_cancellations_of_others_as_they_are():
    patience = Patience()
    with pytest.raises(KeyError), patience.of(10):
        raise KeyError

    async def waits() -> None:
        with patience.of(10):
            await asyncio.Event().wait()

    task = asyncio.ensure_future(waits())
    await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_patience_that_ends_beside_a_cancellation_is_a_cancellation():
    patience = Patience()

    async def waits() -> None:
        with patience.of(0.01):
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.05)

    task = asyncio.ensure_future(waits())
    await asyncio.sleep(0)
    await asyncio.sleep(0.03)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_one_patience_may_go_from_task_to_task():
    patience = Patience()

    async def waits(limit_s: float) -> None:
        with patience.of(limit_s):
            await asyncio.sleep(0.01)

    await asyncio.ensure_future(waits(10))
    with pytest.raises(TimeoutError):
        await asyncio.ensure_future(waits(0.001))
    await asyncio.ensure_future(waits(10))


async def test_a_patience_inside_another_ends_alone():
    outer, inner, stuck = Patience(), Patience(), asyncio.Event()
    with outer.of(10):
        with pytest.raises(TimeoutError), inner.of(0.01):
            await stuck.wait()
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError), outer.of(0.01), inner.of(10):
        await stuck.wait()


async def test_a_shorter_patience_after_a_longer_one_ends_when_it_says():
    patience = Patience()
    with patience.of(3600):
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError), patience.of(0.01):
        await asyncio.wait_for(asyncio.Event().wait(), 30)
    with patience.of(3600):
        await asyncio.sleep(0.03)


async def test_a_patience_that_is_used_again_before_its_first_end_ends_at_the_last(monkeypatch: pytest.MonkeyPatch):
    patience, time = Patience(), LoopTime(monkeypatch)
    for _ in range(8):
        with patience.of(0.1):
            await time.passes(0.03)
    is_early = False
    with pytest.raises(TimeoutError), patience.of(0.1):
        await time.passes(0.09)
        is_early = True
        await time.passes(0.02)
    assert is_early


async def test_many_waits_in_a_row_set_no_timer_each(monkeypatch: pytest.MonkeyPatch):
    patience, loop, timers = Patience(), asyncio.get_running_loop(), 0
    real = loop.call_at

    def call_at(*given: Any, **named: Any) -> asyncio.TimerHandle:
        nonlocal timers
        timers += 1
        return real(*given, **named)

    monkeypatch.setattr(loop, "call_at", call_at)
    for _ in range(1000):
        with patience.of(61):
            await asyncio.sleep(0)
    assert timers <= 1
    patience.end()
    patience.end()
    with patience.of(61):
        await asyncio.sleep(0)
