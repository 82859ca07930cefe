"""From bytes a stranger sent to typed values, or to a clear refusal."""

from __future__ import annotations

import re
from typing import Final, TypeVar

import msgspec

from nagaya.errors import InvalidType, InvalidValue, MalformedJson, MissingParameter, NagayaError, UnknownParameter

T = TypeVar("T")

_AT: Final = re.compile(r" - at `(?:key )?(?:in )?`?\$\.?([^`]*)`$")
_UNKNOWN: Final = re.compile(r"unknown field `(.*?)`")
_MISSING: Final = re.compile(r"missing required field `(.*?)`")
_EXPECTED_TYPE: Final = re.compile(r"^Expected `[^`]*`, got `[^`]*`")


def decode(body: bytes, type_: type[T], *, depth_limit: int = 64) -> T:
    """The JSON in ``body`` as ``type_``. Raises an ``invalid_request_error`` naming the parameter at fault.

    Refuses what is not JSON (also NaN, lone surrogates, invalid UTF-8) and nesting deeper than ``depth_limit``.
    """
    check_depth(body, depth_limit)
    try:
        return msgspec.json.decode(body, type=type_)
    except msgspec.ValidationError as wrong:
        raise refusal(wrong) from None
    except msgspec.DecodeError as wrong:
        raise MalformedJson(detail=str(wrong).removeprefix("JSON is malformed: ").rstrip(".")) from None
    except UnicodeDecodeError:
        raise MalformedJson(detail="not valid UTF-8") from None
    except RecursionError:
        raise MalformedJson(detail="nested too deeply") from None


def check_depth(body: bytes, limit: int) -> None:
    """Refuse JSON nested deeper than ``limit``. Counts brackets first, so that ordinary bodies cost next to nothing."""
    if body.count(b"[") + body.count(b"{") <= limit:
        return
    depth = 0
    in_string = escaped = False
    for byte in body:
        if in_string:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in (0x5B, 0x7B):
            depth += 1
            if depth > limit:
                raise MalformedJson(detail=f"nested more than {limit} deep")
        elif byte in (0x5D, 0x7D):
            depth -= 1


def refusal(wrong: msgspec.ValidationError, prefix: str = "") -> NagayaError:
    """OpenAI's wording for what msgspec found wrong; ``prefix`` is the path of the value that was decoded."""
    text = str(wrong)
    found = _AT.search(text)
    inner = found.group(1) if found else ""
    at = f"{prefix}.{inner}" if prefix and inner and not inner.startswith("[") else prefix + inner
    detail = text[: found.start()] if found else text
    if unknown := _UNKNOWN.search(detail):
        return UnknownParameter(f"{at}.{unknown.group(1)}" if at else unknown.group(1))
    if missing := _MISSING.search(detail):
        name = f"{at}.{missing.group(1)}" if at else missing.group(1)
        return MissingParameter(param=name, at=name)
    at = at or "body"
    if _EXPECTED_TYPE.match(detail):
        return InvalidType(param=at, at=at, detail=detail.replace("`", ""))
    return InvalidValue(param=at, at=at, detail=detail.replace("`", "'"))
