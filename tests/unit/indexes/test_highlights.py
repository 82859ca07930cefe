"""Highlights: the pieces of the text as it stands, in both languages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.indexes.highlights import highlights


def marked(text: str, query: str) -> list[str]:
    return [text[span.start : span.end] for span in highlights(text, query)]


@pytest.mark.parametrize(
    ("text", "query", "wanted"),
    [
        ("The roof was mended in May.", "who mends roofs?", ["roof", "mended"]),
        ("昨年の春、倉庫の屋根を修理しました。", "屋根の修理はいつですか", ["屋根", "修理"]),
        ("ﾌｨﾙﾀｰを交換します。", "フィルターの交換", ["ﾌｨﾙﾀｰ", "交換"]),
        ("Ｆｉｌｔｅｒ RX-200", "filter rx200", ["Ｆｉｌｔｅｒ", "RX-200"]),
        ("ガラスとｶﾞﾗｽ", "ガラス", ["ガラス", "ｶﾞﾗｽ"]),
        ("消費税と所得税", "税", ["税", "税"]),
        ("税込み価格", "所得税の計算", []),
        ("to be or not to be", "to be", ["to", "be", "to", "be"]),
        ("nothing here", "屋根", []),
        ("", "roof", []),
        ("roof", "", []),
        ("RX200の修理", "rx200 修理", ["RX200", "修理"]),
        ("café CAFE\u0301", "café", ["café", "CAFE\u0301"]),
    ],
)
def test_the_words_are_marked_as_they_stand(text: str, query: str, wanted: list[str]) -> None:
    assert marked(text, query) == wanted


TEXTS = st.text(alphabet=st.sampled_from(list("ab -ßﬁｶﾞか\u3099屋根修理。İ\u0301\ud800😀")), max_size=40) | st.text(
    max_size=40
)


@given(TEXTS, TEXTS)
def test_spans_lie_in_the_text_in_order_and_apart(text: str, query: str) -> None:
    before = -1
    for span in highlights(text, query):
        assert before < span.start < span.end <= len(text)
        before = span.end
