"""What every reader gives: the document as a row of blocks."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

BlockKind = Literal["heading", "paragraph", "table_row", "code", "list_item"]

BETWEEN_BLOCKS: Final = "\n"
"""What stands between two blocks in a document's text. Offsets of chunks count in that text."""

BETWEEN_CELLS: Final = " | "


class Block(msgspec.Struct, frozen=True, array_like=True):
    """A piece of a document that its author meant as one: never empty, without space at its ends.

    ``level`` is 1 (the highest) to 6 for a heading, the depth from 1 for an item of a list, 0 for the first row of a
    table and 1 for the others, else 0. ``page`` counts from 1, where the kind of document has pages, slides or sheets.
    """

    kind: BlockKind
    text: str
    level: int = 0
    page: int | None = None


def table_row(cells: list[str], *, first: bool, page: int | None = None) -> Block | None:
    """A row's cells as one block, or None where all are empty. Empty cells at the end are left out."""
    clean = [" ".join(cell.split()) for cell in cells]
    while clean and not clean[-1]:
        clean.pop()
    return Block("table_row", BETWEEN_CELLS.join(clean).strip(), 0 if first else 1, page) if clean else None
