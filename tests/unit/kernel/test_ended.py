"""Tasks that are told to end, among them one whose library loses what it is told."""

from __future__ import annotations

import asyncio

import pytest

from nagaya.kernel import ended as module
from nagaya.kernel.ended import carried_out, ended


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.01)


async def test_tasks_end_however_they_do() -> None:
    async def fails() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise RuntimeError("on the way out") from None

    done = asyncio.create_task(asyncio.sleep(0))
    await done
    tasks = [done, asyncio.create_task(asyncio.sleep(60)), asyncio.create_task(fails())]
    await asyncio.sleep(0)
    await ended(tasks)
    assert all(task.done() for task in tasks)
    await ended(tasks)
    await ended([])


async def test_a_task_that_lost_its_cancellation_is_told_again() -> None:
    lost = 0

    async def deaf() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                lost += 1
                if lost == 3:
                    raise

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await ended([task])
    assert task.cancelled()
    assert lost == 3


async def test_whoever_waits_may_be_cancelled_too() -> None:
    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if is_over:
                    raise

    is_over = False
    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(ended([task]))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    is_over = True
    task.cancel()
    await asyncio.wait({task})


async def test_what_is_carried_out_ends_however_often_its_waiter_is_cancelled() -> None:
    may_end, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await may_end.wait()
        done.set()

    waiting = asyncio.create_task(carried_out(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert done.is_set()


async def test_what_is_carried_out_gives_its_result_or_its_failure() -> None:
    async def fails() -> None:
        raise RuntimeError("no")

    assert await carried_out(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(RuntimeError, match="no"):
        await carried_out(fails())
