"""Pictures, events and states as lines of text for people: pure functions over values.

`painted`, through which every line goes, makes all text printable and bounds it. What is put into columns is printable
before, and widths are counted in terminal cells. So the name of a container can neither move the cursor nor misalign
the columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from unicodedata import combining, east_asian_width

import attrs

from whalewatch._core.model import Container, ContainerEvent, EventType, Health, Origin, Port
from whalewatch._core.snapshot import Snapshot
from whalewatch._core.status import Stats, Status
from whalewatch._core.text import MAX_LINE, printable

__all__ = [
    "BOLD",
    "COLOURS",
    "CYAN",
    "DIM",
    "GREEN",
    "RED",
    "YELLOW",
    "Column",
    "Line",
    "Span",
    "aligned",
    "back",
    "cells",
    "counted",
    "event_line",
    "heading",
    "health",
    "local",
    "lost",
    "painted",
    "picture",
    "short",
    "summary",
    "widths",
]

BOLD, DIM, RED, GREEN, YELLOW, CYAN = "1", "2", "31", "32", "33", "36"
"""Parameters of the terminal's "select graphic rendition"."""

Span = tuple[str, str]
"""Text and its colour; "" for no colour."""

Line = tuple[Span, ...]

MAX_NAME = 64
"""Most characters of a name that are shown."""

MAX_LISTED = 200
"""Most characters of a container's addresses, and of its ports, that a picture shows."""

GAP = "  "

COLOURS = {
    EventType.STARTED: GREEN,
    EventType.EXITED: RED,
    EventType.PAUSED: YELLOW,
    EventType.UNPAUSED: GREEN,
    EventType.UPDATED: CYAN,
}

_HEALTH_COLOURS = {Health.STARTING: YELLOW, Health.HEALTHY: GREEN, Health.UNHEALTHY: RED}


# -- text in cells ---------------------------------------------------------------------------------------------------


def cells(text: str) -> int:
    """Return the number of terminal cells that printable text takes."""
    return len(text) if text.isascii() else sum(_cells(character) for character in text)


def _cells(character: str) -> int:
    if combining(character):
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def _clipped(text: str, width: int) -> str:
    """Cut text to a width; an ellipsis shows that something is missing."""
    if cells(text) <= width:
        return text
    kept, used = [], 0
    for character in text:
        used += _cells(character)
        if used > width - 1:
            break
        kept.append(character)
    return "".join(kept) + "…" if width > 0 else ""


def painted(line: Line, *, colour: bool, width: int | None = None) -> str:
    """Return a line as printable text for output: cut to `width` cells, with or without colours."""
    pieces, left = [], width
    for foreign, sgr in line:
        text = printable(foreign, MAX_LINE)
        shown = text if left is None else _clipped(text, left)
        if left is not None:
            left -= cells(shown)
        pieces.append(f"\x1b[{sgr}m{shown}\x1b[0m" if colour and sgr and shown else shown)
        if shown != text:
            break
    return "".join(pieces) if colour else "".join(pieces).rstrip()


# -- tables ----------------------------------------------------------------------------------------------------------


@attrs.frozen
class Column:
    """A column of a table.

    Attributes:
        title: heading of the column.
        least: the column is never cut to fewer cells than this.
        rank: if the columns still do not fit, those of the greatest rank are left out first; rank 0 is never left out.
    """

    title: str
    least: int = 4
    rank: int = 0


