"""Configuration: ``nagaya.toml``, then environment (``NAGAYA_…``), then flags, each over the last, into one frozen
object that is read once. No other module reads the environment."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from nagaya.errors import SettingsInvalid

DEFAULT_DATA = "./nagaya-data"
_LISTS = frozenset({"cors_origins", "allowed_hosts"})
_ADDRESSES = ("registry", "platform_store", "default_store")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set. Units are in the names; ``env://NAME`` refers to a secret in the environment."""

    data: str = DEFAULT_DATA
    host: str = "127.0.0.1"
    port: int = 8700
    workers: int = 1
    public_url: str | None = None
    log_level: str = "info"
    log_format: str = "json"
    language: str = "en"
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
    secrets: str | None = None
    """Where connection secrets lie: ``awssecrets://REGION`` or ``azuresecrets://VAULT``; None: sealed in the platform's
    own room."""
    redis: str | None = None
    """A ``redis://``, ``rediss://`` or ``dynamodb://REGION/TABLE`` URL, or ``env://NAME`` that holds one: rate limits,
    sign-in sessions, tenants' caches and (not over DynamoDB) notices of changes of several servers. None: each process
    has its own."""
    # stores
    open_stores: int = 512
    store_deadline_s: float = 10.0
    # identity
    local_issuer: str = "https://nagaya.local"
    clock_skew_s: int = 60
    jwks_ttl_s: int = 3600
    # HTTP
    body_limit_bytes: int = 8 * 1024 * 1024
    body_depth_limit: int = 64
    body_deadline_s: float = 30.0
    drain_s: float = 30.0
    streams_per_tenant: Annotated[int, msgspec.Meta(ge=1)] = 2000
    """How many streams a tenant may have open in one process; one more is answered with 429."""
    cors_origins: tuple[str, ...] = ()
    metrics_tenants: int = 200
    metrics_folder: str | None = None
    """Where several workers put their counts together; ``nagaya serve --workers`` sets it."""
    # models
    model_deadline_s: float = 120.0
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
        except FileNotFoundError:
            raise SettingsInvalid(name="config", problem=f"there is no file {path}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as broken:
            raise SettingsInvalid(name="config", problem=f"{path} is not valid TOML: {broken}") from None
    for name in Settings.__struct_fields__:
        text = env.get(f"NAGAYA_{name.upper()}")
        if text is not None:
            values[name] = tuple(filter(None, text.split(","))) if name in _LISTS else text
    values.update({name: value for name, value in (flags or {}).items() if value is not None})
    unknown = sorted(set(values) - set(Settings.__struct_fields__))
    if unknown:
        raise SettingsInvalid(name=unknown[0], problem="there is no such setting")
    for name, value in values.items():
        # One at a time, so that the error can name the setting.
        try:
            msgspec.convert({name: value}, Settings, strict=False)
        except msgspec.ValidationError as wrong:
            raise SettingsInvalid(name=name, problem=str(wrong).split(" - at")[0]) from None
    return msgspec.convert(values, Settings, strict=False)


def export(settings: Settings) -> None:
    """Put the settings into the environment, for worker processes that this one starts."""
    for name in Settings.__struct_fields__:
        value = getattr(settings, name)
        if value is not None:
            os.environ[f"NAGAYA_{name.upper()}"] = ",".join(value) if isinstance(value, tuple) else str(value)
    if settings.metrics_folder is not None:
        # The metrics library reads this when it is imported, so it must be there before a worker starts.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = settings.metrics_folder


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
