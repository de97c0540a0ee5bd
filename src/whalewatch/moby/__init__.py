"""Docker: watch a Docker engine through its Engine API (20.10 and later, API 1.41 and later)."""

from __future__ import annotations

from whalewatch._core.public import show_as_public
from whalewatch.moby.engine import MobyEngine, Pack, watch

__all__ = ["MobyEngine", "Pack", "watch"]

show_as_public(__name__, __all__)
