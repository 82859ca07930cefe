"""Configuration: ``nagaya.toml``, then environment (``NAGAYA_…``), then flags, each over the last, into one frozen
object that is read once. No other module reads the environment."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from nagaya.errors import AddressRefused, SettingsInvalid
from nagaya.kernel.egress import EgressPolicy

DEFAULT_DATA = "./nagaya-data"
Seconds = Annotated[float, msgspec.Meta(gt=0, le=3600)]
_TEXT = Annotated[str, msgspec.Meta(min_length=1, max_length=4096, pattern=r"\A[^\x00]*\Z")]
_WEB = re.compile(r"https?://[^/\s?#@]+(?=[/?#]|\Z)")
_LISTS = frozenset({"cors_origins", "allowed_hosts"})
_PLAIN = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "LC_ALL", "LC_CTYPE")
_ADDRESSES = ("registry", "platform_store", "default_store", "default_blobs")


class Queue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A queue through which jobs come in."""

    url: Annotated[str, msgspec.Meta(pattern=r"^sqs://[a-z0-9-]+/[0-9]+/[A-Za-z0-9_-]+(\.fifo)?$")]
    """``sqs://REGION/ACCOUNT/NAME``."""
    kinds: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    """The kinds of work that its messages may ask for."""
    tenant: str | None = None
    """The tenant that whoever may send to it speaks for. None: several share it, and each message is signed."""

    @property
    def region(self) -> str:
        """Where it lies."""
        return self.url.removeprefix("sqs://").partition("/")[0]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set. Units are in the names; ``env://NAME`` refers to a secret in the environment."""

    data: _TEXT = DEFAULT_DATA
    host: _TEXT = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 8700
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    public_url: str | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"
    language: Literal["en", "ja"] = "en"
    telemetry_content: bool = False
    """Whether traces hold what is said to models and what they answer. They leave the platform in clear: off unless
    set, and of all tenants once it is."""
    # keys
    root_key: str | None = None
    """Where the local key service's root comes from: None (a file in the data folder), ``file:PATH``,
    ``env://NAME`` (base64 of 32 bytes) or ``passphrase-env://NAME``."""
    key_cache_s: Annotated[float, msgspec.Meta(gt=0, le=30)] = 30.0
    platform_keys: str = "local://"
    """The key service of the platform's own room, and of tenants that bring none."""
    # what several servers share
    registry: str | None = None
    """A ``postgresql://`` URL for the registry, or ``env://NAME`` that holds one; None: a file in the data folder."""
    region: str | None = None
    """The region this platform runs in, such as ``ap-northeast-1``. A tenant that is pinned to regions can have
    embedded resources (data folder, local keys, builtin model) only where this is one of them."""
    platform_store: str | None = None
    """Where the platform's own room lies (audit log, signing keys, connection secrets): an address, or ``env://NAME``
    that holds one; None: in the data folder."""
    default_store: str = "sqlite:///tenants"
    """The store of tenants that bring none: an address, or ``env://NAME`` that holds one."""
    default_blobs: str | None = None
    """The blob storage of tenants that bring none: an address, or ``env://NAME`` that holds one; None: ``blobs/``
    in the data folder, where the registry lies there too, else none."""
    secrets: str | None = None
    """Where connection secrets lie: ``awssecrets://REGION`` or ``azuresecrets://VAULT``; None: sealed in the platform's
    own room."""
    redis: str | None = None
    """A ``redis://``, ``rediss://`` or ``dynamodb://REGION/TABLE`` URL, or ``env://NAME`` that holds one: rate limits,
    sign-in sessions, tenants' caches and (not over DynamoDB) notices of changes of several servers. None: each process
    has its own."""
    queues: tuple[Queue, ...] = ()
    """Amazon SQS queues through which jobs come in, each a table ``[[queues]]`` with ``url`` (``sqs://REGION/ACCOUNT/NAME``),
    ``kinds`` (what its messages may ask for) and ``tenant`` (whose it is; absent: several share it and sign their
    messages). In the environment: the same as a JSON list."""
    # stores
    open_stores: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 512
    store_deadline_s: Seconds = 10.0
    # identity
    local_issuer: str = "https://nagaya.local"
    clock_skew_s: Annotated[int, msgspec.Meta(ge=0, le=600)] = 60
    jwks_ttl_s: Annotated[int, msgspec.Meta(ge=1, le=86_400)] = 3600
    # HTTP
    body_limit_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1024**3)] = 8 * 1024 * 1024
    body_depth_limit: Annotated[int, msgspec.Meta(ge=1, le=256)] = 64
    body_deadline_s: Seconds = 30.0
    file_limit_bytes: Annotated[int, msgspec.Meta(ge=1024, le=512 * 1024**2)] = 512 * 1024 * 1024
    """How large one uploaded file may be."""
    drain_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 30.0
    streams_per_tenant: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 2000
    """How many streams a tenant may have open in one process; one more is answered with 429."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose web pages may call this server with a token, never with cookies; ``*`` stands for all."""
    metrics_tenants: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 200
    metrics_folder: str | None = None
    """Where several workers put their counts together; ``nagaya serve --workers`` sets it."""
    # models
    model_deadline_s: Seconds = 120.0
    allowed_hosts: tuple[str, ...] = ()
    """Hosts inside (loopback, private ranges) that a tenant's model URL may point to."""

    @property
    def folder(self) -> Path:
        """``data`` as an absolute path."""
        return Path(self.data).expanduser().absolute()


