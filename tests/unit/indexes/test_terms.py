"""The words of a text: the same for what reads alike, in English and in Japanese."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.indexes.terms import (
    MAX_QUERY_TERMS,
    MAX_TERM_CHARACTERS,
    fold,
    query_terms,
    stem,
    term_counts,
    term_key,
    terms_of,
)

TEXTS = st.text(
    alphabet=st.sampled_from(list("ab Cs'-.2Ａéかがカﾞｶﾞーヽ屋根々修理。、\n\ud800😀")), max_size=60
) | st.text(max_size=60)


@pytest.mark.parametrize(
    "words",
    [
        ("policy", "policies", "Policy"),
        ("mend", "mends", "mended", "mending"),
        ("cancel", "cancels", "canceled"),
        ("stop", "stopped", "stopping", "stops"),
        ("pay", "payment", "payments", "paying"),
        ("terminate", "terminates", "terminated", "termination"),
        ("carry", "carries", "carried", "carrying"),
        ("box", "boxes"),
        ("process", "processes", "processed"),
        ("monthly", "month", "months"),
    ],
)
def test_the_forms_of_an_english_word_are_one_term(words: tuple[str, ...]) -> None:
    assert len({tuple(term_counts(word)) for word in words}) == 1


@pytest.mark.parametrize(
    ("one", "other"), [("use", "us"), ("string", "strict"), ("bus", "bu"), ("red", "reed"), ("sing", "s")]
)
def test_different_words_stay_different(one: str, other: str) -> None:
    assert stem(one) != stem(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("フィルター", "ﾌｨﾙﾀｰ"), ("ＡＢＣ", "abc"), ("Straße", "STRASSE"), ("が", "か\u3099"), ("①", "1")],
)
def test_widths_and_cases_do_not_matter(one: str, other: str) -> None:
    assert term_counts(one) == term_counts(other)


def test_japanese_is_found_by_pairs_and_by_single_han_characters() -> None:
    assert term_counts("屋根を") == Counter({"屋根": 1, "根を": 1, "屋": 1, "根": 1})
    assert "税" in query_terms("税")
    assert "税" in term_counts("消費税率")


def test_a_model_number_is_found_with_and_without_its_hyphen() -> None:
    assert term_counts("RX-200").keys() == {"rx", "200", "rx200"}
    assert query_terms("RX200").keys() <= term_counts("RX-200").keys()


def test_text_around_japanese_does_not_need_spaces() -> None:
    assert {"rx200", "修理"} <= term_counts("RX200の修理").keys()


def test_stop_words_are_asked_for_only_where_there_is_nothing_else() -> None:
    assert query_terms("what is the policy").keys() == {"policy"}
    assert query_terms("to be or not to be").keys() == {"to", "be", "or", "not"}
    assert query_terms("?!") == {}


def test_a_query_has_a_bounded_number_of_terms_and_the_telling_ones_stay() -> None:
    many = " ".join(f"word{number}" for number in range(500))
    assert len(query_terms(many)) == MAX_QUERY_TERMS
    assert "解約" in query_terms("これはですねというわけでありまして" * 20 + "解約")


@given(TEXTS)
def test_counting_is_the_same_as_going_through_the_terms_one_by_one(text: str) -> None:
    assert term_counts(text) == Counter(term.text for term in terms_of(fold(text)))


@given(TEXTS)
def test_every_term_of_a_query_can_be_in_the_index_and_none_is_endless(text: str) -> None:
    counts = term_counts(text)
    assert query_terms(text).keys() <= counts.keys()
    assert all(0 < len(term) <= MAX_TERM_CHARACTERS for term in counts)


@given(TEXTS)
def test_a_term_stands_where_it_is_said_to_stand(text: str) -> None:
    folded = fold(text)
    for term in terms_of(folded):
        assert 0 <= term.start < term.end <= len(folded)


def test_a_term_has_the_same_number_for_ever() -> None:
    assert term_key("屋根") == 2356467438811571800
