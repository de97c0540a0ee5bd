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
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

import whalewatch
from tests.support.scripted import ScriptedEngine, box
from whalewatch import (
    Engine,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    Portfolio,
    Snapshot,
    Subscription,
    UnsupportedEngine,
    WatcherOptions,
    containerd,
    cri,
    moby,
)
from whalewatch.moby.address import endpoint
from whalewatch.moby.connection import Connection

SPECIAL = {"__aenter__", "__aexit__", "__aiter__", "__anext__", "__contains__", "__getitem__", "__iter__", "__len__"}

MADE_BY_THE_LIBRARY = {Portfolio, Snapshot, Subscription}
"""Classes whose instances applications get, and do not make."""

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
            elif (public or member in SPECIAL) and inspect.isfunction(value):
                members[f"{name}.{member}"] = signature(value)
    made = {} if thing in MADE_BY_THE_LIBRARY else {name: signature(thing)}
    return made | dict(sorted(members.items()))


def surface() -> list[str]:
    found: dict[str, str] = {}
    for name in whalewatch.__all__:
        found |= described(name, getattr(whalewatch, name))
    for module in (containerd, cri, moby):
        for name in module.__all__:
            found |= described(f"{module.__name__.removeprefix('whalewatch.')}.{name}", getattr(module, name))
    return [f"{name}: {text}" for name, text in found.items()]


def test_public_names_and_signatures_are_as_pinned() -> None:
    assert surface() == PINNED.read_text(encoding="utf-8").splitlines()


def test_public_names_are_sorted_and_there() -> None:
    for module in (whalewatch, containerd, cri, moby):
        names: list[str] = module.__all__
        assert names == sorted(set(names))
        assert all(hasattr(module, name) for name in names)


def test_every_public_name_is_explained() -> None:
    for module in (whalewatch, containerd, cri, moby):
        assert module.__doc__
        names: list[str] = module.__all__
        for name in names:
            assert getattr(module, name).__doc__ or not inspect.isclass(getattr(module, name)), name


def test_public_names_show_the_module_that_users_import_them_from() -> None:
    for module in (whalewatch, containerd, cri, moby):
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                assert thing.__module__ == module.__name__, name
                typing.get_type_hints(thing)
    assert repr(whalewatch.NotSynced) == "<class 'whalewatch.NotSynced'>"


def test_values_and_errors_survive_pickling() -> None:
    for thing in (box("a"), whalewatch.Port(80), whalewatch.Health.HEALTHY):
        assert pickle.loads(pickle.dumps(thing)) == thing  # noqa: S301 - our own
    error = pickle.loads(pickle.dumps(whalewatch.NotSynced("late")))  # noqa: S301 - our own
    assert (type(error), str(error)) == (whalewatch.NotSynced, "late")


def test_version_is_that_of_the_package() -> None:
    assert whalewatch.__version__ == metadata.version("whalewatch")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = whalewatch.nothing


