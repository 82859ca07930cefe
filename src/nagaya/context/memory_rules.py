"""What somebody says about themselves, found by rule: no model is asked where this suffices. English and Japanese.

A sentence is kept verbatim, without what only asks or greets. What speaks of its speaker in a way that no rule knows
is left for a model, where there is one that can write.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from nagaya.models.passages import is_question, sentences

LONGEST: Final = 500
"""Characters of a sentence that is kept; what is longer is rarely a fact about somebody."""

_STATES_EN: Final = re.compile(
    r"""\b(?:
      i(?:(?:'|’)?m|\s+am)\s+(?!sorry|afraid|sure|not\s+sure|trying|looking|wondering|asking|going|getting|having
        |here|back|done|glad)
    | i\s+(?:\w+ly\s+|always\s+|never\s+|often\s+|usually\s+|also\s+|still\s+|don'?t\s+|do\s+not\s+|can(?:'|no)t\s+
        |can\s+not\s+)*
      (?:live|work|study|studied|prefer|like|love|hate|enjoy|dislike|eat|drink|speak|own|drive|play|grew|moved|was\s+born
        |avoid|belong|teach|manage|lead|use|read|wear|collect|support|follow)\b
    | i\s+have\s+(?:a|an|two|three|four|\d+|no|been|never|always)\b
    | i(?:'|’)ve\s+(?:a|been|never|always)\b
    | my\s+(?:[\w-]+\s+){0,4}(?:is|are|was|were|isn'?t|aren'?t|lives?|works?|likes?|prefers?|has|starts?|ends?)\b
    | call\s+me\b | please\s+remember\b | remember\s+that\b
    | (?:we|our\s+(?:team|company))\s+(?:use|prefer|are|is|work)\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_SELF_EN: Final = re.compile(r"\b(?:i|i'm|i’m|i've|my|mine|me|we|our)\b", re.IGNORECASE)
_SELF_JA: Final = re.compile(
    r"(?:私|わたし|わたくし|僕|ぼく|俺|おれ|うち|自分|当社|弊社|我々|わが家|我が家)(?:たち|達|ら)?"
)
_STATES_JA: Final = re.compile(
    r"""(?:
      (?:が|は|も|を)[^。]{0,40}(?:好き|嫌い|苦手|得意|趣味)
    | (?:に|で)[^。]{0,12}(?:住んで|暮らして|勤めて|働いて|通って)い
    | アレルギー | 出身(?:です|だ|で) | (?:と申します|と呼んで|といいます|と言います)
    | (?:を)?(?:飼って|習って|勉強して|担当して|使って|愛用して|持って)い(?:ます|る)
    | (?:覚えて|記憶して)(?:おいて|ください) | (?:食べられません|食べられない|飲めません|飲めない|話せます)
    | 生まれ(?:です|ました|た) | 誕生日は
    )""",
    re.VERBOSE,
)
_IS_JA: Final = re.compile(
    _SELF_JA.pattern
    + r"(?:の[^。、]{1,16})?(?:は|も)[^。]{1,60}(?:です|ます|ません|でした|ました|だ|である|ない)[。！!]?\s*\Z"
)
_ASKS: Final = re.compile(
    r"\A\W*(?:please|can\s+you|could\s+you|would\s+you|tell\s+me|show\s+me|help\s+me|give\s+me|let\s+me|what|how|why|where|when"
    r"|who|which|is\s+|are\s+|do\s+|does\s+|did\s+)\b",
    re.IGNORECASE,
)
_ASKS_JA: Final = re.compile(
    r"(?:ください|下さい|お願いします|教えて|ませんか|ですか|ますか|でしょうか)[。！!？?]?\s*\Z"
)
_REMEMBER: Final = re.compile(r"remember|覚えて|記憶して", re.IGNORECASE)


class Found(NamedTuple):
    """The sentences that state something, and whether others may do so too in a way that no rule knows."""

    facts: list[str]
    is_sure: bool


def facts_in(text: str) -> Found:
    """What a user's message states about the user."""
    facts: list[str] = []
    is_sure = True
    for sentence in sentences(text):
        said = sentence.strip()
        if not said or is_question(said) or _only_asks(said):
            continue
        if _STATES_EN.search(said) or _STATES_JA.search(said) or _IS_JA.search(said):
            if len(said) > LONGEST:
                is_sure = False
            elif said not in facts:
                facts.append(said)
        elif _SELF_EN.search(said) or _SELF_JA.search(said):
            is_sure = False
    return Found(facts, is_sure)


def _only_asks(said: str) -> bool:
    if _REMEMBER.search(said):
        return False
    return bool(_ASKS.search(said) or _ASKS_JA.search(said))
