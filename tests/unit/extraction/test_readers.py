"""What each reader makes of an honest document of its kind."""

from __future__ import annotations

import datetime
import io

import docx as word
import openpyxl
import pytest
from docx.enum.text import WD_BREAK

from nagaya.extraction.blocks import Block
from nagaya.extraction.formats import MEDIA_TYPES, Kind
from nagaya.extraction.limits import Limits, Refused
from nagaya.extraction.reading import read
from support import documents


def blocks(document: bytes | str, name: str = "", media_type: str | None = None) -> list[Block]:
    raw = document.encode() if isinstance(document, str) else document
    return list(read(raw, name=name, media_type=media_type, limits=Limits())[1])


def said(document: bytes | str, name: str = "", media_type: str | None = None) -> list[tuple[str, int, str]]:
    return [(block.kind, block.level, block.text) for block in blocks(document, name, media_type)]


def kind(document: bytes | str, name: str = "", media_type: str | None = None) -> Kind:
    raw = document.encode() if isinstance(document, str) else document
    return read(raw, name=name, media_type=media_type, limits=Limits())[0]


# --- which kind -----------------------------------------------------------------------------------------------


def test_bytes_win_over_names() -> None:
    assert kind(documents.pdf([[(11, 72, 700, "Hi")]]), "letter.docx", "text/plain") is Kind.PDF
    assert kind(documents.docx("<w:p><w:r><w:t>Hi</w:t></w:r></w:p>"), "table.xlsx") is Kind.DOCX
    assert kind(documents.xlsx('<row><c r="A1"><v>1</v></c></row>'), "letter.docx") is Kind.XLSX
    assert kind(documents.pptx(documents.shape("Hi")), "x.zip") is Kind.PPTX


def test_names_and_media_types_tell_texts_apart() -> None:
    assert kind("a,b", "x.csv") is Kind.CSV
    assert kind("a,b", "x", "text/csv; charset=utf-8") is Kind.CSV
    assert kind("a,b", "x.md", "text/plain") is Kind.MARKDOWN
    assert kind("a,b", "README") is Kind.TEXT
    assert kind("<!DOCTYPE html><p>a") is Kind.HTML
    assert kind("<p>a", "a.html") is Kind.HTML
    assert kind('{"a": 1}', "x", "application/json") is Kind.JSON
    assert {kind("1", "x", media_type) for media_type in MEDIA_TYPES.values() if "officedocument" not in media_type and "pdf" not in media_type} == {
        Kind.HTML, Kind.MARKDOWN, Kind.CSV, Kind.JSON, Kind.TEXT,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("document", "name", "reason"),
    [
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "photo.txt", "corrupt"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 50, "photo.jpg", "corrupt"),
        (b"PK\x05\x06" + b"\0" * 18, "empty.zip", "unsupported"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "old.doc", "unsupported"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"), "secret.docx", "encrypted"),
        (b"{\\rtf1 hello}", "x.rtf", "unsupported"),
        (b"plain words", "report.pdf", "corrupt"),
        (b"plain words", "report.docx", "corrupt"),
        (b"", "empty.txt", "no_text"),
        (b" \n \n", "empty.md", "no_text"),
    ],
)
def test_what_is_not_read_is_refused_with_its_reason(document: bytes, name: str, reason: str) -> None:
    with pytest.raises(Refused) as refused:
        blocks(document, name)
    assert refused.value.reason == reason


# --- text -----------------------------------------------------------------------------------------------------


def test_a_text_is_its_paragraphs() -> None:
    assert said("One\nline.\n\n \nTwo。\n") == [("paragraph", 0, "One\nline."), ("paragraph", 0, "Two。")]


def test_a_long_paragraph_comes_in_several_and_is_whole() -> None:
    text = "The roof is old. " * 5000
    found = blocks(text)
    assert len(found) > 3
    assert " ".join(block.text for block in found).split() == text.split()


