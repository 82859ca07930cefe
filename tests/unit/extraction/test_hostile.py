"""Documents made to hurt: each is refused with its reason, in little time and memory, by the process that reads."""

from __future__ import annotations

import io
import random
import tracemalloc
import zipfile
from collections.abc import Iterator

import msgspec
import pytest

from nagaya.extraction.blocks import Block
from nagaya.extraction.chunks import Strategy, chunked
from nagaya.extraction.limits import Limits, Refused
from nagaya.extraction.reading import read
from support import documents
from support.bombs import LAUGHS

LIMITS = Limits(unpacked_bytes=8 * 1024 * 1024)
OUTSIDE = '<!DOCTYPE x [<!ENTITY a9 SYSTEM "file:///etc/passwd">]>'


def blocks(document: bytes | str, name: str = "", limits: Limits = LIMITS) -> Iterator[Block]:
    raw = document.encode() if isinstance(document, str) else document
    return read(raw, name=name, media_type=None, limits=limits)[1]


def refused(document: bytes | str, name: str = "", limits: Limits = LIMITS) -> str:
    with pytest.raises(Refused) as verdict:
        for _ in blocks(document, name, limits):
            pass
    return verdict.value.reason


def zeros(size: int) -> str:
    return f"<w:p><w:r><w:t>{'0' * size}</w:t></w:r></w:p>"


# --- archives -------------------------------------------------------------------------------------------------


def test_a_zip_bomb_is_stopped_while_it_unpacks() -> None:
    bomb = documents.docx(zeros(64 * 1024 * 1024))
    assert len(bomb) < 200_000
    tracemalloc.start()
    try:
        assert refused(bomb) == "too_large"
        assert refused(bomb, limits=Limits()) == "too_large", "the ratio alone is enough"
        assert tracemalloc.get_traced_memory()[1] < 24 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_a_header_that_lies_about_the_unpacked_size_gains_nothing() -> None:
    bomb = bytearray(documents.docx(zeros(4 * 1024 * 1024)))
    # The size in the directory, after its mark and 20 more bytes: made small, for every entry.
    at = -1
    while (at := bomb.find(b"PK\1\2", at + 1)) >= 0:
        bomb[at + 24 : at + 28] = (100).to_bytes(4, "little")
    assert refused(bytes(bomb)) in ("corrupt", "too_large")


def test_parts_that_are_each_small_are_too_large_together() -> None:
    noise = random.Random(1).randbytes(64 * 1024).hex()
    note = f"<w:footnotes xmlns:w='w'><w:p><w:r><w:t>{noise * 16}</w:t></w:r></w:p></w:footnotes>"
    rels = documents.relations(*((f"r{number}", "footnotes", f"n{number}.xml") for number in range(8)))
    parts = {f"word/n{number}.xml": note for number in range(8)}
    assert refused(documents.docx("", **{"word/_rels/document.xml.rels": rels, **parts})) == "too_large"


def test_one_part_shown_a_thousand_times_counts_a_thousand_times() -> None:
    noise = random.Random(2).randbytes(32 * 1024).hex()
    rels = documents.relations(*((f"r{number}", "footnotes", "n.xml") for number in range(1000)))
    note = f"<w:footnotes xmlns:w='w'><w:p><w:r><w:t>{noise}</w:t></w:r></w:p></w:footnotes>"
    document = documents.docx("", **{"word/_rels/document.xml.rels": rels, "word/n.xml": note})
    assert refused(document) == "too_large"


def test_an_archive_in_an_archive_is_never_opened() -> None:
    inner = documents.archive({"bomb": "0" * 64 * 1024 * 1024})
    for _ in range(3):
        inner = documents.archive({"inner.zip": inner})
    assert refused(inner, "nested.zip") == "unsupported"
    document = documents.docx("<w:p><w:r><w:t>Hi</w:t></w:r></w:p>", **{"word/embeddings/x.zip": inner})
    assert [block.text for block in blocks(document)] == ["Hi"]


