"""The import contracts catch what they are for, also in files that nobody has written yet."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

OFFENCES = {
    "unlisted": "",
    "_core.unlisted": "",
    "testing.unlisted": "",
    "_core.knows_moby": "whalewatch.moby",
    "_core.loads_grpc": "grpc",
    "_grpc.knows_messages": "whalewatch._wire",
    "containerd.loads_http": "aiohttp",
    "moby.asks_linux": "whalewatch._linux.processes",
    "moby.knows_containerd": "whalewatch.containerd",
    "moby.knows_fakes": "whalewatch.testing",
    "moby.loads_grpc": "grpc",
    "testing.containerd.loads_http": "aiohttp",
    "testing.cri.loads_http": "aiohttp",
    "testing.docker.knows_adapters": "whalewatch._adapter.unix",
    "testing.docker.knows_another": "whalewatch.testing.cri",
    "testing.docker.knows_core": "whalewatch._core.model",
    "testing.docker.knows_library": "whalewatch",
    "testing.docker.knows_messages": "whalewatch._wire.cri_pb2",
    "testing.docker.loads_grpc": "grpc",
    "testing.shared.knows_docker": "whalewatch.testing.docker",
}
"""New modules, and what each imports; where that is nothing, the offence is that no layer names the module."""


def lint(folder: Path, offences: Mapping[str, str]) -> str:
    """Check a copy of the library with these modules in it, and return the report."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for module, imported in offences.items():
        path = folder / "src" / "whalewatch" / f"{module.replace('.', '/')}.py"
        path.write_text(f"import {imported}\n" if imported else "")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "COLUMNS": "1000"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == bool(offences), done.stdout + done.stderr
    return re.sub(" +", " ", done.stdout)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    return lint(tmp_path_factory.mktemp("offences"), OFFENCES)


def test_the_library_keeps_all_contracts(tmp_path: Path) -> None:
    lint(tmp_path, {})


@pytest.mark.parametrize(("module", "imported"), OFFENCES.items(), ids=OFFENCES)
def test_an_offence_is_reported(report: str, module: str, imported: str) -> None:
    line = f"- whalewatch.{module}{f' -> {imported} (l.1)' if imported else ''}\n"
    # A chain of imports ends with an empty line: this import is one by itself, not the beginning of another offence.
    assert line + "\n" * (imported not in {"", "whalewatch"}) in report


def test_each_contract_is_broken_by_an_offence(report: str) -> None:
    assert "\nContracts: 0 kept, " in report
