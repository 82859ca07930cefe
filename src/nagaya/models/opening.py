"""Opens whatever model a tenant's address names. Vendors' packages are imported when one of theirs is first opened."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any, Final, Protocol

from nagaya.adapters import Surroundings, find
from nagaya.errors import (
    InvalidValue,
    MissingExtra,
    ModelAddressWrong,
    ModelFailed,
    ModelRefusedKey,
    ModelUnreachable,
)
from nagaya.models.address import Kind, ModelAddress, check_model_address, parse_model_address
from nagaya.models.driver import EmbeddingDriver, ModelDriver, ModelRequest, Turn
from nagaya.models.model import Embeddings, Model

TRY_S: Final = 30.0
TRY_TOKENS: Final = 16
"""Fewer are refused by some models."""

_PLACES: Final[dict[Kind, tuple[str, str | None]]] = {
    "openai": ("nagaya.models.openai_compatible", None),
    "azure-openai": ("nagaya.models.azure_openai", "azure"),
    "bedrock": ("nagaya.models.bedrock", "aws"),
}


class OpenEmbeddings(EmbeddingDriver, Protocol):
    """An embedding driver with something to let go of."""

    async def close(self) -> None: ...


async def open_model(url: str, surroundings: Surroundings, *, api_key: str | None) -> ModelDriver:
    """The chat model that ``url`` names, to be closed by the caller. Nothing is asked of the vendor yet.

    ``api_key`` is the key kept for the address's ``account``, where the tenant has one. An adapter of others (an entry
    point of the group ``nagaya.models``) is a function of the address and the surroundings, and takes its secrets from
    there. Raises ``InvalidValue``, ``AddressRefused``, ``RegionRefused``, ``MissingExtra`` and
    ``ConnectionSecretInvalid``.
    """
    address = _address(url, surroundings)
    if address.dimensions is not None:
        raise InvalidValue(at="models", detail="this is the address of an embedding model", param="models")
    if address.kind == "builtin":
        from nagaya.models.builtin import BuiltinModel

        return BuiltinModel()
    model: ModelDriver = await _open("open_model", url, address, surroundings, api_key)
    return model


async def open_embeddings(url: str, surroundings: Surroundings, *, api_key: str | None) -> OpenEmbeddings:
    """The embedding model that ``url`` names, as :func:`open_model` does. Its address says ``?dimensions=``."""
    address = _address(url, surroundings)
    if address.kind == "builtin":
        from nagaya.models.embeddings import BuiltinEmbeddings

        return BuiltinEmbeddings()
    if address.dimensions is None:
        raise InvalidValue(at="models", detail="an embedding model's address says ?dimensions=N", param="models")
    embeddings: OpenEmbeddings = await _open("open_embeddings", url, address, surroundings, api_key)
    return embeddings


async def try_model(url: str, surroundings: Surroundings) -> None:
    """Ask the model at ``url`` for a word, where its account is already known: Bedrock by the connection secret, and
    adapters of others. A model that takes a key is given that later, and is not asked here.

    Raises what opening it raises, ``ModelUnreachable``, ``ModelRefusedKey``, ``ModelAddressWrong``, and what names a
    missing permission. A model that is busy, or that would answer another question, is there. Costs a few tokens.
    """
    address = _address(url, surroundings)
    if address.kind not in ("bedrock", "other"):
        return
    deadline_s = min(TRY_S, surroundings.settings.model_deadline_s)
    opened: Model | Embeddings
    if address.dimensions is None:
        opened = Model(await open_model(url, surroundings, api_key=None), deadline_s=deadline_s)
    else:
        opened = Embeddings(await open_embeddings(url, surroundings, api_key=None), deadline_s=deadline_s)
    try:
        if isinstance(opened, Model):
            await opened.complete(ModelRequest((Turn("user", "ping"),), max_output_tokens=TRY_TOKENS))
        else:
            await opened.embed(["ping"])
    except (ModelUnreachable, ModelRefusedKey, ModelAddressWrong):
        raise
    except ModelFailed:
        return
    finally:
        await opened.close()


def _address(url: str, surroundings: Surroundings) -> ModelAddress:
    address = parse_model_address(url)
    # Once more than when it was set: the tenant may have been pinned since.
    check_model_address(address, surroundings.egress, surroundings.regions)
    return address


async def _open(function: str, url: str, address: ModelAddress, surroundings: Surroundings, api_key: str | None) -> Any:
    if address.kind == "other":
        return await find("models", url, {})(url, surroundings)
    place, extra = _PLACES[address.kind]
    try:
        # In a thread: a vendor's package takes a second, which every other tenant would wait for.
        module = await asyncio.to_thread(import_module, place)
        return await getattr(module, function)(address, surroundings, api_key)
    except ModuleNotFoundError as missing:
        if extra is None or (missing.name or "").startswith("nagaya"):
            raise
        raise MissingExtra(feature=f"{address.kind}://", extra=extra) from missing
