"""A deadline that costs nothing where nothing is waited for, and little where something is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Final, Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

_STEPS: Final = 64
"""Into how many steps a limit is divided: deadlines within the same step share one timer, which is as late as that."""
_LEAST_S: Final = 0.001


class _Rest(Generic[T]):
    """What is left of work that has begun and now waits for ``first``."""

    __slots__ = ("_first", "_steps")

    def __init__(self, first: Any, steps: Generator[Any, Any, T]) -> None:
        self._first = first
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, T]:
        first = self._first
        while True:
            try:
                yield first
            except BaseException as thrown:
                # Such as a cancellation: the work decides, and may want to wait for something else first.
                try:
                    first = self._steps.throw(thrown)
                except StopIteration as done:
                    result: T = done.value
                    return result
            else:
                return (yield from self._steps)


class _Expiry:
    """Cancels a task once, and remembers it."""

    __slots__ = ("fired", "task")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self.fired = False

    def __call__(self) -> None:
        self.fired = True
        self.task.cancel()


_Due = dict[tuple[float, int], set[_Expiry]]
_due_in: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Due]] = WeakKeyDictionary()
"""What has a deadline in each event loop, by the length of its step and the step's number."""


def _begin(limit_s: float, expiry: _Expiry) -> set[_Expiry]:
    """Let ``expiry`` come after ``limit_s``, or a step of it later, unless it is taken out of the set before."""
    loop = expiry.task.get_loop()
    due = _due_in.get(loop)
    if due is None:
        due = _due_in[loop] = {}
    step_s = max(limit_s, _LEAST_S) / _STEPS
    number = int((loop.time() + limit_s) / step_s) + 1
    together = due.get((step_s, number))
    if together is None:
        together = due[step_s, number] = set()
        loop.call_at(number * step_s, _end, due, (step_s, number))
    together.add(expiry)
    return together


def _end(due: _Due, step: tuple[float, int]) -> None:
    for expiry in due.pop(step):
        expiry()


async def within(limit_s: float, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, or ``TimeoutError`` after ``limit_s`` seconds, or at most a 64th of them more; it is then
    cancelled.

    Work is begun at once, without a deadline; only where it has to wait does it get one, and shares the timer with what
    was begun at about the same time. To be awaited in a task.
    """
    steps = work.__await__()
    try:
        first = next(steps)
    except StopIteration as done:
        result: T = done.value
        return result
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    expiry = _Expiry(task)
    together = _begin(limit_s, expiry)
    try:
        return await _Rest(first, steps)
    except asyncio.CancelledError as cancelled:
        if expiry.fired and task.cancelling() - 1 <= before:
            # The deadline's own cancellation and nobody else's.
            raise TimeoutError from cancelled
        raise
    finally:
        together.discard(expiry)
        if expiry.fired:
            task.uncancel()
