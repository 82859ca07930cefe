"""Where sentences end, in Japanese and English."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.extraction.sentences import sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("屋根を直した。費用は高い！本当？はい。", ["屋根を直した。", "費用は高い！", "本当？", "はい。"]),
        (
            "加藤氏は「はい。すぐ行きます。」と答えた。次の日。",
            ["加藤氏は「はい。すぐ行きます。」と答えた。", "次の日。"],
        ),
        ("「終わりました。」彼は帰った。", ["「終わりました。」", "彼は帰った。"]),
        ("瓦（古いもの。割れている。）を替えた。終わり。", ["瓦（古いもの。割れている。）を替えた。", "終わり。"]),
        (
            "Mr. Kato came at 3 p.m. and left. He saw Dr. A. Sato.",
            ["Mr. Kato came at 3 p.m. and left. ", "He saw Dr. A. Sato."],
        ),
        (
            "It costs 3.5 yen, e.g. for No. 5. Is it dear? Yes!",
            ["It costs 3.5 yen, e.g. for No. 5. ", "Is it dear? ", "Yes!"],
        ),
        ('She said "Go." Then she left.', ['She said "Go." ', "Then she left."]),
        ("one line\nanother line", ["one line\n", "another line"]),
        ("See U.S. law. End.", ["See U.S. law. ", "End."]),
        ("Nagaya を使う。It works. はい。", ["Nagaya を使う。", "It works. ", "はい。"]),
        ("終わり！？次。", ["終わり！？", "次。"]),
        ("", []),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(text: str, expected: list[str]) -> None:
    assert list(sentences(text)) == expected


def test_a_bracket_that_is_never_closed_does_not_swallow_the_rest() -> None:
    text = "「" + "屋根を直しました。" * 100
    assert len(list(sentences(text))) > 50


@given(st.text(st.sampled_from("aA.。！？!?「」（）() \n\"'3とe")))
def test_sentences_join_to_the_text_again(text: str) -> None:
    parts = list(sentences(text))
    assert "".join(parts) == text
    assert all(parts)
