"""The address of a tenant's model, as ``nagaya tenant create --model`` takes it.

=================================================  ==================================================================
``builtin://``                                     the quoting model that needs no account
``openai://gpt-5-mini``                            a model of OpenAI's own service
``openai+https://host[:port]/v1#model``            any OpenAI-compatible server: the base URL, then ``#`` and the model
``openai+http://host[:port]/v1#model``             the same without TLS; only to hosts in ``allowed_hosts``
``azure-openai://resource/deployment``             a deployment in Azure OpenAI; a full host in place of the resource's
                                                   name for other clouds; ``azure-openai+http://`` without TLS
``bedrock://region/model``                         a model, an inference profile or an ARN in Amazon Bedrock
``…?dimensions=1536`` before the ``#``             marks an embedding model and says how long its vectors are
``…?region=japaneast`` before the ``#``            where the model runs; a tenant with pinned regions must be told so
``…?context=128000`` before the ``#``              the model's window in tokens; a longer history is summed up
``…?api-version=2024-10-21``                       the version of Azure's API
=================================================  ==================================================================

The key is never part of the address; it is the tenant's secret ``llm-connection``. Azure without a key, and Bedrock
always, use the tenant's cloud account: the secrets ``azure-connection`` and ``aws-connection``. Other schemes are those
of adapters that others wrote, found by the entry points of the group ``nagaya.models``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Final, Literal, NamedTuple, TypedDict
from urllib.parse import SplitResult, parse_qsl, urlsplit

from nagaya.errors import AddressRefused, InvalidValue, RegionRefused
from nagaya.kernel.egress import EgressPolicy, plain_host

OPENAI_BASE_URL: Final = "https://api.openai.com/v1"
AZURE_API_VERSION: Final = "2024-10-21"
"""The last dated version of Azure OpenAI's inference API that is not a preview."""
AZURE_SUFFIX: Final = ".openai.azure.com"
_MODEL: Final = re.compile(r"[\w.:@/+-]{1,200}", re.ASCII)
_BEDROCK_MODEL: Final = re.compile(r"[A-Za-z0-9][\w.:/-]{0,199}", re.ASCII)
_DEPLOYMENT: Final = re.compile(r"[\w.-]{1,64}", re.ASCII)
_RESOURCE: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_API_VERSION: Final = re.compile(r"\d{4}-\d\d-\d\d(-preview)?", re.ASCII)
_REGION: Final = re.compile(r"[a-z0-9-]{1,40}")
_AWS_REGION: Final = re.compile(r"[a-z]{2}(-[a-z]{2,12}){1,3}-\d{1,2}")
_FORMS: Final = "builtin://, openai://MODEL, openai+https://HOST/v1#MODEL, azure-openai://RESOURCE/DEPLOYMENT or bedrock://REGION/MODEL"
_OPTIONS: Final = ("dimensions", "region", "context")
_MAX_CHARACTERS: Final = 2000
_MAX_DIMENSIONS: Final = 16_384
_FEWEST_CONTEXT: Final = 1024
_MAX_CONTEXT: Final = 10_000_000

Kind = Literal["builtin", "openai", "azure-openai", "bedrock", "other"]


class ModelAddress(NamedTuple):
    """A model address in parts. ``dimensions`` is set for an embedding model, ``region`` where it is known."""

    kind: Kind
    model: str
    base_url: str
    host: str
    port: int
    dimensions: int | None = None
    region: str = ""
    api_version: str = ""
    context_tokens: int | None = None

    @property
    def is_openai(self) -> bool:
        """Whether this is OpenAI's own service rather than a compatible server."""
        return self.base_url == OPENAI_BASE_URL

    @property
    def account(self) -> str:
        """Where the model's key belongs: one vendor's key is never sent to another. Empty where it takes no key."""
        return f"{self.host}:{self.port}" if self.kind in ("openai", "azure-openai") else ""


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
    match parts.scheme:
        case "builtin":
            if parts.netloc or parts.path or parts.fragment:
                raise _wrong("builtin:// takes nothing after it")
            return ModelAddress("builtin", "", "", "", 0, **_places(parts))
        case "openai":
            if parts.fragment:
                raise _wrong("openai:// takes the model alone; for another server use openai+https://HOST/v1#MODEL")
            # The model's case is part of its name, so netloc and not hostname.
            model = _model(parts.netloc + parts.path)
            return ModelAddress("openai", model, OPENAI_BASE_URL, "api.openai.com", 443, **_places(parts))
        case "openai+https" | "openai+http" | "https" | "http":
            return _compatible(parts)
        case "azure-openai" | "azure-openai+http":
            return _azure(parts)
        case "bedrock":
            return _bedrock(parts)
        case scheme if scheme and entry_points(group="nagaya.models", name=scheme):
            options = dict(parse_qsl(parts.query, keep_blank_values=True))
            kept = {name: value for name, value in options.items() if name in _OPTIONS}
            return ModelAddress("other", parts.netloc + parts.path, "", "", 0, **_checked(kept))
        case _:
            raise _wrong(f"its form is not known; use {_FORMS}")


