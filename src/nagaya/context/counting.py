"""What an import did not bring in, counted by its kind."""

from __future__ import annotations


class Skips:
    """Of a struct that has ``skipped``: adds to it."""

    __slots__ = ()

    skipped: dict[str, int]

    def skip(self, kind: str, count: int = 1) -> None:
        """Count what was not taken; a kind of which there is none is not named."""
        if count:
            self.skipped[kind] = self.skipped.get(kind, 0) + count
