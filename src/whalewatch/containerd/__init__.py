"""containerd: watch it through its own API (1.6 and later)."""

from __future__ import annotations

from whalewatch.containerd.engine import ContainerdEngine, watch
from whalewatch.containerd.reading import Inspection

__all__ = ["ContainerdEngine", "Inspection", "watch"]
