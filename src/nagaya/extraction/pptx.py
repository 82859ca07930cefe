"""Presentations: each slide's title, text, tables and notes, slide by slide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from nagaya.extraction.archive import Archive
from nagaya.extraction.blocks import Block, table_row
from nagaya.extraction.limits import Limits, Refused
from nagaya.extraction.markup import listen, small_number
from nagaya.extraction.package import relationships

_PRESENTATION: Final = "ppt/presentation.xml"
_DEEPEST: Final = 8
_TITLES: Final = frozenset({"title", "ctrTitle"})
_NOT_CONTENT: Final = frozenset({"sldNum", "dt", "ftr", "hdr", "sldImg"})
"""Placeholders that repeat on every slide: number, date, footer."""


def read_pptx(archive: Archive, limits: Limits) -> Iterator[Block]:
    """The blocks of a presentation in the order it is shown in; hidden slides too. A page is a slide."""
    targets = {each.id: each.target for each in relationships(archive, _PRESENTATION) if each.kind == "slide"}
    order = [id for id in listen(archive.pieces(_PRESENTATION), _Order()) if id in targets]
    if len(order) > limits.pages:
        raise Refused("too_many_parts", f"{len(order)} slides")
    for number, id in enumerate(order, 1):
        slide = targets[id]
        yield from listen(archive.pieces(slide), _Slide(number))
        for notes in relationships(archive, slide):
            if notes.kind == "notesSlide" and notes.target in archive.names:
                yield from listen(archive.pieces(notes.target), _Slide(number))


class _Order:
    def __init__(self) -> None:
        self._found: list[str] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "sldId":
            self._found.append(attributes.get("id", ""))

    def end(self, name: str) -> None: ...

    def text(self, text: str) -> None: ...

    def take(self) -> list[str]:
        found, self._found = self._found, []
        return found


class _Slide:
    def __init__(self, number: int) -> None:
        self._number = number
        self._done: list[Block] = []
        self._placeholder = ""
        self._texts: list[str] = []
        self._depth = 0
        self._in_text = False
        self._cells: list[str] | None = None
        self._rows = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "t":
            self._in_text = True
        elif name == "p":
            self._texts, self._depth = [], 0
        elif name == "pPr":
            self._depth = (small_number(attributes.get("lvl", ""), _DEEPEST) or 0) + 1
        elif name == "br":
            self._texts.append("\n")
        elif name == "sp":
            self._placeholder = ""
        elif name == "ph":
            self._placeholder = attributes.get("type", "body")
        elif name == "tbl":
            self._rows = 0
        elif name == "tr":
            self._cells = []
        elif name == "tc" and self._cells is not None:
            self._cells.append("")

    def end(self, name: str) -> None:
        if name == "t":
            self._in_text = False
        elif name == "p":
            self._close()
        elif name == "sp":
            self._placeholder = ""
        elif name == "tr" and self._cells is not None:
            if (row := table_row(self._cells, first=self._rows == 0, page=self._number)) is not None:
                self._done.append(row)
                self._rows += 1
            self._cells = None

    def text(self, text: str) -> None:
        if self._in_text:
            self._texts.append(text)

    def _close(self) -> None:
        text = "".join(self._texts).strip()
        self._texts = []
        if not text or self._placeholder in _NOT_CONTENT:
            return
        if self._cells:
            self._cells[-1] = f"{self._cells[-1]} {text}".strip()
        elif self._placeholder in _TITLES:
            self._done.append(Block("heading", " ".join(text.split()), 1, self._number))
        elif self._placeholder in ("body", "obj"):
            self._done.append(Block("list_item", text, max(1, self._depth), self._number))
        else:
            self._done.append(Block("paragraph", text, 0, self._number))

    def take(self) -> list[Block]:
        done, self._done = self._done, []
        return done
