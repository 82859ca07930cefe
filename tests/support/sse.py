"""Server-sent events as the standard has them read: fields, ids that stay, comments, blank lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class SseEvent(NamedTuple):
    """An event that was dispatched, with the last id as it stood then."""

    type: str
    data: str
    id: str


class SseReader:
    """Reads lines as an ``EventSource`` does. ``retry_ms``, ``last_id`` and ``comments`` hold what it saw besides."""

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        self.last_id = ""
        self.comments = 0

    def read(self, lines: Iterable[str]) -> Iterator[SseEvent]:
        """The events in some lines (without their ends)."""
        type_, data = "", []
        for line in lines:
            if not line:
                if data:
                    yield SseEvent(type_ or "message", "\n".join(data), self.last_id)
                type_, data = "", []
                continue
            if line.startswith(":"):
                self.comments += 1
                continue
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                type_ = value
            elif field == "data":
                data.append(value)
            elif field == "id" and "\0" not in value:
                self.last_id = value
            elif field == "retry" and value.isascii() and value.isdigit():
                self.retry_ms = int(value)
