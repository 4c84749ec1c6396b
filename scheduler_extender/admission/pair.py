# SPDX-License-Identifier: Apache-2.0
"""A certificate of our own with its key, and whom to trust for it. Pure but for the making of keys.

Every pair has an authority of its own, which signs once: its key is thrown away as soon as it has,
so that nobody can sign anything else that the API server would take for ours.
"""

import re
from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFE: Final = timedelta(days=90)
RENEW_BEFORE: Final = timedelta(days=30)
AHEAD: Final = timedelta(hours=1)  # so much the API server's clock may be behind ours
MOST_TRUSTED: Final = 8  # authorities in a bundle; a pair a month leaves two or three

CERT, KEY, CA = "tls.crt", "tls.key", "ca.crt"  # as Secrets of type kubernetes.io/tls name them
_PEM: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", flags=re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Pair:
    """All in PEM: a certificate, its key, and the authority that signed it."""

    cert: bytes
    key: bytes
    ca: bytes

    @property
    def data(self) -> dict[str, str]:
        """As it stands in a Secret."""
        named = {CERT: self.cert, KEY: self.key, CA: self.ca}
        return {name: b64encode(text).decode() for name, text in named.items()}


def pair_in(data: Mapping[str, str] | None) -> Pair | None:
    """What a Secret has; None where it has not all of a pair."""
    data = data or {}
    try:
        cert, key, ca = (b64decode(data.get(name) or "") for name in (CERT, KEY, CA))
    except BadBase64:
        return None
    return Pair(cert, key, ca) if cert and key and ca else None


def make_pair(host: str, *, now: datetime) -> Pair:
    """For the name under which the API server asks us."""
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{host[:40]} {now:%F %T}")])
    ca = (
        _certificate(authority, ca_key, issuer=authority, now=now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    leaf = (
        _certificate(subject, key, issuer=authority, now=now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(issued_by, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return Pair(leaf.public_bytes(Encoding.PEM), _pem(key), ca.public_bytes(Encoding.PEM))


def why_new(pair: Pair | None, host: str, *, now: datetime) -> str:
    """Why a pair is to be replaced; empty: it will do."""
    if pair is None:
        return "there is none yet"
    try:
        leaf = x509.load_pem_x509_certificate(pair.cert)
        ca = x509.load_pem_x509_certificate(pair.ca)
        key = load_pem_private_key(pair.key, password=None)
        leaf.verify_directly_issued_by(ca)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
        return f"it is broken: {error!r}"
    if key.public_key() != leaf.public_key():
        return "its key is another's"
    if host not in names.get_values_for_type(x509.DNSName):
        return f"it is not for {host}"
    # Whoever made it has a clock that is ahead by more than `AHEAD`; ours would do for both.
    begins = max(leaf.not_valid_before_utc, ca.not_valid_before_utc)
    if begins > now:
        return f"it is not valid before {begins:%FT%TZ}"
    ends = min(leaf.not_valid_after_utc, ca.not_valid_after_utc)
    return f"it ends at {ends:%FT%TZ}" if ends - now < RENEW_BEFORE else ""


def bundle_with(bundle: bytes, ca: bytes, *, now: datetime) -> bytes:
    """A bundle that trusts an authority beside those that it trusts, but for what has expired.

    Whoever still shows an older certificate is trusted until that ends.
    """
    trusted = [one.strip() for one in _PEM.findall(bundle) if _lives(one, now)]
    wanted = [one for one in map(bytes.strip, _PEM.findall(ca)) if one not in trusted]
    return b"".join(one + b"\n" for one in [*trusted, *wanted][-MOST_TRUSTED:])


def ends_at(pem: bytes) -> datetime:
    """When the first certificate in it is good no more. Raises `ValueError`."""
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc


def _lives(pem: bytes, now: datetime) -> bool:
    try:
        return ends_at(pem) > now
    except ValueError:  # nobody can be trusted by it
        return False


def _certificate(
    subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, issuer: x509.Name, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - AHEAD)
        .not_valid_after(now + LIFE)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