def check_model_address(address: ModelAddress, policy: EgressPolicy, regions: Sequence[str] = ()) -> None:
    """Refuse an address that may not be connected to: inside, without TLS to a host the operator did not name, or
    outside the regions that the tenant is pinned to.

    Done when the address is set; names are checked again, by what they resolve to, at every connection. A tenant with
    ``regions`` gets no model of which it is not known where it runs. Raises ``AddressRefused``, ``InvalidValue`` or
    ``RegionRefused``.
    """
    if address.kind == "builtin":
        return
    _check_regions(address, regions)
    if address.kind == "other":
        return
    policy.check(address.host, address.port)
    if address.base_url.startswith("http:") and not policy.allows(address.host, address.port):
        raise _wrong("without TLS the key would travel in clear; use TLS or have the host allowed")


def bare_model(model: str) -> str:
    """The last part of a Bedrock ARN, or the model's id itself: what may be shown, for an ARN tells the account."""
    return model.rpartition("/")[2] if model.startswith("arn:") else model


def is_profile(model: str) -> bool:
    """Whether a Bedrock model is an inference profile (or a router, or a prompt): what may call models elsewhere."""
    if model.startswith("arn:"):
        kind = model.split(":", 5)[5].partition("/")[0]
        return kind.endswith(("inference-profile", "prompt-router", "prompt"))
    return _PROFILE.match(model) is not None


def _check_regions(address: ModelAddress, regions: Sequence[str]) -> None:
    allowed = {_plain(region) for region in regions}
    places = _reach(address) if address.kind == "bedrock" else [address.region]
    for place in places:
        if allowed and place not in allowed:
            raise RegionRefused(region=place or "unknown", allowed=", ".join(regions))


_PROFILES: Final = {
    # Of these it is fixed where a call may be answered; the other profiles grow with AWS.
    "jp": ("ap-northeast-1", "ap-northeast-3"),
    "au": ("ap-southeast-2", "ap-southeast-4"),
}
_PROFILE: Final = re.compile(r"(global|us-gov|apac|[a-z]{2})\.")


def _reach(address: ModelAddress) -> list[str]:
    """The regions in which Bedrock may answer a call; a word that is no region where that is not fixed."""
    places = [address.region]
    if address.model.startswith("arn:"):
        places.append(address.model.split(":")[3])
    if is_profile(address.model):
        prefix = bare_model(address.model).partition(".")[0]
        places += _PROFILES.get(prefix, (f"all of {prefix}"[:40],))
    return places


def _azure(parts: SplitResult) -> ModelAddress:
    deployment = parts.path.strip("/")
    if not parts.hostname or not _DEPLOYMENT.fullmatch(deployment) or parts.fragment:
        raise _wrong("use azure-openai://RESOURCE/DEPLOYMENT, by the deployment's name and not the model's")
    scheme = "http" if parts.scheme.endswith("+http") else "https"
    host = _host(parts)
    if "." not in host and ":" not in host:
        if not _RESOURCE.fullmatch(host) or parts.port is not None:
            raise _wrong("the resource's name is not one of Azure's")
        host += AZURE_SUFFIX
    options = _options(parts, (*_OPTIONS, "api-version"))
    version = options.pop("api-version", AZURE_API_VERSION)
    if not _API_VERSION.fullmatch(version):
        raise _wrong("api-version is a date such as 2024-10-21, perhaps with -preview")
    port = parts.port or (443 if scheme == "https" else 80)
    base_url = f"{scheme}://{_place(host, parts)}"
    return ModelAddress("azure-openai", deployment, base_url, host, port, **_checked(options), api_version=version)


