"""Kubernetes' CRI: watch any engine that speaks it, such as containerd and CRI-O."""

from __future__ import annotations

from whalewatch.cri.engine import CRIEngine, watch
from whalewatch.cri.reading import Inspection

__all__ = ["CRIEngine", "Inspection", "watch"]
