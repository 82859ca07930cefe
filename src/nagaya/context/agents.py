"""Agents: answers whose model may call the caller's own Python functions, step by step, within limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from nagaya.context.functions import python_functions
from nagaya.context.response_run import ResponseRun
from nagaya.context.response_shapes import Response, ResponseIn
from nagaya.context.responses import Responses


class Agents:
    """One caller's agents. What they do lies in the conversation as items and is told as notices."""

    __slots__ = ("_responses",)

    def __init__(self, responses: Responses) -> None:
        self._responses = responses

    async def begin(
        self, given: ResponseIn | str, *, functions: Iterable[Callable[..., Any]] = (), **options: Any
    ) -> ResponseRun:
        """A run that calls ``functions`` where the model asks for them: read its events with ``next``, or ``finish``.

        ``options`` are those of a response (``conversation``, ``instructions``, ``max_steps``, ``max_tool_calls``, …).
        Raises what :meth:`Responses.begin` raises, and ``InvalidValue`` for a function without annotations.
        """
        if isinstance(given, str):
            given = ResponseIn(input=given, **options)
        return await self._responses.begin(given, tools=python_functions(functions))

    async def run(
        self, given: ResponseIn | str, *, functions: Iterable[Callable[..., Any]] = (), **options: Any
    ) -> Response:
        """As :meth:`begin`, to the end."""
        return await (await self.begin(given, functions=functions, **options)).finish()