def widths(columns: Sequence[Column], rows: Iterable[Sequence[Span]], width: int | None) -> list[int]:
    """Return the cells of each column so that all fit into `width`. The widest is cut first; 0 means left out."""
    wanted = [cells(column.title) for column in columns]
    for row in rows:
        wanted = [max(known, cells(text)) for known, (text, _) in zip(wanted, row, strict=True)]
    if width is None:
        return wanted
    for left_out in sorted({column.rank for column in columns} - {0}, reverse=True):
        least = [min(want, column.least) for want, column in zip(wanted, columns, strict=True) if want]
        if sum(least) + len(GAP) * (len(least) - 1) <= width:
            break
        wanted = [0 if column.rank == left_out else want for want, column in zip(wanted, columns, strict=True)]
    found = wanted
    room = width - len(GAP) * (sum(1 for each in found if each) - 1)
    while sum(found) > room:
        spare = [want - column.least for want, column in zip(found, columns, strict=True)]
        if max(spare) <= 0:
            break
        widest = spare.index(max(spare))
        found[widest] -= 1
    return found


def aligned(row: Sequence[Span], columns: Sequence[int]) -> Line:
    """Put a row into columns of these widths."""
    spans: list[Span] = []
    for (text, colour), width in zip(row, columns, strict=True):
        if not width:
            continue
        if spans:
            spans.append((GAP, ""))
        shown = _clipped(text, width)
        spans += [(shown, colour), (" " * (width - cells(shown)), "")]
    return tuple(spans)


# -- containers ------------------------------------------------------------------------------------------------------


def short(id: str) -> str:
    """Return the beginning of an id, as Docker shows it."""
    return printable(id, MAX_NAME)[:12]


def local(moment: datetime) -> str:
    """Return a local time of day, to the millisecond; at the ends of the calendar, the time of day in UTC."""
    with suppress(OverflowError, ValueError, OSError):
        moment = moment.astimezone()
    return moment.isoformat(timespec="milliseconds")[11:23]


def health(container: Container) -> Span:
    """Return the result of a container's own health check; "" if it has none."""
    found = container.health
    return (found.value, _HEALTH_COLOURS[found]) if found else ("", "")


def _state(container: Container) -> Span:
    if container.paused:
        return ("paused", YELLOW)
    if container.health is None:
        return ("running", GREEN)
    return (f"running, {container.health.value}", _HEALTH_COLOURS[container.health])


def _addresses(container: Container) -> str:
    return ", ".join(
        f"{address} ({printable(network, MAX_NAME)})"
        for network, addresses in container.addresses.items()
        for address in addresses
    )


def _port(port: Port) -> str:
    inside = f"{port.port}/{printable(port.protocol, MAX_NAME)}"
    if port.host_port is None:
        return inside
    host = port.host_ip
    if host is None or host.is_unspecified:
        return f"{port.host_port}->{inside}"
    return f"{host}:{port.host_port}->{inside}" if host.version == 4 else f"[{host}]:{port.host_port}->{inside}"  # noqa: PLR2004 - IPv4


def _ports(container: Container) -> str:
    return ", ".join(dict.fromkeys(_port(port) for port in container.ports))  # Docker lists IPv4 and IPv6 separately


_COLUMNS = ("NAME", "ID", "PID", "IMAGE", "STATE", "ADDRESSES", "PORTS")


def _row(container: Container) -> tuple[Span, ...]:
    return (
        (GAP + printable(container.name, MAX_NAME), BOLD),
        (short(container.id), ""),
        ("-" if container.pid is None else str(container.pid), ""),
        (printable(container.image, MAX_NAME), ""),
        _state(container),
        (printable(_addresses(container) or "-", MAX_LISTED), ""),
        (printable(_ports(container) or "-", MAX_LISTED), ""),
    )


