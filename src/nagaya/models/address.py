"""The address of a tenant's model, as ``nagaya tenant create --model`` takes it.

=================================================  ==================================================================
``builtin://``                                     the quoting model that needs no account
``openai://gpt-5-mini``                            a model of OpenAI's own service
``openai+https://host[:port]/v1#model``            any OpenAI-compatible server: the base URL, then ``#`` and the model
``openai+http://host[:port]/v1#model``             the same without TLS; only to hosts in ``allowed_hosts``
``…?dimensions=1536`` before the ``#``             marks an embedding model and says how long its vectors are
=================================================  ==================================================================

The key is never part of the address; it is the tenant's secret ``llm-connection``.
"""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlsplit

from nagaya.errors import AddressRefused, InvalidValue
from nagaya.kernel.egress import EgressPolicy, plain_host

OPENAI_BASE_URL: Final = "https://api.openai.com/v1"
_MODEL: Final = re.compile(r"[\w.:@/+-]{1,200}", re.ASCII)
_FORMS: Final = "builtin://, openai://MODEL or openai+https://HOST/v1#MODEL"
_MAX_CHARACTERS: Final = 2000
_MAX_DIMENSIONS: Final = 16_384


class ModelAddress(NamedTuple):
    """A model address in parts. ``dimensions`` is set for an embedding model."""

    kind: Literal["builtin", "openai"]
    model: str
    base_url: str
    host: str
    port: int
    dimensions: int | None = None

    @property
    def is_openai(self) -> bool:
        """Whether this is OpenAI's own service rather than a compatible server."""
        return self.base_url == OPENAI_BASE_URL


def parse_model_address(url: str) -> ModelAddress:
    """Take an address apart. Raises ``InvalidValue`` saying what is wrong, without repeating the address."""
    if len(url) > _MAX_CHARACTERS or not url.isprintable() or " " in url:
        raise _wrong("it must be one printable word of at most 2,000 characters")
    try:
        parts = urlsplit(url)
        # A model's name may hold colons, so only a real host has a port to be wrong.
        _ = parts.port if parts.scheme != "openai" else None
    except ValueError:
        raise _wrong("it is not a URL") from None
    if parts.username is not None or parts.password is not None:
        # An address is listed, logged and exported; a secret in it would be too.
        raise _wrong("it holds a user or a password; put the key into the secret llm-connection")
    dimensions = _dimensions(parts)
    match parts.scheme:
        case "builtin":
            if parts.netloc or parts.path or parts.fragment:
                raise _wrong("builtin:// takes nothing after it")
            return ModelAddress("builtin", "", "", "", 0, dimensions)
        case "openai":
            if parts.fragment:
                raise _wrong("openai:// takes the model alone; for another server use openai+https://HOST/v1#MODEL")
            # The model's case is part of its name, so netloc and not hostname.
            model = _model(parts.netloc + parts.path)
            return ModelAddress("openai", model, OPENAI_BASE_URL, "api.openai.com", 443, dimensions)
        case "openai+https" | "openai+http" | "https" | "http":
            return _compatible(parts, dimensions)
        case _:
            raise _wrong(f"its form is not known; use {_FORMS}")


def check_model_address(address: ModelAddress, policy: EgressPolicy) -> None:
    """Refuse an address that may not be connected to: inside, or without TLS to a host the operator did not name.

    Done when the address is set; names are checked again, by what they resolve to, at every connection. Raises
    ``AddressRefused`` or ``InvalidValue``.
    """
    if address.kind == "builtin":
        return
    policy.check(address.host, address.port)
    if address.base_url.startswith("http:") and not policy.allows(address.host, address.port):
        raise _wrong("without TLS the key would travel in clear; use openai+https:// or have the host allowed")


def _compatible(parts: SplitResult, dimensions: int | None) -> ModelAddress:
    scheme = parts.scheme.removeprefix("openai+")
    if not parts.hostname:
        raise _wrong("it names no host")
    if not parts.fragment:
        raise _wrong("it names no model; put it after a #, as in openai+https://HOST/v1#MODEL")
    try:
        host = plain_host(parts.hostname)
    except AddressRefused:
        raise _wrong("its host is not a host name") from None
    port = parts.port or (443 if scheme == "https" else 80)
    shown = f"[{host}]" if ":" in host else host
    place = shown if parts.port is None else f"{shown}:{parts.port}"
    base_url = f"{scheme}://{place}{parts.path.rstrip('/')}"
    return ModelAddress("openai", _model(parts.fragment), base_url, host, port, dimensions)


def _model(text: str) -> str:
    if not _MODEL.fullmatch(text):
        raise _wrong("the model's name must be 1 to 200 characters of a-z A-Z 0-9 . _ : @ / + -")
    return text


def _dimensions(parts: SplitResult) -> int | None:
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    text = options.pop("dimensions", None)
    if options:
        raise _wrong("only ?dimensions=N may stand in it; a key belongs into the secret llm-connection")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= _MAX_DIMENSIONS):
        raise _wrong(f"dimensions must be 1 to {_MAX_DIMENSIONS}")
    return int(text)


def _wrong(detail: str) -> InvalidValue:
    return InvalidValue(at="models", detail=detail, param="models")