def test_an_archive_of_very_many_files_is_refused_by_their_number() -> None:
    many = documents.docx("", **{f"x/{number}": "" for number in range(200)})
    assert refused(many, limits=Limits(archive_entries=100)) == "too_many_parts"


def test_an_archive_under_a_password_says_so() -> None:
    locked = bytearray(documents.docx("<w:p/>"))
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = -1
        while (at := locked.find(mark, at + 1)) >= 0:
            locked[at + flags] |= 1
    assert refused(bytes(locked)) == "encrypted"


@pytest.mark.parametrize("cut", [4, 30, 200, 400])
def test_an_archive_that_was_cut_off_is_corrupt(cut: int) -> None:
    assert refused(documents.docx(zeros(1000))[:cut], "a.docx") == "corrupt"


def test_an_archive_with_damaged_bytes_is_corrupt() -> None:
    document = documents.docx("".join(f"<w:p><w:r><w:t>{number * 7919}</w:t></w:r></w:p>" for number in range(2000)))
    with zipfile.ZipFile(io.BytesIO(document)) as file:
        start = file.getinfo("word/document.xml").header_offset + 60
    damaged = document[:start] + bytes(byte ^ 0x55 for byte in document[start : start + 200]) + document[start + 200 :]
    assert refused(damaged) == "corrupt"


def test_a_part_outside_the_archive_cannot_be_named() -> None:
    rels = documents.relations(("r1", "footnotes", "../../../../etc/passwd"), ("r2", "styles", "/etc/passwd"))
    document = documents.docx("<w:p><w:r><w:t>Hi</w:t></w:r></w:p>", **{"word/_rels/document.xml.rels": rels})
    assert [block.text for block in blocks(document)] == ["Hi"]


# --- XML and HTML ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [LAUGHS, OUTSIDE], ids=["billion laughs", "outside"])
def test_entities_are_not_let_in(before: str) -> None:
    assert refused(documents.docx("<w:p><w:r><w:t>&a9;</w:t></w:r></w:p>", before=before)) == "corrupt"
    assert refused(documents.xlsx("", strings="<si><t>&a9;</t></si>", before=before)) == "corrupt"
    wide = documents.docx("", **{"word/document.xml": f"{before}<document>&a9;</document>".encode("utf-16")})
    assert refused(wide) == "corrupt"
    page = "".join(block.text for block in blocks(before.replace("x [", "html [") + "<html><p>&a9; text"))
    assert "text" in page
    assert "haha" not in page
    assert "root:" not in page


def test_xml_of_endless_depth_costs_no_stack() -> None:
    deep = "<w:x>" * 200_000 + "<w:p><w:r><w:t>Hi</w:t></w:r></w:p>" + "</w:x>" * 200_000
    # Stored as it is: packed, it would be refused for how well it packs.
    document = documents.docx(deep, packed=False)
    assert [block.text for block in blocks(document)] == ["Hi"]


@pytest.mark.parametrize("tag", ["div", "table><tr><td", "ul><li", "b", "pre", "template", "h1"])
def test_html_of_endless_depth_costs_no_stack(tag: str) -> None:
    deep = "<p>Hi</p>" + f"<{tag}>" * 100_000 + "Ho"
    assert next(blocks("<!doctype html>" + deep)).text == "Hi"
    for _ in blocks("<!doctype html>" + deep):
        pass


@pytest.mark.parametrize("piece", ["<", "<!--", "<a ", "&", "</", "<![CDATA[", "<a href='", "<?"])
def test_html_that_never_closes_is_read_in_its_time(piece: str) -> None:
    for _ in blocks("<!doctype html><p>Hi</p>" + piece * 20_000):
        pass


