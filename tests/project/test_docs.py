"""The documentation runs: every Python snippet is executed, every link leads somewhere, every name exists.

Each snippet is run by itself, beside a fake engine whose containers live and die meanwhile: on the pages of containerd
and the CRI such an engine, elsewhere a Docker engine that Docker's own rules find. `watcher` is a watcher of it that is
entered, and `fake` (for Docker also `docker`) the fake itself. A snippet must end within `PATIENCE`; one that
iterates (``async for``) may instead still run when the engine's life is over. Tests that a snippet defines are run too.
A whole program, with a loop or thread of its own, is compared with the example that it is.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import whalewatch
from whalewatch import containerd, cri, moby
from whalewatch.testing import ContainerdFaults, CRIFaults, DockerFaults, FakeContainerd, FakeCRI, FakeDocker, Gate

Fake = FakeDocker | FakeContainerd | FakeCRI

ROOT = Path(__file__).parents[2]

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

PATIENCE = 15.0
"""Seconds that a snippet may take."""

EXAMPLES = {"README.md": ["docker.py"], "threads.md": ["script.py", "web.py"]}
"""The pages with whole programs, and which."""


def snippets(page: Path) -> Iterator[tuple[int, str]]:
    """The Python snippets of a page, each with the line at which it begins."""
    text = page.read_text()
    for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, found.start(1)) + 1, found[1]


def is_program(source: str) -> bool:
    return "asyncio.run(" in source or "in_thread(" in source


SNIPPETS = [
    pytest.param(page, line, source, id=f"{page.name}:{line}")
    for page in PAGES
    for line, source in snippets(page)
    if not is_program(source)
]


def populate(fake: Fake) -> None:
    """Let some containers live that stay."""
    if isinstance(fake, FakeCRI):
        fake.run(fake.run_pod("shop", "prod"), "web")
    elif isinstance(fake, FakeContainerd):
        fake.run("web")
        fake.run("job", "batch", project="shop")
    else:
        fake.run("alone")
        fake.run("db", project="shop", health="healthy")


async def live(fake: Fake, done: asyncio.Event) -> None:
    """Let some containers live and die, until what watches them is done or has seen enough."""
    for number in range(20):
        name = f"job-{number}"
        if isinstance(fake, FakeCRI):
            pod = fake.run_pod(name)
            fake.exit(fake.run(pod, "job"), 3)
            fake.remove_pod(pod)
        else:
            fake.run(name, project="shop")
            fake.pause(name)
            (fake.unpause if isinstance(fake, FakeDocker) else fake.resume)(name)
            fake.exit(name, 3)
            (fake.remove if isinstance(fake, FakeDocker) else fake.delete)(name)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await done.wait()
                return


async def run(source: str, where: str, names: dict[str, Any]) -> None:
    """Run a snippet in a module of its own, and the tests that it defines."""
    code = compile(source, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if code.co_flags & inspect.CO_COROUTINE:
        await eval(code, names)  # noqa: S307 - our own documentation
    else:
        exec(code, names)  # noqa: S102 - our own documentation
    for name, test in list(names.items()):
        if name.startswith("test_"):
            await test()


@pytest.mark.parametrize(("page", "line", "source"), SNIPPETS)
async def test_snippet_runs(
    page: Path, line: int, source: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_engine, adapter = {"containerd.md": (FakeContainerd, containerd), "cri.md": (FakeCRI, cri)}.get(
        page.name, (FakeDocker, moby)
    )
    async with fake_engine() as fake:
        monkeypatch.setenv("DOCKER_HOST", fake.address)
        populate(fake)
        done = asyncio.Event()
        async with adapter.watch(fake.address) as watcher:
            await watcher.ready(PATIENCE)
            names = {name: getattr(whalewatch, name) for name in whalewatch.__all__}
            names |= {"__name__": "snippet", "asyncio": asyncio, "docker": fake, "watcher": watcher, "fake": fake}
            # The lines of a traceback are those of the page.
            task = asyncio.create_task(run("\n" * (line - 1) + source, str(page), names))
            task.add_done_callback(lambda _: done.set())
            await live(fake, done)
            if "async for" not in source or "def test_" in source:
                await asyncio.wait({task}, timeout=PATIENCE)
                assert task.done(), "it does not end"
            elif not task.done():
                task.cancel()
                await asyncio.wait({task})
        if not task.cancelled():
            task.result()
        assert "print(" not in source or capsys.readouterr().out, "it should have printed something"


def test_whole_programs_are_the_examples() -> None:
    for page in PAGES:
        programs = [source for _, source in snippets(page) if is_program(source)]
        assert programs == [(ROOT / "examples" / name).read_text() for name in EXAMPLES.get(page.name, ())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_tests_that_a_page_names_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    for name in re.findall(r"`(tests/[\w./*]+)", page.read_text()):
        assert list(ROOT.glob(name)), name


def test_every_page_is_on_the_map() -> None:
    told = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in told


def test_changelog_names_what_exists_and_all_of_it() -> None:
    told = set(re.findall(r"`(whalewatch\.[\w.]+)`", (ROOT / "CHANGELOG.md").read_text()))
    for name in told:
        found: Any = whalewatch
        for part in name.split(".")[1:]:
            found = getattr(found, part)
    assert {f"whalewatch.{name}" for name in whalewatch.__all__} <= told


def test_the_tables_of_faults_name_what_exists() -> None:
    section = (ROOT / "docs" / "testing.md").read_text().partition("## What can go wrong at command")[2]
    table = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    names = re.findall(r"`([a-z]\w*)\(", table)
    assert len(names) > 15
    assert all(any(hasattr(kind, name) for kind in (DockerFaults, ContainerdFaults, CRIFaults, Gate)) for name in names)


@pytest.mark.parametrize(
    ("title", "fake", "faults", "least"),
    [("containerd", FakeContainerd, ContainerdFaults, 11), ("CRI", FakeCRI, CRIFaults, 6)],
)
def test_the_sections_of_fakes_name_what_exists(title: str, fake: type, faults: type, least: int) -> None:
    section = (ROOT / "docs" / "testing.md").read_text().partition(f"## A fake {title}\n")[2]
    operations, _, rest = section.partition("`engine.faults` has")
    for kind, text, pattern in (
        (fake, re.split(r"\.\s", operations.partition("Its operations:")[2])[0], r"`(\w+)`"),
        (faults, rest.partition("`engine.tell(")[0], r"`(\w+)\("),
    ):
        names = re.findall(pattern, text)
        assert len(names) >= least
        assert [name for name in names if not hasattr(kind, name)] == []


def test_each_promise_has_its_tests() -> None:
    promised = set(re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE))
    sources = [file.read_text() for file in (ROOT / "tests").rglob("test_*.py")]
    marked = {number for source in sources for number in re.findall(r"pytest\.mark\.promise\((\d+)\)", source)}
    assert len(promised) >= 10
    assert promised == marked
