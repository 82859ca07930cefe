"""The TLS context that AWS clients share."""

from __future__ import annotations

import os
import shutil
import ssl
from pathlib import Path

import certifi
import pytest
import trustme

from nagaya.clouds.aws_tls import SharedTls


def context_of(session: SharedTls, proxy: str | None = None) -> ssl.SSLContext:
    return session._build_ssl_contexts(proxy)[0]


def test_two_clients_that_trust_the_same_authorities_share_a_context_that_checks_both_name_and_certificate() -> None:
    one, other = context_of(SharedTls()), context_of(SharedTls())
    assert one is other
    assert one.check_hostname
    assert one.verify_mode is ssl.CERT_REQUIRED


def test_a_bundle_of_ones_own_is_not_the_others_bundle(tmp_path: Path) -> None:
    bundle = tmp_path / "own.pem"
    trustme.CA().cert_pem.write_to_path(bundle)
    own = context_of(SharedTls(verify=str(bundle)))
    assert own is not context_of(SharedTls())
    assert len(own.get_ca_certs()) == 1


def test_a_bundle_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    bundle = tmp_path / "own.pem"
    trustme.CA().cert_pem.write_to_path(bundle)
    before = context_of(SharedTls(verify=str(bundle)))
    shutil.copy(certifi.where(), bundle)
    os.utime(bundle, ns=(1, 1))
    after = context_of(SharedTls(verify=str(bundle)))
    assert after is not before
    assert len(after.get_ca_certs()) > 1


def test_a_client_with_a_certificate_of_its_own_shares_it_with_nobody(tmp_path: Path) -> None:
    authority = trustme.CA()
    mine = tmp_path / "mine.pem"
    authority.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(mine)
    assert context_of(SharedTls(client_cert=str(mine))) is not context_of(SharedTls())
    assert context_of(SharedTls(), proxy="http://127.0.0.1:1") is not context_of(SharedTls())


def test_whoever_switched_the_check_off_does_not_switch_it_off_for_others() -> None:
    unchecked = context_of(SharedTls(verify=False))
    assert unchecked.verify_mode is ssl.CERT_NONE
    assert context_of(SharedTls()).verify_mode is ssl.CERT_REQUIRED


def test_a_bundle_that_is_not_there_is_an_error_and_not_an_unchecked_connection() -> None:
    with pytest.raises(OSError, match="bundle"):
        context_of(SharedTls(verify="/no/such/bundle.pem"))
