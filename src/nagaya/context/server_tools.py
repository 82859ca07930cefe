"""Tools that run at the server's side, between two questions to the model.

A tool gets what the caller may reach and nothing else: it is made from the caller's session, and a model's arguments
are data to it. So whatever a document talks a model into asking for, nothing answers but the caller's own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.context.tool_items import FileSearchCall, McpCall, ToolItem
from nagaya.errors import InvalidValue, NagayaError, SessionClosed
from nagaya.models.driver import FunctionTool, ModelRequest, ToolCall, Usage

MAX_STEPS: Final = 16
"""Questions to the model in one run; in the last one it is offered no server's tool, so that it must answer."""
MAX_TOOL_CALLS: Final = 64
"""Calls of server's tools in one run, unless the request sets ``max_tool_calls``."""
RUN_S: Final = 600.0
"""Seconds a whole run may take."""
TOOL_S: Final = 120.0
"""Seconds one call may take; then it failed, and the model is told so."""
NOT_OFFERED: Final = "Error: The tool's server does not offer this tool any more."
NO_MORE_CALLS: Final = "Error: This run may call no more tools; answer with what is known."
_CITED: Final = re.compile(r"\[([0-9]{1,4})\]")


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


class ServerTool(Protocol):
    """One tool of a run; it may offer the model several functions."""

    @property
    def functions(self) -> Sequence[FunctionTool]:
        """What the model may call, by names that no other tool of the run has."""
        ...

    def begin(self, call: ToolCall, item_id: str) -> ToolItem | None:
        """The item that shows the call; None: it is shown as a function call."""
        ...

    async def run(self, call: ToolCall, item: ToolItem | None, sources: int) -> ToolOutcome:
        """Do it. ``sources`` numbers were given to passages before. A ``NagayaError`` is told to the model as a
        failure, in its English words."""
        ...


@runtime_checkable
class Preparing(Protocol):
    """An optional power: a tool that must ask somebody what it offers before the first question."""

    def may_offer(self, name: str) -> bool:
        """Whether a function of that name can be its own."""
        ...

    async def prepare(self, item_id: str) -> ToolItem | None:
        """Get ready; the item that shows it, or None."""
        ...


@runtime_checkable
class Checked(Protocol):
    """An optional power: a tool that can tell before the run whether what the request names is the caller's."""

    async def check(self) -> None:
        """Raise ``NotFound`` where it is not, the same for a foreign thing as for an absent one."""
        ...


@runtime_checkable
class WorksInSession(Protocol):
    """An optional power: a tool that works in the run's own session, which outlives the request's."""

    def work_in(self, session: TenantSession) -> None:
        """From now on work in this session, which is the same caller's."""
        ...


@runtime_checkable
class ShowsResults(Protocol):
    """An optional power: a tool whose items show what it found, where the request asks for it."""

    shows_results: bool


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

    async def check(self, *, shows_results: bool) -> None:
        """Before the run: what the request names must be the caller's. Raises ``NotFound``."""
        for tool in self.tools:
            if isinstance(tool, ShowsResults):
                tool.shows_results = shows_results
            if isinstance(tool, Checked):
                await tool.check()

    def work_in(self, session: TenantSession) -> None:
        """Let the tools work in the run's own session."""
        for tool in self.tools:
            if isinstance(tool, WorksInSession):
                tool.work_in(session)

    def __contains__(self, name: object) -> bool:
        """Whether a function is a tool's, or may be one's that must be asked first what it offers."""
        return name in self._by_name or any(
            isinstance(tool, Preparing) and tool.may_offer(str(name)) for tool in self.tools
        )

    async def close(self) -> None:
        """Close what its tools hold open. May be called again."""
        for tool in self.tools:
            close = getattr(tool, "close", None)
            if close is not None:
                await close()


async def outcome_of(tool: ServerTool, call: ToolCall, item: ToolItem | None, sources: int) -> ToolOutcome:
    """Do a call within its time. What goes wrong is told to the model, which may do better with it than a client."""
    try:
        async with asyncio.timeout(TOOL_S):
            return await tool.run(call, item, sources)
    except TimeoutError:
        return failure(item, f"The tool did not answer within {TOOL_S:.0f} seconds.")
    except SessionClosed:
        raise
    except NagayaError as problem:
        return failure(item, problem.message("en"))


def failure(item: ToolItem | None, said: str) -> ToolOutcome:
    """A call that failed, as the model and the client are told of it."""
    ended: ToolItem | None = item
    if isinstance(item, McpCall):
        ended = msgspec.structs.replace(item, status="failed", error=said)
    elif isinstance(item, FileSearchCall):
        ended = msgspec.structs.replace(item, status="failed")
    return ToolOutcome(f"Error: {said}", ended, failed=True)


def with_tools(request: ModelRequest, toolbox: Toolbox) -> ModelRequest:
    """The request with the server's tools after the client's."""
    return msgspec.structs.replace(request, tools=(*request.tools, *toolbox.functions(request.tools)))


def without_tools(request: ModelRequest) -> ModelRequest:
    """The request whose model can only answer: it has called as often as it may.

    The tools stay described, since vendors refuse calls of unknown tools in what was said before.
    """
    return msgspec.structs.replace(request, tool_choice="none")


def after_first(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """The tool choice once a tool was called: one that forced it would force it for ever."""
    return "auto" if choice == "required" or isinstance(choice, dict) else choice


def added(one: Usage, other: Usage) -> Usage:
    """The tokens of two answers."""
    return Usage(
        one.input_tokens + other.input_tokens,
        one.output_tokens + other.output_tokens,
        one.cached_tokens + other.cached_tokens,
        one.reasoning_tokens + other.reasoning_tokens,
        one.estimated or other.estimated,
    )


def cited(text: str, sources: Sequence[Source]) -> list[dict[str, Any]]:
    """The citations in a text, such as ``[2]``, as OpenAI annotates them: which file, and where in the text."""
    by_number = {source.number: source for source in sources}
    return (
        [
            {"type": "file_citation", "file_id": source.file_id, "filename": source.filename, "index": found.start()}
            for found in _CITED.finditer(text)
            if (source := by_number.get(int(found.group(1)))) is not None
        ]
        if by_number
        else []
    )
