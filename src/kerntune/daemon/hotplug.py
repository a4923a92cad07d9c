"""Device events of the host: each asks for a pass of the lane that it concerns, and writes nothing itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import Final, Protocol

from kerntune.kernel.devices import Event, Overrun, monitors
from kerntune.model import Lane

log = logging.getLogger(__name__)

LANES: Final = {"block": Lane.BLOCK, "cpu": Lane.CPU}
# A module's event comes when the module is ready (load_module of kernel/module/main.c). It may be a cpufreq driver.
DRIVERS: Final = {"module": Lane.CPU}
# A controller's event says only that drives or paths may follow.
LATE_SUBSYSTEMS: Final = {"nvme": Lane.BLOCK, "nvme-subsystem": Lane.BLOCK}
# Seconds after the last event. A drive may not be ready at its event; the hidden paths of a multipath drive, and the
# policies of a cpufreq driver, have no event.
FOLLOW_UPS: Final = (0.5, 2.0, 8.0)


Look = Callable[[str, Iterable[Lane]], None]  # asks for passes, with a cause and their lanes
Counters = MutableMapping[str, int]


class Source(Protocol):
    """A source of events (kernel/devices.py)."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when there are events."""

    def events(self) -> Iterator[Event]:
        """Yield the events that have come. Raise Overrun."""


class Hotplug:
    """A listener that asks `look` for passes, and counts the events of devices."""

    def __init__(self, look: Look, counters: Counters) -> None:
        self._look, self._counters = look, counters
        self._loop = asyncio.get_running_loop()
        self._timers: dict[Lane, asyncio.TimerHandle] = {}

    def ready(self, source: Source) -> None:
        """Read the events of a source, and ask for passes."""
        found: dict[Lane, list[Event]] = {}
        try:
            for event in source.events():
                if lane := LANES.get(event.subsystem) or DRIVERS.get(event.subsystem):
                    found.setdefault(lane, []).append(event)
                elif lane := LATE_SUBSYSTEMS.get(event.subsystem):
                    self._follow_up(lane, FOLLOW_UPS)
        except Overrun:
            log.info("more device events at once than could be kept: everything is looked at")
            self._look("device events", Lane)
            for lane in Lane:
                self._follow_up(lane, FOLLOW_UPS)
            return
        except OSError as error:
            log.warning("device events cannot be read: %s", error)
        for lane, events in found.items():
            self._counters["hotplug_events"] += sum(event.subsystem in LANES for event in events)
            self._look(cause(events), [lane])
            self._follow_up(lane, FOLLOW_UPS)

    def stop(self) -> None:
        """Ask for no more passes."""
        for timer in self._timers.values():
            timer.cancel()

    def _follow_up(self, lane: Lane, pauses: Sequence[float]) -> None:
        """Ask for a pass after each pause; another event starts the pauses again."""
        if lane in self._timers:
            self._timers.pop(lane).cancel()
        if pauses:
            self._timers[lane] = self._loop.call_later(pauses[0], self._again, lane, pauses[1:])

    def _again(self, lane: Lane, pauses: Sequence[float]) -> None:
        self._look("device follow-up", [lane])
        self._follow_up(lane, pauses)


def on_host(look: Look, counters: Counters) -> contextlib.AbstractContextManager[None]:
    """Follow the host's devices. Without their events, as in some containers, the drift timer finds new devices."""
    try:
        return following(monitors(), look, counters)
    except OSError as error:
        log.warning("there are no device events here (%s): what is plugged is found when values are checked", error)
        return contextlib.nullcontext()


@contextlib.contextmanager
def following(sources: Sequence[Source], look: Look, counters: Counters) -> Iterator[None]:
    """Ask for passes when events come, until the context ends. This needs a running loop."""
    hotplug, loop = Hotplug(look, counters), asyncio.get_running_loop()
    for source in sources:
        loop.add_reader(source.fileno(), hotplug.ready, source)
    try:
        yield
    finally:
        for source in sources:
            loop.remove_reader(source.fileno())
        hotplug.stop()


def cause(events: Sequence[Event]) -> str:
    """Return in few words what happened."""
    first, others = events[0], len({event.device for event in events}) - 1
    return f"{first} and {others} more" if others else str(first)
