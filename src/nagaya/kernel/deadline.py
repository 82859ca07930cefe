"""A deadline that costs nothing where nothing is waited for, and little where something is."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Generator
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


class Patience:
    """Deadlines for one wait after another, such as for every event of a stream: ``with patience.of(limit_s):``.

    The block raises ``TimeoutError`` after ``limit_s`` seconds, or at most a 64th of them more. Costs neither a timer
    nor a coroutine of its own: a deadline that is not reached is looked at once, when it would have been the first, and
    then again when it is by then. To be used by one task at a time; ``end`` it after the last wait.
    """

    __slots__ = ("_before", "_limit_s", "_looked_at_s", "_step_s", "_together", "_until_s", "fired", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[Any] | None = None
        self.fired = False
        self._together: set[Callable[[], None]] | None = None
        self._looked_at_s = math.inf

    def of(self, limit_s: float) -> Patience:
        """So much patience for the block that follows."""
        self._limit_s = limit_s
        return self

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task, self.fired = task, False
        self._before = task.cancelling()
        loop = task.get_loop()
        self._until_s = loop.time() + self._limit_s
        if self._until_s < self._looked_at_s:
            self.end()
            self._step_s = _step_of(self._limit_s)
            self._look_at(loop)

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: object) -> None:
        task, self.task = self.task, None
        assert task is not None
        # The deadline's own cancellation and nobody else's.
        if self.fired and task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from problem

    def end(self) -> None:
        """Nothing is waited for any more. May be repeated."""
        if self._together is not None:
            self._together.discard(self)
            self._together, self._looked_at_s = None, math.inf

    def _look_at(self, loop: asyncio.AbstractEventLoop) -> None:
        self._together, self._looked_at_s = _in_step(loop, self._step_s, self._until_s)
        self._together.add(self)

    def __call__(self) -> None:
        self._together, self._looked_at_s = None, math.inf
        if self.task is None:
            return
        loop = self.task.get_loop()
        if self._until_s > loop.time() + _LEAST_S:
            self._look_at(loop)
            return
        self.fired = True
        self.task.cancel()


_Due = dict[tuple[float, int], set[Callable[[], None]]]
_due_in: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Due]] = WeakKeyDictionary()
"""What has a deadline in each event loop, by the length of its step and the step's number."""


def _step_of(limit_s: float) -> float:
    return max(limit_s, _LEAST_S) / _STEPS


def _in_step(loop: asyncio.AbstractEventLoop, step_s: float, at_s: float) -> tuple[set[Callable[[], None]], float]:
    """Who is called with the first step after ``at_s``, and when that is: the loop's time, as ``at_s``."""
    due = _due_in.get(loop)
    if due is None:
        due = _due_in[loop] = {}
    number = int(at_s / step_s) + 1
    together = due.get((step_s, number))
    if together is None:
        together = due[step_s, number] = set()
        loop.call_at(number * step_s, _end, due, (step_s, number))
    return together, number * step_s


def _begin(limit_s: float, expiry: _Expiry) -> set[Callable[[], None]]:
    """Let ``expiry`` come after ``limit_s``, or a step of it later, unless it is taken out of the set before."""
    loop = expiry.task.get_loop()
    together, _ = _in_step(loop, _step_of(limit_s), loop.time() + limit_s)
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
