"""Which ids of containers and names of namespaces are accepted from an engine."""

from __future__ import annotations

import re

__all__ = ["MAX_ID_LENGTH", "is_id"]

MAX_ID_LENGTH = 255
"""Most characters of an id. Ids of Docker, Podman and CRI engines have 64, those of containerd up to 76."""

ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{MAX_ID_LENGTH - 1}}}")
"""What all engines allow (Docker: names of containers; containerd: pkg/identifiers; the CRI: ids of either). So an id
can be a part of a path, a header and a line of a log."""


def is_id(found: object) -> bool:
    """Return whether something is text that can be an id; every listing, event and inspect is checked with it."""
    return isinstance(found, str) and ID.fullmatch(found) is not None
