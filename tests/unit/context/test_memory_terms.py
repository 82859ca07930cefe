"""The words of a memory as searches ask for them: what counting them each time would give."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nagaya.context.memory_terms import MemoryTerms
from nagaya.indexes.terms import query_terms, term_counts

WORDS = st.text(alphabet="abcdeｆ茶 屋根のを.-RX2", max_size=80)


@given(WORDS, WORDS)
def test_the_counts_of_what_is_asked_for_are_those_of_the_text(text: str, query: str):
    counts, terms = term_counts(text), MemoryTerms(text)
    wanted = [*query_terms(query), *list(counts)[:5], "no such term"]
    assert terms.counts_of(wanted) == {term: counts[term] for term in wanted if term in counts}
    assert terms.length == sum(counts.values())


def test_a_word_that_is_said_very_often_is_counted_as_far_as_it_matters():
    assert MemoryTerms("tea " * 70_000).counts_of(["tea"]) == {"tea": 65_535}
