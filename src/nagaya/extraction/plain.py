"""Plain text, tables in text, and JSON."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from nagaya.extraction.blocks import Block, table_row
from nagaya.extraction.limits import Refused

_PARAGRAPH_END: Final = re.compile(r"\n[ \t]*\n\s*")
_DELIMITERS: Final = ",\t;|"
_SAMPLE_CHARACTERS: Final = 16 * 1024
_LONGEST_CELL: Final = 16 * 1024 * 1024
_BLOCK_CHARACTERS: Final = 4000
_PATH_CHARACTERS: Final = 120


def read_text(text: str) -> Iterator[Block]:
    """The paragraphs of a text: what blank lines divide. Line feeds inside them stay."""
    start = 0
    for gap in _PARAGRAPH_END.finditer(text):
        yield from _paragraph(text[start : gap.start()])
        start = gap.end()
    yield from _paragraph(text[start:])


def _paragraph(text: str) -> Iterator[Block]:
    if clean := text.strip():
        yield Block("paragraph", clean)


def read_csv(text: str) -> Iterator[Block]:
    """The rows of a table in text, divided by commas, tabs, semicolons or bars, whichever its beginning has most of."""
    sample = text[:_SAMPLE_CHARACTERS]
    delimiter = max(_DELIMITERS, key=lambda mark: _regularity(sample, mark))
    csv.field_size_limit(_LONGEST_CELL)
    first = True
    try:
        for cells in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            if (row := table_row(cells, first=first)) is not None:
                first = False
                yield row
    except csv.Error as broken:
        raise Refused("corrupt", "a cell without end") from broken


def _regularity(sample: str, mark: str) -> float:
    """How much a mark looks like what divides cells: often there, and in each line as often."""
    counts = [line.count(mark) for line in sample.splitlines()[:50] if line.strip()]
    if not counts or not max(counts):
        return 0.0
    usual = max(set(counts), key=counts.count)
    return counts.count(usual) / len(counts) * (1 + min(usual, 20) / 100) if usual else 0.01


def read_json(text: str) -> Iterator[Block]:
    """A paragraph of ``path: value`` lines for each member of the outermost list or object; longer ones in several.
    Lines of JSON are read as a list."""
    try:
        members = _members(msgspec.json.decode(text))
    except msgspec.DecodeError:
        members = _lines(text)
    except RecursionError as deep:
        raise Refused("corrupt", "JSON that is nested too deeply") from deep
    for at, value in members:
        yield from _member(at, value)


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    match value:
        case dict():
            yield from value.items()
        case list():
            # Without its number: the third of a list is not called so by anybody.
            yield from (("", each) for each in value)
        case _:
            yield "", value


def _lines(text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield "", msgspec.json.decode(line)
            except (msgspec.DecodeError, RecursionError) as broken:
                raise Refused("corrupt", f"no JSON in line {number}") from broken


def _member(at: str, value: Any) -> Iterator[Block]:
    said: list[str] = []
    size = 0
    waiting: list[tuple[str, Any]] = [(at, value)]
    while waiting:
        path, each = waiting.pop()
        if isinstance(each, dict):
            waiting += [
                (f"{path}.{key}"[-_PATH_CHARACTERS:] if path else key, inner) for key, inner in reversed(each.items())
            ]
        elif isinstance(each, list):
            waiting += [(path, inner) for inner in reversed(each)]
        else:
            line = _line(path[-_PATH_CHARACTERS:], each)
            said.append(line)
            size += len(line)
            if size >= _BLOCK_CHARACTERS:
                yield from _paragraph("\n".join(said))
                said, size = [], 0
    yield from _paragraph("\n".join(said))


def _line(path: str, value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return f"{path}: {text}" if path else text
