"""Ending tasks for certain, and letting them end by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, Final, TypeVar

AGAIN_S: Final = 1.0
T = TypeVar("T")


async def ended(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel ``tasks`` and wait until they have ended, however they do. May be repeated.

    One that goes on is cancelled again every second: a library can lose a cancellation, as Python 3.11's
    ``asyncio.wait_for`` does where what it waits for is done in that very turn of the loop.
    """
    every = set(tasks)
    left = {task for task in every if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_S)
    for task in every:
        _looked_at(task)  # nobody else will


def going_on(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """``work`` as a task that goes on where whoever waits for it, by ``asyncio.shield`` or ``asyncio.wait``, is
    cancelled. Its failure is then nobody's, and no warning."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(_looked_at)
    return task


async def carried_out(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which goes on to its end where the caller is cancelled meanwhile, however often; the
    cancellation is raised after that. For what a database, a thread or a vendor does all the same once it is begun."""
    task = going_on(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as asked:
            cancelled = asked
    if cancelled is not None:
        raise cancelled
    return task.result()


def _looked_at(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()
