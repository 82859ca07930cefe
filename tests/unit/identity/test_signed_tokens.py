"""The gate in front of every token: what forgers send (security attack row 4), and what no reader may trip over."""

from __future__ import annotations

import base64
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from nagaya.errors import TokenRefused
from nagaya.identity.jws import (
    ALGORITHMS,
    KEY_SET_LIMIT,
    TOKEN_LIMIT_BYTES,
    check_signature,
    read_key,
    read_keys,
    read_object,
    read_token,
)
from nagaya.testing.identity import IssuerKey, segment

RSA = IssuerKey("k1")
EC = IssuerKey("k2", algorithm="ES256")
ED = IssuerKey("k3", algorithm="Ed25519")
KEYS = {"RS256": RSA, "ES256": EC, "Ed25519": ED, "PS256": IssuerKey("k1", algorithm="PS256", key=RSA.key)}
CLAIMS = {"sub": "mio"}


def opens(token: str, key: IssuerKey = RSA, allowed=tuple(ALGORITHMS), **changed) -> None:
    published = read_key({**key.public(), **changed})
    assert published is not None
    check_signature(read_token(token), published, allowed)


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_token_signed_with_a_suitable_key_opens(algorithm):
    opens(KEYS[algorithm].sign(CLAIMS), KEYS[algorithm])
    assert read_object(read_token(KEYS[algorithm].sign(CLAIMS)).payload, "payload") == CLAIMS


def test_eddsa_under_its_older_name_opens_with_an_ed25519_key_only():
    token = ED.sign_segments(b'{"alg":"EdDSA","kid":"k3"}', b"{}")
    opens(token, ED, alg="EdDSA")
    with pytest.raises(TokenRefused):
        opens(token, ED)  # the key is pinned to the newer name


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", "HS256", "RS384", "RS1", "ES384", "dir"])
def test_an_algorithm_outside_the_list_does_not_open(algorithm):
    with pytest.raises(TokenRefused):
        opens(RSA.sign(CLAIMS, alg=algorithm), alg=algorithm)


def test_a_token_without_signature_is_refused():
    header, payload, _ = RSA.sign(CLAIMS, alg="none").split(".")
    for token in (f"{header}.{payload}.", f"{header}.{payload}", header, "", "..", "a.b.c.d"):
        with pytest.raises(TokenRefused):
            read_token(token)


def test_hs256_with_the_public_key_as_secret_does_not_open():
    pem = RSA.key.as_pem(private=False)
    signing_input = segment(b'{"alg":"HS256","kid":"k1"}') + b"." + segment(b'{"sub":"mio"}')
    token = (signing_input + b"." + segment(hmac.digest(pem, signing_input, "sha256"))).decode()
    for pinned in ("RS256", "HS256"):
        with pytest.raises(TokenRefused):
            opens(token, allowed=("RS256", "HS256"), alg=pinned)


@pytest.mark.parametrize(
    "header",
    [
        {"jku": "https://evil.example/keys"},
        {"x5u": "https://evil.example/cert"},
        {"x5c": ["MIIB"]},
        {"jwk": RSA.public()},
        {"crit": ["exp"]},
        {"crit": []},
        {"b64": False, "crit": ["b64"]},
        {"b64": True},
        {"kid": None},
        {"kid": ""},
        {"kid": 7},
        {"kid": ["k1"]},
        {"kid": "k" * 300},
        {"alg": None},
        {"alg": ["RS256"]},
    ],
)
def test_a_header_that_brings_its_own_key_or_rules_is_refused(header):
    with pytest.raises(TokenRefused):
        read_token(RSA.sign(CLAIMS, **header))


