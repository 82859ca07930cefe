"""How an adapter is found by its URL's scheme, and what it is given to work with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from nagaya.errors import InvalidValue, MissingExtra
from nagaya.kernel.clock import Clock
from nagaya.kernel.egress import EgressPolicy
from nagaya.settings import Settings


@dataclass(frozen=True)
class Surroundings:
    """What an adapter may know of the place it works in. ``room`` is the tenant's (``_platform`` for the platform's).

    ``secret`` gives one of the room's connection secrets by its short name (``aws-connection``,
    ``azure-connection``), or None. ``regions`` are those the tenant is pinned to; empty means anywhere.
    """

    settings: Settings
    clock: Clock
    egress: EgressPolicy
    room: str
    regions: tuple[str, ...]
    secret: Callable[[str], Awaitable[bytes | None]]


Opener = Callable[[str, Surroundings], Awaitable[Any]]

_AT: Final = {"stores": "store", "keys": "key_service", "models": "models"}
"""What a port's address is called where one is given."""
_EMBEDDED: Final = {"stores": ["sqlite"], "keys": ["local"]}
"""What needs no adapter to be looked for: it is the platform's own."""


def find(port: str, url: str, builtin: dict[str, tuple[str, str | None]]) -> Opener:
    """The function that opens ``url`` for a port (``stores``, ``keys``, …).

    ``builtin`` maps schemes to ("module:function", extra). Others are looked up among the entry points of the group
    ``nagaya.<port>``, by scheme; none of them can take the place of a builtin one. Raises ``InvalidValue`` for a scheme
    that is unknown or whose package does not load, and ``MissingExtra`` where the optional packages are not installed.
    """
    scheme = url.partition("://")[0]
    known = builtin.get(scheme)
    if known is not None:
        place, extra = known
        module, _, name = place.partition(":")
        try:
            found: Opener = getattr(import_module(module), name)
        except ModuleNotFoundError as missing:
            if extra is None or (missing.name or "").startswith("nagaya"):
                raise
            raise MissingExtra(feature=f"{scheme}://", extra=extra) from missing
        return found
    at = _AT.get(port, port)
    others = entry_points(group=f"nagaya.{port}")
    for entry in others:
        if entry.name == scheme:
            return _loaded(entry, at)
    names = sorted({*builtin, *others.names, *_EMBEDDED.get(port, ())})
    forms = ", ".join(f"{name}://" for name in names)
    raise InvalidValue(param=at, at=at, detail=f"'{scheme[:32]}://' is not known here; use {forms}")


def _loaded(entry: EntryPoint, at: str) -> Opener:
    try:
        found: Opener = entry.load()
    except (ImportError, AttributeError) as broken:
        detail = f"the adapter {entry.value} for {entry.name}:// does not load: {broken}"
        raise InvalidValue(param=at, at=at, detail=detail) from broken
    return found
