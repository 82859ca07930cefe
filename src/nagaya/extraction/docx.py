"""Word documents: paragraphs, headings, lists and tables in their order, with text boxes, content controls, tracked
insertions, footnotes and endnotes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from nagaya.extraction.archive import Archive
from nagaya.extraction.blocks import Block, table_row
from nagaya.extraction.markup import listen, small_number
from nagaya.extraction.package import relationships

_DOCUMENT: Final = "word/document.xml"
_HEADING: Final = re.compile(r"heading ([1-9])|(title)|(subtitle)")
_NO_LEVEL: Final = 9
"""The outline level of body text (ECMA-376, 17.3.1.20)."""
_DEEPEST: Final = 8
_INLINE_TEXT: Final = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-", "softHyphen": ""}
_HIDDEN: Final = frozenset({"del", "moveFrom", "Fallback", "instrText", "rt"})
"""Deletions, copies for old programs, field codes, and the readings over kanji."""


def read_docx(archive: Archive) -> Iterator[Block]:
    """The blocks of a document; pages as its last printing had them, where it says."""
    found = relationships(archive, _DOCUMENT)
    styles: dict[str, int] = {}
    for style in found:
        if style.kind == "styles" and style.target in archive.names:
            styles.update(listen(archive.pieces(style.target), _Styles()))
    yield from listen(archive.pieces(_DOCUMENT), _Body(styles))
    for notes in found:
        if notes.kind in ("footnotes", "endnotes") and notes.target in archive.names:
            yield from (Block("paragraph", block.text) for block in listen(archive.pieces(notes.target), _Body(styles)))


class _Styles:
    """The heading levels of paragraph styles: by their name, their outline level, or what they are based on."""

    def __init__(self) -> None:
        self._id = ""
        self._own: dict[str, int] = {}
        self._based: dict[str, str] = {}

    def start(self, name: str, attributes: dict[str, str]) -> None:
        value = attributes.get("val", "")
        if name == "style":
            self._id = attributes.get("styleId", "") if attributes.get("type") == "paragraph" else ""
        elif name == "name" and (heading := _HEADING.fullmatch(value.lower())):
            self._own[self._id] = int(heading[1]) if heading[1] else 1 if heading[2] else 2
        elif name == "outlineLvl" and (level := _outline_level(value)):
            self._own.setdefault(self._id, level)
        elif name == "basedOn":
            self._based[self._id] = value

    def end(self, name: str) -> None: ...

    def text(self, text: str) -> None: ...

    def take(self) -> list[tuple[str, int]]:
        levels = dict(self._own)
        for style in self._based:
            above, seen = style, {style}
            while above not in self._own and (above := self._based.get(above, "")) and above not in seen:
                seen.add(above)
            if above in self._own:
                levels[style] = self._own[above]
        levels.pop("", None)
        return list(levels.items())


def _outline_level(value: str) -> int:
    level = small_number(value, _NO_LEVEL)
    return 0 if level is None or level == _NO_LEVEL else level + 1


class _Paragraph:
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.level = 0
        self.depth = 0


class _Table:
    def __init__(self) -> None:
        self.rows = 0
        self.cells: list[str] = []


class _Body:
    """A table inside a cell, and a text box inside a paragraph, are read as a part of what they are in."""

    def __init__(self, styles: dict[str, int]) -> None:
        self._styles = styles
        self._done: list[Block] = []
        self._paragraphs: list[_Paragraph] = []
        self._tables: list[_Table] = []
        self._hidden = 0
        self._in_text = False
        self._page: int | None = None

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if self._hidden or name in _HIDDEN:
            self._hidden += 1
        elif name == "t":
            self._in_text = True
        elif name == "p":
            self._paragraphs.append(_Paragraph())
        elif name == "tbl":
            self._tables.append(_Table())
        elif name == "tr" and len(self._tables) == 1:
            self._tables[0].cells = []
        elif name == "tc" and len(self._tables) == 1:
            self._tables[0].cells.append("")
        elif name == "lastRenderedPageBreak":
            self._page = (self._page or 1) + 1
        elif self._paragraphs:
            self._property(name, attributes)

    def _property(self, name: str, attributes: dict[str, str]) -> None:
        paragraph = self._paragraphs[-1]
        value = attributes.get("val", "")
        if name in _INLINE_TEXT:
            if "pos" not in attributes:  # a tab stop of the paragraph's layout has one; a tab character has none
                paragraph.texts.append(_INLINE_TEXT[name])
        elif name == "pStyle":
            paragraph.level = self._styles.get(value, 0)
        elif name == "outlineLvl":
            paragraph.level = _outline_level(value)
        elif name == "numPr":
            paragraph.depth = max(1, paragraph.depth)
        elif name == "ilvl":
            paragraph.depth = (small_number(value, _DEEPEST) or 0) + 1
        elif name == "numId" and value == "0":
            paragraph.depth = 0

    def end(self, name: str) -> None:
        if self._hidden:
            self._hidden -= 1
        elif name == "t":
            self._in_text = False
        elif name == "p" and self._paragraphs:
            self._close(self._paragraphs.pop())
        elif name == "tr" and len(self._tables) == 1:
            table = self._tables[0]
            if (row := table_row(table.cells, first=table.rows == 0, page=self._page)) is not None:
                self._done.append(row)
                table.rows += 1
        elif name == "tbl" and self._tables:
            self._tables.pop()

    def text(self, text: str) -> None:
        if self._in_text and not self._hidden and self._paragraphs:
            self._paragraphs[-1].texts.append(text)

    def _close(self, paragraph: _Paragraph) -> None:
        text = "".join(paragraph.texts).strip()
        if not text:
            return
        if self._tables:
            cells = self._tables[0].cells
            if cells:
                cells[-1] = f"{cells[-1]} {text}".strip()
        elif paragraph.level:
            self._done.append(Block("heading", " ".join(text.split()), min(paragraph.level, 6), self._page))
        elif paragraph.depth:
            self._done.append(Block("list_item", text, paragraph.depth, self._page))
        else:
            self._done.append(Block("paragraph", text, 0, self._page))

    def take(self) -> list[Block]:
        done, self._done = self._done, []
        return done
