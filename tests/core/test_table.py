"""Tables and indexes are what a dictionary and a sort would give, whatever changes, and never change themselves."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.scripted import box
from whalewatch import Container
from whalewatch._core import groups
from whalewatch._core.groups import Index
from whalewatch._core.model import by_name
from whalewatch._core.table import Table

pytestmark = pytest.mark.promise(7)

KEYS = st.sampled_from([f"k{number}" for number in range(40)])


@given(st.lists(st.tuples(st.lists(st.tuples(KEYS, st.booleans()), max_size=30), st.booleans()), max_size=20))
def test_table_is_what_a_dictionary_is_whatever_changes(steps: list[tuple[list[tuple[str, bool]], bool]]) -> None:
    table: Table[int] = Table()
    model: dict[str, int] = {}
    kept = []
    for number, (step, look) in enumerate(steps):
        changes: list[tuple[str, int | None]] = []
        for key, stays in step:
            if stays:
                model[key] = number
            elif model.pop(key, None) is None:
                continue
            changes.append((key, number if stays else None))
        table = table.changed(changes)
        kept.append((table, dict(model)))
        assert len(table) == len(model)
        assert all(table.get(f"k{number}") == model.get(f"k{number}") for number in range(40))
        if look:
            assert list(table.values()) == list(model.values())
    for former, then in kept:
        assert (list(former), list(former.items())) == (list(then), list(then.items()))
        assert [key in former for key in then] == [True] * len(then)
        with pytest.raises(KeyError):
            former["missing"]


@pytest.fixture(scope="module")
def short_chunks() -> Iterator[None]:
    longest, groups.LONGEST = groups.LONGEST, 4
    yield
    groups.LONGEST = longest


BOXES = st.builds(box, KEYS, name=st.sampled_from("abc"))


@pytest.mark.usefixtures("short_chunks")
@given(st.lists(st.lists(st.tuples(BOXES, st.booleans()), max_size=8), max_size=20))
def test_group_of_many_is_sorted_whatever_changes(steps: list[list[tuple[Container, bool]]]) -> None:
    index = Index(lambda container: container.project, by_name)
    model: dict[str, Container] = {}
    for step in steps:
        pairs = []
        for container, stays in step:
            before, after = model.pop(container.id, None), container if stays else None
            pairs.append((before, after))
            if after is not None:
                model[after.id] = after
        index = index.changed(pairs)
        found = index.groups.get("")
        chunks = () if found is None else found.chunks
        assert list(chain(*chunks)) == sorted(model.values(), key=by_name)
        assert all(0 < len(chunk) <= 4 for chunk in chunks)
        assert (found is None) is (not model)
