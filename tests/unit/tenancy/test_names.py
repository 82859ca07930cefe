"""Which ids are refused, and which two cannot both exist."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.errors import TenantIdInvalid
from nagaya.tenancy.names import RESERVED, check_tenant_id, skeleton

LETTERS = string.ascii_lowercase + string.digits


@pytest.mark.parametrize("good", ["acme", "acme-corp", "a1b", "0-0", "globex-2027", "a" * 63, "acme--kk"])
def test_a_plain_id_is_accepted(good: str) -> None:
    check_tenant_id(good)


@pytest.mark.parametrize(
    "bad",
    [
        "", "ab", "a" * 64, "-acme", "acme-", "ACME", "acme corp", "acme_corp", "acme.corp", "acme/..", "../acme", "acme:x",
        "acme\n", "acme\0", "ａｃｍｅ", "аcme", "長屋長屋", "acmé", "acme\u200b", "\ud800acme", "a\u0307cme", "٣٤٥", "--a",
    ],
)  # fmt: skip
def test_any_other_character_or_length_is_refused_with_the_rule(bad: str) -> None:
    with pytest.raises(TenantIdInvalid) as refused:
        check_tenant_id(bad)
    assert "characters" in refused.value.message("en") or "a-z" in refused.value.message("en")
    assert "ください" in refused.value.message("ja") or "だけ" in refused.value.message("ja")


@pytest.mark.parametrize("word", sorted(word for word in RESERVED if len(word) > 2))
def test_a_reserved_word_is_refused(word: str) -> None:
    with pytest.raises(TenantIdInvalid, match="reserved"):
        check_tenant_id(word)


@pytest.mark.parametrize(
    "likeness", ["adm1n", "c0nsole", "vvww", "nagayа", "naga-ya", "r00t", "sy5tern", "p1atforrn", "xn--acme"]
)
def test_what_looks_like_a_reserved_word_is_refused(likeness: str) -> None:
    with pytest.raises(TenantIdInvalid):
        check_tenant_id(likeness)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("acme-corp", "acmecorp"), ("acme", "acrne"), ("wave", "vvave"), ("cool", "c00l"), ("cool", "coo1"), ("coil", "coi1"),
        ("lilo", "1i1o"), ("zoo5", "200s"), ("bob", "8o8"), ("vvvv", "ww"), ("vvv", "wv"), ("vw", "wv"), ("door", "cloor"),
        ("gig", "9i9"), ("a--b", "a-b"), ("quiz", "gu1z"),
    ],
)  # fmt: skip
def test_look_alikes_share_a_skeleton(one: str, other: str) -> None:
    assert skeleton(one) == skeleton(other)


@pytest.mark.parametrize(
    ("one", "other"), [("acme", "acme-corp"), ("acme", "acme2"), ("tenant-01", "tenant-02"), ("nm1", "mn1")]
)
def test_ids_that_differ_to_the_eye_do_not(one: str, other: str) -> None:
    assert skeleton(one) != skeleton(other)


def test_ten_numbered_ids_are_no_look_alikes_of_each_other() -> None:
    assert len({skeleton(f"tenant-{number:05}") for number in range(10_000)}) == 10_000


@given(st.text(LETTERS + "-", min_size=1, max_size=63))
def test_hyphens_never_tell_two_ids_apart(text: str) -> None:
    assert skeleton(text) == skeleton(text.replace("-", ""))


@given(st.text(LETTERS, min_size=1, max_size=30), st.data())
def test_replacing_any_letter_by_its_look_alike_keeps_the_skeleton(text: str, data: st.DataObject) -> None:
    pairs = [
        ("0", "o"),
        ("1", "l"),
        ("i", "l"),
        ("5", "s"),
        ("2", "z"),
        ("8", "b"),
        ("rn", "m"),
        ("vv", "w"),
        ("cl", "d"),
    ]
    one, other = data.draw(st.sampled_from(pairs))
    assert skeleton(text.replace(one, other)) == skeleton(text) == skeleton(text.replace(other, one))


@given(st.text(max_size=80))
def test_a_text_is_accepted_only_if_it_can_be_a_file_name_and_a_host_label(text: str) -> None:
    try:
        check_tenant_id(text)
    except TenantIdInvalid:
        return
    assert 3 <= len(text) <= 63
    assert set(text) <= set(LETTERS + "-")
    assert text[0] != "-" != text[-1]
