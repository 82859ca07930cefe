"""Ids: UUIDv7 (RFC 9562) behind a type prefix, such as ``conv_0198c3…``.

The 48-bit millisecond is followed by 12 bits of the fraction of that millisecond (RFC 9562 §6.2, method 3), so ids
made one after another on one machine sort in the order they were made, also across processes, to about 0.25 µs.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import threading
import time
from typing import Final

_HEX: Final = re.compile(r"[0-9a-f]{32}")
_VARIANT: Final = 0b10 << 62
_LOW_62: Final = (1 << 62) - 1
_PLACED: Final = 1 << 61
_BITS_32_TO_60: Final = 0x1FFF_FFFF << 32


class _Ticks:
    """Strictly rising 60-bit time stamps (48 bits of milliseconds, 12 of their fraction) in this process."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def next(self) -> int:
        # Milliseconds above 12 bits of their fraction, in one division: 4096 / 1,000,000 is 64 / 15,625.
        tick = time.time_ns() * 64 // 15_625
        with self._lock:
            if tick <= self._last:
                tick = self._last + 1
            self._last = tick
            return tick


_drawn: Final[list[int]] = []
"""64-bit numbers asked of the system by the page: a call each costs more than the rest of an id. Taking one off is
atomic, so no two threads get the same."""
_DRAWN_AT_ONCE: Final = struct.Struct("256Q")
# A child process must not use what its parent will use too.
os.register_at_fork(after_in_child=_drawn.clear)


def _random_64() -> int:
    while True:
        try:
            return _drawn.pop()
        except IndexError:
            _drawn.extend(_DRAWN_AT_ONCE.unpack(os.urandom(_DRAWN_AT_ONCE.size)))


_ticks = _Ticks()


def _id(prefix: str, tick: int, tail_62_bits: int) -> str:
    return f"{prefix}_{tick >> 12:012x}7{tick & 0xFFF:03x}{_VARIANT | tail_62_bits:016x}"


def new_id(prefix: str) -> str:
    """A fresh id such as ``conv_0198c3…``: prefix, underscore, 32 hex digits of a UUIDv7."""
    return _id(prefix, _ticks.next(), _random_64() & _LOW_62)


def new_placed_id(prefix: str, sequence: int) -> str:
    """A fresh id whose last 32 bits are ``sequence`` (0 ≤ sequence < 2³²): a thing's place in its partition.

    The place makes a look-up by id one read. It is no secret and no permission: who may read is decided elsewhere,
    and a reader compares the whole id with the stored one.
    """
    return _id(prefix, _ticks.next(), _PLACED | (_random_64() & _BITS_32_TO_60) | sequence)


def new_unplaced_id(prefix: str) -> str:
    """A fresh id for a thing whose place is not known yet, such as an answer that is still being streamed."""
    return _id(prefix, _ticks.next(), _random_64() & _LOW_62 & ~_PLACED)


def placed_sequence(text: str) -> int | None:
    """The sequence inside an id made by :func:`new_placed_id`, or None for any other text."""
    digits = text.rpartition("_")[2]
    if not _HEX.fullmatch(digits) or not int(digits[16], 16) & 0b10:
        return None
    return int(digits[24:], 16)


def is_id(prefix: str, text: str) -> bool:
    """Whether ``text`` has the form of an id with this prefix. Says nothing about whether the thing exists."""
    head, _, digits = text.rpartition("_")
    return head == prefix and _HEX.fullmatch(digits) is not None


def derived_id(prefix: str, seed: bytes, at_us: int) -> str:
    """The same unplaced id for the same seed and moment, every time: what an idempotent request makes its things by."""
    digest = hashlib.sha256(seed + prefix.encode()).digest()
    ms, rest_us = divmod(at_us, 1000)
    tick = (ms << 12) | (rest_us * 4096 // 1000)
    return _id(prefix, tick, int.from_bytes(digest[:8], "big") & _LOW_62 & ~_PLACED)
