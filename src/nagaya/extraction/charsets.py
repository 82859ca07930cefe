"""Bytes to text, where nobody says in which encoding: Japanese ones first, since a wrong guess there is unreadable."""

from __future__ import annotations

import codecs
import re
from typing import Final

from nagaya.extraction.limits import Refused

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECLARED: Final = re.compile(
    rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{2,40})|\A<\?xml[^>]{0,200}?encoding\s*=\s*["']([\w.:-]{2,40})""",
    re.I,
)
_PARAMETER: Final = re.compile(r"""charset\s*=\s*["']?([\w.:-]{2,40})""", re.I)
_ESCAPES: Final = re.compile(rb"\x1b\$[@B]|\x1b\([BJI]")
_SAMPLE_BYTES: Final = 256 * 1024
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffe\uffff]")
_BROKEN_SHARE: Final = 0.001
"""A UTF-8 text in which fewer characters than this are broken is taken for one that was damaged."""
_CONTROL_SHARE: Final = 0.01
_WINDOWS: Final = dict.fromkeys(("shift_jis", "shift-jis", "sjis", "x-sjis"), "cp932") | dict.fromkeys(
    ("iso-8859-1", "latin-1", "latin1", "us-ascii", "ascii"), "cp1252"
)
"""What is written by these names is, in practice, the larger set that Windows has by that name."""

_NOT_CHARSETS: Final = frozenset(
    {"idna", "mbcs", "oem", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"}
)
"""Codecs that decode to text and are no character sets: a document must not choose them."""


def decode(raw: bytes, *, media_type: str | None, markup: bool) -> str:
    """The text of a document: by its byte order mark, else what is declared, else what it looks like.

    ``markup``: look for a declaration in the text itself. A wrong declaration is passed over. A few broken characters
    of a UTF-8 text become U+FFFD. Raises ``Refused``: ``unsupported`` where it is no text, ``corrupt`` where it is
    text of no known encoding.
    """
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            return _checked(_strictly(raw, encoding) or _mended(raw, encoding))
    for encoding in _declared(raw, media_type, markup=False):
        if (text := _strictly(raw, encoding)) is not None:
            return _checked(text)
    if not raw.isascii() and (text := _strictly(raw, "utf-8")) is not None:
        # Whatever it says of itself: text that is not UTF-8 hardly ever passes for it.
        return _checked(text)
    for encoding in _declared(raw, None, markup):
        text = _strictly(raw, encoding)
        if text is not None:
            return _checked(text)
    return _checked(_guessed(raw))


def _declared(raw: bytes, media_type: str | None, markup: bool) -> list[str]:
    names = []
    if media_type is not None and (said := _PARAMETER.search(media_type)):
        names.append(said[1])
    if markup and (found := _DECLARED.search(raw[:4096])):
        names.append((found[1] or found[2]).decode("ascii", "replace"))
    # A declaration that was itself readable as ASCII cannot be true of UTF-16.
    return [_WINDOWS.get(name.lower(), name) for name in names if not name.lower().startswith(("utf-16", "utf-32"))]


def _strictly(raw: bytes, encoding: str) -> str | None:
    try:
        if codecs.lookup(encoding).name in _NOT_CHARSETS:
            return None
        return raw.decode(encoding)
    except (LookupError, ValueError):
        return None


def _mended(raw: bytes, encoding: str) -> str:
    text = raw.decode(encoding, "replace")
    if text.count("\ufffd") > max(1, len(text) * _BROKEN_SHARE):
        raise Refused("corrupt", f"not the {encoding} text that it says it is")
    return text


def _guessed(raw: bytes) -> str:
    if (encoding := _wide(raw)) is not None and (text := _strictly(raw, encoding)) is not None:
        return text
    if (text := _strictly(raw, "utf-8")) is not None and not _ESCAPES.search(raw[:_SAMPLE_BYTES]):
        return text
    if _ESCAPES.search(raw[:_SAMPLE_BYTES]) and (text := _strictly(raw, "iso2022_jp_ext")) is not None:
        return text
    damaged = raw.decode("utf-8", "replace")
    sample = damaged[:_SAMPLE_BYTES]
    if sample.count("\ufffd") * 10 <= sum(1 for character in sample if character > "\x7f"):
        return damaged
    return _japanese(raw) or _by_statistics(raw)


def _wide(raw: bytes) -> str | None:
    """UTF-16 without a mark: every other byte of its spaces, digits and line feeds is zero."""
    sample = raw[:_SAMPLE_BYTES]
    if len(raw) % 2 or len(sample) < 4:
        return None
    zeros = sample[1::2].count(0), sample[0::2].count(0)
    half = len(sample) / 2
    for encoding, (many, few) in (("utf-16-le", zeros), ("utf-16-be", zeros[::-1])):
        if many >= half * 0.02 and few <= many * 0.05:
            return encoding
    return None


def _japanese(raw: bytes) -> str | None:
    """Shift_JIS or EUC-JP, where one of them makes ordinary Japanese of the bytes."""
    best: tuple[float, str] | None = None
    for encoding in ("cp932", "euc_jp"):
        text = _strictly(raw, encoding)
        if text is not None and (score := _likeness(text[:_SAMPLE_BYTES])) > 0.5 and (best is None or score > best[0]):
            best = score, text
    return None if best is None else best[1]


def _likeness(text: str) -> float:
    """How much of what is not ASCII is ordinary Japanese: each of kana and marks counts, half-width kana against."""
    good = bad = 0.0
    for character in text:
        if character < "\x80":
            continue
        if "\u3000" <= character <= "\u30ff" or "\uff01" <= character <= "\uff5e":
            good += 1
        elif "\u4e00" <= character <= "\u9fff":
            # Bytes of another encoding make Han characters too, but then hardly any kana between them.
            good += 0.7
        elif "\uff61" <= character <= "\uff9f":
            bad += 0.7
        else:
            bad += 1
    return good / (good + bad) if good else 0.0


def _by_statistics(raw: bytes) -> str:
    from charset_normalizer import from_bytes

    found = from_bytes(raw[:_SAMPLE_BYTES])
    best = found.best()
    if best is None:
        raise Refused("corrupt", "text in no known encoding")
    # Of those that fit a short text equally well, the one that most texts are in.
    alike = [each.encoding for each in found if (each.chaos, each.coherence) == (best.chaos, best.coherence)]
    text = _strictly(raw, "cp1252" if "cp1252" in alike else best.encoding)
    if text is None:
        raise Refused("corrupt", "text in no known encoding")
    return text


def _checked(text: str) -> str:
    """A text with line feeds alone between lines and without control characters; ``Refused`` for what is no text."""
    sample = text[:_SAMPLE_BYTES]
    if "\0" in text or len(_CONTROLS.findall(sample)) > max(2, len(sample) * _CONTROL_SHARE):
        raise Refused("unsupported", "not text")
    return _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("\x0c", "\n").replace("\x0b", "\n"))