def test_a_name_that_occurs_twice_is_refused_wherever_it_is():
    with pytest.raises(TokenRefused):
        read_token(RSA.sign_segments(b'{"alg":"RS256","kid":"k1","kid":"k2"}', b"{}"))
    for payload in (b'{"sub":"a","sub":"b"}', b'{"x":{"y":1,"y":2}}', b'[{"a":1,"a":1}]'):
        with pytest.raises(TokenRefused):
            read_object(payload, "payload")


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"[]", b'"x"', b"null", b"{", b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b"\xff{}", b"{}{}"),
        *(b'{"a":' * 5000 + b"1" + b"}" * 5000, b'{"a":' + b"9" * 5000 + b"}"),
    ],
)
def test_what_is_not_one_plain_json_object_is_refused(text):
    with pytest.raises(TokenRefused):
        read_object(text, "payload")


def test_a_token_of_more_than_16_kib_is_refused_unread():
    token = RSA.sign({"sub": "x" * TOKEN_LIMIT_BYTES})
    assert len(token) > TOKEN_LIMIT_BYTES
    with pytest.raises(TokenRefused, match="token or API key") as refused:
        read_token(token)
    assert "16 KiB" in refused.value.reason


def test_every_way_to_write_the_same_bytes_but_the_canonical_one_is_refused():
    token = RSA.sign(CLAIMS)
    header, payload, signature = token.split(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet.index(signature[-1])
    same_bytes = signature[:-1] + alphabet[last + 1]
    assert base64.urlsafe_b64decode(same_bytes + "==") == base64.urlsafe_b64decode(signature + "==")
    others = [
        f"{header}.{payload}.{same_bytes}",
        f"{header}.{payload}.{signature}==",
        f"{header}.{payload}.{signature}A",
    ]
    others += [f" {token}", f"{token}\n", token.replace(".", ".\u200b", 1), token.replace("e", "ｅ", 1)]
    others += [f"{header}=.{payload}.{signature}", f"{header}.{payload}+/.{signature}"]
    for other in others:
        with pytest.raises(TokenRefused):
            opens(other)


def test_a_segment_of_three_quarters_with_loose_bits_is_refused():
    with pytest.raises(TokenRefused):
        read_token("e30.AAB.AAAA")
    with pytest.raises(TokenRefused):
        read_token("AAAAA.AAAA.AAAA")


def test_every_flipped_bit_of_a_token_breaks_it():
    token = EC.sign(CLAIMS).encode()
    for place in range(len(token)):
        flipped = bytearray(token)
        flipped[place] ^= 1 << (place % 7)
        with pytest.raises(TokenRefused):
            opens(flipped.decode("latin-1"), EC)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: ".".join([segment(b).decode()] * 3)))
def test_garbage_is_refused_and_nothing_else_happens(raw):
    with pytest.raises(TokenRefused):
        opens(raw)


@given(
    st.dictionaries(
        st.text(max_size=8), st.none() | st.text(max_size=8) | st.integers() | st.lists(st.text()), max_size=5
    )
)
def test_any_header_over_a_true_signature_is_read_or_refused(header):
    token = EC.sign_segments(json.dumps(header).encode(), b"{}")
    with pytest.raises(TokenRefused):
        opens(token, EC)


# --- keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"use": "enc"},
        {"use": ["sig"]},
        {"key_ops": ["sign"]},
        {"key_ops": "verify"},
        {"key_ops": ["verify", "encrypt"]},
        {"kid": None},
        {"kid": ""},
        {"alg": 5},
        {"issuer": 5},
        {"kty": "XYZ"},
        {"n": 5},
        {"n": "AQAB"},
        {"n": None},
        {"n": "ü"},
        {"e": "AQ"},
        {"e": "Ag"},
        {"e": segment((1 << 40 | 1).to_bytes(6)).decode()},
        {"d": "AQAB"},
    ],
)
def test_a_published_key_that_is_not_fit_to_verify_is_none(change):
    assert read_key({**RSA.public(), **change}) is None


def test_a_key_that_is_no_object_is_none():
    for thing in (None, [], "key", {1: 2}):
        assert read_key(thing) is None


