"""The list of mistakes that the tests are to catch stays true: `python -m tests.mistakes` makes them."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.mistakes import ROOT, Mistake, mistakes

KINDS = {"ordering", *(f"promise {number}" for number in range(1, 11)), "docker", "containerd", "cri", "http", "kernel"}

MISTAKES = mistakes()


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_mistake_can_still_be_made(mistake: Mistake) -> None:
    assert mistake.kind in KINDS
    assert mistake.old != mistake.new
    compile(mistake.made(), mistake.file, "exec")
    assert mistake.tests
    for argument in mistake.tests:
        file, _, test = argument.partition("::")
        assert (ROOT / file).is_file()
        assert not test or f"def {test.partition('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8")


def test_mistakes_are_told_apart() -> None:
    assert [what for what, times in Counter(one.what for one in MISTAKES).items() if times > 1] == []
    places = Counter((one.file, one.old, one.new) for one in MISTAKES)
    assert [place for place, times in places.items() if times > 1] == []


def test_every_kind_of_mistake_is_on_the_list() -> None:
    assert {one.kind for one in MISTAKES} == KINDS
