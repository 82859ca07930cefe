"""Python functions as tools: the model calls them by name, their signature is their schema."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_type_hints

import msgspec
import structlog

from nagaya.context.server_tools import ToolOutcome, failure
from nagaya.context.tool_items import ToolItem
from nagaya.errors import InvalidValue
from nagaya.models.driver import FunctionTool, ToolCall

_log = structlog.get_logger(__name__)

MAX_RESULT_CHARACTERS = 100_000
"""What a function gives back is cut to this before a model is told."""


class PythonFunction:
    """One function as a tool.

    Its name, its docstring and its annotated parameters are what the model sees; what the model gives is checked
    against them before the function is called. A coroutine function is awaited, any other runs in a thread. What it
    returns is told to the model as text, or as JSON where it is not text. A ``ValueError`` is told with its words, so
    that the model can do better; of any other exception it is told only the kind.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        name = function.__name__
        try:
            self._arguments = _arguments_of(function)
            parameters = _schema(self._arguments)
        except (TypeError, NameError) as wrong:
            raise InvalidValue(
                param="tools", at=f"tools.{name}", detail=f"its signature has no schema: {wrong}"
            ) from None
        self._described = FunctionTool(name=name, description=inspect.getdoc(function), parameters=parameters)

    @property
    def functions(self) -> Sequence[FunctionTool]:
        return (self._described,)

    def begin(self, call: ToolCall, item_id: str) -> ToolItem | None:
        return None

    async def run(self, call: ToolCall, item: ToolItem | None, sources: int) -> ToolOutcome:
        try:
            given = msgspec.json.decode(call.arguments or "{}", type=self._arguments)
        except (msgspec.DecodeError, UnicodeEncodeError) as wrong:
            return failure(None, f"The arguments do not fit: {wrong}")
        arguments = {name: getattr(given, name) for name in given.__struct_fields__}
        try:
            if inspect.iscoroutinefunction(self._function):
                result = await self._function(**arguments)
            else:
                result = await asyncio.to_thread(self._function, **arguments)
            text = result if isinstance(result, str) else msgspec.json.encode(result).decode()
        except ValueError as wrong:
            return failure(None, str(wrong))
        except Exception as problem:
            kind = type(problem).__name__
            _log.warning("a function failed", action="tool.failed", tool=call.name, error=kind)
            return failure(None, f"The function failed ({kind}).")
        return ToolOutcome(text[:MAX_RESULT_CHARACTERS])


def python_functions(functions: Iterable[Callable[..., Any]]) -> list[PythonFunction]:
    """The functions as tools. Raises ``InvalidValue`` for one whose parameters are not annotated."""
    return [PythonFunction(function) for function in functions]


def _arguments_of(function: Callable[..., Any]) -> type[msgspec.Struct]:
    hints = get_type_hints(function, include_extras=True)
    fields: list[Any] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"parameter {parameter.name} cannot be given by name")
        if parameter.name not in hints:
            raise TypeError(f"parameter {parameter.name} has no annotation")
        field = (parameter.name, hints[parameter.name])
        fields.append(field if parameter.default is parameter.empty else (*field, parameter.default))
    return msgspec.defstruct(function.__name__, fields, kw_only=True, forbid_unknown_fields=True)


def _schema(arguments: type[msgspec.Struct]) -> dict[str, Any]:
    """The schema with the arguments' own object at the top, as vendors want it."""
    (top,), parts = msgspec.json.schema_components([arguments], ref_template="#/$defs/{name}")
    name = top["$ref"].rpartition("/")[2]
    found: dict[str, Any] = {key: value for key, value in parts.pop(name).items() if key != "title"}
    return {**found, "$defs": parts} if parts else found
