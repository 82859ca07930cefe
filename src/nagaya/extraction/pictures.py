"""Pictures of text: scans, photographs of pages, screenshots; Japanese and English alike."""

from __future__ import annotations

import functools
import importlib.util
import io
import statistics
from collections.abc import Iterator
from typing import Any, Final

from nagaya.extraction.blocks import Block
from nagaya.extraction.layout import Line, page_blocks
from nagaya.extraction.limits import Limits, Refused

_FORMATS: Final = ("PNG", "JPEG", "GIF", "TIFF", "WEBP")
_LONGEST_SIDE: Final = 3_000
"""Pixels to which a larger picture is made smaller: a page of A4 at 250 to the inch."""
_SETTINGS: Final = {
    "Global.log_level": "critical",
    # One reading process takes one processor; more threads would each take memory of their own, too.
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
}


def read_picture(document: bytes, limits: Limits) -> Iterator[Block]:
    """The blocks of a picture by where its lines lie; a TIFF may have several pages.

    Raises ``Refused``: ``picture`` where what recognises text is not installed, ``corrupt``, ``too_large``,
    ``too_many_parts``.
    """
    if not is_possible():
        raise Refused("picture", "what recognises text is not installed")
    for number, page in enumerate(_pages(document, limits), 1):
        lines = _lines(page)
        usual = statistics.median(line.size for line in lines) if lines else 0.0
        yield from page_blocks(lines, usual, number)


def is_possible() -> bool:
    """Whether the extra ``images`` is installed."""
    return all(importlib.util.find_spec(package) is not None for package in ("rapidocr", "onnxruntime", "PIL"))


def _pages(document: bytes, limits: Limits) -> Iterator[Any]:
    from PIL import Image, ImageOps

    try:
        picture = Image.open(io.BytesIO(document), formats=_FORMATS)
        number = 0
        while True:
            # Known from its header: nothing has been unpacked yet.
            if picture.width * picture.height > limits.pixels:
                raise Refused("too_large", f"{picture.width} times {picture.height} pixels")
            if number == limits.pictures:
                raise Refused("too_many_parts", f"more than {limits.pictures} pictures")
            page = ImageOps.exif_transpose(picture).convert("RGB")
            page.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
            yield page
            number += 1
            if picture.format != "TIFF":
                return  # the other pictures of those that move are no pages
            try:
                picture.seek(number)
            except EOFError:
                return
    except Image.DecompressionBombError as bomb:
        raise Refused("too_large", "a picture of very many pixels") from bomb
    except (OSError, SyntaxError, ValueError) as broken:
        raise Refused("corrupt", f"a picture that does not open: {type(broken).__name__}") from broken


def _lines(page: Any) -> list[Line]:
    import numpy as np

    found = _engine()(np.asarray(page)[:, :, ::-1])
    lines = []
    for text, box in zip(found.txts or (), found.boxes if found.boxes is not None else (), strict=True):
        left, upper = (float(each) for each in box.min(axis=0))
        right, lower = (float(each) for each in box.max(axis=0))
        if clean := text.strip():
            lines.append(Line(clean, left, right, -lower, -upper, lower - upper))
    return lines


@functools.cache
def _engine() -> Any:
    # Late: it takes seconds to load, and most documents are no pictures. Its models are in its package.
    from rapidocr import RapidOCR

    return RapidOCR(params=dict(_SETTINGS))
