import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from nagaya.keys.derivation import expand, extract, length_prefixed
from nagaya.keys.tenant_key import TenantKey


def corpus(name: str) -> Any:
    folder = Path(os.environ.get("NAGAYA_CORPORA", Path(__file__).parents[4] / "shared" / "corpora"))
    path = folder / "wycheproof" / name
    if not path.exists():
        if os.environ.get("NAGAYA_TEST_ALL") == "1":
            pytest.fail(f"the public corpus wycheproof/{name} is not there")
        pytest.skip(f"the public corpus wycheproof/{name} is not there")
    return json.loads(path.read_text("utf-8"))


def test_wycheproof_hkdf_sha256() -> None:
    seen = 0
    for group in corpus("hkdf_sha256_test.json")["testGroups"]:
        for case in group["tests"]:
            seen += 1
            ikm, salt, info = (bytes.fromhex(case[name]) for name in ("ikm", "salt", "info"))
            if case["result"] == "valid":
                assert expand(extract(ikm, salt), info, case["size"]) == bytes.fromhex(case["okm"]), case["tcId"]
            else:
                with pytest.raises(ValueError):
                    expand(extract(ikm, salt), info, case["size"])
    assert seen == 86


names = some.lists(some.text() | some.binary(), max_size=4)


@given(names, names)
def test_no_two_lists_of_names_give_the_same_bytes(first: list[str | bytes], second: list[str | bytes]) -> None:
    def raw(parts: list[str | bytes]) -> list[bytes]:
        return [part if isinstance(part, bytes) else part.encode() for part in parts]

    assert (length_prefixed(*first) == length_prefixed(*second)) == (raw(first) == raw(second))


def test_a_lone_surrogate_is_a_name_like_any_other() -> None:
    assert length_prefixed("\ud800") != length_prefixed("\ud801")


def test_every_purpose_and_place_has_a_key_of_its_own() -> None:
    keys = [
        TenantKey(room, version, bytes([version]) * 32).derive(purpose, *parts)
        for room in ("acme", "other")
        for version in (1, 2)
        for purpose in ("record", "cursor")
        for parts in (("a", "bc"), ("ab", "c"), ("a", "b", "c"), ("abc",), ())
    ]
    assert len({each.key for each in keys}) == len({each.commitment for each in keys}) == len(keys) == 40
    assert {len(each.key) for each in keys} == {32}
    assert {len(each.commitment) for each in keys} == {28}