def test_rsa_keys_outside_2048_to_8192_bits_are_none():
    for bits in (1024, 2040):
        modulus = segment(((1 << bits) - 1).to_bytes(bits // 8)).decode()
        assert read_key({**RSA.public(), "n": modulus}) is None
    assert read_key({**RSA.public(), "n": segment(((1 << 8200) - 1).to_bytes(1025)).decode()}) is None
    even = int.from_bytes(base64.urlsafe_b64decode(RSA.public()["n"] + "==")) - 1
    assert read_key({**RSA.public(), "n": segment(even.to_bytes(256)).decode()}) is None


def test_a_point_off_its_curve_is_no_key():
    assert read_key({**EC.public(), "y": segment(bytes(32)).decode()}) is None


def test_a_certificate_beside_a_key_changes_nothing():
    assert read_key({**RSA.public(), "x5c": ["not a certificate"], "x5t": "AA", "use": "sig"}) is not None
    without = {name: value for name, value in RSA.public().items() if name not in ("use", "alg")}
    key = read_key({**without, "key_ops": ["verify"]})
    assert key is not None
    check_signature(read_token(RSA.sign(CLAIMS)), key, ["RS256"])


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "Ed25519"])
def test_a_key_of_another_type_or_curve_does_not_serve(algorithm):
    keys = [
        RSA,
        EC,
        ED,
        IssuerKey("k", algorithm="ES256", key=ECKey.generate_key("P-384")),
        IssuerKey("k", algorithm="Ed25519", key=OKPKey.generate_key("Ed448")),
    ]
    token = KEYS[algorithm].sign(CLAIMS)
    for key in keys:
        if key.key is KEYS[algorithm].key:
            continue
        published = read_key({name: value for name, value in key.public().items() if name != "alg"})
        assert published is not None
        with pytest.raises(TokenRefused):
            check_signature(read_token(token), published, list(ALGORITHMS))


def test_a_token_for_another_algorithm_than_the_binding_allows_does_not_open():
    opens(EC.sign(CLAIMS), EC, allowed=("RS256", "ES256"))
    with pytest.raises(TokenRefused):
        opens(EC.sign(CLAIMS), EC, allowed=("RS256",))


def test_a_token_of_another_key_of_the_same_kind_does_not_open():
    other = IssuerKey("k1", key=RSAKey.generate_key(2048))
    with pytest.raises(TokenRefused):
        opens(other.sign(CLAIMS))


def test_a_broken_signature_that_makes_the_library_stumble_is_a_refusal(monkeypatch):
    import joserfc.jws

    def stumble(*args):
        raise ValueError("surprise")

    monkeypatch.setattr(joserfc.jws.JWSRegistry.algorithms["RS256"], "verify", stumble)
    with pytest.raises(TokenRefused):
        opens(RSA.sign(CLAIMS))


def test_a_key_set_leaves_out_what_is_unfit_and_keeps_the_rest():
    keys = read_keys({"keys": [RSA.public(), {"kty": "AKP", "kid": "new"}, 7, EC.public(), EC.public()]})
    assert sorted(keys) == ["k1", "k2"]


def test_a_key_id_claimed_by_two_keys_belongs_to_neither():
    other = IssuerKey("k1", algorithm="ES256")
    assert sorted(read_keys({"keys": [RSA.public(), other.public(), RSA.public(), EC.public()]})) == ["k2"]


def test_a_set_with_a_secret_beside_public_keys_is_not_used():
    secret = OctKey.generate_key(256).as_dict(private=True) | {"kid": "s"}
    assert read_keys({"keys": [RSA.public(), secret]}) == {}


def test_something_that_is_no_key_set_is_refused():
    for jwks in ({}, {"keys": {}}, {"keys": [{}] * (KEY_SET_LIMIT + 1)}):
        with pytest.raises(TokenRefused):
            read_keys(jwks)
