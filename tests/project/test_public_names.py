"""The public names and their signatures are pinned; importing them loads no more than they need."""

from __future__ import annotations

import enum
import inspect
import json
import os
import pickle
import re
import subprocess
import sys
import typing
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import whalewatch
from tests.support.scripted import ScriptedEngine, box
from whalewatch import (
    BlockingSubscription,
    BlockingWatcher,
    Engine,
    Portfolio,
    Snapshot,
    Subscription,
    WatcherOptions,
    containerd,
    cri,
    moby,
)

SPECIAL = {
    *("__aenter__", "__aexit__", "__aiter__", "__anext__", "__contains__", "__enter__", "__exit__", "__getitem__"),
    *("__iter__", "__len__", "__next__"),
}

MADE_BY_THE_LIBRARY = {BlockingSubscription, BlockingWatcher, Portfolio, Snapshot, Subscription}
"""Classes whose instances applications get, and do not make."""

ADAPTERS = (containerd, cri, moby)
MODULES = (whalewatch, *ADAPTERS)

PINNED = Path(__file__).with_name("public_names.txt")
"""All that users may rely on: one public name a line, with its signature."""


def signature(thing: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(thing)))


def described(name: str, thing: Any) -> dict[str, str]:
    """All that users may rely on of one public name, as text."""
    if typing.is_typeddict(thing):
        return {name: ", ".join(thing.__annotations__)}
    if not inspect.isclass(thing):
        return {name: signature(thing) if inspect.isfunction(thing) else str(thing)}
    if issubclass(thing, BaseException):
        return {name: f"({', '.join(base.__name__ for base in thing.__bases__)})"}
    if issubclass(thing, enum.Enum):
        return {name: ", ".join(f"{member.name}={member.value}" for member in thing)}
    members: dict[str, str] = {}
    for owner in thing.__mro__:
        for member, value in vars(owner).items():
            public = not member.startswith("_")
            if f"{name}.{member}" in members or not owner.__module__.startswith("whalewatch"):
                continue
            if public and isinstance(value, property):
                members[f"{name}.{member}"] = f"-> {value.fget.__annotations__['return']}"
            elif (public or member in SPECIAL) and inspect.isroutine(found := getattr(thing, member)):
                members[f"{name}.{member}"] = signature(found)
    made = {} if thing in MADE_BY_THE_LIBRARY else {name: signature(thing)}
    return made | dict(sorted(members.items()))


def qualified(module: Any) -> dict[str, Any]:
    """The public names of a module as users write them after `from whalewatch import`."""
    prefix = f"{module.__name__}.".removeprefix("whalewatch.")
    return {f"{prefix}{name}": getattr(module, name) for name in module.__all__}


PUBLIC = {name: thing for module in MODULES for name, thing in qualified(module).items()}


def surface() -> list[str]:
    found = [described(name, thing) for name, thing in PUBLIC.items()]
    return [f"{name}: {text}" for one in found for name, text in one.items()]


def test_public_names_and_signatures_are_as_pinned() -> None:
    assert surface() == PINNED.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_public_names_are_sorted_and_explained_and_show_the_module_that_users_import_them_from(module: Any) -> None:
    assert module.__doc__
    assert module.__all__ == sorted(set(module.__all__))
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__doc__, name
            assert thing.__module__ == module.__name__, name
            typing.get_type_hints(thing)


def test_values_and_errors_survive_pickling() -> None:
    for thing in (box("a"), whalewatch.Port(80), whalewatch.Health.HEALTHY):
        assert pickle.loads(pickle.dumps(thing)) == thing  # noqa: S301 - our own
    error = pickle.loads(pickle.dumps(whalewatch.NotSynced("late")))  # noqa: S301 - our own
    assert (type(error), str(error)) == (whalewatch.NotSynced, "late")


def test_version_is_that_of_the_package() -> None:
    assert whalewatch.__version__ == metadata.version("whalewatch")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = whalewatch.nothing


@pytest.mark.parametrize("module", ADAPTERS, ids=lambda module: module.__name__)
def test_watch_explains_each_of_its_options(module: Any) -> None:
    arguments = inspect.cleandoc(module.watch.__doc__).partition("Args:\n")[2].partition("\n\n")[0]
    explained = re.findall(r"^    (\w+): ", arguments, re.MULTILINE)
    own = [parameter for parameter in inspect.signature(module.watch).parameters if parameter != "options"]
    assert explained == [*own, *WatcherOptions.__annotations__]


def test_adapters_are_engines() -> None:
    docker, kubernetes = moby.MobyEngine("unix:///run/docker.sock"), cri.CRIEngine("unix:///run/crio/crio.sock")
    for adapter in (ScriptedEngine(), containerd.ContainerdEngine(), kubernetes, docker):
        assert [name for name in dir(Engine) if not name.startswith("_") and not hasattr(adapter, name)] == []


# ---- what importing loads


def fresh(statement: str) -> set[str]:
    """The packages and modules that a new interpreter has loaded after one statement."""
    program = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", program], env=environ, check=True, capture_output=True, text=True)
    modules: list[str] = json.loads(done.stdout)
    return {module.partition(".")[0] for module in modules} | set(modules)


HTTP = {"aiohttp", "aiodocker", "yarl"}
GRPC = {"grpc", "google.protobuf"}
OURS = {f"whalewatch.{name}" for name in ("moby", "containerd", "cri", "_grpc", "_wire", "testing")}


@pytest.mark.parametrize(
    ("statement", "needed", "needless"),
    [
        ("import whalewatch", {"whalewatch._core.watcher"}, HTTP | GRPC | OURS),
        (
            "from whalewatch import moby; moby.watch('/nonexistent')",
            {"httptools"},
            HTTP | GRPC | {"whalewatch.testing"},
        ),
        ("from whalewatch import containerd", GRPC, HTTP | {"whalewatch.testing"}),
        ("from whalewatch import cri", GRPC, HTTP | {"whalewatch.testing"}),
    ],
)
def test_importing_loads_no_more_than_is_needed(statement: str, needed: set[str], needless: set[str]) -> None:
    loaded = fresh(statement)
    assert needed <= loaded
    assert loaded.isdisjoint(needless | {"asyncssh", "pytest"})


def test_importing_changes_no_logging() -> None:
    fresh(
        "import logging; before = dict(vars(logging.root)); from whalewatch import containerd, cri, moby; "
        "assert vars(logging.root) == before; assert not logging.getLogger('whalewatch').handlers"
    )


def test_the_program_for_type_checkers_uses_every_public_name() -> None:
    program = (Path(__file__).parents[1] / "typing" / "program.py").read_text()
    names = {*PUBLIC, "__version__"}
    assert {name for name in names if not re.search(rf"\b{re.escape(name)}\b", program)} == set()
