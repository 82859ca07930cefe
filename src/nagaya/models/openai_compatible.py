"""OpenAI's service and every server that speaks its chat completions and embeddings, through the ``openai`` package.

The package takes more than a second to import, so that is done in a thread when a tenant first asks. Nothing of the
server's own environment (``OPENAI_…``, proxies) reaches a tenant's vendor; redirects are not followed.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from nagaya.adapters import Surroundings
from nagaya.errors import ModelRefusedKey, ModelRefusedRequest, NagayaError
from nagaya.kernel.egress import EgressPolicy
from nagaya.models.address import OPENAI_BASE_URL, ModelAddress
from nagaya.models.chat_chunks import ErrorInStream, Said
from nagaya.models.driver import Finished, ModelEvent, ModelRequest, Turn, Usage
from nagaya.models.openai_errors import mapped, retry_wait_s
from nagaya.models.shapes import chat_response_format, chat_tool_choice

if TYPE_CHECKING:
    import httpx2
    import openai

    from nagaya.models.transport import Body

USER_AGENT: Final = "Nagaya"
BATCH: Final = 256
"""Texts in one embeddings request to a vendor."""
_CONNECT_S: Final = 10.0
_REASONS: Final = {"length": "length", "tool_calls": "tool_calls", "function_call": "tool_calls"}
NO_KEY: Final = "no-key"
"""What a client is told, for the transport sets the real credential."""

Dialect = Literal["openai", "azure", "compatible"]
"""How a server names what is not the same everywhere."""

T = TypeVar("T")


async def open_model(address: ModelAddress, surroundings: Surroundings, api_key: str | None) -> OpenAICompatibleModel:
    """The chat model at an address, with a connection of its own. Nothing is asked of the server yet."""
    return OpenAICompatibleModel(_connection(address, surroundings, api_key), address.model)


async def open_embeddings(
    address: ModelAddress, surroundings: Surroundings, api_key: str | None
) -> OpenAICompatibleEmbeddings:
    """The embedding model at an address, with a connection of its own. Nothing is asked of the server yet."""
    assert address.dimensions is not None
    connection = _connection(address, surroundings, api_key)
    return OpenAICompatibleEmbeddings(connection, address.model, dimensions=address.dimensions)


def _connection(address: ModelAddress, surroundings: Surroundings, api_key: str | None) -> OpenAIConnection:
    read_s = surroundings.settings.model_deadline_s
    return OpenAIConnection(address.base_url, api_key, policy=surroundings.egress, read_s=read_s)


class OpenAIConnection:
    """One account at one base URL: the client, its retries and its errors. Several models may share it.

    ``read_s`` bounds every wait for bytes. The key is kept out of ``repr``. Close it when the last model is closed.
    """

    def __init__(self, base_url: str, api_key: str | None, *, policy: EgressPolicy, read_s: float = 120.0) -> None:
        self._base_url = base_url
        # A key is often pasted with the line's end; inside, no vendor's key has space or other letters.
        self._api_key = (api_key or "").strip()
        self._policy = policy
        self._read_s = read_s
        self._opening: asyncio.Lock = asyncio.Lock()
        self._client: openai.AsyncOpenAI | None = None
        self.dialect: Dialect = "openai" if base_url.rstrip("/") == OPENAI_BASE_URL else "compatible"

    async def client(self) -> openai.AsyncOpenAI:
        """The client, made on first use; callers that come meanwhile wait for the same one.

        Raises ``ModelRefusedKey`` for a key that cannot stand in a header.
        """
        if not (self._api_key.isascii() and self._api_key.isprintable()) or " " in self._api_key:
            raise ModelRefusedKey
        async with self._opening:
            if self._client is None:
                self._client = await asyncio.to_thread(self._open)
            return self._client

    def _open(self) -> openai.AsyncOpenAI:
        import openai

        http = self._http()
        return openai.AsyncOpenAI(
            # All given, so that none is taken from the server's environment. The transport sets the real key.
            api_key=NO_KEY,
            admin_api_key="",
            organization="",
            project="",
            webhook_secret="",
            base_url=self._base_url,
            http_client=http,
            timeout=http.timeout,
            max_retries=0,
        )

    def _http(self, **credential: Any) -> httpx2.AsyncClient:
        import httpx2

        from nagaya.models import transport

        return httpx2.AsyncClient(
            transport=transport.CheckedTransport(
                self._policy, api_key=self._api_key, user_agent=USER_AGENT, **credential
            ),
            timeout=httpx2.Timeout(self._read_s, connect=_CONNECT_S),
            follow_redirects=False,
            trust_env=False,
        )

    def error_of(self, problem: Exception, *, begun: bool = False) -> NagayaError:
        """The error of our own for whatever the client raised. ``begun``: part of the answer had already come."""
        return mapped(problem, begun=begun)

    async def call(self, ask: Callable[[openai.AsyncOpenAI], Awaitable[T]]) -> T:
        """Ask, and ask again after an outage or a short rate limit: three times in all.

        Only for the part of a call before its answer began. Raises the ``Model…`` errors.
        """
        client = await self.client()
        attempt = 0
        while True:
            attempt += 1
            try:
                return await ask(client)
            except Exception as problem:
                error = self.error_of(problem)
                wait_s = retry_wait_s(error, problem, attempt)
                if wait_s is None:
                    raise error from None
            await asyncio.sleep(wait_s)

    async def close(self) -> None:
        """Close all connections. May be called again."""
        async with self._opening:
            client, self._client = self._client, None
        if client is not None:
            await client.close()


class OpenAICompatibleModel:
    """A chat model behind an OpenAI-compatible server. Clients see ``name``; the vendor is asked for ``model``."""

    def __init__(self, connection: OpenAIConnection, model: str, *, name: str | None = None) -> None:
        self._connection = connection
        self._model = model
        self.name = name or model

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """Answer. Retries only before the first event; closing the iterator closes the HTTP stream."""
        body = await self._connection.call(
            functools.partial(_ask_chat, chat_body(request, self._model, self._connection.dialect))
        )
        said = Said(self.name)
        try:
            while not said.is_whole and (part := await body.read()):
                for event in said.events(part):
                    yield event
                del part  # every stream that waits for its next word would hold the last one as well
            await body.rest()
        except ErrorInStream as problem:
            raise self._connection.error_of(_vendors(problem), begun=True) from None
        except Exception as problem:
            raise self._connection.error_of(problem, begun=True) from None
        finally:
            await body.aclose()
        if said.reason is not None:
            yield Finished(_reason(said.reason), said.usage or Usage(0, 0, estimated=True), said.model)

    async def close(self) -> None:
        """Close the connection. May be called again."""
        await self._connection.close()


class OpenAICompatibleEmbeddings:
    """An embedding model behind an OpenAI-compatible server, with vectors of ``dimensions`` floats."""

    def __init__(self, connection: OpenAIConnection, model: str, *, dimensions: int, name: str | None = None) -> None:
        self._connection = connection
        self._model = model
        self.dimensions = dimensions
        self.name = name or model

    async def embed(self, texts: Sequence[str]) -> tuple[Sequence[Sequence[float]], int]:
        """A unit vector per text, in order, and the tokens the vendor counted. Asks in batches of ``BATCH``."""
        vectors: list[Sequence[float]] = []
        tokens = 0
        # Only OpenAI's own models take the parameter; others have the size they have.
        size: dict[str, Any] = {} if self._connection.dialect == "compatible" else {"dimensions": self.dimensions}
        for start in range(0, len(texts), BATCH):
            body = {
                "model": self._model,
                "input": list(texts[start : start + BATCH]),
                "encoding_format": "float",
                **size,
            }
            try:
                answer = await self._connection.call(functools.partial(_ask_embeddings, body))
            except ModelRefusedRequest:
                if start or self._connection.dialect != "azure":
                    raise
                # A deployment's name does not tell an older model, which has one size and refuses to be asked for it.
                size = {}
                del body["dimensions"]
                answer = await self._connection.call(functools.partial(_ask_embeddings, body))
            rows = sorted(answer.data, key=lambda row: row.index)
            vectors.extend(_unit(row.embedding) for row in rows)
            tokens += answer.usage.prompt_tokens if answer.usage else 0
        return vectors, tokens

    async def close(self) -> None:
        """Close the connection. May be called again."""
        await self._connection.close()


async def _ask_chat(body: dict[str, Any], client: openai.AsyncOpenAI) -> Body:
    from nagaya.models import transport

    answer = await client.chat.completions.with_raw_response.create(**body)
    return transport.body_of(answer.http_response)


def _vendors(problem: ErrorInStream) -> Exception:
    """An error that came inside an answer, as the vendor's package tells it."""
    import openai

    from nagaya.models import transport

    return openai.APIError("", transport.NO_REQUEST, body=problem.body)


