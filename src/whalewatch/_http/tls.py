"""Why TLS fails, and what can be done about it."""

from __future__ import annotations

import ssl

from whalewatch._core.text import printable

__all__ = ["explained"]

NOT_TLS = {"HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "WRONG_VERSION_NUMBER"}
"""OpenSSL's reasons if what the other side sends is not TLS."""

REMEDIES = {
    **dict.fromkeys((2, 18, 19, 20, 21), "the CA that signed it is needed"),
    **dict.fromkeys((9, 10), "make a new one, or set the clock right"),
    **dict.fromkeys((62, 64), "use an address that it names, or make one that names this address"),
}
"""What to do about a certificate, by OpenSSL's reason to refuse it (x509_vfy.h)."""


def explained(error: ssl.SSLError) -> str:
    """Return which certificate is refused, or what else is wrong, why, and what can be done about it."""
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        strict = "make a correct one, or clear ssl.VERIFY_X509_STRICT in the verify_flags of the TLS context"
        remedy = REMEDIES.get(error.verify_code, strict)
        return f"TLS refused: the certificate of the engine is not valid ({printable(error.verify_message)}): {remedy}"
    if "ALERT" in reason and ("CERT" in reason or "UNKNOWN_CA" in reason):
        remedy = "one is needed that the engine's CA has signed"
        return f"TLS refused: the engine does not accept the client certificate, or misses it ({reason}): {remedy}"
    if reason in NOT_TLS:
        return f"TLS refused: what answers does not speak TLS ({reason}): use another port, or no TLS"
    return f"TLS refused ({printable(error)}): check the CA, the client certificate and its key"
