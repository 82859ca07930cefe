"""What Bedrock's errors mean here. No word of its messages is passed on: they may quote the prompt."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Final

import aiohttp
from botocore.exceptions import (  # type: ignore[import-untyped]  # botocore ships no types
    BotoCoreError,
    ClientError,
    HTTPClientError,
    ReadTimeoutError,
)

from nagaya.clouds.aws_errors import Trouble, refused, trouble_of, without_credentials
from nagaya.errors import (
    AnswerCut,
    AnswerNotUnderstood,
    ContextTooLong,
    ModelAddressWrong,
    ModelRateLimited,
    ModelRefusedRequest,
    ModelUnreachable,
    NagayaError,
    PermissionMissing,
)

PERMISSIONS: Final = {
    "ConverseStream": "bedrock:InvokeModelWithResponseStream",
    "Converse": "bedrock:InvokeModel",
    "InvokeModel": "bedrock:InvokeModel",
}
"""The permission that each operation needs."""

MAX_ATTEMPTS: Final = 3
PAUSE_FIRST_S: Final = 0.4
RETRY_AFTER_S: Final = 5
"""The longest Retry-After that is waited for; a longer one is the caller's to wait."""
_TOO_LONG: Final = re.compile(
    r"too long|too many (?:input )?tokens|context (?:length|window|size)|input tokens?\b[^.]*exceed", re.IGNORECASE
)
_NO_MODEL: Final = re.compile(r"model identifier|on-demand throughput|end of its life|inference profile", re.IGNORECASE)
_NO_STREAM: Final = re.compile(r"(?:not|n't|’t|un)[ ]?support[^.]*stream|stream[^.]*not supported", re.IGNORECASE)
_OUTAGES: Final = frozenset({
    "ModelErrorException", "ModelNotReadyException", "ModelTimeoutException", "ModelStreamErrorException",
    "InternalServerException", "ServiceUnavailableException",
})  # fmt: skip
_LIMITS: Final = frozenset({"ServiceQuotaExceededException"})
_NAME: Final = re.compile(r"[A-Za-z]{1,64}")


def mapped(problem: Exception, room: str, *, begun: bool = False) -> NagayaError:
    """The error of our own for whatever the client raised. ``begun``: part of the answer had already come."""
    if isinstance(problem, NagayaError):
        return problem
    if isinstance(problem, ClientError):
        return _by_code(problem, room, begun=begun)
    if isinstance(problem, HTTPClientError | aiohttp.ClientError | TimeoutError | OSError):
        return AnswerCut() if begun else ModelUnreachable()
    if isinstance(problem, BotoCoreError):
        return without_credentials(problem, room) or ModelUnreachable()
    return AnswerNotUnderstood(kind=type(problem).__name__)


def _by_code(problem: ClientError, room: str, *, begun: bool) -> NagayaError:
    answer = problem.response
    code, words = code_of(problem), answer.get("Error", {}).get("Message") or ""
    trouble = trouble_of(problem)
    if trouble is Trouble.THROTTLED or code == "ThrottlingException" or code in _LIMITS:
        return ModelRateLimited(retry_after_s=_retry_after_s(problem))
    if trouble is Trouble.DENIED and "perform" not in words:
        # Access to a model is granted in Bedrock too, and its refusal names no action.
        named = PERMISSIONS.get(problem.operation_name, "bedrock:InvokeModel")
        return PermissionMissing(action=f"{named}, or the model's access in Bedrock", room=room)
    if code in _OUTAGES or trouble is Trouble.AWAY:
        return AnswerCut() if begun else ModelUnreachable(retry_after_s=_retry_after_s(problem))
    if trouble is Trouble.MISSING:
        return ModelAddressWrong()
    if code == "ValidationException":
        if _TOO_LONG.search(words):
            return ContextTooLong()
        if _NO_MODEL.search(words):
            return ModelAddressWrong()
    if answer.get("ResponseMetadata", {}).get("HTTPStatusCode") == 413:
        return ContextTooLong()
    return refused(problem, room) or ModelRefusedRequest(detail=code if _NAME.fullmatch(code) else "refused")


def code_of(problem: ClientError) -> str:
    """The error's name; in the middle of a stream Bedrock writes it with a small letter."""
    code: str = problem.response.get("Error", {}).get("Code") or ""
    return code[:1].upper() + code[1:]


def is_without_stream(problem: Exception) -> bool:
    """Whether a model answers, but not in a stream."""
    if not isinstance(problem, ClientError) or code_of(problem) != "ValidationException":
        return False
    return _NO_STREAM.search(problem.response["Error"].get("Message") or "") is not None


def is_of_credentials(problem: Exception) -> bool:
    """Whether AWS did not take the credentials: once more, with new ones, is worth while."""
    return isinstance(problem, ClientError) and trouble_of(problem) is Trouble.CREDENTIALS


def wait_s(
    error: NagayaError, problem: Exception, attempt: int, *, chance: Callable[[], float] = random.random
) -> float | None:
    """How long to wait before attempt ``attempt + 1``, or None where asking again is of no use or too late."""
    if attempt >= MAX_ATTEMPTS or not isinstance(error, ModelUnreachable | ModelRateLimited):
        return None
    if isinstance(problem, ReadTimeoutError) or (
        isinstance(problem, ClientError) and code_of(problem) == "ModelTimeoutException"
    ):
        # It has waited once already, and the model may be at work on the first call still.
        return None
    if error.retry_after_s is not None:
        return float(error.retry_after_s) if error.retry_after_s <= RETRY_AFTER_S else None
    return PAUSE_FIRST_S * 2.0 ** (attempt - 1) * (0.75 + chance() / 2)


def _retry_after_s(problem: ClientError) -> int | None:
    headers = problem.response.get("ResponseMetadata", {}).get("HTTPHeaders") or {}
    text = headers.get("retry-after", "")
    return min(int(text), 3600) if text.isascii() and text.isdigit() and len(text) < 10 else None
