"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

AGAIN_S: Final = 1.0


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
        if not task.cancelled():
            task.exception()  # looked at: nobody else will
