"""What an OpenAI-compatible server's errors mean here, and which of them are worth asking again after."""

from __future__ import annotations

import math
import random
import re
from typing import TYPE_CHECKING, Final

from nagaya.errors import (
    AnswerCut,
    AnswerNotUnderstood,
    ContentFiltered,
    ContextTooLong,
    ModelAddressWrong,
    ModelRateLimited,
    ModelRefusedKey,
    ModelRefusedRequest,
    ModelUnreachable,
    NagayaError,
)

if TYPE_CHECKING:
    import openai

MAX_ATTEMPTS: Final = 3
PAUSE_FIRST_S: Final = 0.4
RETRY_AFTER_S: Final = 5
"""The longest Retry-After that is waited for; a longer one is the caller's to wait."""
_LONGEST_HINT_S: Final = 3600
_TOO_LONG: Final = re.compile(
    r"context.{0,12}(?:length|window|size)|maximum context|prompt is too long|too many tokens|token limit",
    re.IGNORECASE,
)
_FILTERED: Final = frozenset({"content_filter", "content_policy_violation", "responsibleaipolicyviolation"})
_NO_RETRY: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
_CODE: Final = re.compile(r"[a-z0-9_.-]{1,64}")


def mapped(problem: Exception, *, begun: bool = False) -> NagayaError:
    """The error of our own for whatever the client raised. No word of the vendor's message is passed on: it may quote
    the prompt or the key. ``begun``: part of the answer had already come."""
    # Here, because they take a second: whoever caught their errors has loaded them.
    import httpx2
    import openai

    if isinstance(problem, NagayaError):
        return problem
    if isinstance(problem, openai.APIStatusError):
        return _by_status(problem)
    if isinstance(problem, openai.APIConnectionError | httpx2.RequestError | TimeoutError | OSError):
        return AnswerCut() if begun else ModelUnreachable()
    if isinstance(problem, openai.APIError):
        return _by_code(problem) or AnswerCut()
    return AnswerNotUnderstood(kind=type(problem).__name__)


def _by_code(problem: openai.APIError) -> NagayaError | None:
    code = (problem.code or "").lower()
    if code == "context_length_exceeded":
        return ContextTooLong()
    if code in _FILTERED or _inner_code(problem) in _FILTERED:
        return ContentFiltered()
    if code == "rate_limit_exceeded":
        return ModelRateLimited()
    return None


def _inner_code(problem: openai.APIError) -> str:
    """Azure's finer code, such as of its content filter."""
    inner = problem.body.get("innererror") if isinstance(problem.body, dict) else None
    code = inner.get("code") if isinstance(inner, dict) else None
    return code.lower() if isinstance(code, str) else ""


def _by_status(problem: openai.APIStatusError) -> NagayaError:
    status = problem.status_code
    retry_after_s = _retry_after_s(problem)
    named = _by_code(problem)
    code = (problem.code or "").lower()
    shown = f"{status}, {code}" if _CODE.fullmatch(code) else str(status)
    match status:
        case 401 | 403:
            return ModelRefusedKey()
        case 429:
            return ModelRateLimited(retry_after_s=retry_after_s)
        case 413:
            return ContextTooLong()
        case 400 | 422 if named is not None:
            return named
        case 400 | 422 if _TOO_LONG.search(problem.message):
            return ContextTooLong()
        case 404 | 405:
            return ModelAddressWrong()
        case 408 | 409:
            return ModelUnreachable(retry_after_s=retry_after_s)
        case _ if status >= 500:
            return ModelUnreachable(retry_after_s=retry_after_s)
        case _ if 300 <= status < 400:
            return ModelAddressWrong()
        case _:
            return ModelRefusedRequest(detail=shown)


def _retry_after_s(problem: openai.APIStatusError) -> int | None:
    # A date is allowed too; nobody's model sends one, and a wrong clock would make it a guess.
    for name, per_s in (("retry-after", 1), ("retry-after-ms", 1000)):
        text = problem.response.headers.get(name, "")
        if text.isascii() and text.isdigit() and len(text) < 10:
            return min(math.ceil(int(text) / per_s), _LONGEST_HINT_S)
    return None


def retry_wait_s(error: NagayaError, problem: Exception, attempt: int) -> float | None:
    """How long to wait before attempt ``attempt + 1``, or None where asking again is of no use or too late."""
    import openai

    if attempt >= MAX_ATTEMPTS or not isinstance(error, ModelUnreachable | ModelRateLimited):
        return None
    if isinstance(problem, openai.APITimeoutError):
        # It has waited once already, and the model may be at work on the first call still.
        return None
    if (getattr(problem, "code", None) or "") in _NO_RETRY:
        return None
    if error.retry_after_s is not None:
        return float(error.retry_after_s) if error.retry_after_s <= RETRY_AFTER_S else None
    return PAUSE_FIRST_S * 2.0 ** (attempt - 1) * (0.75 + random.random() / 2)  # noqa: S311  # spreads retries, guards no secret
