"""The typed interfaces, for people and shell scripts: each makes one setting and takes the path of Manager.Set."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from kerntune.api import names
from kerntune.api.calls import LEAVE, PERSIST, SET, Calls, Options, Row, options_from, outcome_rows
from kerntune.dbus.messages import Variant
from kerntune.dbus.service import Caller
from kerntune.errors import InvalidValue, NotSupported
from kerntune.guard.alerts import Alert
from kerntune.model import Lane, Setting, Target
from kerntune.patterns import cpus_in, parse_pool
from kerntune.tunables.overcommit import MODES
from kerntune.units import spell_cpus, spell_size

LARGEST = (1 << 64) - 1  # the largest value of the type t


class HugePages:
    """The interface org.kerntune.Tuner1.HugePages."""

    def __init__(self, calls: Calls) -> None:
        self._calls, self._observed = calls, calls.engine.observed

    def refresh(self) -> Awaitable[None] | None:
        return self._observed.refresh(Lane.MEMORY)

    @property
    def pools(self) -> list[list[Any]]:
        rows = []
        for target, reading in self._observed.readings.items():
            if target.tunable == "hugepages" and reading.value is not None:
                size, node = parse_pool(target.instance)
                figures, outcome = reading.figures, self._observed.outcomes.get(target)
                requested = int(outcome.requested) if outcome and outcome.requested else figures["total"]
                counts = [figures[name] for name in ("total", "free", "reserved", "surplus")]
                rows.append([size, node.removeprefix("node"), *counts, requested])
        return rows

    async def set_count(self, caller: Caller, size: int, count: int, options: Options) -> int:
        chosen = options_from(options, SET | LEAVE | {"node": "u"})
        size = size or self._calls.host.default_page_size
        if not size:
            why = self._observed.missing.get("hugepages", "/proc/meminfo names no Hugepagesize")
            raise NotSupported(f"this host has no huge pages: {why}", "Another kernel is needed")
        instance = spell_size(size) + (f"/node{chosen['node']}" if "node" in chosen else "")
        setting = Setting("hugepages", instance, str(count))
        answer = await self._calls.set_one(caller, setting, chosen)
        return int(answer.outcomes[0].actual)


class CpuGovernor:
    """The interface org.kerntune.Tuner1.CpuGovernor."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def refresh(self) -> Awaitable[None] | None:
        return self._calls.engine.observed.refresh(Lane.CPU)

    @property
    def policies(self) -> dict[str, list[str]]:
        return {
            target.instance: [reading.value or "", spell_cpus(cpus_in(target.aliases))]
            for target, reading in self._calls.engine.observed.readings.items()
            if target.tunable == "cpu-governor"
        }

    @property
    def available(self) -> list[str]:
        readings = self._calls.engine.observed.readings.items()
        rows = (
            self._calls.choices(target, reading) for target, reading in readings if target.tunable == "cpu-governor"
        )
        return sorted({name for row in rows for name in row})

    async def set_governor(self, caller: Caller, cpus: str, governor: str, options: Options) -> list[Row]:
        chosen = options_from(options, PERSIST | LEAVE)
        setting = Setting("cpu-governor", cpus, governor)
        return outcome_rows((await self._calls.set_one(caller, setting, chosen)).outcomes)


class IoScheduler:
    """The interface org.kerntune.Tuner1.IoScheduler."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def refresh(self) -> Awaitable[None] | None:
        return self._calls.engine.observed.refresh(Lane.BLOCK)

    @property
    def devices(self) -> dict[str, list[Any]]:
        return {
            target.instance: [reading.value, self._calls.choices(target, reading)]
            for target, reading in self._calls.engine.observed.readings.items()
            if target.tunable == "io-scheduler" and reading.value is not None
        }

    async def set_scheduler(self, caller: Caller, devices: str, scheduler: str, options: Options) -> list[Row]:
        chosen = options_from(options, PERSIST | LEAVE)
        setting = Setting("io-scheduler", devices, scheduler)
        return outcome_rows((await self._calls.set_one(caller, setting, chosen)).outcomes)


class Memory:
    """The interface org.kerntune.Tuner1.Memory."""

    def __init__(self, calls: Calls) -> None:
        self._calls, self._observed = calls, calls.engine.observed

    def refresh(self) -> Awaitable[None] | None:
        return self._observed.refresh(Lane.MEMORY)

    @property
    def overcommit_mode(self) -> str:
        reading = self._observed.readings.get(Target("overcommit"))
        return reading.restore.partition(":")[0] if reading and reading.value is not None else ""

    @property
    def overcommit_ratio(self) -> int:
        reading = self._observed.readings.get(Target("overcommit"))
        # The kernel takes a ratio below 0 from other programs, and the type has no such value.
        return max(0, reading.figures.get("ratio", 0)) if reading else 0

    @property
    def commit_limit(self) -> int:
        # With a ratio below 0, or as many kilobytes as possible, the kernel reports more than the type can have.
        return min(self._observed.memory.commit_limit, LARGEST) if self._observed.memory else 0

    @property
    def committed(self) -> int:
        return self._observed.memory.committed if self._observed.memory else 0

    @property
    def guard_state(self) -> str:
        return self._calls.guard.verdict.state.value

    @property
    def warning_level(self) -> int:
        return self._calls.guard.verdict.level

    @property
    def headroom(self) -> int:
        return self._observed.memory.headroom if self._observed.memory else 0

    @property
    def floor(self) -> int:
        return self._calls.guard.floor(self._observed.memory)

    def publish(self, alert: Alert) -> None:
        """Send GuardChanged."""
        verdict = alert.verdict
        details = {"reason": Variant("s", verdict.reason)}
        details |= {name: Variant("t", getattr(alert, name)) for name in ("headroom", "floor", "limit")}
        if verdict.level:
            details["culprit"] = Variant("s", alert.culprit)
            details |= {
                name: Variant("a(usut)", [list(row) for row in found])
                for name, found in (("largest", alert.largest), ("growing", alert.growing))
            }
        signal = (verdict.state.value, verdict.level, details)
        self._calls.service.emit(names.ROOT, names.MEMORY, "GuardChanged", *signal)

    async def set_overcommit(self, caller: Caller, mode: str, ratio: int, options: Options) -> list[Row]:
        chosen = options_from(options, PERSIST | LEAVE)
        if mode not in MODES:
            raise InvalidValue(f"{mode!r} is not an overcommit mode", f"There are {', '.join(MODES)}")
        setting = Setting("overcommit", "", f"{mode}:{ratio}" if ratio else mode)
        return outcome_rows((await self._calls.set_one(caller, setting, chosen)).outcomes)
