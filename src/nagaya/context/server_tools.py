"""Tools that run at the server's side, between two questions to the model.

A tool gets what the caller may reach and nothing else: it is made from the caller's session, and a model's arguments
are data to it. So whatever a document talks a model into asking for, nothing answers but the caller's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from nagaya.context.items import FunctionCallOutput, Item
from nagaya.context.tool_items import ToolItem
from nagaya.errors import InvalidValue
from nagaya.models.driver import FunctionTool, ToolCall

MAX_STEPS: Final = 16
"""Questions to the model in one run; in the last one it is offered no server's tool, so that it must answer."""
MAX_TOOL_CALLS: Final = 64
"""Calls of server's tools in one run, unless the request sets ``max_tool_calls``."""
RUN_S: Final = 600.0
"""Seconds a whole run may take."""
TOOL_S: Final = 120.0
"""Seconds one call may take; then it failed, and the model is told so."""


class Source(NamedTuple):
    """What a passage that the model was given came from; cited as ``[number]``."""

    number: int
    file_id: str
    filename: str


class ToolOutcome(NamedTuple):
    """What came of a call: the item as it is shown from now on, and what the model is told."""

    output: str
    item: ToolItem | None = None
    failed: bool = False
    sources: Sequence[Source] = ()
    pending: bool = False
    """The run must stop here and wait for the client."""
    after: Sequence[FunctionCallOutput] = ()
    """Items that follow the call's own."""


class ServerTool(Protocol):
    """One tool of a run; it may offer the model several functions."""

    @property
    def functions(self) -> Sequence[FunctionTool]:
        """What the model may call, by names that no other tool of the run has."""
        ...

    @property
    def phases(self) -> tuple[str, str, str, str]:
        """The names that its stream events begin with and its steps: ``(kind, working, done, failed)``; an empty kind
        has none."""
        ...

    def begin(self, call: ToolCall, item_id: str) -> ToolItem | None:
        """The item that shows the call; None: it is shown as a function call."""
        ...

    async def run(self, call: ToolCall, item: ToolItem | None, sources: int) -> ToolOutcome:
        """Do it. ``sources`` numbers were given to passages before. A ``NagayaError`` is told to the model as a
        failure, in its English words."""
        ...


class Preparing(Protocol):
    """An optional power: a tool that must ask somebody what it offers before the first question."""

    async def prepare(self, item_id: str) -> ToolItem | None:
        """Get ready; the item that shows it, or None."""
        ...


class Toolbox:
    """The server's tools of one run, by the names of their functions."""

    def __init__(self, tools: Iterable[ServerTool] = ()) -> None:
        self.tools = list(tools)
        self._by_name: dict[str, ServerTool] = {}

    def __bool__(self) -> bool:
        return bool(self.tools)

    def functions(self, taken: Iterable[FunctionTool] = ()) -> list[FunctionTool]:
        """What the model is offered. Raises ``InvalidValue`` where two functions have one name."""
        self._by_name = {}
        names = {tool.name for tool in taken}
        offered = []
        for tool in self.tools:
            for function in tool.functions:
                if function.name in names:
                    detail = f"two tools are called '{function.name[:64]}'"
                    raise InvalidValue(param="tools", at="tools", detail=detail)
                names.add(function.name)
                self._by_name[function.name] = tool
                offered.append(function)
        return offered

    def find(self, name: str) -> ServerTool | None:
        """The tool whose function has that name."""
        return self._by_name.get(name)

    async def close(self) -> None:
        """Close what its tools hold open. May be called again."""
        for tool in self.tools:
            close = getattr(tool, "close", None)
            if close is not None:
                await close()


class ToolSettings(NamedTuple):
    """A hosted tool as a request describes it, and where in the request."""

    given: Mapping[str, Any]
    at: str


def results_of(items: Iterable[Item], results: Mapping[str, str]) -> dict[str, str]:
    """The kept results of just these items."""
    return {item.id: results[item.id] for item in items if item.id in results}