def load_settings(
    *, config: str | None = None, flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Read file, environment and flags, in rising order. Raises ``SettingsInvalid`` naming the setting."""
    env = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    path = config or env.get("NAGAYA_CONFIG")
    if path:
        try:
            values.update(tomllib.loads(Path(path).read_text("utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as broken:
            raise SettingsInvalid(name="config", problem=f"{path} is not valid TOML: {broken}") from None
        except FileNotFoundError:
            raise SettingsInvalid(name="config", problem=f"there is no file {path}") from None
        except (OSError, ValueError) as failed:
            detail = getattr(failed, "strerror", None) or "it is no name of a file"
            raise SettingsInvalid(name="config", problem=f"{path!r} cannot be read: {detail}") from None
    for name in Settings.__struct_fields__:
        text = env.get(f"NAGAYA_{name.upper()}")
        if text is not None:
            values[name] = _from_text(name, text)
    values.update({name: value for name, value in (flags or {}).items() if value is not None})
    unknown = sorted(set(values) - set(Settings.__struct_fields__))
    if unknown:
        raise SettingsInvalid(name=unknown[0], problem="there is no such setting")
    return _checked(values)


def check_settings(settings: Settings) -> None:
    """Raise ``SettingsInvalid`` naming the first setting that is out of its range: also for those made in Python."""
    _checked(msgspec.structs.asdict(settings))


def _checked(values: Mapping[str, Any]) -> Settings:
    for name, value in values.items():
        # One at a time, so that the error can name the setting.
        try:
            msgspec.convert({name: value}, Settings, strict=False)
        except msgspec.ValidationError as wrong:
            raise SettingsInvalid(name=name, problem=str(wrong).split(" - at")[0].replace("`", "")) from None
    settings = msgspec.convert(values, Settings, strict=False)
    for name, problem in _problems(settings):
        raise SettingsInvalid(name=name, problem=problem)
    return settings


def _problems(settings: Settings) -> Iterator[tuple[str, str]]:
    """What no range can say."""
    if settings.public_url is not None and not _WEB.match(settings.public_url):
        yield "public_url", "it is the https:// address that clients use, without user name or password"
    if not _WEB.match(settings.local_issuer) or not settings.local_issuer.isprintable() or " " in settings.local_issuer:
        yield "local_issuer", "it is an https:// address that names this platform in its tokens"
    if len(settings.local_issuer) > 400:
        yield "local_issuer", "it has at most 400 characters"
    if not all(origin == "*" or _WEB.fullmatch(origin) for origin in settings.cors_origins):
        yield "cors_origins", "each is an origin as browsers send it, such as https://app.example.com, or *"
    try:
        EgressPolicy(settings.allowed_hosts)
    except AddressRefused as refused:
        yield "allowed_hosts", f"{refused.facts['host']!r} is no host and no host:port"


def export(settings: Settings) -> None:
    """Put the settings into the environment, for worker processes that this one starts."""
    for name in Settings.__struct_fields__:
        value = getattr(settings, name)
        if value is not None:
            os.environ[f"NAGAYA_{name.upper()}"] = _as_text(name, value)
    if settings.metrics_folder is not None:
        # The metrics library reads this when it is imported, so it must be there before a worker starts.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = settings.metrics_folder


def _from_text(name: str, text: str) -> Any:
    if name in _LISTS:
        return tuple(filter(None, map(str.strip, text.split(","))))
    if name != "queues":
        return text
    try:
        return msgspec.json.decode(text or "[]")
    except msgspec.DecodeError:
        raise SettingsInvalid(name=name, problem="in the environment it is a JSON list") from None


def _as_text(name: str, value: Any) -> str:
    if name == "queues":
        return msgspec.json.encode(value).decode()
    return ",".join(value) if name in _LISTS else str(value)


def without_references(settings: Settings) -> Settings:
    """The settings with the addresses that ``env://NAME`` stands for. They may hold passwords: not to be shown, nor
    handed on. Raises ``SettingsInvalid`` naming the setting."""
    found: dict[str, str] = {}
    for name in _ADDRESSES:
        value = getattr(settings, name)
        if value is not None and value.startswith("env://"):
            try:
                found[name] = read_reference(value)
            except SettingsInvalid:
                problem = f"the environment has no variable {value.removeprefix('env://')}"
                raise SettingsInvalid(name=name, problem=problem) from None
    return msgspec.structs.replace(settings, **found) if found else settings


def plain_environment(*, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a process that handles strangers' data may see of the environment: where programs and libraries lie, and
    the locale; no setting and no secret."""
    env = os.environ if environment is None else environment
    return {name: env[name] for name in _PLAIN if name in env}


def environment_language(*, environment: Mapping[str, str] | None = None) -> str:
    """``ja`` where the locale is Japanese, else ``en``: the first of ``LC_ALL``, ``LC_MESSAGES``, ``LANG`` set."""
    env = os.environ if environment is None else environment
    locale = next((env[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if env.get(name)), "")
    return "ja" if locale.lower().startswith("ja") else "en"


def environment_key(*, environment: Mapping[str, str] | None = None) -> str | None:
    """The operator's API key in ``NAGAYA_KEY``, for commands that speak to a running server."""
    env = os.environ if environment is None else environment
    return env.get("NAGAYA_KEY") or None


def read_reference(reference: str, *, environment: Mapping[str, str] | None = None) -> str:
    """The value behind ``env://NAME``. Raises ``SettingsInvalid`` where the variable is not set."""
    env = os.environ if environment is None else environment
    name = reference.removeprefix("env://")
    if not reference.startswith("env://") or name not in env:
        raise SettingsInvalid(name=reference, problem="the environment has no such variable")
    return env[name]
