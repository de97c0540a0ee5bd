"""What the library logs and prints goes through few functions, which escape it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "src" / "whalewatch"

ALLOWED = {
    "logging.getLogger": "_core/text.py",
    "logging.Logger": "",
    "logging.LoggerAdapter": "",
    "warnings.warn": "",
    "print": "cli/output.py",
    "sys.stdout.write": "",
    "sys.stderr.write": "",
    "traceback.print_exc": "",
}
"""What writes as it is, and the one file that may call it."""


@cache
def callers() -> set[tuple[str, str]]:
    """Return which file calls which of these."""
    calls = {
        (str(file.relative_to(SOURCES)), ast.unparse(node.func))
        for file in SOURCES.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    }
    return {(file, name) for file, name in calls if name in ALLOWED}


@pytest.mark.parametrize("name", ALLOWED)
def test_library_writes_through_what_escapes_only(name: str) -> None:
    assert {file for file, called in callers() if called == name} == ({ALLOWED[name]} - {""})