def test_a_workbook_that_declares_a_million_rows_costs_what_it_holds() -> None:
    rows = '<row r="1"><c r="A1"><v>1</v></c></row><row r="1048576"><c r="XFD1048576"><v>2</v></c></row>'
    assert [block.text for block in blocks(documents.xlsx(rows))] == ["Stock", "1", "2"]


def test_a_million_empty_rows_are_no_blocks() -> None:
    rows = "".join(f'<row r="{number}"/>' for number in range(1, 1_000_001))
    assert refused(documents.xlsx(rows), limits=Limits()) == "no_text"


def test_cells_with_absurd_numbers_stay_what_they_are() -> None:
    rows = "<row>" + "".join(
        f'<c r="{place}" t="{kind}" s="{style}"><v>{value}</v></c>'
        for place, kind, style, value in [
            ("A1", "n", "0", "1e308"), ("B1", "n", "1", "1e308"), ("C1", "s", "0", "-1"), ("D1", "s", "0", "9" * 5000),
            ("E1", "n", "9" * 5000, "nan"), ("ZZZZZZ1", "zzz", "-1", "text"), ("F1", "n", "1", "-5"),
        ]
    ) + "</row>"  # fmt: skip
    styles = '<cellXfs><xf numFmtId="0"/><xf numFmtId="14"/></cellXfs>'
    (_, row) = blocks(documents.xlsx(rows, styles=styles))
    assert row.text.startswith("1e+308 | 1e308 |")


def test_levels_with_absurd_numbers_are_levels() -> None:
    numbers = ("9" * 5000, "-1", "²", "", "99999")
    body = "".join(
        f'<w:p><w:pPr><w:outlineLvl w:val="{number}"/><w:numPr><w:ilvl w:val="{number}"/></w:numPr></w:pPr>'
        f"<w:r><w:t>Hi</w:t></w:r></w:p>"
        for number in numbers
    )
    slide = "".join(f'<a:p><a:pPr lvl="{number}"/><a:r><a:t>Hi</a:t></a:r></a:p>' for number in numbers)
    for document in (documents.docx(body), documents.pptx(f'<p:sp><p:ph type="body"/>{slide}</p:sp>')):
        found = list(blocks(document))
        assert len(found) == len(numbers)
        assert all(block.level <= 9 for block in found)


# --- PDF ------------------------------------------------------------------------------------------------------

PAGE = documents.pdf([[(11, 72, 700, "A line of text.")]] * 3)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.98])
def test_a_pdf_that_was_cut_off_is_corrupt(share: float) -> None:
    assert refused(PAGE[: int(len(PAGE) * share)], "a.pdf") == "corrupt"


def test_a_pdf_of_rubbish_is_corrupt() -> None:
    rubbish = random.Random(3).randbytes(100_000)
    assert refused(b"%PDF-1.7\n" + rubbish + b"\n%%EOF\n") == "corrupt"


def test_a_pdf_under_a_password_says_so() -> None:
    locked = documents.pdf(
        [[(11, 72, 700, "Hi")]],
        trailer=b"/ID [<00><00>] /Encrypt << /Filter /Standard /V 2 /R 3 /Length 128 /P -4 /O <%s> /U <%s> >>"
        % (b"41" * 32, b"42" * 32),
    )
    assert refused(locked) == "encrypted"


def test_a_pdf_whose_references_go_in_a_circle_ends() -> None:
    circle = documents.pdf_of(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R 2 0 R] /Count 4 >>",
            b"<< /Type /Pages /Parent 2 0 R /Kids [2 0 R 3 0 R] /Count 2 >>",
        ]
    )
    assert refused(circle) in ("corrupt", "no_text")
    lengths = documents.pdf_of(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox 5 0 R /Contents 4 0 R /Resources 5 0 R >>",
            b"<< /Length 4 0 R /Filter 5 0 R >>\nstream\nx\nendstream",
            b"[5 0 R 5 0 R 5 0 R 5 0 R]",
        ]
    )
    assert refused(lengths) in ("corrupt", "no_text")


