"""Many refusals of one caller become one line with a count, so that a flood cannot bury the log or fill the disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

WINDOW_S: Final = 60.0
EACH: Final = 20
"""Lines of one kind written singly in a window; the rest is counted."""

KINDS: Final = 4_096


class Flood(Generic[K]):
    """Fixed windows by kind, in bounded memory."""

    def __init__(self, *, each: int = EACH, window_s: float = WINDOW_S, kinds: int = KINDS) -> None:
        self._each = each
        self._window_s = window_s
        self._kinds = kinds
        self._windows: OrderedDict[K, tuple[float, int]] = OrderedDict()
        self._ended: list[tuple[K, int]] = []

    def admit(self, kind: K, now_s: float) -> bool:
        """Whether this one is written singly. If not it is counted, and the count comes with :meth:`ended`."""
        began_s, seen = self._windows.get(kind, (now_s, 0))
        if now_s - began_s >= self._window_s:
            self._end(kind)
            began_s, seen = now_s, 0
        self._windows[kind] = began_s, seen + 1
        if len(self._windows) > self._kinds:
            self._end(next(iter(self._windows)))
        return seen < self._each

    def ended(self, now_s: float, *, at_once: bool = False) -> list[tuple[K, int]]:
        """Kinds whose window is over (all of them ``at_once``) and how many of each were only counted, once."""
        for kind in [
            kind for kind, (began_s, _) in self._windows.items() if at_once or now_s - began_s >= self._window_s
        ]:
            self._end(kind)
        ended, self._ended = self._ended, []
        return ended

    def _end(self, kind: K) -> None:
        _, seen = self._windows.pop(kind, (0.0, 0))
        if seen > self._each:
            self._ended.append((kind, seen - self._each))
