"""Recognise what answers at an address, and name the module that serves it."""

from __future__ import annotations

from collections.abc import Mapping
from re import match

from whalewatch._core.text import printable

__all__ = ["GRPC", "http_engine"]

GRPC = (
    "this speaks gRPC, as containerd and CRI engines do: use whalewatch.containerd for containerd, "
    "whalewatch.cri for a CRI engine such as CRI-O"
)
"""What to do about an engine that answers a request of HTTP/1.1 as gRPC's servers do."""


def http_engine(headers: Mapping[str, str], *, module: str = "") -> str:
    """Return which engine has sent these headers, and the module for it; "" if that is `module`, or not known.

    Docker and Podman name themselves in the header Server of every answer. Something in front of Podman may replace it,
    but not the header Libpod-API-Version (Podman 4.3 and 5.4).

    Args:
        headers: the headers of an answer, by name in lower case.
        module: name of the module that asks.
    """
    named = match(r"(Docker|Libpod)/(\S+)", headers.get("server", ""))
    kind, version = named.groups() if named else ("", "")
    if libpod := headers.get("libpod-api-version"):
        kind, version = "Libpod", libpod
    name, serving = {"Docker": ("Docker", "moby"), "Libpod": ("Podman", "podman")}.get(kind, ("", module))
    return "" if serving == module else f"this is {name} {printable(version, 40)}: use whalewatch.{serving}"
