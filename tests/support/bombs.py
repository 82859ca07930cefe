"""Files made to hurt whoever reads them, built without the memory or the time that reading them would take."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib

from support import documents

_SAME_BYTES = 16 * 1024 * 1024
_LAUGHS = "".join(f"<!ENTITY a{number} '{f'&a{number - 1};' * 10}'>" for number in range(1, 10))
LAUGHS = f"<!DOCTYPE x [<!ENTITY a0 'ha'>{_LAUGHS}]>"
"""A document type whose entity ``a9`` is two gigabytes of laughter."""


def zip_bomb(size: int = 4_000_000_000) -> bytes:
    """A Word document whose text unpacks to four gigabytes."""
    start = (
        b"<w:document xmlns:w='http://schemas.openxmlformats.org/wordprocessingml/2006/main'><w:body><w:p><w:r><w:t>"
    )
    return _with_bomb(documents.docx(""), "word/document.xml", start, b"0" * 1024, size)


def well_packed_bomb(size: int = 700_000_000) -> bytes:
    """A workbook whose shared texts are packed no better than honest ones are, and unpack to more than may be."""
    words = random.Random(7).randbytes(6 * 1024).hex().encode()
    start = b"<sst xmlns='http://schemas.openxmlformats.org/spreadsheetml/2006/main'>"
    return _with_bomb(documents.xlsx(""), "xl/sharedStrings.xml", start, b"<si><t>%b</t></si>" % words, size)


def _with_bomb(document: bytes, name: str, start: bytes, filler: bytes, size: int) -> bytes:
    """The office document with ``start`` and then ``filler``, over and over, as one of its parts. Only the packed
    bytes are ever made."""
    packed, unpacked = _deflated(start, filler, size)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(document)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            if entry != name:
                new.writestr(entry, old.read(entry))
        new.writestr(zipfile.ZipInfo(name), b"")
    made = out.getvalue()
    # The empty part is the last one: its bytes go between its header and the directory.
    at = made.index(b"PK\x01\x02")
    before, directory = bytearray(made[:at]), bytearray(made[at:])
    _declare(before, before.rindex(b"PK\x03\x04") + 8, len(packed), unpacked)
    _declare(directory, directory.rindex(b"PK\x01\x02") + 10, len(packed), unpacked)
    struct.pack_into("<I", directory, directory.rindex(b"PK\x05\x06") + 16, at + len(packed))
    return bytes(before) + packed + bytes(directory)


def _declare(header: bytearray, at: int, packed: int, unpacked: int) -> None:
    struct.pack_into("<H", header, at, zipfile.ZIP_DEFLATED)
    struct.pack_into("<II", header, at + 10, packed, unpacked)


def _deflated(start: bytes, filler: bytes, size: int) -> tuple[bytes, int]:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    begun = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    # After a full flush nothing refers back, so the same packed bytes may stand any number of times.
    block = filler * (_SAME_BYTES // len(filler))
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    times = size // len(block)
    return begun + packed * times + packer.flush(zlib.Z_FINISH), len(start) + len(block) * times


def laughing_docx() -> bytes:
    """A Word document with a billion laughs."""
    return documents.docx("<w:p><w:r><w:t>&a9;</w:t></w:r></w:p>", before=LAUGHS)


def locked_pdf() -> bytes:
    """A PDF under a password."""
    encrypt = b"/ID [<00><00>] /Encrypt << /Filter /Standard /V 2 /R 3 /Length 128 /P -4 /O <%s> /U <%s> >>"
    return documents.pdf([[(11, 72, 700, "Hi")]], trailer=encrypt % (b"41" * 32, b"42" * 32))


def huge_picture(side: int = 60_000) -> bytes:
    """A PNG of some thousand bytes that would be billions of pixels."""

    def part(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    row = zlib.compress(bytes(side // 8 + 1) * 100)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", row) + part(b"IEND", b"")
