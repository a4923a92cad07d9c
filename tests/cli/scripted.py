"""A Manager that answers what a test tells it to and keeps what it was asked, in the process or on a bus."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from kerntune.api import names
from kerntune.api.contract import interface_files
from kerntune.api.document import (
    Change,
    ClaimRow,
    Document,
    Event,
    Outcome,
    Pool,
    TargetRow,
    TunableRow,
    waiting_claims,
)
from kerntune.cli import status, tables
from kerntune.cli.__main__ import main
from kerntune.cli.health import of_document
from kerntune.cli.remote import Manager
from kerntune.cli.tables import Page
from kerntune.dbus.introspection import load
from kerntune.dbus.messages import unwrap
from kerntune.dbus.service import Caller, Service
from kerntune.errors import KerntuneError
from kerntune.model import Setting
from kerntune.tunables import REGISTRY
from tests.harness.privatebus import PrivateBus

LIMIT = 10.0  # seconds

Captured = pytest.CaptureFixture[str]


def run(script: Script, *words: str) -> int:
    """Run the command in this process, where the script answers; return the exit status."""
    return main(words, connect=script.connect)


def plain(page: Page) -> list[str]:
    """Return the lines of a page where nobody watches."""
    stream = io.StringIO()
    tables.write(page, stream)
    return stream.getvalue().splitlines()


def status_page(described: Document, rows: Sequence[TargetRow]) -> Page:
    """Return the page of status."""
    return status.page(described, of_document(described), rows)


def named_page(described: Document, rows: Sequence[TargetRow]) -> Page:
    """Return the page of status where all of these targets are named."""
    return status.chosen_page(described, of_document(described), rows, waiting_claims(described))


class Watched(io.StringIO):
    """A terminal, for the page."""

    def isatty(self) -> bool:
        return True


def on_terminal(page: Page) -> str:
    """Return a page as a terminal gets it."""
    stream = Watched()
    tables.write(page, stream)
    return stream.getvalue()


def outcome(
    target: str,
    state: str = "satisfied",
    *,
    requested: str = "none",
    actual: str = "none",
    reason: str = "ok",
    detail: str = "",
) -> Outcome:
    tunable, _, instance = target.partition("@")
    return Outcome(tunable, instance, requested, "before", actual, state, reason, detail)


def target(name: str, value: str | None, **more: Any) -> TargetRow:
    tunable, _, instance = name.partition("@")
    row: TargetRow = {
        "tunable": tunable,
        "instance": instance,
        "aliases": [],
        "value": value,
        "choices": [],
        "requested": "",
        "before": "",
        "state": "unmanaged",
        "reason": "ok",
        "detail": "",
        "claim": None,
        "beaten": [],
        "baseline": None,
    }
    return row | more  # type: ignore[return-value]  # `more` names fields of the row


def claim(claim_id: str, value: str, **more: Any) -> ClaimRow:
    origin, _, name = claim_id.partition(":")
    tunable, _, instances = name.partition("@")
    row: ClaimRow = {
        "id": claim_id,
        "origin": origin,
        "tunable": tunable,
        "instances": instances,
        "value": value,
        "who": "",
        "why": "",
        "seq": 1,
        "partial": False,
        "matches": [instances],
    }
    return row | more  # type: ignore[return-value]  # as above


def tunable(name: str, *, supported: bool = True, detail: str = "") -> TunableRow:
    kind = next(tunable.kind for tunable in REGISTRY if tunable.name == name)
    return {"name": name, "summary": f"the {name}", "kind": kind, "supported": supported, "detail": detail}


def document(targets: Sequence[TargetRow] = (), claims: Sequence[ClaimRow] = (), **more: Any) -> Document:
    """Return a host with 2 MiB pages, and a tunable it does not support."""
    host: Document = {
        "version": "0.1.0",
        "generation": 3,
        "degraded": [],
        "profile": "",
        "host": {
            "kernel": "6.1.0",
            "simulated": False,
            "root": "/",
            "default_page_size": 2 << 20,
            "memory": {
                "total": 16 << 30,
                "available": 12 << 30,
                "hugetlb": 0,
                "swap_free": 0,
                "swap_total": 0,
                "committed": 1 << 30,
                "commit_limit": 8 << 30,
            },
        },
        "counters": {"hotplug_events": 2, "drift_repairs": 1, "guard_caps": 0},
        "guard": {"state": "off", "level": 0, "reason": "", "headroom": 12 << 30, "floor": 0},
        "tunables": [
            tunable("cpu-governor", supported=False, detail="no cpufreq driver is loaded"),
            tunable("hugepages"),
            tunable("io-scheduler"),
            tunable("overcommit"),
        ],
        "targets": list(targets),
        "claims": list(claims),
    }
    return host | more  # type: ignore[return-value]  # as above


DRIVES = (
    target("io-scheduler@nvme0n1", "none", choices=["none", "mq-deadline"], aliases=["by-id/nvme-Fast_1"]),
    target("io-scheduler@nvme1n1", "mq-deadline", choices=["none", "mq-deadline"], aliases=["by-id/nvme-Fast_2"]),
    target("io-scheduler@sda", "bfq", choices=["bfq", "none"]),
)
POOLS = (target("hugepages@2M", "128"), target("hugepages@2M/node0", "128"), target("hugepages@1G", "0"))
PROFILES = (("ai-inference", "for serving models"), ("balanced", "for other work too"))
OVERCOMMIT = target("overcommit", "heuristic", choices=["heuristic", "always", "never"])


class Script:
    """What to answer, and what was asked: `calls` are (member, rows, options).

    `strict` is the error of a plan that is to end as Set would. A watcher hears `events`, and then `end` happens.
    `manager` is the class that answers, when the verb has to meet another than ScriptedManager.
    """

    def __init__(
        self,
        described: Document | None = None,
        *,
        changed: bool = True,
        outcomes: Sequence[Outcome] = (),
        error: KerntuneError | None = None,
        strict: KerntuneError | None = None,
        events: Sequence[Event] = (),
        end: BaseException | None = None,
        manager: type[ScriptedManager] | None = None,
    ) -> None:
        self.described = described or document([*DRIVES, *POOLS, OVERCOMMIT])
        self.change = Change(changed, tuple(outcomes))
        self.error, self.strict = error, strict
        self.events, self.end = list(events), end
        self.running = True
        self.manager = manager or ScriptedManager
        self.calls: list[tuple[Any, ...]] = []

    def answer(self, *call: Any) -> Change:
        self.calls.append(call)
        if self.error:
            raise self.error
        return self.change

    @contextmanager
    def connect(self) -> Iterator[ScriptedManager]:
        """Give the scripted Manager in place of the bus's."""
        yield self.manager(self)


