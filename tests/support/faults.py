"""Moments at which a test's server dies, as by a power cut, and constants that a test shortens. Read from the
environment by the server's process."""

from __future__ import annotations

import importlib
import inspect
import os
import signal
from collections.abc import Mapping
from functools import wraps
from typing import Any

DIE_AFTER = "TEST_DIE_AFTER"
"""``module:Class.function:n``: dead as soon as the n-th call of it has come back."""
SHORTEN = "TEST_SHORTEN"
"""``module:NAME=seconds``, several with spaces between."""


def obey(environment: Mapping[str, str]) -> None:
    """Put in place what the environment asks for. To be called before the server starts."""
    for each in environment.get(SHORTEN, "").split():
        place, _, value = each.partition("=")
        module, _, name = place.partition(":")
        found = importlib.import_module(module)
        assert isinstance(getattr(found, name), float)
        setattr(found, name, float(value))
    if DIE_AFTER in environment:
        module, name, times = environment[DIE_AFTER].split(":")
        holder: Any = importlib.import_module(module)
        *classes, function = name.split(".")
        for each in classes:
            holder = getattr(holder, each)
        setattr(holder, function, _dying(getattr(holder, function), int(times)))


def _dying(real: Any, times: int) -> Any:
    assert inspect.iscoroutinefunction(real)
    left = times

    @wraps(real)
    async def dying(*args: Any, **options: Any) -> Any:
        nonlocal left
        given = await real(*args, **options)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return given

    return dying