def test_markdown_is_read_without_its_marks() -> None:
    text = """---
title: Roofs
---
# A *big* title

A [link](http://x.example) and `code`,
on two lines. 日本語の
文。

1. one
   - inner

> quoted

| Item | Price |
|------|-------|
| Tile | 3     |

```python
if x:
    y()
```

Setext
======
"""
    assert said(text, "a.md") == [
        ("code", 0, "title: Roofs"),
        ("heading", 1, "A big title"),
        ("paragraph", 0, "A link and code, on two lines. 日本語の文。"),
        ("list_item", 1, "one"),
        ("list_item", 2, "inner"),
        ("paragraph", 0, "quoted"),
        ("table_row", 0, "Item | Price"),
        ("table_row", 1, "Tile | 3"),
        ("code", 0, "if x:\n    y()"),
        ("heading", 1, "Setext"),
    ]


def test_html_is_read_as_a_person_sees_it() -> None:
    text = """<!doctype html><html><head><title>Roofs</title><style>p {}</style><script>alert("<p>no</p>")</script></head>
    <body><h1>Roofs</h1><p>An <b>old</b> roof&nbsp;&amp; a <a href="x">new</a> one.<br>Next<p>日本語の
    文章。<ruby>瓦<rp>(</rp><rt>かわら</rt></ruby></p><ul><li>one<ul><li>inner</ul><li>two</ul>
    <table><tr><th>Item<th>Price<tr><td>Tile<td><p>3</p><p>yen</p></table><pre>a
      b</pre><img alt="A roof"><noscript>no</noscript></body></html>"""
    assert said(text) == [
        ("heading", 1, "Roofs"),
        ("paragraph", 0, "An old roof & a new one. Next"),
        ("paragraph", 0, "日本語の文章。瓦"),
        ("list_item", 1, "one"),
        ("list_item", 2, "inner"),
        ("list_item", 1, "two"),
        ("table_row", 0, "Item | Price"),
        ("table_row", 1, "Tile | 3 yen"),
        ("code", 0, "a\n      b"),
        ("paragraph", 0, "A roof"),
    ]


def test_a_title_that_is_not_the_first_heading_stands_above_it() -> None:
    assert said("<html><title>Site</title><p>Text") == [("heading", 1, "Site"), ("paragraph", 0, "Text")]
    assert said("<html><title>Site</title>") == [("heading", 1, "Site")]


@pytest.mark.parametrize("mark", [",", "\t", ";", "|"])
def test_a_table_in_text_is_its_rows_whatever_divides_them(mark: str) -> None:
    text = f'name{mark}note\nKato{mark}"a{mark} b\nc"\n\nSato{mark}\n'
    assert said(text, "a.csv") == [
        ("table_row", 0, "name | note"),
        ("table_row", 1, f"Kato | a{mark} b c".replace("\t ", " ")),
        ("table_row", 1, "Sato"),
    ]


def test_json_is_lines_of_paths_and_values() -> None:
    assert said('[{"a": 1, "b": {"c": ["x", null]}}, "屋根"]', "a.json") == [
        ("paragraph", 0, "a: 1\nb.c: x\nb.c: null"),
        ("paragraph", 0, "屋根"),
    ]
    assert said('{"name": "Kato", "tags": [1, 2]}', "a.json") == [
        ("paragraph", 0, "name: Kato"),
        ("paragraph", 0, "tags: 1\ntags: 2"),
    ]
    assert said('{"a": 1}\n\n{"a": 2}\n', "a.jsonl") == [("paragraph", 0, "a: 1"), ("paragraph", 0, "a: 2")]


# --- office ---------------------------------------------------------------------------------------------------


def saved(document: object) -> bytes:
    out = io.BytesIO()
    document.save(out)  # type: ignore[attr-defined]  # a document of either library
    return out.getvalue()


