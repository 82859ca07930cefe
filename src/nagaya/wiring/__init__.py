"""The composition root: the only place that knows adapters. ``Nagaya`` is the library's front door."""

from nagaya.wiring.platform import Nagaya

__all__ = ["Nagaya"]
