"""The documentation runs: every Python snippet is executed, every link leads somewhere, every name exists.

Each snippet is run by itself, beside a fake engine whose containers live and die meanwhile: on the pages of containerd
and the CRI such an engine, elsewhere a Docker engine that Docker's own rules find. `watcher` is a watcher of it that is
entered, and `fake` (for Docker also `docker`) the fake itself. A snippet must end within `PATIENCE`; one that
iterates (``async for``) may instead still run when the engine's life is over. Tests that a snippet defines are run too.
A whole program (``asyncio.run``) is compared with the example that it is.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

import whalewatch
from whalewatch import containerd, cri, moby
from whalewatch.testing import ContainerdFaults, CRIFaults, DockerFaults, FakeContainerd, FakeCRI, FakeDocker, Gate

ROOT = Path(__file__).parents[2]

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

PATIENCE = 15.0
"""Seconds that a snippet may take."""

EXAMPLES = {"README.md": ROOT / "examples" / "docker.py"}


def snippets(page: Path) -> Iterator[tuple[int, str]]:
    """The Python snippets of a page, each with the line at which it begins."""
    text = page.read_text()
    for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, found.start(1)) + 1, found[1]


SNIPPETS = [
    pytest.param(page, line, source, id=f"{page.name}:{line}")
    for page in PAGES
    for line, source in snippets(page)
    if "asyncio.run(" not in source
]


def live_once(fake: FakeDocker | FakeContainerd | FakeCRI, name: str) -> None:
    """Let a container live and die."""
    if isinstance(fake, FakeCRI):
        pod = fake.run_pod(name)
        fake.exit(fake.run(pod, "job"), 3)
        fake.remove_pod(pod)
        return
    fake.run(name, project="shop")
    fake.pause(name)
    if isinstance(fake, FakeDocker):
        fake.unpause(name)
        fake.exit(name, 3)
        fake.remove(name)
    else:
        fake.resume(name)
        fake.exit(name, 3)
        fake.delete(name)


async def live(fake: FakeDocker | FakeContainerd | FakeCRI, done: asyncio.Event) -> None:
    """Let some containers live and die, until what watches them is done or has seen enough."""
    for number in range(20):
        live_once(fake, f"job-{number}")
        try:
            async with asyncio.timeout(0.02):
                await done.wait()
        except TimeoutError:
            continue
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


async def engine_of(
    page: Path, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> tuple[FakeDocker | FakeContainerd | FakeCRI, whalewatch.Watcher]:
    """The engine that a page is about, with some containers, and a watcher of it."""
    if page.name == "containerd.md":
        containerd_engine = await stack.enter_async_context(FakeContainerd())
        containerd_engine.run("web")
        containerd_engine.run("job", "batch", project="shop")
        return containerd_engine, containerd.watch(containerd_engine.address)
    if page.name == "cri.md":
        cri_engine = await stack.enter_async_context(FakeCRI())
        cri_engine.run(cri_engine.run_pod("shop", "prod"), "web")
        return cri_engine, cri.watch(cri_engine.address)
    docker = await stack.enter_async_context(FakeDocker())
    monkeypatch.setenv("DOCKER_HOST", docker.address)
    docker.run("alone")
    docker.run("db", project="shop", health="healthy")
    return docker, moby.watch()


@pytest.mark.parametrize(("page", "line", "source"), SNIPPETS)
async def test_snippet_runs(
    page: Path, line: int, source: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with AsyncExitStack() as stack:
        fake, watcher = await engine_of(page, stack, monkeypatch)
        done = asyncio.Event()
        exported = {name: getattr(whalewatch, name) for name in whalewatch.__all__}
        async with watcher:
            await watcher.ready(PATIENCE)
            names = {
                "__name__": "snippet",
                "asyncio": asyncio,
                "docker": fake,
                "watcher": watcher,
                "fake": fake,
                **exported,
            }
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


def test_the_program_of_the_readme_is_the_example() -> None:
    for page in PAGES:
        programs = [source for _, source in snippets(page) if "asyncio.run(" in source]
        expected = [EXAMPLES[page.name].read_text()] if page.name in EXAMPLES else []
        assert programs == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_a_page_names_are_there(page: Path) -> None:
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
