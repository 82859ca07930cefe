"""Embeddings in the shape of OpenAI's ``/v1/embeddings``."""

from __future__ import annotations

import base64
import struct
from typing import Literal

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.errors import InvalidValue, NotFound
from nagaya.usage.meter import Meter, Metric


class EmbeddingsIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/embeddings``."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None


class _Embedding(msgspec.Struct):
    index: int
    embedding: list[float] | str
    object: str = "embedding"


class _EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct):
    data: list[_Embedding]
    model: str
    usage: _EmbeddingUsage
    object: str = "list"


class Embedding:
    """Embeddings of one caller's texts by the tenant's embedding model."""

    __slots__ = ("_meter", "_session")

    def __init__(self, session: TenantSession, meter: Meter) -> None:
        self._session = session
        self._meter = meter

    async def create(self, given: EmbeddingsIn) -> EmbeddingList:
        """A vector per text. Texts only: arrays of token ids mean nothing without the vendor's tokeniser."""
        self._session.may_write()
        texts: list[str] = []
        for number, text in enumerate([given.input] if isinstance(given.input, str) else given.input):
            if not isinstance(text, str):
                raise InvalidValue(param="input", at=f"input[{number}]", detail="send texts, not token ids")
            if not text:
                raise InvalidValue(param="input", at=f"input[{number}]", detail="an empty text has no embedding")
            texts.append(text)
        models = await self._session.embeddings()
        model = next((one for one in models if not given.model or one.name == given.model), None)
        if model is None:
            raise NotFound("model", param="model")
        if given.dimensions not in (None, model.dimensions):
            raise InvalidValue(param="dimensions", at="dimensions", detail=f"this model has {model.dimensions}")
        vectors, tokens = await model.embed(texts)
        self._meter.count(self._session.tenant, Metric.EMBEDDING_TOKENS, tokens)
        as_base64 = given.encoding_format == "base64"
        data = [
            _Embedding(index, _base64(vector) if as_base64 else [float(value) for value in vector])
            for index, vector in enumerate(vectors)
        ]
        return EmbeddingList(data, model.name, _EmbeddingUsage(tokens, tokens))


def _base64(vector: object) -> str:
    values = list(vector)  # type: ignore[call-overload]  # any sequence of floats, numpy's included
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
