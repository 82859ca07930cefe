"""A server's tool for tests: it searches a few passages that the test hands it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nagaya.context.server_tools import Source, ToolOutcome
from nagaya.context.tool_items import FileSearchCall, ToolItem
from nagaya.models.driver import FunctionTool, ToolCall


class Searching:
    """``file_search`` over texts by file name; ``asked`` holds the queries."""

    def __init__(self, **texts: str) -> None:
        self.texts = texts
        self.asked: list[str] = []
        self.closed = False

    @property
    def functions(self) -> Sequence[FunctionTool]:
        return (
            FunctionTool(
                "file_search", "Search the documents.", {"type": "object", "properties": {"query": {"type": "string"}}}
            ),
        )

    def begin(self, call: ToolCall, item_id: str) -> ToolItem | None:
        return FileSearchCall(id=item_id, queries=[], status="in_progress")

    async def run(self, call: ToolCall, item: ToolItem | None, sources: int) -> ToolOutcome:
        assert isinstance(item, FileSearchCall)
        query = msgspec.json.decode(call.arguments)["query"]
        self.asked.append(query)
        found = [Source(sources + n, f"file_{name}", f"{name}.txt") for n, name in enumerate(self.texts, 1)]
        told = "\n\n".join(f"[{one.number}] {one.filename}\n{self.texts[one.filename[:-4]]}" for one in found)
        return ToolOutcome(told, FileSearchCall(id=item.id, queries=[query]), sources=found)

    async def close(self) -> None:
        self.closed = True
