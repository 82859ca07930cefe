"""Amazon Bedrock: models by Converse and ConverseStream, Titan's embeddings by InvokeModel, in the tenant's account.

``bedrock://region/model``, where the model is a model's id, an inference profile's, or an ARN. The account is entered
with the secret ``aws-connection``; the session's policy is narrowed to this one model.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from nagaya.adapters import Surroundings
from nagaya.clouds.aws import AwsAccount
from nagaya.clouds.aws_role import AwsConnection
from nagaya.errors import AnswerNotUnderstood, CloudCredentialsRefused, InvalidValue
from nagaya.models.address import ModelAddress, bare_model, is_profile
from nagaya.models.bedrock_body import Asked, Reading, converse_body, whole_events
from nagaya.models.bedrock_errors import is_of_credentials, is_without_stream, mapped, wait_s
from nagaya.models.driver import Finished, ModelEvent, ModelRequest
from nagaya.models.tokens import THREAD_FROM_CHARACTERS, request_characters

SERVICE: Final = "bedrock-runtime"
CONNECTIONS: Final = 64
"""Answers of one model in the making at the same time; further ones wait their turn."""
EMBEDDINGS_AT_ONCE: Final = 8
"""Titan takes one text per call."""
_STREAMED: Final = ("bedrock:InvokeModel", "bedrock:InvokeModelWithResponseStream")
_INVOKED: Final = ("bedrock:InvokeModel",)
_EMPTY: Final = " "


async def open_model(address: ModelAddress, surroundings: Surroundings, api_key: str | None = None) -> BedrockModel:
    """The model at an address. Nothing is asked of AWS yet; there is no key, ``api_key`` is not used.

    Raises ``RegionRefused``, ``ConnectionSecretInvalid`` and ``ExternalIdRefused``.
    """
    account = await AwsAccount.open(surroundings, region=address.region, grants=_grants(address.model, _STREAMED))
    return BedrockModel(BedrockConnection(account, surroundings.settings.model_deadline_s), address.model)


async def open_embeddings(
    address: ModelAddress, surroundings: Surroundings, api_key: str | None = None
) -> TitanEmbeddings:
    """The embedding model at an address, which must be one of Amazon Titan's. Raises what :func:`open_model` raises."""
    assert address.dimensions is not None
    if "titan-embed-text" not in address.model:
        raise InvalidValue(at="models", detail="of Bedrock's embedding models only Titan's are known", param="models")
    account = await AwsAccount.open(surroundings, region=address.region, grants=_grants(address.model, _INVOKED))
    connection = BedrockConnection(account, surroundings.settings.model_deadline_s)
    return TitanEmbeddings(connection, address.model, dimensions=address.dimensions)


