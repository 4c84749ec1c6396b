# SPDX-License-Identifier: Apache-2.0
"""Certificates of our own: a TLS client takes them, and in time they are replaced."""

import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from scheduler_extender.admission.pair import (
    AHEAD,
    LIFE,
    MOST_TRUSTED,
    RENEW_BEFORE,
    Pair,
    bundle_with,
    make_pair,
    pair_in,
    why_new,
)

HOST = "tidegate-admission.gate.svc"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PAIR = make_pair(HOST, now=NOW)
OTHER = make_pair(HOST, now=NOW)


def shaken(pair: Pair, folder: Path, *, trust: bytes, name: str = HOST) -> str:
    """What a client that checks everything says; empty: it is content."""
    (folder / "both").write_bytes(pair.cert + pair.key)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "both")
    client = ssl.create_default_context(cadata=trust.decode())
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def answer() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:  # the client said no, which it tells itself
            theirs.close()

    answering = threading.Thread(target=answer)
    answering.start()
    try:
        client.wrap_socket(ours, server_hostname=name).close()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    finally:
        ours.close()
        answering.join(timeout=10)
    return ""


def test_a_strict_client_takes_it_for_its_own_name_alone(tmp_path: Path) -> None:
    pair = make_pair(HOST, now=datetime.now(UTC))
    other = make_pair(HOST, now=datetime.now(UTC))
    assert shaken(pair, tmp_path, trust=pair.ca) == ""
    assert shaken(pair, tmp_path, trust=other.ca + pair.ca) == ""
    assert "mismatch" in shaken(pair, tmp_path, trust=pair.ca, name="other.gate.svc")
    assert shaken(pair, tmp_path, trust=other.ca) != ""


def test_it_is_for_servers_and_its_authority_for_one_more_link_only() -> None:
    leaf, ca = (x509.load_pem_x509_certificate(pem) for pem in (PAIR.cert, PAIR.ca))
    uses = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(uses) == [ExtendedKeyUsageOID.SERVER_AUTH]
    constraint = ca.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraint.ca, constraint.path_length) == (True, 0)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_authoritys_key_is_nowhere() -> None:
    """The one key there is does not fit it: nobody can sign with it again."""
    ca = x509.load_pem_x509_certificate(PAIR.ca)
    leaf = x509.load_pem_x509_certificate(PAIR.cert)
    assert PAIR.key.count(b"BEGIN") == 1
    assert ca.public_key() != leaf.public_key()
    assert pair_in(PAIR.data) == PAIR


def test_a_name_of_any_length_will_do() -> None:
    host = f"tidegate-admission.{'n' * 63}.svc"
    assert why_new(make_pair(host, now=NOW), host, now=NOW) == ""


def test_it_is_renewed_a_month_before_its_end() -> None:
    due = NOW + LIFE - RENEW_BEFORE
    assert why_new(PAIR, HOST, now=due - timedelta(seconds=1)) == ""
    assert "it ends at 2026-05-30" in why_new(PAIR, HOST, now=due + timedelta(seconds=1))


def test_one_of_a_clock_that_is_far_ahead_is_replaced_and_the_new_one_does_for_both() -> None:
    ahead = NOW + timedelta(hours=30)
    assert "not valid before" in why_new(make_pair(HOST, now=ahead), HOST, now=NOW)
    assert why_new(PAIR, HOST, now=ahead) == ""
    # As much as clocks usually differ is no reason.
    assert why_new(make_pair(HOST, now=NOW + AHEAD), HOST, now=NOW) == ""


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        pytest.param(lambda pair: None, "there is none yet", id="none"),
        pytest.param(lambda pair: replace(pair, cert=b"no PEM"), "broken", id="certificate"),
        pytest.param(lambda pair: replace(pair, key=b"no PEM"), "broken", id="key"),
        pytest.param(lambda pair: replace(pair, key=OTHER.key), "another's", id="key of another"),
        pytest.param(lambda pair: replace(pair, ca=OTHER.ca), "broken", id="authority of another"),
        pytest.param(lambda pair: replace(pair, cert=pair.ca), "broken", id="authority itself"),
        pytest.param(lambda pair: make_pair("x.y.svc", now=NOW), f"not for {HOST}", id="name"),
    ],
)
def test_what_is_no_use_is_replaced(spoil: Callable[[Pair], Pair | None], why: str) -> None:
    assert why in why_new(spoil(PAIR), HOST, now=NOW)


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        {**PAIR.data, "tls.key": ""},
        {**PAIR.data, "tls.crt": "%%"},
        {"tls.crt": b64encode(b"x").decode()},
    ],
)
def test_a_secret_without_all_of_a_pair_has_none(data: dict[str, str] | None) -> None:
    assert pair_in(data) is None


def test_an_authority_is_trusted_beside_the_others_until_it_expires() -> None:
    first = bundle_with(b"", PAIR.ca, now=NOW)
    both = bundle_with(first, OTHER.ca, now=NOW)
    assert both == PAIR.ca + OTHER.ca
    assert bundle_with(both, PAIR.ca, now=NOW) == both
    later = NOW + LIFE + timedelta(seconds=1)
    newest = make_pair(HOST, now=later)
    assert bundle_with(both, newest.ca, now=later) == newest.ca


def test_what_others_trust_is_kept_and_what_is_no_certificate_is_not() -> None:
    broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    loose = b"words\n" + OTHER.ca.rstrip() + b"\r\n" + broken
    assert bundle_with(loose, PAIR.ca, now=NOW) == OTHER.ca + PAIR.ca


def test_a_bundle_does_not_grow_for_ever() -> None:
    """However often somebody empties the Secret."""
    bundle = b""
    for _ in range(MOST_TRUSTED + 3):
        newest = make_pair(HOST, now=NOW)
        bundle = bundle_with(bundle, newest.ca, now=NOW)
    assert bundle.count(b"BEGIN CERTIFICATE") == MOST_TRUSTED
    assert bundle.endswith(newest.ca)
