"""Bytes to text: the encodings that Japanese and Western documents come in."""

from __future__ import annotations

import pytest

from nagaya.extraction.charsets import decode
from nagaya.extraction.limits import Refused

JA = "昨年の春、古い倉庫の屋根を修理しました。加藤屋根工業が割れた瓦を四十枚取り替えました。ｶﾄｳ様。\n2 行目です。"
EN = "The roof was repaired in spring.\nIt cost 300."


def read(raw: bytes, media_type: str | None = None, markup: bool = False) -> str:
    return decode(raw, media_type=media_type, markup=markup)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp932", "euc_jp", "iso2022_jp_ext", "utf-16", "utf-32"])
@pytest.mark.parametrize("text", [JA, EN], ids=["japanese", "english"])
def test_an_encoding_that_nobody_names_is_found(text: str, encoding: str) -> None:
    assert read(text.encode(encoding)) == text


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_wide_text_without_a_mark_is_found(encoding: str) -> None:
    assert read(EN.encode(encoding)) == EN
    assert read((JA + EN).encode(encoding)) == JA + EN


@pytest.mark.parametrize("encoding", ["cp932", "euc_jp"])
def test_short_japanese_is_not_taken_for_something_else(encoding: str) -> None:
    for text in ("屋根修理の件", "こんにちは", "請求書（六月分）", "Kato 様、資料を送ります。"):
        assert read(text.encode(encoding)) == text


def test_western_text_is_not_taken_for_japanese() -> None:
    for text in ("Ça coûte 5 €, déjà vu à l'école.", "Größe: 3 m, süß, schöne Grüße"):
        assert read(text.encode("cp1252")) == text


def test_what_is_declared_counts_unless_it_is_false() -> None:
    page = '<html><head><meta charset="Shift_JIS"></head>①髙</html>'
    assert read(page.encode("cp932"), markup=True) == page
    assert read(page.encode("utf-8"), markup=True) == page
    assert read("いい <meta charset='iso-8859-1'>".encode(), markup=True) == "いい <meta charset='iso-8859-1'>"
    assert read("é".encode("latin-1"), "text/plain; charset=iso-8859-1") == "é"
    assert read("é".encode(), "text/plain; charset=no-such-thing") == "é"


@pytest.mark.parametrize(
    "name", ["zlib", "rot13", "unicode_escape", "idna", "utf-7", "punycode", "utf-16", "bz2", "hex"]
)
def test_a_declaration_cannot_choose_a_codec_that_is_no_character_set(name: str) -> None:
    assert read(b"+ADw-script+AD4- \\u0041", f"text/plain; charset={name}") == "+ADw-script+AD4- \\u0041"


def test_a_few_broken_characters_do_not_cost_the_document() -> None:
    raw = JA.encode()
    assert read(raw[:100] + b"\xff" + raw[100:] + raw * 3).count("\ufffd") <= 4


@pytest.mark.parametrize(
    "raw", [b"a\0b", bytes(range(256)) * 4, b"\1\2\3\4\5\6\7" * 100, b"\xff\xfe\xff" + b"\xff" * 99]
)
def test_what_is_no_text_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused) as refused:
        read(raw)
    assert refused.value.reason in ("unsupported", "corrupt")


def test_every_line_ends_with_a_line_feed_alone() -> None:
    assert read(b"a\r\nb\rc\nd\x0ce") == "a\nb\nc\nd\ne"
