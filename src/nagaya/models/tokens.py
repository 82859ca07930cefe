"""What a model's request and answer are likely to take in tokens, by the estimate of ``nagaya.kernel.tokens``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

import msgspec

from nagaya.kernel.tokens import estimate_tokens
from nagaya.models.driver import ModelRequest, ToolCall, Usage

THREAD_FROM_CHARACTERS: Final = 20_000
"""What reads a request longer than this does so in a thread: 10 ms on the loop would be felt by every other tenant."""
_PER_TURN: Final = 4
"""Tokens that a chat template spends on a turn's role and borders."""
_PER_IMAGE: Final = 765
"""A 1024 × 1024 image in 512-pixel tiles, as OpenAI's vision guide counts it (85 + 4 × 170)."""


def request_characters(request: ModelRequest) -> int:
    """How many characters of text a request's turns hold."""
    return sum(len(turn.text) for turn in request.turns)


def estimate_input(request: ModelRequest) -> int:
    """How many tokens a whole request is likely to be: turns, calls, images and tools."""
    total = 3
    for turn in request.turns:
        total += _PER_TURN + estimate_tokens(turn.text) + _PER_IMAGE * len(turn.images) + _calls(turn.tool_calls)
    for tool in request.tools:
        schema = msgspec.json.encode(tool.parameters or {}).decode()
        total += _PER_TURN + estimate_tokens(f"{tool.name} {tool.description or ''} {schema}")
    return total


def estimate_usage(request: ModelRequest, text: str, tool_calls: Iterable[ToolCall] = ()) -> Usage:
    """The likely usage of a request and what was answered to it so far: for models that do not count, and for
    answers that were dropped midway."""
    return Usage(
        input_tokens=estimate_input(request), output_tokens=estimate_tokens(text) + _calls(tool_calls), estimated=True
    )


async def estimated(request: ModelRequest, text: str, tool_calls: Iterable[ToolCall] = ()) -> Usage:
    """As :func:`estimate_usage`; in a thread where the request is long."""
    if request_characters(request) > THREAD_FROM_CHARACTERS:
        return await asyncio.to_thread(estimate_usage, request, text, tool_calls)
    return estimate_usage(request, text, tool_calls)


def _calls(calls: Iterable[ToolCall]) -> int:
    return sum(_PER_TURN + estimate_tokens(call.name) + estimate_tokens(call.arguments) for call in calls)
