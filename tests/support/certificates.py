"""Certificates for tests: an authority, and a server at 127.0.0.1 and a client that it signs."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from pathlib import Path

_ADDRESSES = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))])


def make_certificates(folder: Path) -> None:
    """Make `ca.pem`, `server-cert.pem` with `server-key.pem`, and a client's `cert.pem` with `key.pem`."""
    folder.mkdir()
    authority = ec.generate_private_key(ec.SECP256R1())
    # Python 3.13 and later refuse an authority that does not say what its key is for.
    signs = _key_usage(authority=True)
    _write(folder / "ca.pem", _builder("ca", authority, authority, signs, x509.BasicConstraints(True, None)), authority)
    for name, certificate, key, purpose in (
        ("server", "server-cert.pem", "server-key.pem", ExtendedKeyUsageOID.SERVER_AUTH),
        ("client", "cert.pem", "key.pem", ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        own = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(name, own, authority, _key_usage(authority=False), x509.BasicConstraints(False, None))
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        _write(folder / certificate, builder.add_extension(_ADDRESSES, critical=False), authority)
        (folder / key).write_bytes(
            own.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


def _builder(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    authority: ec.EllipticCurvePrivateKey,
    usage: x509.KeyUsage,
    constraints: x509.BasicConstraints,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(_name("ca"), _name(name), key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(constraints, critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(path: Path, builder: x509.CertificateBuilder, authority: ec.EllipticCurvePrivateKey) -> None:
    path.write_bytes(builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
