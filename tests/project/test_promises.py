"""Each promise of docs/reliability.md has tests that are marked with its number."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_promise_has_its_tests() -> None:
    table = (ROOT / "docs" / "reliability.md").read_text()
    promised = set(re.findall(r"^\| (\d+) \|", table, re.MULTILINE))
    marked = {
        number
        for file in (ROOT / "tests").rglob("test_*.py")
        for number in re.findall(r"pytest\.mark\.promise\((\d+)\)", file.read_text())
    }
    assert len(promised) >= 10
    assert promised == marked
