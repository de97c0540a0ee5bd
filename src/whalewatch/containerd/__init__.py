"""containerd: watch it through its own API (1.6 and later)."""

from __future__ import annotations

from whalewatch._core.public import show_as_public
from whalewatch.containerd.engine import ContainerdEngine, Pack, watch
from whalewatch.containerd.reading import Inspection

__all__ = ["ContainerdEngine", "Inspection", "Pack", "watch"]

show_as_public(__name__, __all__)
