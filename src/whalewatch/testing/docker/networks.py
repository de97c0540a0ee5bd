"""The networks of the fake Docker engine, and the connections of containers to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from whalewatch.testing.docker.state import FakeDockerContainer, FakeDockerError, FakeEndpoint, FakeNetwork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from whalewatch.testing.docker.events import EventLog
    from whalewatch.testing.shared.clock import Clock

_WITHOUT_ADDRESSES = frozenset({"host", "null"})


class Networks:
    """The networks "bridge", "host" and "none", and those that are created."""

    def __init__(self, events: EventLog, clock: Clock, new_id: Callable[[], str]) -> None:
        """Start with the networks that every engine has."""
        self._events = events
        self._clock = clock
        self._new_id = new_id
        self._networks: dict[str, FakeNetwork] = {}
        self._addresses = 1
        for name, driver in (("bridge", "bridge"), ("host", "host"), ("none", "null")):
            self._add(name, driver, {})

    def _add(self, name: str, driver: str, labels: Mapping[str, str]) -> FakeNetwork:
        network = FakeNetwork(self._new_id(), name, driver, dict(labels), self._clock.now())
        self._networks[name] = network
        return network

    def all(self) -> list[FakeNetwork]:
        """Return all networks."""
        return list(self._networks.values())

    def find(self, name_or_id: str) -> FakeNetwork:
        """Return a network by name or id.

        Raises:
            FakeDockerError: There is none (404).
        """
        if found := self._networks.get(name_or_id):
            return found
        for network in self._networks.values():
            if network.id == name_or_id:
                return network
        raise FakeDockerError(404, f"network {name_or_id} not found")

    def create(self, name: str, driver: str = "bridge", labels: Mapping[str, str] | None = None) -> FakeNetwork:
        """Create a network: `create`."""
        if name in self._networks:
            raise FakeDockerError(409, f"network with name {name} already exists")
        network = self._add(name, driver, labels or {})
        self._events.emit("network", "create", network.id, {"name": name, "type": driver})
        return network

    def ensure(self, name: str) -> FakeNetwork:
        """Return a network by name; create it if it does not exist."""
        return self._networks.get(name) or self.create(name)

    def remove(self, network: FakeNetwork, containers: Iterable[FakeDockerContainer]) -> None:
        """Remove a network that no running container uses: `destroy`."""
        if any(container.alive and network.name in container.endpoints for container in containers):
            raise FakeDockerError(
                403,
                f"error while removing network: network {network.name} id {network.id} has active endpoints",
            )
        if network.name in {"bridge", "host", "none"}:
            raise FakeDockerError(403, f"{network.name} is a pre-defined network and cannot be removed")
        del self._networks[network.name]
        self._events.emit("network", "destroy", network.id, {"name": network.name, "type": network.driver})

    def connect(self, network: FakeNetwork, container: FakeDockerContainer, addresses: tuple[str, ...] = ()) -> None:
        """Connect a container: `connect`, if it is running."""
        if network.name in container.endpoints and container.alive:
            message = f"endpoint with name {container.name} already exists in network {network.name}"
            raise FakeDockerError(403, message)
        endpoint = container.endpoints[network.name] = FakeEndpoint(network, addresses)
        if container.alive:
            self.attach(container, endpoint)

    def disconnect(self, network: FakeNetwork, container: FakeDockerContainer) -> None:
        """Disconnect a container: `disconnect`."""
        if network.name not in container.endpoints:
            raise FakeDockerError(500, f"container {container.id} is not connected to network {network.name}")
        del container.endpoints[network.name]
        self._emit("disconnect", network, container)
        if container.alive:
            # The engine reports it twice, for the endpoint and for the sandbox.
            self._emit("disconnect", network, container)

    def attach(self, container: FakeDockerContainer, endpoint: FakeEndpoint) -> None:
        """Give a container that starts its addresses in a network: `connect`."""
        ipv4 = next((address for address in endpoint.addresses if ":" not in address), "")
        ipv6 = next((address for address in endpoint.addresses if ":" in address), "")
        if not endpoint.addresses and endpoint.network.driver not in _WITHOUT_ADDRESSES:
            self._addresses += 1
            ipv4 = f"172.{17 + self._addresses // 65536 % 14}.{self._addresses // 256 % 256}.{self._addresses % 256}"
        container.endpoints[endpoint.network.name] = evolve(endpoint, id=self._new_id(), ipv4=ipv4, ipv6=ipv6)
        self._emit("connect", endpoint.network, container)

    def release(self, container: FakeDockerContainer, endpoints: Iterable[FakeEndpoint]) -> None:
        """Take the addresses of a container that ends: `disconnect`."""
        for endpoint in endpoints:
            container.endpoints[endpoint.network.name] = evolve(endpoint, id="", ipv4="", ipv6="")
            self._emit("disconnect", endpoint.network, container)

    def _emit(self, action: str, network: FakeNetwork, container: FakeDockerContainer) -> None:
        attributes = {"container": container.id, "name": network.name, "type": network.driver}
        self._events.emit("network", action, network.id, attributes)
