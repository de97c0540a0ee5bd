"""Labels that mean the same on every engine."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["project"]

PROJECT, STACK = "com.docker.compose.project", "com.docker.stack.namespace"
"""Labels with which compose tools mark the project of a container, and `docker stack deploy` the stack of a service and
of its containers."""


def project(labels: Mapping[str, str]) -> str:
    """Return the name of the compose project or the stack that a container belongs to; "" if it belongs to none."""
    return labels.get(PROJECT) or labels.get(STACK, "")
