"""What somebody says about themselves, by rule."""

from __future__ import annotations

import pytest

from nagaya.context.memory_rules import facts_in


@pytest.mark.parametrize(
    "text",
    [
        "I'm allergic to peanuts.", "I live in Kyoto.", "My daughter is called Hana.", "I prefer short answers.",
        "I never eat meat.", "Please remember that the demo is on Friday.", "Call me Ken.",
        "私は大阪に住んでいます。", "コーヒーが好きです。", "そばアレルギーがあります。", "猫を飼っています。", "私の名前は健です。",
    ],
)  # fmt: skip
def test_what_is_stated_about_oneself_is_kept_verbatim(text: str):
    assert facts_in(text).facts == [text]
    assert facts_in(text).is_sure


@pytest.mark.parametrize(
    "text",
    ["What is the capital of France?", "The bridge was built in 1912.", "Can you show me the figures?",
     "今日の天気は?", "この表をまとめてください。", "橋は1912年に完成した。"],
)  # fmt: skip
def test_questions_requests_and_the_rest_of_the_world_are_not(text: str):
    assert facts_in(text) == ([], True)


def test_what_may_be_about_the_speaker_is_left_for_a_model():
    assert facts_in("Whenever it rains, my knee reminds me of 1998.") == ([], False)


def test_only_the_sentences_that_state_something_are_kept():
    text = "Hello! I work at a bank. Could you explain bonds?"
    assert facts_in(text).facts == ["I work at a bank."]
