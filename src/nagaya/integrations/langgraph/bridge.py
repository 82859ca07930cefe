"""LangGraph's synchronous methods, for graphs that run in threads beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Bridge:
    """From a thread to the event loop that the tenant's session belongs to. To be made in that loop."""

    __slots__ = ("_loop",)

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, done in the loop. Raises ``InvalidStateError`` in the loop's own thread, which
        would wait for itself for ever."""
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is self._loop:
            work.close()
            raise asyncio.InvalidStateError(
                "Nagaya's session belongs to this event loop: use the asynchronous methods here (ainvoke, aget_tuple, "
                "aput, asearch, …), or call the synchronous ones from another thread."
            )
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
