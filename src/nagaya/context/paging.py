"""Pages of lists that are in memory as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from nagaya.errors import NotFound


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_Identified)


def behind(things: Sequence[T], after: str | None, what: str) -> Sequence[T]:
    """The things that follow the one with the id ``after`` (None: all of them). Raises ``NotFound`` for a ``what`` that
    is none of them."""
    if after is None:
        return things
    for place, thing in enumerate(things, 1):
        if thing.id == after:
            return things[place:]
    raise NotFound(what, param="after")
