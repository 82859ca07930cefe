"""Every Wycheproof vector for JWS and JWK, through the same gate that the product uses.

The product knows asymmetric algorithms only; the vectors' other algorithms are added here, for the vectors alone.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import OctKey

from nagaya.errors import TokenRefused
from nagaya.identity.jws import ALGORITHMS, Algorithm, check_signature, read_key, read_keys, read_token

CORPORA = Path(os.environ.get("NAGAYA_CORPORA", Path(__file__).parents[4] / "shared/corpora"))
WIDER = {
    **ALGORITHMS,
    **{name: Algorithm(name, "oct") for name in ("HS256", "HS384", "HS512")},
    **{name: Algorithm(name, "RSA") for name in ("RS384", "RS512", "PS384", "PS512")},
    "ES384": Algorithm("ES384", "EC", "P-384"),
    "ES512": Algorithm("ES512", "EC", "P-521"),
}
LEAST_SECRET = {"HS256": 32, "HS384": 48, "HS512": 64}

# Upstream issue 236: these two repeat the valid vector 357 byte for byte, so whoever accepts that accepts these.
SAME_AS_A_VALID_ONE = {367, 370}
# Valid by the letter, refused on purpose: characters outside base64url; a key pinned to another algorithm.
REFUSED_ON_PURPOSE = {372, 373, 346, 347, 350, 351}


def vectors(name: str) -> list[dict[str, Any]]:
    path = CORPORA / "wycheproof" / name
    if not path.exists():
        if os.environ.get("NAGAYA_TEST_ALL") == "1":
            pytest.fail(f"{name} is absent and NAGAYA_TEST_ALL=1 asks for it")
        pytest.skip(f"{name} is absent; NAGAYA_CORPORA names the folder of the public corpora")
    groups: list[dict[str, Any]] = json.loads(path.read_text())["testGroups"]
    return groups


def accepts(token: object, jwks: dict[str, Any]) -> bool:
    """What the product does with a token and a published key set, over the vectors' wider list of algorithms."""
    if not isinstance(token, str):
        return False  # the JSON serialisations: a bearer token is a string
    try:
        signed = read_token(token)
        keys = read_keys(jwks)
        if signed.key_id not in keys:
            return False
        key = keys[signed.key_id]
        if isinstance(key.key, OctKey) and len(key.key.raw_value) < LEAST_SECRET.get(signed.algorithm, 0):
            return False
        check_signature(signed, key, WIDER, WIDER)
    except TokenRefused:
        return False
    return True


def test_no_invalid_signature_vector_is_accepted_and_no_valid_one_is_lost():
    false_accepts, lost, empty, count = [], [], [], 0
    for group in vectors("json_web_signature_test.json"):
        jwks = {"keys": [group.get("public") or group["private"]]}
        for vector in group["tests"]:
            count += 1
            number, valid, accepted = vector["tcId"], vector["result"] == "valid", accepts(vector["jws"], jwks)
            if valid and not accepted:
                (empty if isinstance(vector["jws"], str) and ".." in vector["jws"] else lost).append(number)
            elif accepted and not valid:
                false_accepts.append(number)
    assert count == 401
    assert set(false_accepts) == SAME_AS_A_VALID_ONE
    assert set(lost) == REFUSED_ON_PURPOSE
    assert len(empty) == 6  # a token without claims says nothing


def test_every_key_set_vector_is_judged_as_wycheproof_says():
    wrong = []
    for group in vectors("json_web_key_test.json"):
        for vector in group["tests"]:
            accepted = accepts(vector["jws"], group.get("public") or group["private"])
            if accepted != (vector["result"] == "valid"):
                wrong.append((vector["tcId"], group["comment"]))
    assert wrong == []


def test_the_product_itself_refuses_every_symmetric_vector():
    for group in vectors("json_web_signature_test.json"):
        jwk = group.get("public") or group["private"]
        if jwk["kty"] != "oct":
            continue
        key = read_key(jwk)
        assert key is not None
        for vector in group["tests"]:
            if vector["result"] == "valid" and isinstance(vector["jws"], str) and "?" not in vector["jws"]:
                with pytest.raises(TokenRefused):
                    check_signature(read_token(vector["jws"]), key, ["HS256"])
