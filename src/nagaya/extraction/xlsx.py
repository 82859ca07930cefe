"""Workbooks: sheet by sheet and row by row, as the cells show their values; formulas by their last result."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from nagaya.extraction.archive import Archive
from nagaya.extraction.blocks import Block, table_row
from nagaya.extraction.limits import Limits, Refused
from nagaya.extraction.markup import listen
from nagaya.extraction.package import relationships

_WORKBOOK: Final = "xl/workbook.xml"
_BUILTIN_DATES: Final = frozenset({*range(14, 18), 22, *range(27, 32), 36, *range(50, 59)})
_BUILTIN_TIMES: Final = frozenset({*range(18, 22), *range(32, 36), *range(45, 48)})
_BUILTIN_PERCENTAGES: Final = frozenset({9, 10})
_NOT_FORMAT: Final = re.compile(r'"[^"]*"|\\.|_.|\*.|\[(?!h+\]|m+\]|s+\])[^\]]*\]|;.*', re.I | re.S)
_PADDED: Final = 32
"""Empty cells in a row that are kept; a longer gap is one of them, so that a lone cell in the last of 16,384 columns
makes no row of bars."""
_DAY_ONE: Final = {False: datetime.datetime(1899, 12, 30), True: datetime.datetime(1904, 1, 1)}  # noqa: DTZ001 - a sheet's dates have no zone


class _Sheet(NamedTuple):
    name: str
    id: str


def read_xlsx(archive: Archive, limits: Limits) -> Iterator[Block]:
    """The blocks of a workbook: a heading and a page for each sheet that holds anything. Rows above a table that have
    one cell only are paragraphs: they are its title."""
    found = relationships(archive, _WORKBOOK)
    targets = {each.id: each.target for each in found if each.kind == "worksheet"}
    parts = {each.kind: each.target for each in found if each.target in archive.names}
    workbook = _Workbook()
    sheets = [sheet for sheet in listen(archive.pieces(_WORKBOOK), workbook) if sheet.id in targets]
    if len(sheets) > limits.pages:
        raise Refused("too_many_parts", f"{len(sheets)} sheets")
    strings = list(listen(archive.pieces(parts["sharedStrings"]), _Strings())) if "sharedStrings" in parts else []
    formats = list(listen(archive.pieces(parts["styles"]), _Formats())) if "styles" in parts else []
    for number, sheet in enumerate(sheets, 1):
        rows = listen(archive.pieces(targets[sheet.id]), _Rows(strings, formats, workbook.since_1904))
        yield from _blocks(sheet.name, rows, number)


def _blocks(name: str, rows: Iterator[list[str]], page: int) -> Iterator[Block]:
    named = in_table = False
    for cells in rows:
        row = table_row(cells, first=not in_table, page=page)
        if row is None:
            continue
        if not named:
            named = True
            if heading := " ".join(name.split()):
                yield Block("heading", heading, 1, page)
        if not in_table and sum(map(bool, cells)) == 1:
            yield Block("paragraph", row.text.strip(" |"), 0, page)
        else:
            in_table = True
            yield row


class _Workbook:
    def __init__(self) -> None:
        self.since_1904 = False
        self._found: list[_Sheet] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "sheet":
            self._found.append(_Sheet(attributes.get("name", ""), attributes.get("id", "")))
        elif name == "workbookPr":
            self.since_1904 = attributes.get("date1904") in ("1", "true")

    def end(self, name: str) -> None: ...

    def text(self, text: str) -> None: ...

    def take(self) -> list[_Sheet]:
        found, self._found = self._found, []
        return found


class _Strings:
    """The texts that cells refer to by number, without the readings that Japanese Excel keeps beside them."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._texts: list[str] = []
        self._in_text = False
        self._in_reading = False

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "si":
            self._texts = []
        elif name == "rPh":
            self._in_reading = True
        elif name == "t":
            self._in_text = not self._in_reading

    def end(self, name: str) -> None:
        if name == "si":
            self._found.append("".join(self._texts))
        elif name == "rPh":
            self._in_reading = False
        elif name == "t":
            self._in_text = False

    def text(self, text: str) -> None:
        if self._in_text:
            self._texts.append(text)

    def take(self) -> list[str]:
        found, self._found = self._found, []
        return found


