"""A process that ends right after the registry's next change, as far as its own code can tell."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from nagaya.wiring import Nagaya


class _Killed(BaseException):
    pass


@contextlib.contextmanager
def killed_after_a_change(nagaya: Nagaya, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is done within makes one change, and nothing that would come after it."""
    change = nagaya.registry._memory.change

    async def killed(*arguments: Any, **more: Any) -> None:
        await change(*arguments, **more)
        raise _Killed

    with monkeypatch.context() as patched, pytest.raises(_Killed):
        patched.setattr(nagaya.registry._memory, "change", killed)
        yield
