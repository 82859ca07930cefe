"""Nagaya: a multi-tenant context platform for AI products."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Message", "Nagaya", "__version__"]

if TYPE_CHECKING:
    from nagaya.context.items import Message as Message
    from nagaya.wiring import Nagaya as Nagaya


def __getattr__(name: str) -> object:
    # Imported when first asked for, so that `nagaya --help` and `import nagaya` stay quick.
    if name == "Nagaya":
        from nagaya.wiring import Nagaya

        return Nagaya
    if name == "Message":
        from nagaya.context.items import Message

        return Message
    raise AttributeError(name)