def test_a_word_document_as_word_libraries_write_it() -> None:
    document = word.Document()
    document.add_heading("屋根の報告", 0)
    document.add_heading("Roofs", 1)
    paragraph = document.add_paragraph("An old ")
    paragraph.add_run("roof").bold = True
    paragraph.add_run().add_break(WD_BREAK.LINE)
    paragraph.add_run("second line\tafter a tab")
    document.add_paragraph("one", style="List Bullet")
    table = document.add_table(rows=2, cols=2)
    for at, text in enumerate(("Item", "Price", "Tile", "3")):
        table.cell(at // 2, at % 2).text = text
    document.add_paragraph("end")
    assert said(saved(document)) == [
        ("heading", 1, "屋根の報告"),
        ("heading", 1, "Roofs"),
        ("paragraph", 0, "An old roof\nsecond line\tafter a tab"),
        ("paragraph", 0, "one"),
        ("table_row", 0, "Item | Price"),
        ("table_row", 1, "Tile | 3"),
        ("paragraph", 0, "end"),
    ]


def test_a_word_document_is_read_as_it_is_printed() -> None:
    body = """
    <w:p><w:pPr><w:outlineLvl w:val="1"/></w:pPr><w:r><w:t>Level two</w:t></w:r></w:p>
    <w:p><w:pPr><w:numPr><w:ilvl w:val="1"/><w:numId w:val="3"/></w:numPr></w:pPr><w:r><w:t>deep</w:t></w:r></w:p>
    <w:p><w:ins><w:r><w:t>put in</w:t></w:r></w:ins><w:del><w:r><w:delText>taken out</w:delText></w:r></w:del></w:p>
    <w:sdt><w:sdtContent><w:p><w:r><w:t>in a control</w:t></w:r></w:p></w:sdtContent></w:sdt>
    <w:p><w:r><w:lastRenderedPageBreak/><w:t>page two</w:t></w:r><w:r><w:instrText>PAGE</w:instrText></w:r></w:p>
    <w:p><w:r><w:ruby><w:rt><w:r><w:t>かわら</w:t></w:r></w:rt><w:rubyBase><w:r><w:t>瓦</w:t></w:r></w:rubyBase></w:ruby></w:r></w:p>
    <w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t></w:r></w:p><w:tbl><w:tr><w:tc><w:p><w:r><w:t>b</w:t></w:r></w:p></w:tc></w:tr></w:tbl><w:p/></w:tc></w:tr></w:tbl>
    """
    found = blocks(documents.docx(body))
    assert [(block.kind, block.level, block.text, block.page) for block in found] == [
        ("heading", 2, "Level two", None),
        ("list_item", 2, "deep", None),
        ("paragraph", 0, "put in", None),
        ("paragraph", 0, "in a control", None),
        ("paragraph", 0, "page two", 2),
        ("paragraph", 0, "瓦", 2),
        ("table_row", 0, "a b", 2),
    ]


def test_a_word_documents_notes_come_after_it() -> None:
    notes = '<w:footnotes xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:footnote><w:p><w:r><w:t>A note.</w:t></w:r></w:p></w:footnote></w:footnotes>'
    rels = documents.relations(("rId1", "footnotes", "footnotes.xml"))
    document = documents.docx(
        "<w:p><w:r><w:t>Text.</w:t></w:r></w:p>",
        **{"word/_rels/document.xml.rels": rels, "word/footnotes.xml": notes},
    )
    assert said(document) == [("paragraph", 0, "Text."), ("paragraph", 0, "A note.")]


def test_a_workbook_shows_values_as_its_cells_do() -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.title = "在庫"
    sheet.append(["Stock of roofs"])
    sheet.append(["Item", "Price", "Since", "At", "Share", "Good"])
    sheet.append(["瓦", 0.1 + 0.2, datetime.date(2024, 5, 17), datetime.time(9, 30), 0.25, True])
    sheet["E3"].number_format = "0%"
    sheet["C4"] = datetime.datetime(2024, 5, 17, 9, 30)
    sheet["A4"] = 12345678901
    sheet["B4"] = "=1+1"
    sheet["XFD5"] = "far away"
    book.create_sheet("Empty")
    book.create_sheet("Second").append(["x", "y"])
    found = blocks(saved(book))
    assert [(block.kind, block.level, block.text, block.page) for block in found] == [
        ("heading", 1, "在庫", 1),
        ("paragraph", 0, "Stock of roofs", 1),
        ("table_row", 0, "Item | Price | Since | At | Share | Good", 1),
        ("table_row", 1, "瓦 | 0.3 | 2024-05-17 | 09:30:00 | 25% | TRUE", 1),
        ("table_row", 1, "12345678901 |  | 2024-05-17 09:30:00", 1),
        ("table_row", 1, "| far away", 1),
        ("heading", 1, "Second", 3),
        ("table_row", 0, "x | y", 3),
    ]


def test_a_workbooks_readings_over_kanji_are_left_out() -> None:
    strings = "<si><r><t>東</t></r><r><t>京</t></r><rPh sb='0' eb='2'><t>トウキョウ</t></rPh></si>"
    rows = "<row><c t='s'><v>0</v></c><c t='inlineStr'><is><t>x</t></is></c><c t='s'><v>99</v></c></row>"
    assert said(documents.xlsx(rows, strings=strings))[1:] == [("table_row", 0, "東京 | x")]


def test_a_presentation_is_read_in_the_order_of_showing() -> None:
    table = (
        "<p:graphicFrame><a:tbl><a:tr><a:tc><a:txBody><a:p><a:r><a:t>Item</a:t></a:r></a:p></a:txBody></a:tc></a:tr>"
        "<a:tr><a:tc><a:txBody><a:p><a:r><a:t>瓦</a:t></a:r></a:p></a:txBody></a:tc></a:tr></a:tbl></p:graphicFrame>"
    )
    first = documents.shape("First", "title") + documents.shape("a point", "body") + documents.shape("free")
    second = documents.shape("Second", "ctrTitle") + documents.shape("7", "sldNum") + table
    found = blocks(documents.pptx(first, second, notes=documents.shape("Say hello", "body")))
    assert [(block.kind, block.level, block.text, block.page) for block in found] == [
        ("heading", 1, "First", 1),
        ("list_item", 1, "a point", 1),
        ("paragraph", 0, "free", 1),
        ("list_item", 1, "Say hello", 1),
        ("heading", 1, "Second", 2),
        ("table_row", 0, "Item", 2),
        ("table_row", 1, "瓦", 2),
    ]


# --- PDF ------------------------------------------------------------------------------------------------------


def test_a_pdf_has_headings_paragraphs_and_items_by_size_and_place() -> None:
    document = documents.pdf(
        [
            [
                (24, 72, 760, "Annual report"), (16, 72, 720, "1. Roofs"),
                (11, 72, 690, "The roof of the old warehouse was re-"), (11, 72, 676, "paired in spring. It took three weeks and more"),
                (11, 72, 662, "money than anybody had thought."), (11, 72, 630, "A second paragraph."),
                (11, 72, 610, "- an item"), (11, 72, 596, "- another"),
            ],
            [
                (16, 72, 760, "第二章　屋根の修理"), (11, 72, 730, "昨年の春、古い倉庫の屋根を修理しました。加藤屋根工業が割れた"),
                (11, 72, 716, "瓦を四十枚取り替えました。𠮷野家。"),
            ],
        ]
    )  # fmt: skip
    found = blocks(document)
    assert [(block.kind, block.level, block.text, block.page) for block in found] == [
        ("heading", 1, "Annual report", 1),
        ("heading", 2, "1. Roofs", 1),
        ("paragraph", 0, "The roof of the old warehouse was repaired in spring. It took three weeks and more money than anybody had thought.", 1),
        ("paragraph", 0, "A second paragraph.", 1),
        ("list_item", 1, "- an item", 1),
        ("list_item", 1, "- another", 1),
        ("heading", 3, "第二章　屋根の修理", 2),
        ("paragraph", 0, "昨年の春、古い倉庫の屋根を修理しました。加藤屋根工業が割れた瓦を四十枚取り替えました。𠮷野家。", 2),
    ]  # fmt: skip


def test_the_columns_of_a_page_are_read_one_after_the_other() -> None:
    lines = [
        (11.0, left, 780.0 - 14 * line, f"{side} column line {line} goes on and on")
        for side, left in (("Left", 50.0), ("Right", 310.0))
        for line in range(6)
    ]
    document = documents.pdf(
        [[(11, 50, 810, "A line over both columns, as wide as the page is, such as a title"), *lines]]
    )
    title, left, right = blocks(document)
    assert title.text.startswith("A line over both")
    assert left.text.count("Left") == right.text.count("Right") == 6


def test_short_lines_of_a_japanese_contract_are_paragraphs_of_their_own() -> None:
    lines = [
        "第1条（目的）",
        "この規程は、会社の旅費について定める。",
        "第2条（適用）",
        "この規程は、すべての社員に適用する。",
    ]
    document = documents.pdf([[(10, 50, 700 - 16 * number, line) for number, line in enumerate(lines)]])
    assert [block.text for block in blocks(document)] == lines


def test_a_pdf_of_pictures_only_says_that_it_has_no_text() -> None:
    with pytest.raises(Refused) as refused:
        blocks(documents.pdf([[], []]))
    assert refused.value.reason == "no_text"
