"""What PostgreSQL's errors mean to the caller: one table from SQLSTATE to ours."""

from __future__ import annotations

from typing import Final

import asyncpg

from nagaya.errors import (
    ConditionFailed,
    NagayaError,
    StoreDamaged,
    StoreFull,
    StoreLoginRefused,
    StorePermissionMissing,
    StoreReadOnly,
    StoreUnreachable,
)

BROKEN_CONDITION: Final = "22012"
"""Division by zero: how a batch whose conditions do not all hold undoes itself in one round trip."""

_REPEATABLE: Final = frozenset({"40001", "40P01"})
_FULL: Final = frozenset({"53100"})
_READ_ONLY: Final = frozenset({"25006"})
_DAMAGED: Final = frozenset({"3D000", "3F000", "42P01", "42703", "42883", "XX001", "XX002"})
_CONDITION: Final = frozenset({BROKEN_CONDITION, "23505"})
_LOGIN: Final = frozenset({"28000", "28P01"})


def state_of(error: BaseException) -> str:
    """The SQLSTATE, or "" for an error that is not the server's."""
    return str(getattr(error, "sqlstate", None) or "") if isinstance(error, asyncpg.PostgresError) else ""


def is_repeatable(error: BaseException) -> bool:
    """Whether the server undid the statement and asks for it again (deadlock, serialisation)."""
    return state_of(error) in _REPEATABLE


def is_answer(error: BaseException) -> bool:
    """Whether the server itself answered, and the connection is as good as before: what is not, ends it."""
    state = state_of(error)
    return bool(state) and state[:2] not in ("08", "57", "58")


def is_lost(error: BaseException) -> bool:
    """Whether the line or the server went away in the middle; what it was doing then is not known."""
    if isinstance(error, (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
        return True
    return state_of(error)[:2] in ("08", "57", "58")


def store_error(error: BaseException, *, place: str, needs: str) -> NagayaError:
    """What an error means. ``place`` and ``needs`` (the permission that this act takes) may be shown to anybody.

    Anything unknown is ``StoreUnreachable``: nothing is promised.
    """
    state = state_of(error)
    if state in _CONDITION:
        return ConditionFailed()
    if state in _FULL:
        return StoreFull()
    if state in _READ_ONLY:
        return StoreReadOnly()
    if state == "42501":
        return StorePermissionMissing(permission=needs)
    if state in _LOGIN:
        return StoreLoginRefused()
    if state in _DAMAGED:
        return StoreDamaged(place=place)
    return StoreUnreachable()
