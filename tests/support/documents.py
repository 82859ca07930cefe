"""Documents made for tests: small honest ones, and the parts that hostile ones are built from."""

from __future__ import annotations

import io
import zipfile
from collections.abc import AsyncIterator, Iterable, Mapping

Placed = tuple[float, float, float, str]
"""Size, left, bottom and text of a line on a page."""

_FONTS = (
    b"<< /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> /F2 << /Type /Font /Subtype /Type0 "
    b"/BaseFont /HeiseiMin-W3 /Encoding /UniJIS-UTF16-H /DescendantFonts [<< /Type /Font /Subtype /CIDFontType0 "
    b"/BaseFont /HeiseiMin-W3 /CIDSystemInfo << /Registry (Adobe) /Ordering (Japan1) /Supplement 5 >> /DW 1000 "
    b"/FontDescriptor << /Type /FontDescriptor /FontName /HeiseiMin-W3 /Flags 4 /FontBBox [0 -200 1000 900] "
    b"/ItalicAngle 0 /Ascent 800 /Descent -200 /CapHeight 700 /StemV 80 >> >>] >> >>"
)


async def pieces(document: bytes, size: int = 64 * 1024) -> AsyncIterator[bytes]:
    for start in range(0, len(document), size):
        yield document[start : start + size]


def show(size: float, left: float, bottom: float, text: str) -> bytes:
    """A line of text as a PDF page draws it, in Helvetica, or in a Japanese font."""
    if text.isascii():
        font, drawn = "F1", "(" + text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)") + ")"
    else:
        font, drawn = "F2", f"<{text.encode('utf-16-be').hex()}>"
    return f"BT /{font} {size} Tf {left} {bottom} Td {drawn} Tj ET\n".encode()


def pdf(pages: Iterable[Iterable[Placed]], *, trailer: bytes = b"", padding: bytes = b"") -> bytes:
    """A PDF of these lines. ``padding`` is a stream of its own that every page refers to nowhere."""
    contents = [b"".join(show(*line) for line in page) for page in pages]
    kids = b" ".join(b"%d 0 R" % (4 + 2 * number) for number in range(len(contents)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(contents)),
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(padding), padding),
    ]
    for number, content in enumerate(contents):
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font %s >> /Contents %d 0 R >>"
            % (_FONTS, 5 + 2 * number)
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    return pdf_of(objects, trailer=trailer)


def pdf_of(objects: list[bytes], *, trailer: bytes = b"") -> bytes:
    """A PDF of these objects, numbered from 1; the first is its catalog."""
    out = io.BytesIO()
    out.write(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n")
    places = []
    for number, body in enumerate(objects, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    table = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.write(b"".join(b"%010d 00000 n \n" % place for place in places))
    out.write(b"trailer << /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, table))
    return out.getvalue()


def archive(entries: Mapping[str, bytes | str], *, packed: bool = True) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as file:
        for name, body in entries.items():
            file.writestr(name, body)
    return out.getvalue()


_W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
_R = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
_S = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
_A = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
_P = 'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"'
_TYPE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def relations(*targets: tuple[str, str, str]) -> str:
    """A part's relationships: id, kind and target of each."""
    inner = "".join(f'<Relationship Id="{id}" Type="{_TYPE}/{kind}" Target="{to}"/>' for id, kind, to in targets)
    return (
        f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{inner}</Relationships>'
    )


def docx(body: str, *, before: str = "", packed: bool = True, **more: bytes | str) -> bytes:
    """A Word document with this body; ``before`` stands before its root element."""
    document = f"<?xml version='1.0'?>{before}<w:document {_W} {_R}><w:body>{body}</w:body></w:document>"
    return archive({"[Content_Types].xml": "<Types/>", "word/document.xml": document, **more}, packed=packed)


def xlsx(rows: str, *, before: str = "", strings: str = "", styles: str = "") -> bytes:
    """A workbook with one sheet of these rows."""
    return archive(
        {
            "[Content_Types].xml": "<Types/>",
            "xl/workbook.xml": f'<workbook {_S} {_R}><sheets><sheet name="Stock" sheetId="1" r:id="rId1"/></sheets></workbook>',
            "xl/_rels/workbook.xml.rels": relations(
                ("rId1", "worksheet", "worksheets/sheet1.xml"),
                ("rId2", "sharedStrings", "sharedStrings.xml"),
                ("rId3", "styles", "styles.xml"),
            ),
            "xl/sharedStrings.xml": f"<?xml version='1.0'?>{before}<sst {_S}>{strings}</sst>",
            "xl/styles.xml": f"<styleSheet {_S}>{styles}</styleSheet>",
            "xl/worksheets/sheet1.xml": (
                f'<worksheet {_S}><dimension ref="A1:XFD1048576"/><sheetData>{rows}</sheetData></worksheet>'
            ),
        }
    )


def pptx(*slides: str, notes: str | None = None) -> bytes:
    """A presentation of these slides, each the inside of a shape tree; the notes are the first one's."""
    # Part names are the other way round than the order of showing: the order is the presentation's.
    files = {number: f"slide{len(slides) - number}.xml" for number in range(len(slides))}
    order = "".join(f'<p:sldId r:id="rId{number}" id="{256 + number}"/>' for number in files)
    entries: dict[str, bytes | str] = {
        "[Content_Types].xml": "<Types/>",
        "ppt/presentation.xml": f"<p:presentation {_P} {_R}><p:sldIdLst>{order}</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels": relations(
            *((f"rId{number}", "slide", f"slides/{file}") for number, file in files.items())
        ),
    }
    for number, file in files.items():
        entries[f"ppt/slides/{file}"] = (
            f"<p:sld {_P} {_A}><p:cSld><p:spTree>{slides[number]}</p:spTree></p:cSld></p:sld>"
        )
    if notes is not None:
        entries[f"ppt/slides/_rels/{files[0]}.rels"] = relations(("rId1", "notesSlide", "../notesSlides/n.xml"))
        entries["ppt/notesSlides/n.xml"] = f"<p:notes {_P} {_A}><p:spTree>{notes}</p:spTree></p:notes>"
    return archive(entries)


def shape(text: str, placeholder: str | None = None) -> str:
    """A shape of a slide with one paragraph."""
    kind = "" if placeholder is None else f'<p:nvPr><p:ph type="{placeholder}"/></p:nvPr>'
    return f"<p:sp>{kind}<p:txBody><a:p><a:r><a:t>{text}</a:t></a:r></a:p></p:txBody></p:sp>"
