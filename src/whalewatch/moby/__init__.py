"""Docker: watch a Docker engine through its Engine API (20.10 and later, API 1.41 and later)."""

from __future__ import annotations

from whalewatch.moby.engine import MobyEngine, watch

__all__ = ["MobyEngine", "watch"]
