"""Pictures of text: recognised in the reading process, in Japanese and English, or refused plainly."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from nagaya.errors import DocumentUnreadable
from nagaya.extraction import pictures
from nagaya.extraction.extractor import Extractor
from nagaya.extraction.formats import Kind
from nagaya.extraction.limits import Limits, Refused
from nagaya.extraction.reading import read
from support import bombs, documents

ESTIMATE = Path(__file__).parents[2] / "support" / "pictures" / "estimate.png"
"""Five lines in Noto Sans, three of them Japanese."""
LINES = (
    "屋根の修理見積書",
    "倉庫の屋根は春に加藤組が修理した。",
    "費用は三十万円であった。",
    "Estimate for mending the roof",
    "The cellar was painted by Okapi Painters in 2024.",
)


def refused(document: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(Refused) as verdict:
        for _ in read(document, name="", media_type=None, limits=limits or Limits())[1]:
            pass
    return verdict.value.reason


def saved(*pages: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    more = {"save_all": True, "append_images": pages[1:]} if len(pages) > 1 else {}
    pages[0].convert("RGB").save(out, kind, **more)
    return out.getvalue()


@pytest.fixture
def blank() -> Iterator[Image.Image]:
    with Image.new("L", (64, 64), 255) as image:
        yield image


async def test_japanese_and_english_are_read_from_a_picture_in_the_reading_process() -> None:
    extractor = Extractor()
    try:
        async with extractor.blocks(documents.pieces(ESTIMATE.read_bytes()), name="estimate.png") as reading:
            assert reading.kind is Kind.PICTURE
            blocks = [block async for block in reading]
    finally:
        await extractor.close()
    said = "\n".join(block.text for block in blocks)
    for line in LINES:
        assert line in said
    assert {block.page for block in blocks} == {1}


def test_every_page_of_a_tiff_is_read_and_its_kind_told_by_its_bytes() -> None:
    with Image.open(ESTIMATE) as whole:
        half = whole.convert("RGB").crop((0, 200, 900, 330))
    kind, blocks = read(saved(half, half, kind="TIFF"), name="x.docx", media_type="text/plain", limits=Limits())
    assert kind is Kind.PICTURE
    assert {block.page for block in blocks if "Estimate" in block.text} == {1, 2}


def test_a_picture_without_text_has_no_text(blank: Image.Image) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        assert refused(saved(blank, kind=kind)) == "no_text"


def test_a_picture_of_very_many_pixels_is_refused_by_its_header(blank: Image.Image) -> None:
    assert refused(bombs.huge_picture()) == "too_large"
    assert refused(bombs.huge_picture(8_000)) == "too_large"
    assert refused(saved(blank, kind="PNG"), Limits(pixels=1_000)) == "too_large"


def test_a_tiff_of_very_many_pages_is_refused_by_their_number(blank: Image.Image) -> None:
    assert refused(saved(*[blank] * 3, kind="TIFF"), Limits(pictures=2)) == "too_many_parts"


def test_a_damaged_picture_is_corrupt() -> None:
    whole = ESTIMATE.read_bytes()
    assert refused(whole[: len(whole) // 2]) == "corrupt"
    assert refused(b"GIF89a" + bytes(100)) == "corrupt"


def test_without_the_extra_a_picture_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None if name == "rapidocr" else real(name))
    assert refused(ESTIMATE.read_bytes()) == "picture"
    told = DocumentUnreadable("picture")
    assert "nagaya[images]" in told.message("en")
    assert "画像です" in told.message("ja")
