"""What a request for a response asks: checked, and as the model is asked it."""

from __future__ import annotations

from typing import Any

import msgspec

from nagaya.context.conversations import check_metadata
from nagaya.context.decode import refusal
from nagaya.context.hosted_tools import is_hosted
from nagaya.context.items import FunctionCallOutput, InputFile, InputImage, InputText, Item, Message
from nagaya.context.response_shapes import UNSUPPORTED, ReasoningIn, ResponseIn, StreamOptionsIn, TextIn
from nagaya.context.server_tools import MAX_STEPS, Toolbox
from nagaya.context.turns import function_tool, tool_choice
from nagaya.errors import InvalidValue, MissingParameter, UnsupportedParameter
from nagaya.kernel.tokens import estimate_tokens
from nagaya.models.driver import FunctionTool, ModelRequest, Turn

_encoder = msgspec.json.Encoder()


def check_request(given: ResponseIn) -> None:
    """Refuse what cannot be asked, by the name of the parameter."""
    for name in UNSUPPORTED:
        if getattr(given, name) is not None:
            raise UnsupportedParameter(param=name, at=name)
    if given.input is None or given.input == []:
        raise MissingParameter(param="input", at="input")
    if given.conversation is not None and given.previous_response_id is not None:
        raise InvalidValue(
            param="previous_response_id", at="previous_response_id", detail="not together with 'conversation'"
        )
    check_metadata(given.metadata or {})
    _check_inside("reasoning", given.reasoning, ReasoningIn)
    _check_inside("text", given.text, TextIn)
    _check_inside("stream_options", given.stream_options, StreamOptionsIn)
    if given.stream_options is not None and not given.stream:
        raise InvalidValue(param="stream_options", at="stream_options", detail="only together with stream=true")
    if "message.output_text.logprobs" in (given.include or ()):
        raise UnsupportedParameter(param="include", at="include")
    if given.background and given.store is False:
        raise InvalidValue(param="background", at="background", detail="needs store=true")
    _in_range(given.temperature, 0, 2, "temperature")
    _in_range(given.top_p, 0, 1, "top_p")
    _in_range(given.max_tool_calls, 1, 1_000, "max_tool_calls")
    _in_range(given.max_steps, 1, MAX_STEPS, "max_steps")
    _in_range(given.max_output_tokens, 1, 10_000_000, "max_output_tokens")
    if given.top_logprobs:
        raise UnsupportedParameter(param="top_logprobs", at="top_logprobs")


def check_readable(item: Item, at: str) -> None:
    """Refuse what would be kept but never reach the model: an answer must not be about less than was asked."""
    if isinstance(item, Message):
        for number, part in enumerate(item.content):
            if isinstance(part, InputFile) or (isinstance(part, InputImage) and part.image_url is None):
                raise UnsupportedParameter(param=f"{at}.content[{number}]", at=f"{at}.content[{number}]")
    elif isinstance(item, FunctionCallOutput) and not isinstance(item.output, str):
        for number, part in enumerate(item.output):
            if not isinstance(part, InputText):
                raise UnsupportedParameter(param=f"{at}.output[{number}]", at=f"{at}.output[{number}]")


def _check_inside(at: str, given: dict[str, Any] | None, type_: type[msgspec.Struct]) -> None:
    """Raise what :func:`nagaya.context.decode.decode` raises, for what a body holds under ``at``."""
    if given is not None:
        try:
            msgspec.convert(given, type_)
        except msgspec.ValidationError as wrong:
            raise refusal(wrong, at) from None


def _in_range(value: float | None, lowest: float, highest: float, at: str) -> None:
    if value is not None and not lowest <= value <= highest:
        raise InvalidValue(param=at, at=at, detail=f"expected {lowest} to {highest}")


def client_functions(given: ResponseIn) -> tuple[FunctionTool, ...]:
    """The functions among a request's tools that the client itself will call."""
    return tuple(
        function_tool(tool, f"tools[{number}]", nested=False)
        for number, tool in enumerate(given.tools or ())
        if not is_hosted(tool)
    )


def cost_of_request(given: ResponseIn, toolbox: Toolbox) -> int:
    """About how many tokens of a model's window everything but the history takes."""
    own = given.input if isinstance(given.input, str) else _encoder.encode(given.input).decode()
    described = _encoder.encode([given.tools, [tool.functions for tool in toolbox.tools]]).decode()
    return sum(estimate_tokens(text) for text in (own, described, given.instructions or ""))


def model_request(given: ResponseIn, turns: list[Turn]) -> ModelRequest:
    """The request as the model is asked it, with these turns."""
    tools = client_functions(given)
    wanted = (given.text or {}).get("format")
    effort = (given.reasoning or {}).get("effort")
    return ModelRequest(
        turns=tuple(turns),
        tools=tools,
        tool_choice=tool_choice(given.tool_choice),
        parallel_tool_calls=given.parallel_tool_calls if tools else None,
        temperature=given.temperature,
        top_p=given.top_p,
        max_output_tokens=given.max_output_tokens,
        response_format=wanted if wanted and wanted.get("type") != "text" else None,
        reasoning_effort=effort if isinstance(effort, str) else None,
        user=given.safety_identifier or given.user,
    )