def counted(number: int, what: str) -> str:
    """Return a number with its noun: "1 container", "2 containers"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def heading(project: str) -> str:
    """Return the name of a project as it is shown; "(no project)" for ""."""
    return printable(project, MAX_NAME) or "(no project)"


def picture(snapshot: Snapshot, engine: str) -> Iterator[Line]:
    """Return the lines of a whole picture: the projects and their containers, in aligned columns."""
    yield (
        (f"{engine}: ", ""),
        (counted(snapshot.total(), "container"), BOLD),
        (f" in {counted(len(snapshot.names()), 'project')}, revision {snapshot.revision}", ""),
    )
    rows = {project.name: [_row(container) for container in project] for project in snapshot.projects() if project}
    if not rows:
        return
    title = tuple((GAP + name if name == "NAME" else name, DIM) for name in _COLUMNS)
    columns = widths([Column("")] * len(title), [title, *(row for of_one in rows.values() for row in of_one)], None)
    yield aligned(title, columns)
    for project, of_one in rows.items():
        yield ((heading(project), CYAN),)
        for row in of_one:
            yield aligned(row, columns)


# -- what happens ----------------------------------------------------------------------------------------------------


def event_line(event: ContainerEvent) -> Line:
    """Return the line of one event: its time, type, container and project, and more details."""
    container = event.container
    after = " (found afterwards)" if event.origin is Origin.RESYNC else ""
    return (
        (local(event.timestamp), DIM),
        (GAP, ""),
        (f"{event.type.value:<8}", COLOURS[event.type]),
        (GAP, ""),
        (_padded(printable(container.name, MAX_NAME), 18), BOLD),
        (GAP, ""),
        (_padded(heading(container.project), 12), CYAN),
        (GAP, ""),
        (_detail(event), ""),
        (after, DIM),
    )


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cells(text))


def _detail(event: ContainerEvent) -> str:
    container = event.container
    match event.type:
        case EventType.STARTED:
            pid = "" if container.pid is None else f"pid {container.pid}, "
            return f"{pid}{printable(container.image, MAX_NAME)}{', paused' if container.paused else ''}"
        case EventType.EXITED:
            code = "unknown" if event.exit_code is None else str(event.exit_code)
            why = [", out of memory"] * (event.oom is True) + [", as asked for"] * (event.requested is True)
            return f"exit code {code}{''.join(why)}"
        case EventType.UPDATED:
            return "; ".join(_changes(event.previous, container))
        case _:
            return ""


def _changes(before: Container | None, after: Container) -> Iterator[str]:
    if before is None:
        return
    if before.name != after.name:
        yield f"renamed from {printable(before.name, MAX_NAME)}"
    if before.health is not after.health:
        yield f"health {after.health.value if after.health else 'unknown'}"
    for network in sorted({*before.addresses, *after.addresses}):
        former, present = before.addresses.get(network), after.addresses.get(network)
        shown = ", ".join(str(address) for address in present or ()) or "no address"
        if present is None:
            yield f"left {printable(network, MAX_NAME)}"
        elif former != present:
            yield f"{'joined' if former is None else 'now in'} {printable(network, MAX_NAME)} with {shown}"
    if before.ports != after.ports:
        yield f"ports {_ports(after) or 'none'}"
    shown_above = {"name", "health", "addresses", "ports", "rucksack"}
    others = (field.name for field in attrs.fields(Container) if field.name not in shown_above)
    changed = [name for name in others if getattr(before, name) != getattr(after, name)]
    if changed:
        yield f"{', '.join(changed)} changed"


def lost(status: Status) -> Line:
    """Return a line that says that the engine was lost, and why."""
    why = status.error or "no reason known"
    return ((local(status.since), DIM), (GAP, ""), ("engine lost", RED), (f": {why}; trying again", ""))


def back(status: Status, snapshot: Snapshot) -> Line:
    """Return a line that says that the watch is in sync again."""
    found = f": in sync again, {counted(snapshot.total(), 'container')}, revision {snapshot.revision}"
    return ((local(status.since), DIM), (GAP, ""), ("engine back", GREEN), (found, ""))


def summary(seconds: float, events: int, stats: Stats) -> str:
    """Return a line with the number of events, revisions and outages, and the calls to the engine."""
    calls = ", ".join(f"{count} {kind}" for kind, count in sorted(stats.calls.items()))
    return (
        f"{seconds:.0f} s: {counted(events, 'event')}, {counted(stats.revisions, 'revision')}, "
        f"{counted(stats.outages, 'outage')}; calls to the engine: {calls or 'none'}"
    )
