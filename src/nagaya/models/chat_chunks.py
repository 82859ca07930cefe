"""A streamed chat completion as it comes over the wire: bytes in, model events out.

The vendor's client would make an object of its own of every part of every chunk, and keep the last of them for as long
as the next takes: half of what a stream takes of the processor, and a fifth of its memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from nagaya.models.driver import ModelEvent, TextDelta, ToolCallDelta, Usage

_DONE: Final = b"[DONE]"
_WHOLE: Final = re.compile(rb"data: [^\r\n]*\n\n")
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    index: int | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


_decode: Final = msgspec.json.Decoder(_Chunk, strict=False).decode


class ErrorInStream(Exception):
    """The vendor ended its answer with an error. ``body`` is what it says of it, which may quote the prompt."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body


class Said:
    """What a streamed answer has said so far, besides its events."""

    __slots__ = ("_split", "is_whole", "model", "reason", "usage")

    def __init__(self, model: str) -> None:
        self._split = EventData()
        self.model = model
        """The model that answers, as the vendor calls it."""
        self.reason: str | None = None
        """Why it ended, once it has."""
        self.usage: Usage | None = None
        self.is_whole = False
        """Whether nothing follows."""

    def events(self, part: bytes) -> Iterator[ModelEvent]:
        """The events of a further part of the body. Raises ``ErrorInStream``, and msgspec's errors for what is no
        chunk, after the events before it."""
        for data in self._split.feed(part):
            if data.startswith(_DONE):
                self.is_whole = True
                return
            chunk = _decode(data)
            if chunk.error:
                raise ErrorInStream(chunk.error)
            self.model = chunk.model or self.model
            if chunk.usage is not None:
                self.usage = _usage(chunk.usage) or self.usage
            for choice in chunk.choices or ():
                # Azure's content filter, where it runs beside the answer, sends choices that say nothing.
                if choice.index or choice.delta is None:
                    continue
                self.reason = choice.finish_reason or self.reason
                delta = choice.delta
                if delta.content:
                    yield TextDelta(delta.content)
                if delta.refusal:
                    yield TextDelta(delta.refusal)
                for call in delta.tool_calls or ():
                    yield _call_piece(call)


def _call_piece(call: _Call) -> ToolCallDelta:
    function = call.function
    if function is None:
        return ToolCallDelta(call.index or 0, call.id)
    return ToolCallDelta(call.index or 0, call.id, function.name, function.arguments or "")


def _usage(usage: object) -> Usage | None:
    """Read with care: servers count in ways of their own, and an answer must not fail for its bill."""
    if not isinstance(usage, dict) or not isinstance(usage.get("prompt_tokens"), int):
        return None
    return Usage(
        usage["prompt_tokens"],
        _count(usage, "completion_tokens"),
        _count(usage.get("prompt_tokens_details"), "cached_tokens"),
        _count(usage.get("completion_tokens_details"), "reasoning_tokens"),
    )


def _count(counts: object, name: str) -> int:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if isinstance(value, int) else 0


class EventData:
    """Splits a body into the data of its server-sent events. Bounded by whoever bounds the body."""

    __slots__ = ("_data", "_line", "_skips_line_feed")

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._data: list[bytes] | None = None
        self._skips_line_feed = False

    def feed(self, part: bytes) -> list[bytes]:
        """The data of the events that are whole with this part of the body, in order."""
        if not self._line and self._data is None and _WHOLE.fullmatch(part):
            # As nearly every part is.
            self._skips_line_feed = False
            return [part[6:-2]]
        if self._skips_line_feed and part[:1] == b"\n":
            part = part[1:]
        if not part:
            return []
        self._skips_line_feed = part[-1:] == b"\r"
        lines = _LINE_END.split(part)
        if len(lines) == 1:
            # Joined when its end comes: a line may be megabytes in many pieces.
            self._line.append(part)
            return []
        lines[0] = b"".join((*self._line, lines[0]))
        last = lines.pop()
        self._line = [last] if last else []
        return [data for line in lines if (data := self._line_came(line)) is not None]

    def _line_came(self, line: bytes) -> bytes | None:
        if not line:
            data, self._data = self._data, None
            return None if data is None else b"\n".join(data)
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data = [] if self._data is None else self._data
            self._data.append(value[1:] if value[:1] == b" " else value)
        return None