def test_watch_explains_each_of_its_options() -> None:
    for module in (containerd, cri, moby):
        arguments = inspect.cleandoc(module.watch.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
        explained = re.findall(r"^    (\w+): ", arguments, re.MULTILINE)
        own = [parameter for parameter in inspect.signature(module.watch).parameters if parameter != "options"]
        assert explained == [*own, *WatcherOptions.__annotations__], module.__name__


def test_adapters_are_engines() -> None:
    adapters: list[Engine] = [
        ScriptedEngine(),
        containerd.ContainerdEngine(),
        cri.CRIEngine("unix:///run/crio/crio.sock"),
        moby.MobyEngine("unix:///run/docker.sock"),
    ]
    for adapter in adapters:
        assert all(hasattr(adapter, name) for name in dir(Engine) if not name.startswith("_"))


# ---- what importing loads


def loaded_by(statement: str) -> set[str]:
    """The packages that a new interpreter has loaded after one statement."""
    program = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", program], env=environ, check=True, capture_output=True, text=True)
    modules: list[str] = json.loads(done.stdout)
    return {module.partition(".")[0] for module in modules} | set(modules)


def test_importing_the_core_loads_no_wire() -> None:
    loaded = loaded_by("import whalewatch")
    assert "whalewatch._core.watcher" in loaded
    assert loaded.isdisjoint({"aiohttp", "aiodocker", "grpc", "google.protobuf"})
    adapters = {f"whalewatch.{name}" for name in ("moby", "containerd", "cri")}
    others = {f"whalewatch.{name}" for name in ("_grpc", "_wire", "testing")}
    assert loaded.isdisjoint(adapters | others)


def test_importing_the_docker_adapter_loads_no_grpc_and_no_test_helpers() -> None:
    loaded = loaded_by("from whalewatch import moby")
    assert "aiohttp" in loaded
    assert loaded.isdisjoint({"grpc", "google.protobuf", "asyncssh", "whalewatch.testing", "pytest"})


@pytest.mark.parametrize("adapter", ["containerd", "cri"])
def test_importing_an_adapter_that_speaks_grpc_loads_no_http_client_and_no_test_helpers(adapter: str) -> None:
    loaded = loaded_by(f"from whalewatch import {adapter}")
    assert {"grpc", "google.protobuf"} <= loaded
    assert loaded.isdisjoint({"aiohttp", "aiodocker", "yarl", "asyncssh", "whalewatch.testing", "pytest"})


def test_importing_changes_no_logging() -> None:
    program = (
        "import logging; before = dict(vars(logging.root)); from whalewatch import containerd, cri, moby; "
        "assert vars(logging.root) == before; assert not logging.getLogger('whalewatch').handlers"
    )
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", program], env=environ, check=True, capture_output=True)


# ---- foreign exceptions


TRANSLATED: dict[str, type[EngineError]] = {
    "ClientConnectionError": EngineUnavailable,
    "ClientConnectionResetError": EngineUnavailable,
    "ClientConnectorCertificateError": EngineUnavailable,
    "ClientConnectorDNSError": EngineUnavailable,
    "ClientConnectorError": EngineUnavailable,
    "ClientConnectorSSLError": EngineUnavailable,
    "ClientError": EngineError,
    "ClientHttpProxyError": UnsupportedEngine,
    "ClientOSError": EngineUnavailable,
    "ClientPayloadError": EngineUnavailable,
    "ClientProxyConnectionError": EngineUnavailable,
    "ClientResponseError": UnsupportedEngine,
    "ClientSSLError": EngineUnavailable,
    "ConnectionTimeoutError": EngineTimeout,
    "ContentTypeError": UnsupportedEngine,
    "InvalidURL": EngineError,
    "InvalidUrlClientError": EngineError,
    "InvalidUrlRedirectClientError": EngineError,
    "NonHttpUrlClientError": EngineError,
    "NonHttpUrlRedirectClientError": EngineError,
    "RedirectClientError": EngineError,
    "ServerConnectionError": EngineUnavailable,
    "ServerDisconnectedError": EngineUnavailable,
    "ServerFingerprintMismatch": EngineUnavailable,
    "ServerTimeoutError": EngineTimeout,
    "SocketTimeoutError": EngineTimeout,
    "TooManyRedirects": UnsupportedEngine,
    "UnixClientConnectorError": EngineUnavailable,
    "UploadAbortedError": EngineError,
    "WSServerHandshakeError": UnsupportedEngine,
}
"""What becomes of each of aiohttp's exceptions: whoever meets a new one decides, and writes it down here."""


def all_subclasses(parent: type[BaseException]) -> set[type[BaseException]]:
    return {parent}.union(*(all_subclasses(child) for child in parent.__subclasses__()))


CLIENT_ERRORS = sorted(
    (kind for kind in all_subclasses(aiohttp.ClientError) if kind.__module__.startswith("aiohttp.")),
    key=lambda kind: kind.__name__,
)


def instance(kind: type[BaseException]) -> BaseException:
    """Make an exception of aiohttp's as aiohttp itself makes it."""
    make: Any = kind
    if kind.__name__ == "UnixClientConnectorError":
        return make("/run/docker.sock", key(), OSError("out of luck"))  # type: ignore[no-any-return]
    if issubclass(kind, aiohttp.ClientConnectorCertificateError):
        return make(key(), ValueError("out of luck"))  # type: ignore[no-any-return]
    if issubclass(kind, aiohttp.ClientConnectorError):
        return make(key(), OSError("out of luck"))  # type: ignore[no-any-return]
    if issubclass(kind, aiohttp.ServerFingerprintMismatch):
        return make(b"expected", b"got", "host", 1)  # type: ignore[no-any-return]
    if issubclass(kind, aiohttp.ClientResponseError):
        request = aiohttp.RequestInfo(
            URL("http://host:1/"), "GET", CIMultiDictProxy(CIMultiDict()), URL("http://host:1/")
        )
        return make(request, (), message="out of luck")  # type: ignore[no-any-return]
    return make("out of luck")  # type: ignore[no-any-return]


def key() -> ConnectionKey:
    return ConnectionKey("host", 1, False, True, None, None, None)


def test_every_exception_of_aiohttps_client_is_thought_of() -> None:
    unknown = {kind.__name__ for kind in CLIENT_ERRORS} - TRANSLATED.keys()
    assert not unknown, "aiohttp has grown: decide what these mean, in Connection and in TRANSLATED"


@pytest.mark.parametrize("kind", CLIENT_ERRORS, ids=lambda kind: kind.__name__)
async def test_exception_of_aiohttps_is_translated(kind: type[Exception]) -> None:
    connection = Connection(endpoint("tcp://host:1"), engine="Docker", remedy="none", calls=Counter())
    try:
        foreign = instance(kind)
        assert isinstance(foreign, Exception)
        with pytest.raises(EngineError) as caught:
            await fail(connection, foreign)
        assert type(caught.value) is TRANSLATED[kind.__name__]
        assert caught.value.__cause__ is foreign
        assert str(caught.value).startswith("Docker engine at tcp://host:1: ")
        assert str(caught.value).isprintable()
    finally:
        await connection.close()


async def fail(connection: Connection, foreign: Exception) -> None:
    """Make a request during which something below raises."""
    session: Any = connection._session

    def get(*_: Any, **__: Any) -> Any:
        raise foreign

    session.__dict__["get"] = get
    await connection.ping()


def test_the_program_for_type_checkers_uses_every_public_name() -> None:
    program = (Path(__file__).parents[1] / "typing" / "program.py").read_text()
    names = {*whalewatch.__all__, "__version__"}
    names |= {
        f"{module.__name__.rpartition('.')[2]}.{name}" for module in (containerd, cri, moby) for name in module.__all__
    }
    assert {name for name in names if not re.search(rf"\b{re.escape(name)}\b", program)} == set()