class BedrockConnection:
    """A Bedrock Runtime client in one account and region: its retries and its errors. Several models may share it.

    ``read_s`` bounds every wait for bytes. Close it when the last model is closed.
    """

    def __init__(self, account: AwsAccount, read_s: float = 120.0) -> None:
        self._account = account
        self._read_s = read_s
        self.room = account.room

    async def call(self, operation: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask, and ask again after an outage or a short rate limit: three times in all, and once with new credentials.

        Only for the part of a call before its answer began. Raises the ``Model…`` errors, ``PermissionMissing`` and
        ``CloudCredentialsRefused``; and botocore's own where a model cannot stream.
        """
        attempt, renewed = 0, False
        while True:
            attempt += 1
            generation = self._account.generation
            try:
                # Signed always: a token for Bedrock in the server's own environment is no tenant's.
                client = await self._account.client(
                    SERVICE, signature_version="v4", read_timeout=self._read_s, max_pool_connections=CONNECTIONS
                )
                answer: dict[str, Any] = await getattr(client, operation)(**body)
                return answer
            except Exception as problem:
                if is_without_stream(problem):
                    raise
                error = mapped(problem, self.room)
                pause_s = wait_s(error, problem, attempt)
                if is_of_credentials(problem) and isinstance(error, CloudCredentialsRefused) and not renewed:
                    renewed = self._account.renew(generation)
                    pause_s = 0.0 if renewed else None
                if pause_s is None:
                    raise error from None
            await asyncio.sleep(pause_s)

    async def close(self) -> None:
        """Close all connections. May be called again."""
        await self._account.close()


class BedrockModel:
    """A chat model in Bedrock. Clients see the model's id, and of an ARN its last part."""

    def __init__(self, connection: BedrockConnection, model: str, *, name: str | None = None) -> None:
        self._connection = connection
        self._model = model
        self.name = name or bare_model(model)

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """Answer. Retries only before the first event; closing the iterator closes the HTTP stream.

        A model that cannot stream, or not with tools, is asked for the whole answer instead.
        """
        if request_characters(request) > THREAD_FROM_CHARACTERS or any(turn.images for turn in request.turns):
            asked = await asyncio.to_thread(converse_body, request, self._model)
        else:
            asked = converse_body(request, self._model)
        reading = Reading(asked.names)
        try:
            answer = await self._connection.call("converse_stream", asked.body)
        except Exception as problem:
            if not is_without_stream(problem):
                raise
            for event in await self._whole(asked, reading):
                yield event
        else:
            stream = answer["stream"]
            try:
                async for event in stream:
                    for ours in reading.events(event):
                        yield ours
            except Exception as problem:
                raise mapped(problem, self._connection.room, begun=True) from None
            finally:
                # Given up midway, the connection ends, and with it the work at the vendor.
                stream.close()
        if reading.reason is not None:
            yield Finished(reading.reason, reading.usage, self.name)

    async def _whole(self, asked: Asked, reading: Reading) -> list[ModelEvent]:
        answer = await self._connection.call("converse", asked.body)
        return [ours for event in whole_events(answer) for ours in reading.events(event)]

    async def close(self) -> None:
        """Close the connection. May be called again."""
        await self._connection.close()


class _Embedded(msgspec.Struct):
    embedding: list[float]
    inputTextTokenCount: int = 0


class TitanEmbeddings:
    """Amazon Titan's text embeddings, with vectors of ``dimensions`` floats. One call per text, eight at a time."""

    def __init__(self, connection: BedrockConnection, model: str, *, dimensions: int) -> None:
        self._connection = connection
        self._model = model
        self.dimensions = dimensions
        self.name = bare_model(model)

    async def embed(self, texts: Sequence[str]) -> tuple[Sequence[Sequence[float]], int]:
        """A unit vector per text, in order, and the tokens the vendor counted."""
        rooms = asyncio.Semaphore(EMBEDDINGS_AT_ONCE)
        tasks: list[asyncio.Task[_Embedded]] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks += [group.create_task(self._one(text, rooms)) for text in texts]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        rows = [task.result() for task in tasks]
        return [_unit(row.embedding) for row in rows], sum(row.inputTextTokenCount for row in rows)

    async def _one(self, text: str, rooms: asyncio.Semaphore) -> _Embedded:
        # The first version has one size and takes no other word than the text, of which there must be some.
        wanted: dict[str, Any] = {"inputText": text or _EMPTY}
        if "embed-text-v1" not in self._model:
            wanted |= {"dimensions": self.dimensions, "normalize": True}
        body = {
            "modelId": self._model,
            "body": msgspec.json.encode(wanted),
            "contentType": "application/json",
            "accept": "application/json",
        }
        async with rooms:
            answer = await self._connection.call("invoke_model", body)
            try:
                async with answer["body"] as content:
                    return msgspec.json.decode(await content.read(), type=_Embedded)
            except msgspec.DecodeError:
                raise AnswerNotUnderstood(kind="no vector") from None
            except Exception as problem:
                raise mapped(problem, self._connection.room) from None

    async def close(self) -> None:
        """Close the connection. May be called again."""
        await self._connection.close()


def _grants(model: str, actions: Sequence[str]) -> Callable[[AwsConnection, str], Sequence[Mapping[str, Any]]]:
    """What makes the statements of a session policy that lets through these actions on one model, and nothing else."""

    def made(connection: AwsConnection, region: str) -> Sequence[Mapping[str, Any]]:
        partition = connection.partition
        resources = _resources(model, partition, region, connection.account_id)
        return [{"Effect": "Allow", "Action": list(actions), "Resource": resources}]

    return made


def _resources(model: str, partition: str, region: str, account_id: str) -> list[str]:
    anywhere = f"arn:{partition}:bedrock:*::foundation-model/"
    if is_profile(model):
        # A profile's call needs the profile here and the model wherever the call is answered.
        bare = bare_model(model)
        own = (
            model
            if model.startswith("arn:")
            else f"arn:{partition}:bedrock:{region}:{account_id}:inference-profile/{model}"
        )
        inner = bare.partition(".")[2] if "." in bare else "*"
        return [own, anywhere + inner]
    if model.startswith("arn:"):
        return [model]
    return [f"arn:{partition}:bedrock:{region}::foundation-model/{model}"]


def _unit(vector: Sequence[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector] if length else list(vector)
