"""Kubernetes' CRI: watch any engine that speaks it, such as containerd and CRI-O."""

from __future__ import annotations

from whalewatch._core.public import show_as_public
from whalewatch.cri.engine import CRIEngine, Pack, SourceName, watch
from whalewatch.cri.reading import Inspection

__all__ = ["CRIEngine", "Inspection", "Pack", "SourceName", "watch"]

show_as_public(__name__, __all__)
