"""A deadline that costs nothing where nothing is waited for, and holds where something is."""

from __future__ import annotations

import asyncio

import pytest

from nagaya.kernel.deadline import within


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

    assert await within(1, slow()) == "done"


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
        await within(1, broken())


async def test_a_cancelled_caller_cancels_the_work() -> None:
    async def stuck() -> None:
        await asyncio.Event().wait()

    task = asyncio.ensure_future(within(10, stuck()))
    await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
