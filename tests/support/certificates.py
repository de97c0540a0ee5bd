"""Certificates for tests: an authority, and a server at 127.0.0.1 and a client that it signs."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_ADDRESS = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))])
_UNUSED = ("content_commitment", "data_encipherment", "key_agreement", "crl_sign", "encipher_only", "decipher_only")
# Python 3.13 and later refuse an authority that does not say what its key is for.
_SIGNS = x509.KeyUsage(
    digital_signature=False, key_encipherment=False, key_cert_sign=True, **dict.fromkeys(_UNUSED, False)
)


def make_certificates(folder: Path, *, strict: bool = True) -> None:
    """Make `ca.pem`, `server-cert.pem` with `server-key.pem`, and a client's `cert.pem` with `key.pem`.

    If not `strict`, they are as https://docs.docker.com/engine/security/protect-access/ tells to make them.
    """
    folder.mkdir()
    authority = ec.generate_private_key(ec.SECP256R1())
    signs = (_SIGNS,) if strict else ()
    _write(folder / "ca.pem", "ca", authority, authority, x509.BasicConstraints(True, None), *signs)
    for name, prefix, purpose in (
        ("server", "server-", ExtendedKeyUsageOID.SERVER_AUTH),
        ("client", "", ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        extensions = (x509.BasicConstraints(False, None), x509.ExtendedKeyUsage([purpose]), _ADDRESS)
        _write(folder / f"{prefix}cert.pem", name, key, authority, *extensions)
        pem, pkcs8, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (folder / f"{prefix}key.pem").write_bytes(key.private_bytes(pem, pkcs8, plain))


def _write(
    path: Path,
    name: str,
    key: ec.EllipticCurvePrivateKey,
    authority: ec.EllipticCurvePrivateKey,
    *extensions: x509.ExtensionType,
) -> None:
    issuer, subject = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in ("ca", name))
    now, day = datetime.now(UTC), timedelta(days=1)
    number = x509.random_serial_number()
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), number, now - day, now + day)
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issued = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    for extension in (*extensions, own, issued):
        critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
        builder = builder.add_extension(extension, critical=critical)
    path.write_bytes(builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