def test_a_pdf_that_declares_a_million_pages_is_refused_by_their_number() -> None:
    assert refused(PAGE.replace(b"/Count 3", b"/Count 99999"), limits=Limits(pages=100)) in (
        "corrupt",
        "too_many_parts",
    )
    assert refused(documents.pdf([[(11, 72, 700, "x")]] * 11), limits=Limits(pages=10)) == "too_many_parts"


# --- text -----------------------------------------------------------------------------------------------------


def test_a_single_line_of_ten_megabytes_is_read_in_blocks() -> None:
    for name in ("a.txt", "a.md", "a.html", "a.csv"):
        found = list(blocks("<p>" + "wörter " * 1_500_000, name, Limits()))
        assert len(found) > 500
        assert max(len(block.text) for block in found) <= 16 * 1024


@pytest.mark.parametrize("piece", ["[", "*", "_a", "`", "> ", "- ", "![", "<", "|", "[](", "* *", "&", "\\"])
def test_markdown_made_to_be_slow_is_read_in_its_time(piece: str) -> None:
    for _ in blocks("# Hi\n\n" + piece * 10_000, "a.md"):
        pass


def test_json_of_endless_depth_is_corrupt() -> None:
    assert refused("[" * 100_000, "a.json") == "corrupt"
    assert refused("[" * 100_000 + "]" * 100_000, "a.json") == "corrupt"
    assert refused('{"a": 1', "a.json") == "corrupt"


def test_json_with_long_keys_does_not_multiply_them() -> None:
    values = ",".join("1" for _ in range(20_000))
    found = list(blocks(f'{{"{"k" * 100_000}": {{"in": [{values}]}}}}', "a.json"))
    assert sum(len(block.text) for block in found) < 5_000_000


def test_a_cell_without_end_is_one_cell_or_an_error() -> None:
    found = list(blocks('a,b\n1,"' + "x\n" * 100_000, "a.csv"))
    assert found[0].text == "a | b"
    assert refused('a,b\n1,"' + "x" * (17 * 1024 * 1024), "a.csv", Limits()) == "corrupt"


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html", "a.csv", "a.json"])
def test_text_with_nuls_is_no_text(name: str) -> None:
    assert refused(b"some text\0 and more", name) == "unsupported"


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(document_bytes=100), "too_large"),
        (Limits(characters=100), "too_large"),
        (Limits(blocks=3), "too_many_parts"),
    ],
)
def test_a_document_over_a_limit_is_refused_by_it(limits: Limits, reason: str) -> None:
    assert refused("A paragraph of words.\n\n" * 50, "a.txt", limits) == reason


def test_halves_of_characters_do_not_reach_a_store() -> None:
    for block in blocks("<p>&#xD800;x", "a.html"):
        block.text.encode()
    assert refused('["\\ud800"]', "a.json") == "corrupt"


def test_rubbish_of_every_kind_is_refused_or_read() -> None:
    """Each kind of document, with random bytes changed: never anything but blocks or a verdict."""
    chance = random.Random(4)
    honest = [
        ("a.docx", documents.docx(zeros(300))), ("a.pptx", documents.pptx(documents.shape("Hi", "title"))),
        ("a.xlsx", documents.xlsx('<row><c r="A1"><v>1</v></c></row>')), ("a.pdf", PAGE), ("a.html", b"<p>Hi<table><tr><td>x"),
        ("a.md", b"# Hi\n\n- a\n\n|a|\n|-|\n|b|\n"), ("a.csv", b"a,b\n1,2\n"), ("a.json", b'{"a": [1, {"b": null}]}'),
    ]  # fmt: skip
    for name, document in honest:
        for _ in range(60):
            changed = bytearray(document)
            for _ in range(chance.randint(1, 8)):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            try:
                for chunk in chunked(blocks(bytes(changed), name), Strategy(100, 50)):
                    msgspec.json.encode(chunk)
            except Refused:
                pass
