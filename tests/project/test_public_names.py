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

PINNED = """
AddressError: (WhalewatchError, ValueError)
Container: (*, id: 'str', name: 'str', pid: 'int | None', labels: 'Mapping[str, Any]' = {}, project: 'str' = '',
    paused: 'bool' = False, image: 'str' = '', started_at: 'datetime | None' = None, health: 'Health | None' = None,
    ports: 'tuple[Port, ...]' = (), addresses: 'Mapping[str, Any]' = {}, privileged: 'bool | None' = None, engine:
    'str' = '', rucksack: 'Any' = None) -> None
ContainerEvent: (*, type: 'EventType', container: 'Container', previous: 'Container | None' = None, timestamp:
    'datetime', origin: 'Origin', exit_code: 'int | None' = None, revision: 'int', last: 'bool') -> None
Dead: (container: 'Container', exit_code: 'int | None' = None, oom: 'bool | None' = None) -> None
Engine: (*args, **kwargs)
Engine.address: -> str
Engine.calls: -> Mapping[str, int]
Engine.client: -> Any
Engine.close: (self) -> 'None'
Engine.connect: (self) -> 'None'
Engine.id: (self) -> 'str'
Engine.inspect: (self, id: 'str', /) -> 'Container | Dead | None'
Engine.listing: (self) -> 'Listing'
Engine.pid: -> int | None
Engine.ping: (self) -> 'None'
Engine.signals: (self) -> 'AsyncIterator[Signal]'
Engine.source: -> str
Engine.type: -> str
Engine.version: (self) -> 'str'
EngineError: (WhalewatchError)
EngineTimeout: (EngineError)
EngineUnavailable: (EngineError)
EventType: STARTED=started, EXITED=exited, PAUSED=paused, UNPAUSED=unpaused, UPDATED=updated
FrozenMapping: (items: 'Mapping[str, V] | None' = None) -> 'None'
FrozenMapping.__contains__: (self, key: 'object') -> 'bool'
FrozenMapping.__getitem__: (self, key: 'str') -> 'V'
FrozenMapping.__iter__: (self) -> 'Iterator[str]'
FrozenMapping.__len__: (self) -> 'int'
Health: STARTING=starting, HEALTHY=healthy, UNHEALTHY=unhealthy
IPAddress: ipaddress.IPv4Address | ipaddress.IPv6Address
ListedContainer: (container: 'Container | None' = None, facts: 'FrozenMapping[Any]' = {}) -> None
ListedContainer.contradicts: (self, known: 'Container') -> 'bool'
Listing: (*, containers: 'Mapping[str, ListedContainer]', absence_is_death: 'bool', failed: 'Mapping[str,
    EngineError]' = NOTHING, scope: 'Callable[[str], str]' = <function _one_scope>) -> None
NotSynced: (WhalewatchError, TimeoutError)
Origin: ENGINE=engine, SYNC=sync, RESYNC=resync
Pod: (name: 'str', namespace: 'str', uid: 'str', sandbox: 'Container | None' = None, containers: 'tuple[Container,
    ...]' = ()) -> None
Pod.__contains__: (self, item: 'object') -> 'bool'
Pod.__iter__: (self) -> 'Iterator[Container]'
Pod.__len__: (self) -> 'int'
Pod.container: (self, name_or_id: 'str') -> 'Container | None'
Pod.container_names: -> tuple[str, ...]
Port: (port: 'int', protocol: 'str' = 'tcp', host_ip: 'IPAddress | None' = None, host_port: 'int | None' = None) ->
    None
Portfolio.container: (self, name_or_id: 'str') -> 'Container | None'
Portfolio.containers: (self, project: 'str | None' = None) -> 'tuple[Container, ...]'
Portfolio.in_sync: (self, timeout: 'float | None' = None) -> 'None'
Portfolio.names: (self) -> 'tuple[str, ...]'
Portfolio.pod: (self, uid: 'str') -> 'Pod | None'
Portfolio.pods: (self) -> 'tuple[Pod, ...]'
Portfolio.project: (self, name: 'str') -> 'Project | None'
Portfolio.projects: (self) -> 'tuple[Project, ...]'
Portfolio.snapshot: (self) -> 'Snapshot'
Portfolio.total: (self) -> 'int'
Portfolio.wait_for: (self, wanted: 'Wanted', timeout: 'float | None' = None) -> 'Container'
Portfolio.wait_gone: (self, wanted: 'Wanted', timeout: 'float | None' = None) -> 'None'
Project: (name: 'str', containers: 'tuple[Container, ...]' = ()) -> None
Project.__contains__: (self, item: 'object') -> 'bool'
Project.__iter__: (self) -> 'Iterator[Container]'
Project.__len__: (self) -> 'int'
Project.container: (self, name_or_id: 'str') -> 'Container | None'
Project.container_names: -> tuple[str, ...]
ProtocolViolation: (EngineError)
ReportsProgress: (*args, **kwargs)
ReportsProgress.progress: -> int
Retry: (wait: 'WaitBaseT | None' = None, stop: 'StopBaseT' = <tenacity.stop._stop_never object>, stable_after: 'float'
    = 30.0) -> None
Signal: (type: 'SignalType', id: 'str' = '', timestamp: 'datetime | None' = None, pid: 'int | None' = None, exit_code:
    'int | None' = None, likely_exiting: 'bool' = False, container: 'Container | None' = None) -> None
SignalType: SUBSCRIBED=subscribed, STARTED=started, EXITED=exited, PAUSED=paused, UNPAUSED=unpaused, CHANGED=changed,
    LOST=lost
Snapshot.__contains__: (self, item: 'object') -> 'bool'
Snapshot.__iter__: (self) -> 'Iterator[Container]'
Snapshot.__len__: (self) -> 'int'
Snapshot.container: (self, name_or_id: 'str') -> 'Container | None'
Snapshot.containers: (self, project: 'str | None' = None) -> 'tuple[Container, ...]'
Snapshot.names: (self) -> 'tuple[str, ...]'
Snapshot.pod: (self, uid: 'str') -> 'Pod | None'
Snapshot.pods: (self) -> 'tuple[Pod, ...]'
Snapshot.project: (self, name: 'str') -> 'Project | None'
Snapshot.projects: (self) -> 'tuple[Project, ...]'
Snapshot.total: (self) -> 'int'
Stats: (*, calls: 'Mapping[str, int]', signals: 'int' = 0, lost: 'int' = 0, syncs: 'int' = 0, outages: 'int' = 0,
    audits: 'int' = 0, drift: 'int' = 0, unresolved: 'int' = 0, revisions: 'int' = 0) -> None
Status: (*, state: 'WatchState', since: 'datetime', attempt: 'int' = 0, error: 'WhalewatchError | None' = None,
    source: 'str' = '') -> None
Subscription.__aenter__: (self) -> 'Self'
Subscription.__aexit__: (self, exc_type: 'type[BaseException] | None', exc: 'BaseException | None', traceback:
    'TracebackType | None') -> 'None'
Subscription.__aiter__: (self) -> 'Self'
Subscription.__anext__: (self) -> 'ContainerEvent'
Subscription.aclose: (self) -> 'None'
Subscription.revision: -> int
Subscription.stats: -> SubscriptionStats
SubscriptionStats: (delivered: 'int', pending: 'int', collapses: 'int', merged: 'int') -> None
UnsupportedEngine: (EngineError)
WatchEnded: (WhalewatchError)
WatchState: CONNECTING=connecting, SYNCING=syncing, SYNCED=synced, DISCONNECTED=disconnected, CLOSED=closed
Watcher: (engine: 'E_co', *, retry: 'Retry | None' = Retry(wait=None, stop=<tenacity.stop._stop_never object>,
    stable_after=30.0), heartbeat: 'float' = 10.0, audit: 'float | None' = 300.0, call_timeout: 'float' = 5.0,
    concurrency: 'int' = 8, clock: 'Callable[[], datetime]' = <function _utc_now>, random: 'Random | None' = None) ->
    'None'
Watcher.__aenter__: (self) -> 'Self'
Watcher.__aexit__: (self, exc_type: 'type[BaseException] | None', exc: 'BaseException | None', traceback:
    'TracebackType | None') -> 'None'
Watcher.engine: -> E_co
Watcher.events: (self, *, replay: 'bool' = True, buffer: 'int' = 1024, types: 'Collection[EventType] | None' = None,
    where: 'Callable[[ContainerEvent], bool] | None' = None) -> 'Subscription'
Watcher.portfolio: -> Portfolio
Watcher.ready: (self, timeout: 'float | None' = None) -> 'None'
Watcher.run: (self) -> 'None'
Watcher.stats: -> Stats
Watcher.status: -> Status
Watcher.status_changes: (self) -> 'AsyncIterator[Status]'
WatcherOptions: retry, heartbeat, audit, call_timeout, concurrency, clock, random
WhalewatchError: (Exception)
containerd.ContainerdEngine: (address: 'str | None' = None, *, ignore: 'Collection[str]' = ('moby', 'k8s.io'), pack:
    'Pack | None' = None) -> 'None'
containerd.ContainerdEngine.address: -> str
containerd.ContainerdEngine.calls: -> Mapping[str, int]
containerd.ContainerdEngine.client: -> grpc.aio.Channel | None
containerd.ContainerdEngine.close: (self) -> 'None'
containerd.ContainerdEngine.connect: (self) -> 'None'
containerd.ContainerdEngine.id: (self) -> 'str'
containerd.ContainerdEngine.inspect: (self, id: 'str', /) -> 'Container | Dead | None'
containerd.ContainerdEngine.listing: (self) -> 'Listing'
containerd.ContainerdEngine.pid: -> int | None
containerd.ContainerdEngine.ping: (self) -> 'None'
containerd.ContainerdEngine.progress: -> int
containerd.ContainerdEngine.signals: (self) -> 'AsyncIterator[Signal]'
containerd.ContainerdEngine.version: (self) -> 'str'
containerd.Inspection: (*, namespace: 'str', id: 'str', pid: 'int', status: 'str', image: 'str', labels: 'Mapping[str,
    str]', runtime: 'str', spec: 'bytes', snapshotter: 'str', snapshot_key: 'str', created_at: 'datetime | None',
    updated_at: 'datetime | None', extensions: 'Mapping[str, bytes]', sandbox: 'str') -> None
containerd.Pack: collections.abc.Callable[[whalewatch.Container, whalewatch.containerd.Inspection], typing.Any]
containerd.watch: (address: 'str | None' = None, *, ignore: 'Collection[str]' = ('moby', 'k8s.io'), pack: 'Pack |
    None' = None, **options: 'Unpack[WatcherOptions]') -> 'Watcher[ContainerdEngine]'
cri.CRIEngine: (address: 'str | None' = None, *, source: 'SourceName | None' = None, poll: 'float' = 2.0, pack: 'Pack
    | None' = None) -> 'None'
cri.CRIEngine.address: -> str
cri.CRIEngine.calls: -> Mapping[str, int]
cri.CRIEngine.client: -> grpc.aio.Channel | None
cri.CRIEngine.close: (self) -> 'None'
cri.CRIEngine.connect: (self) -> 'None'
cri.CRIEngine.id: (self) -> 'str'
cri.CRIEngine.inspect: (self, id: 'str', /) -> 'Container | None'
cri.CRIEngine.listing: (self) -> 'Listing'
cri.CRIEngine.pid: -> int | None
cri.CRIEngine.ping: (self) -> 'None'
cri.CRIEngine.runtime: -> str | None
cri.CRIEngine.signals: (self) -> 'AsyncIterator[Signal]'
cri.CRIEngine.source: -> str
cri.CRIEngine.version: (self) -> 'str'
cri.CRIEngine.without_pid: -> int
cri.Inspection: (*, id: 'str', name: 'str', attempt: 'int', sandbox_id: 'str', created_at: 'datetime | None', image:
    'str', image_ref: 'str', labels: 'Mapping[str, str]', annotations: 'Mapping[str, str]', runtime_handler: 'str',
    info: 'Mapping[str, Any]') -> None
cri.Pack: collections.abc.Callable[[whalewatch.Container, whalewatch.cri.Inspection], typing.Any]
cri.SourceName: typing.Literal['native', 'pod-events', 'poll']
cri.watch: (address: 'str | None' = None, *, source: 'SourceName | None' = None, poll: 'float' = 2.0, pack: 'Pack |
    None' = None, **options: 'Unpack[WatcherOptions]') -> 'Watcher[CRIEngine]'
moby.MobyEngine: (address: 'str | None' = None, *, tls: 'ssl.SSLContext | None' = None, pack: 'Pack | None' = None) ->
    'None'
moby.MobyEngine.address: -> str
moby.MobyEngine.calls: -> Mapping[str, int]
moby.MobyEngine.client: -> aiodocker.Docker | None
moby.MobyEngine.close: (self) -> 'None'
moby.MobyEngine.connect: (self) -> 'None'
moby.MobyEngine.id: (self) -> 'str'
moby.MobyEngine.inspect: (self, id: 'str', /) -> 'Container | Dead | None'
moby.MobyEngine.listing: (self) -> 'Listing'
moby.MobyEngine.pid: -> int | None
moby.MobyEngine.ping: (self) -> 'None'
moby.MobyEngine.progress: -> int
moby.MobyEngine.signals: (self) -> 'AsyncIterator[Signal]'
moby.MobyEngine.version: (self) -> 'str'
moby.Pack: collections.abc.Callable[[whalewatch.Container, collections.abc.Mapping[str, typing.Any]], typing.Any]
moby.watch: (address: 'str | None' = None, *, tls: 'ssl.SSLContext | None' = None, pack: 'Pack | None' = None,
    **options: 'Unpack[WatcherOptions]') -> 'Watcher[MobyEngine]'
"""


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
    assert surface() == PINNED.strip().replace("\n    ", " ").splitlines()


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
