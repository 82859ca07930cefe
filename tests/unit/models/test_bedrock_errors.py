"""What Bedrock's errors mean, where no server can be made to send them."""

from __future__ import annotations

import aiohttp
import pytest
from botocore.exceptions import (  # type: ignore[import-untyped]  # botocore ships no types
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
    UnknownEndpointError,
)

from nagaya.errors import (
    AnswerCut,
    AnswerNotUnderstood,
    CloudCredentialsRefused,
    ModelAddressWrong,
    ModelRateLimited,
    ModelUnreachable,
    NagayaError,
    PermissionMissing,
)
from nagaya.models.bedrock_errors import is_without_stream, mapped, wait_s

AWAY = EndpointConnectionError(endpoint_url="https://x")
LATE = ReadTimeoutError(endpoint_url="https://x")


def answered(code: str, words: str | None = "", status: int = 400, operation: str = "ConverseStream") -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": words}, "ResponseMetadata": {"HTTPStatusCode": status}}, operation
    )


@pytest.mark.parametrize(
    ("problem", "begun", "error"),
    [
        (ModelRateLimited(), True, ModelRateLimited),
        (AWAY, False, ModelUnreachable),
        (LATE, True, AnswerCut),
        (TimeoutError(), False, ModelUnreachable),
        (aiohttp.ClientPayloadError(), True, AnswerCut),
        (UnknownEndpointError(service_name="bedrock-runtime", region_name="x"), False, ModelUnreachable),
        (NoCredentialsError(), False, CloudCredentialsRefused),
        (KeyError("stream"), False, AnswerNotUnderstood),
        (answered("", None, 500), False, ModelUnreachable),
        (answered("ResourceNotFoundException", None, 404), False, ModelAddressWrong),
        (answered("AccessDeniedException", "", 403, "Unheard"), False, PermissionMissing),
    ],
)
def test_whatever_the_client_raises_is_an_error_of_our_own(
    problem: Exception, begun: bool, error: type[NagayaError]
) -> None:
    assert type(mapped(problem, "acme", begun=begun)) is error


def test_a_wait_grows_and_ends() -> None:
    error = ModelUnreachable()
    assert [wait_s(error, AWAY, attempt, chance=lambda: 0.5) for attempt in (1, 2, 3)] == [0.4, 0.8, None]
    assert wait_s(error, LATE, 1) is None
    assert wait_s(ModelRateLimited(retry_after_s=5), AWAY, 1) == 5.0
    assert wait_s(ModelRateLimited(retry_after_s=6), AWAY, 1) is None
    assert wait_s(AnswerCut(), AWAY, 1) is None


@pytest.mark.parametrize(
    ("problem", "is_one"),
    [
        (answered("ValidationException", "This model doesn't support tool use in streaming mode."), True),
        (answered("ValidationException", "The model is unsupported for streaming"), True),
        (answered("ValidationException", "This model doesn’t support the stream operation"), True),
        (answered("ValidationException", "Streaming is not supported for this model"), True),
        (answered("ValidationException", None), False),
        (answered("ThrottlingException", "streaming is not supported"), False),
        (AWAY, False),
    ],
)
def test_a_model_that_cannot_stream_is_known_by_what_bedrock_says(problem: Exception, is_one: bool) -> None:
    assert is_without_stream(problem) is is_one