async def _ask_embeddings(body: dict[str, Any], client: openai.AsyncOpenAI) -> Any:
    return await client.embeddings.create(**body)


def chat_body(request: ModelRequest, model: str, dialect: Dialect) -> dict[str, Any]:
    """The parameters of a streamed chat completion. What the request leaves to the model is left out."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(turn, dialect) for turn in request.turns],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.tools:
        body["tools"] = [
            {"type": "function", "function": _present(
                name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
            )}
            for tool in request.tools
        ]  # fmt: skip
        body |= _present(
            tool_choice=chat_tool_choice(request.tool_choice), parallel_tool_calls=request.parallel_tool_calls
        )
    # Compatible servers know the older name; OpenAI's newer models refuse it.
    limit = "max_tokens" if dialect == "compatible" else "max_completion_tokens"
    return body | _present(
        temperature=request.temperature,
        top_p=request.top_p,
        stop=list(request.stop) or None,
        seed=request.seed,
        response_format=chat_response_format(request.response_format),
        reasoning_effort=request.reasoning_effort,
        user=request.user,
        **{limit: request.max_output_tokens},
    )


def _present(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _message(turn: Turn, dialect: Dialect) -> dict[str, Any]:
    # Every model behind Azure takes the older role; not every one takes the newer.
    role = "system" if turn.role == "developer" and dialect != "openai" else turn.role
    message: dict[str, Any] = {"role": role, "content": turn.text}
    if turn.images:
        pictures = [{"type": "image_url", "image_url": {"url": url}} for url in turn.images]
        message["content"] = ([{"type": "text", "text": turn.text}] if turn.text else []) + pictures
    if turn.tool_calls:
        message["content"] = turn.text or None
        message["tool_calls"] = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in turn.tool_calls
        ]
    if turn.role == "tool":
        message["tool_call_id"] = turn.tool_call_id
    return message


def _reason(reason: str) -> Any:
    return "content_filter" if reason == "content_filter" else _REASONS.get(reason, "stop")


def _unit(vector: Sequence[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector] if length else list(vector)