class _Formats:
    """How cells of each style show a number: ``date``, ``time``, ``percentage``, or as it is."""

    def __init__(self) -> None:
        self._codes: dict[str, str] = {}
        self._found: list[str] = []
        self._in_cells = False

    def start(self, name: str, attributes: dict[str, str]) -> None:
        number = attributes.get("numFmtId", "0")
        if name == "numFmt":
            self._codes[number] = _shown_by(attributes.get("formatCode", ""))
        elif name == "cellXfs":
            self._in_cells = True
        elif name == "xf" and self._in_cells:
            self._found.append(self._codes.get(number) or _builtin(number))

    def end(self, name: str) -> None:
        if name == "cellXfs":
            self._in_cells = False

    def text(self, text: str) -> None: ...

    def take(self) -> list[str]:
        found, self._found = self._found, []
        return found


def _builtin(number: str) -> str:
    code = int(number) if number.isdecimal() and len(number) < 4 else 0
    if code in _BUILTIN_DATES:
        return "date"
    if code in _BUILTIN_TIMES:
        return "time"
    return "percentage" if code in _BUILTIN_PERCENTAGES else ""


def _shown_by(code: str) -> str:
    bare = _NOT_FORMAT.sub("", code).lower()
    if re.search(r"[yd]|(?<![a-z])e|ge", bare.replace("general", "")):
        return "date"
    if re.search(r"[hs]", bare):
        return "time"
    return "percentage" if "%" in bare else ""


class _Rows:
    def __init__(self, strings: list[str], formats: list[str], since_1904: bool) -> None:
        self._strings = strings
        self._formats = formats
        self._since_1904 = since_1904
        self._done: list[list[str]] = []
        self._cells: list[str] = []
        self._column = 0
        self._type = ""
        self._style = ""
        self._texts: list[str] = []
        self._in_value = False
        self._in_reading = False

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "c":
            self._place(attributes.get("r", ""))
            self._type = attributes.get("t", "n")
            self._style = attributes.get("s", "")
            self._texts = []
        elif name == "v" or (name == "t" and not self._in_reading):
            self._in_value = True
        elif name == "rPh":
            self._in_reading = True
        elif name == "row":
            self._cells, self._column = [], 0

    def end(self, name: str) -> None:
        if name in ("v", "t"):
            self._in_value = False
        elif name == "c":
            self._cells.append(self._shown("".join(self._texts)))
            self._column += 1
        elif name == "rPh":
            self._in_reading = False
        elif name == "row":
            if any(self._cells):
                self._done.append(self._cells)
            self._cells = []

    def text(self, text: str) -> None:
        if self._in_value:
            self._texts.append(text)

    def take(self) -> list[list[str]]:
        done, self._done = self._done, []
        return done

    def _place(self, reference: str) -> None:
        column = 0
        for letter in reference[:4]:
            if not "A" <= letter <= "Z":
                break
            column = column * 26 + ord(letter) - 64
        gap = column - 1 - self._column
        if gap > 0:
            self._cells.extend([""] * (gap if gap <= _PADDED else 1))
            self._column += gap

    def _shown(self, value: str) -> str:
        match self._type:
            case "s":
                index = int(value) if value.isdecimal() and len(value) < 10 else len(self._strings)
                return self._strings[index] if index < len(self._strings) else ""
            case "b":
                return {"1": "TRUE", "0": "FALSE"}.get(value, "")
            case "n":
                return self._number(value)
            case _:
                return value

    def _number(self, value: str) -> str:
        style = int(self._style) if self._style.isdecimal() and len(self._style) < 7 else 0
        shown_as = self._formats[style] if style < len(self._formats) else ""
        try:
            number = float(value)
            if shown_as == "percentage":
                return f"{number * 100:.10g}%"
            if shown_as:
                return _moment(number, shown_as, self._since_1904)
            return value if value.lstrip("-").isdecimal() else f"{number:.15g}"
        except (ValueError, OverflowError):
            return value


def _moment(days: float, shown_as: str, since_1904: bool) -> str:
    """A date, a time or both, in ISO 8601: what a cell's own format would make of it depends on who looks."""
    seconds = round(days * 86400)
    if shown_as == "time":
        return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    moment = _DAY_ONE[since_1904] + datetime.timedelta(seconds=seconds)
    return moment.date().isoformat() if seconds % 86400 == 0 else moment.isoformat(" ")
