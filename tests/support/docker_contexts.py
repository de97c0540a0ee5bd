"""Docker contexts, filed as Docker's own client does."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def context(folder: Path, name: str, docker: Any) -> Path:
    """File a context with this endpoint below Docker's own folder, and return where its TLS files belong."""
    hashed = hashlib.sha256(name.encode()).hexdigest()
    meta = folder / "contexts" / "meta" / hashed
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": {"docker": docker}}))
    return folder / "contexts" / "tls" / hashed / "docker"