def _bedrock(parts: SplitResult) -> ModelAddress:
    region, model = parts.netloc, parts.path.removeprefix("/")
    if not _AWS_REGION.fullmatch(region) or not _BEDROCK_MODEL.fullmatch(model) or parts.fragment:
        raise _wrong("use bedrock://REGION/MODEL, as in bedrock://ap-northeast-1/amazon.nova-lite-v1:0")
    if model.startswith("arn:") and (len(model.split(":")) < 6 or model.split(":")[2] != "bedrock"):
        raise _wrong("the ARN is not one of Bedrock's")
    places = _checked(_options(parts, ("dimensions", "context")))
    china = ".cn" if region.startswith("cn-") else ""
    host = f"bedrock-runtime.{region}.amazonaws.com{china}"
    places["region"] = region
    return ModelAddress("bedrock", model, "", host, 443, **places)


def _compatible(parts: SplitResult) -> ModelAddress:
    scheme = parts.scheme.removeprefix("openai+")
    if not parts.hostname:
        raise _wrong("it names no host")
    if not parts.fragment:
        raise _wrong("it names no model; put it after a #, as in openai+https://HOST/v1#MODEL")
    host = _host(parts)
    port = parts.port or (443 if scheme == "https" else 80)
    base_url = f"{scheme}://{_place(host, parts)}{parts.path.rstrip('/')}"
    return ModelAddress("openai", _model(parts.fragment), base_url, host, port, **_places(parts))


def _host(parts: SplitResult) -> str:
    try:
        return plain_host(parts.hostname or "")
    except AddressRefused:
        raise _wrong("its host is not a host name") from None


def _place(host: str, parts: SplitResult) -> str:
    shown = f"[{host}]" if ":" in host else host
    return shown if parts.port is None else f"{shown}:{parts.port}"


def _model(text: str) -> str:
    if not _MODEL.fullmatch(text):
        raise _wrong("the model's name must be 1 to 200 characters of a-z A-Z 0-9 . _ : @ / + -")
    return text


class _Places(TypedDict):
    dimensions: int | None
    region: str
    context_tokens: int | None


def _places(parts: SplitResult) -> _Places:
    return _checked(_options(parts, _OPTIONS))


def _options(parts: SplitResult, known: Sequence[str]) -> dict[str, str]:
    given = parse_qsl(parts.query, keep_blank_values=True)
    options = dict(given)
    if len(options) != len(given) or not options.keys() <= set(known):
        shown = ", ".join(f"?{name}=" for name in known)
        raise _wrong(f"only {shown} may stand in it, once each; a key belongs into the secret llm-connection")
    return options


def _checked(options: Mapping[str, str]) -> _Places:
    region = _plain(options.get("region", ""))
    if "region" in options and not _REGION.fullmatch(region):
        raise _wrong("region is a name such as japaneast or ap-northeast-1")
    dimensions = _whole(options, "dimensions", 1, _MAX_DIMENSIONS)
    context = _whole(options, "context", _FEWEST_CONTEXT, _MAX_CONTEXT)
    if dimensions is not None and context is not None:
        raise _wrong("an embedding model has dimensions and no context")
    return {"dimensions": dimensions, "region": region, "context_tokens": context}


def _whole(options: Mapping[str, str], name: str, lowest: int, highest: int) -> int | None:
    text = options.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 9 and lowest <= int(text) <= highest):
        raise _wrong(f"{name} must be {lowest} to {highest}")
    return int(text)


def _plain(region: str) -> str:
    """A region's name in the form that is compared: ``Japan East`` is ``japaneast``."""
    return region.replace(" ", "").lower()


def _wrong(detail: str) -> InvalidValue:
    return InvalidValue(at="models", detail=detail, param="models")
