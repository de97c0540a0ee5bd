"""Who answers at the address of a CRI engine, and whether it is a containerd whose own API can be used."""

from __future__ import annotations

from collections.abc import Hashable

import attrs

from whalewatch._core.errors import EngineError, UnsupportedEngine
from whalewatch._grpc.connection import Connection, denied, unimplemented
from whalewatch.containerd import calls as containerd
from whalewatch.containerd.reading import process_id, text
from whalewatch.cri.calls import Calls
from whalewatch.cri.pod_events import CONTAINERD

__all__ = ["Identity", "identify"]


@attrs.frozen
class Identity:
    """What is another value once the engine was restarted, or another one answers.

    Attributes:
        runtime: the name that the engine reports.
        version: its version.
        id: identifier of containerd; of others, their name.
        pid: PID of the engine; None if it is not known.
        listener: what `Connection.listener` returns.
        native: why containerd's own API cannot be used; None if it can.
    """

    runtime: str
    version: str
    id: str
    pid: int | None
    listener: Hashable
    native: UnsupportedEngine | None = attrs.field(eq=False)


async def identify(connection: Connection) -> Identity:
    """Ask the engine for its identity, and check whether containerd's own API can be used."""
    answer = await Calls(connection).identify()
    runtime, version = text(answer.runtime_name), text(answer.runtime_version).removeprefix("v")
    id, pid = runtime, None
    native: UnsupportedEngine | None = None
    if runtime == CONTAINERD:
        try:
            server = await containerd.Calls(connection).server()
            id, pid = text(server.uuid), process_id(server.pid)
        except EngineError as error:
            if not unimplemented(error) and not denied(error):
                raise
            native = _without_native(connection)
            native.__cause__ = error
    else:
        native = _without_native(connection)
    return Identity(runtime, version, id, pid or connection.pid(), connection.listener(), native)


def _without_native(connection: Connection) -> UnsupportedEngine:
    return UnsupportedEngine(connection.message("source native needs containerd's own API, which is not there"))
