"""The filters of Docker: their syntax, and what they match."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import frozen

from whalewatch.testing.docker.state import FakeDockerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from whalewatch.testing.docker.state import FakeDockerContainer

Filters: TypeAlias = "dict[str, tuple[str, ...]]"

_PREFIX_ACTIONS = frozenset({"exec_create", "exec_start", "health_status"})
_LIST_FILTERS = frozenset(
    {
        "ancestor",
        "before",
        "exited",
        "expose",
        "health",
        "id",
        "is-task",
        "isolation",
        "label",
        "name",
        "network",
        "publish",
        "since",
        "status",
        "volume",
    }
)
_STATUSES = frozenset({"created", "dead", "exited", "paused", "removing", "restarting", "running"})


def parse_filters(text: str) -> Filters:
    """Read a ``filters`` parameter: ``{"key": ["value"]}``, or the older ``{"key": {"value": true}}``.

    Raises:
        FakeDockerError: It is neither (400).
    """
    if not text:
        return {}
    try:
        parsed = json.loads(text)
        return {
            key: tuple(value for value in values if not isinstance(values, dict) or values[value])
            for key, values in parsed.items()
            if isinstance(values, (dict, list)) or _bad_filter()
        }
    except (ValueError, AttributeError, TypeError):
        raise FakeDockerError(400, "invalid filter") from None


def _bad_filter() -> bool:
    raise ValueError


def _exact(wanted: tuple[str, ...], value: str) -> bool:
    return not wanted or value in wanted


def _prefix(wanted: tuple[str, ...], value: str) -> bool:
    return not wanted or value.startswith(wanted)


def _labels(wanted: Iterable[str], labels: Mapping[str, str]) -> bool:
    for item in wanted:
        key, equals, value = item.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


@frozen
class EventFilter:
    """The events that a subscriber of ``/events`` asked for.

    The values of one key are alternatives, all keys must match, and unknown keys are ignored. If a value of the key
    ``event`` is health_status, exec_create or exec_start without a colon, all its values are prefixes: these actions
    have more text after a colon.
    """

    filters: Filters

    def matches(self, event: Mapping[str, Any]) -> bool:
        """Return whether an event matches."""
        get = self.filters.get
        wanted = get("event", ())
        compare = _exact if _PREFIX_ACTIONS.isdisjoint(wanted) else _prefix
        actor = event["Actor"]
        attributes = actor["Attributes"]
        return (
            compare(wanted, event["Action"])
            and _exact(get("type", ()), event["Type"])
            and _exact(get("scope", ()), event["scope"])
            and all(
                _prefix(get(kind, ()), actor["ID"]) or _prefix(get(kind, ()), attributes.get("name", ""))
                for kind in ("container", "image", "network", "volume")
            )
            and _labels(get("label", ()), attributes)
        )


def filter_containers(
    containers: Iterable[FakeDockerContainer], filters: Filters, *, every: bool
) -> list[FakeDockerContainer]:
    """Return the containers that ``/containers/json`` lists, the newest first.

    Args:
        containers: All containers.
        filters: Filters by ``status``, ``label``, ``name``, ``id`` and ``health``.
        every: Whether to include created, exited and dead containers; a status filter includes them anyway.

    Raises:
        FakeDockerError: A filter is unknown to Docker (400) or to this fake (501).
    """
    for key in filters:
        if key not in _LIST_FILTERS:
            raise FakeDockerError(400, f"invalid filter '{key}'")
        if key not in {"health", "id", "label", "name", "status"}:
            raise FakeDockerError(501, f"the fake engine has no list filter '{key}'")
    statuses = filters.get("status", ())
    for status in statuses:
        if status not in _STATUSES:
            raise FakeDockerError(400, f"invalid filter 'status={status}'")
    try:
        names = [re.compile(name) for name in filters.get("name", ())]
    except re.error as error:
        raise FakeDockerError(400, f"invalid filter 'name': {error}") from error
    health = filters.get("health", ())
    chosen = [
        container
        for container in containers
        if (
            container.status in statuses
            if statuses
            else every or container.status in {"running", "paused", "restarting"}
        )
        and _prefix(filters.get("id", ()), container.id)
        and (not names or any(name.search(container.name) or name.search(f"/{container.name}") for name in names))
        and (not health or (container.health or "none") in health)
        and _labels(filters.get("label", ()), container.labels)
    ]
    chosen.sort(key=lambda container: container.created, reverse=True)
    return chosen