class ScriptedManager(Manager):
    """A Manager in the process; its holds end at once."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def running(self) -> bool:
        return self._script.running

    def describe(self, beside: Sequence[int] = (), *, start: bool = True) -> Document:
        self._script.answer("Describe")
        return self._script.described

    def pools(self) -> list[Pool]:
        self._script.answer("Pools")
        return [Pool(2 << 20, "", 128, 100, 8, 0, 128), Pool(2 << 20, "0", 128, 100, 8, 0, 128)]

    def set(self, settings: Sequence[Setting], options: Mapping[str, bool]) -> Change:
        return self._script.answer("Set", [tuple(row) for row in settings], dict(options))

    def unset(self, what: Sequence[tuple[str, str]], options: Mapping[str, bool]) -> Change:
        return self._script.answer("Unset", list(what), dict(options))

    def plan(self, settings: Sequence[Setting], options: Mapping[str, bool | str]) -> Change:
        change = self._script.answer("Plan", [tuple(row) for row in settings], dict(options))
        if self._script.strict and options.get("strict"):
            raise self._script.strict
        return change

    def profiles(self) -> list[tuple[str, str]]:
        self._script.answer("ListProfiles")
        return list(PROFILES)

    def set_profile(self, name: str) -> Change:
        return self._script.answer("SetProfile", name)

    def clear_profile(self) -> Change:
        return self._script.answer("ClearProfile")

    def reset(self, options: Mapping[str, bool]) -> Change:
        return self._script.answer("Reset", dict(options))

    def hold(
        self, settings: Sequence[Setting], who: str, why: str, options: Mapping[str, bool | int | str]
    ) -> tuple[int, tuple[Outcome, ...]]:
        chosen = {name: value for name, value in options.items() if value}
        change = self._script.answer("Hold", [tuple(row) for row in settings], who, why, chosen)
        return 3, change.outcomes

    def wait_for_end(self, number: int, beside: Sequence[int]) -> bool:
        return True

    def release(self, number: int, *, timeout: float = 0.0, beside: Sequence[int] = ()) -> None:
        self._script.answer("Release", number)

    def verify(self) -> tuple[Outcome, ...]:
        return self._script.answer("Verify").outcomes

    def repair(self) -> Change:
        return self._script.answer("Repair")

    def reload(self) -> None:
        self._script.answer("Reload")

    def properties(self, interface: str, beside: Sequence[int] = ()) -> Mapping[str, Any]:
        self._script.answer("GetAll", interface)
        return {}

    def watch(self, *, start: bool = True) -> None:
        self._script.answer("watch")

    def has_left(self) -> bool:
        return False

    def next_event(self, beside: Sequence[int] = (), *, timeout: float | None = None) -> Event | None:
        if self._script.events:
            event, *self._script.events = self._script.events
            return event
        if self._script.end:
            raise self._script.end
        return None


class ScriptedService:
    """org.kerntune.Tuner1.Manager as the contract has it."""

    version, generation, active_profile = "0.1.0", 3, ""
    holds: tuple[str, ...] = ()

    def __init__(
        self, script: Script, service: Service, soon: Callable[..., object], leave: Callable[[], None]
    ) -> None:
        self._script = script
        self.degraded: list[str] = []
        self._service, self._soon, self.leave = service, soon, leave
        self.interactive: list[bool] = []

    async def describe(self, caller: Caller) -> str:
        self._script.answer("Describe")
        return json.dumps(self._script.described)

    async def set(self, caller: Caller, settings: list[list[str]], options: dict[str, Any]) -> tuple[Any, ...]:
        return self._edit(caller, "Set", settings, options)

    async def unset(self, caller: Caller, what: list[list[str]], options: dict[str, Any]) -> tuple[Any, ...]:
        return self._edit(caller, "Unset", what, options)

    async def plan(self, caller: Caller, settings: list[list[str]], options: dict[str, Any]) -> tuple[Any, ...]:
        return self._edit(caller, "Plan", settings, options)

    async def repair(self, caller: Caller, options: dict[str, Any]) -> tuple[Any, ...]:
        return self._choose(caller, "Repair", options)

    async def reload(self, caller: Caller, options: dict[str, Any]) -> None:
        self.interactive.append(caller.interactive)
        self._script.answer("Reload", unwrap(options))

    async def set_profile(self, caller: Caller, name: str, options: dict[str, Any]) -> tuple[Any, ...]:
        return self._choose(caller, "SetProfile", name, options)

    async def clear_profile(self, caller: Caller, options: dict[str, Any]) -> tuple[Any, ...]:
        return self._choose(caller, "ClearProfile", options)

    async def reset(self, caller: Caller, options: dict[str, Any]) -> tuple[Any, ...]:
        return self._choose(caller, "Reset", options)

    async def hold(
        self, caller: Caller, settings: list[list[str]], who: str, why: str, options: dict[str, Any]
    ) -> tuple[Any, ...]:
        change = self._edit(caller, "Hold", settings, options)
        return f"{names.ROOT}/hold/1", change[1]

    async def list_profiles(self, caller: Caller) -> list[Any]:
        self._script.answer("ListProfiles")
        return [list(row) for row in PROFILES]

    async def verify(self, caller: Caller) -> list[Any]:
        return [list(row) for row in self._script.answer("Verify").outcomes]

    def announce(self, cause: str, *outcomes: Outcome) -> None:
        """Announce a pass, as the daemon does."""
        rows = [list(row) for row in outcomes]
        self._soon(self._service.emit, names.ROOT, names.MANAGER, "Changed", self.generation, cause, rows)

    def degrade(self, *degraded: str) -> None:
        """Change Degraded."""
        self.degraded = list(degraded)
        self._soon(self._service.publish_changes, names.ROOT)

    def _choose(self, caller: Caller, member: str, *body: Any) -> tuple[Any, ...]:
        self.interactive.append(caller.interactive)
        change = self._script.answer(member, *unwrap(list(body)))
        return change.changed, [list(row) for row in change.outcomes]

    def _edit(self, caller: Caller, member: str, rows: list[list[str]], options: dict[str, Any]) -> tuple[Any, ...]:
        self.interactive.append(caller.interactive)
        change = self._script.answer(member, [tuple(row) for row in rows], unwrap(options))
        return change.changed, [list(row) for row in change.outcomes]


@contextmanager
def serving(bus: PrivateBus, script: Script) -> Iterator[ScriptedService]:
    """Play the daemon by a script on a bus, on a loop of its own thread."""
    ready, done = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    service = Service(load(interface_files()), names.ROOT, address=bus.address)

    def leave() -> None:
        loop.call_soon_threadsafe(done.set)

    manager = ScriptedService(script, service, loop.call_soon_threadsafe, leave)

    async def serve() -> None:
        await service.connect(names.BUS_NAME)
        try:
            service.publish(names.ROOT, {names.MANAGER: manager})
            service.connection.open()
            ready.set()
            await done.wait()
        finally:
            await service.connection.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    try:
        assert ready.wait(LIMIT), "the scripted daemon did not start"
        yield manager
    finally:
        leave()
        thread.join(LIMIT)
        assert not thread.is_alive()
        loop.close()
