"""Manager, and the one way of every call: read arguments, validate, authorise, act through the engine, reply."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from dataclasses import replace
from typing import Any, Final

from kerntune import __version__
from kerntune.bus import names
from kerntune.bus.describe import Host, describe
from kerntune.bus.dispatch import Caller, Service
from kerntune.bus.gate import pass_gate
from kerntune.bus.interface import snake
from kerntune.bus.messages import Variant
from kerntune.bus.wire import Row, options_from, outcome_rows, settings_from
from kerntune.engine.answers import Answer
from kerntune.engine.reconciler import Reconciler
from kerntune.engine.requests import Request
from kerntune.errors import InvalidArgs
from kerntune.kernel import processes
from kerntune.model import Report, Setting, Target

log = logging.getLogger(__name__)
Options = Mapping[str, Variant]

PERSIST: Final = {"persist": "b"}
SET: Final = PERSIST | {"allow-partial": "b"}


class Core:
    """What the interfaces share: the engine, the bus, and the one way from a request to an answer."""

    def __init__(
        self,
        service: Service,
        engine: Reconciler,
        host: Host,
        troubles: Set[str],
        reload: Callable[[], Awaitable[None]],
    ) -> None:
        """`troubles` are slugs of what is wrong with the daemon itself, and change; `reload` reads its files again."""
        self.service, self.engine, self.host = service, engine, host
        self.troubles, self.reload = troubles, reload

    async def change(self, caller: Caller, member: str, request: Request) -> Answer:
        """Validate, authorise, and carry out; a refused call writes nothing."""
        await self.engine.check(request)
        tunables = {self.engine.tunables[setting.tunable] for setting in request.settings}
        await pass_gate(self.service, caller, member, tunables)
        who = await asyncio.to_thread(processes.describe, caller.pid, caller.uid)
        signed = replace(request, who=who)

        def progress(target: Target, done: int, wanted: int) -> None:
            what = (target.tunable, target.instance, done, wanted)
            self.service.emit(names.ROOT, names.MANAGER, "Progress", *what, to=caller.name)

        return await self.engine.change(signed, member, progress)

    async def set_one(self, caller: Caller, member: str, setting: Setting, options: Mapping[str, Any]) -> Answer:
        """What a typed setter does: one setting that must win somewhere."""
        request = Request(
            (setting,),
            persist=options.get("persist", False),
            partial=options.get("allow-partial", False),
            must_win=True,
        )
        return await self.change(caller, member, request)


class Manager:
    """org.kerntune.Tuner1.Manager."""

    def __init__(self, core: Core) -> None:
        self._core, self._engine = core, core.engine
        self.version = __version__

    @property
    def generation(self) -> int:
        return self._engine.generation

    @property
    def degraded(self) -> list[str]:
        return sorted({reason.value for reason in self._engine.troubles} | self._core.troubles)

    async def set(self, caller: Caller, settings: list[Row], options: Options) -> tuple[bool, list[Row]]:
        chosen = options_from(options, SET)
        if not settings:
            raise InvalidArgs("no setting was given", "Give at least one (tunable, instances, value)")
        request = Request(
            settings_from(settings), persist=chosen.get("persist", False), partial=chosen.get("allow-partial", False)
        )
        return reply(await self._core.change(caller, "Set", request))

    async def unset(self, caller: Caller, what: list[Row], options: Options) -> tuple[bool, list[Row]]:
        chosen = options_from(options, PERSIST)
        if not what:
            raise InvalidArgs("nothing was named", "Give at least one (tunable, instances)")
        request = Request(settings_from(what), unset=True, persist=chosen.get("persist", False))
        return reply(await self._core.change(caller, "Unset", request))

    async def plan(self, caller: Caller, settings: list[Row], options: Options) -> tuple[bool, list[Row]]:  # noqa: ARG002
        chosen = options_from(options, SET | {"unset": "b"})
        request = Request(
            settings_from(settings),
            unset=chosen.get("unset", False),
            persist=chosen.get("persist", False),
            partial=chosen.get("allow-partial", False),
        )
        return reply(await self._engine.plan(request))

    async def verify(self, caller: Caller) -> list[Row]:  # noqa: ARG002
        return outcome_rows(await self._engine.verify())

    async def reload(self, caller: Caller, options: Options) -> None:
        options_from(options, {})
        await pass_gate(self._core.service, caller, "Reload", ())
        await self._core.reload()

    async def describe(self, caller: Caller) -> str:  # noqa: ARG002
        return json.dumps(describe(self._engine, self._core.host, self.degraded), ensure_ascii=False)


def reply(answer: Answer) -> tuple[bool, list[Row]]:
    """(changed, outcomes)"""
    return answer.changed, outcome_rows(answer.outcomes)


def announcer(service: Service, watched: Mapping[str, tuple[object, Iterable[str]]]) -> Callable[[Report], None]:
    """A listener that announces each pass: Changed, and one PropertiesChanged for an interface whose values differ.

    `watched`: interface -> its object and the names of the properties that announce themselves, as in the contract.
    """
    last = {name: values(impl, properties) for name, (impl, properties) in watched.items()}

    def announce(report: Report) -> None:
        for interface, (impl, properties) in watched.items():
            now = values(impl, properties)
            if differing := [name for name in properties if now[name] != last[interface][name]]:
                last[interface] = now
                service.changed(names.ROOT, interface, *differing)
        if report.outcomes:
            rows = outcome_rows(report.outcomes)
            service.emit(names.ROOT, names.MANAGER, "Changed", report.generation, report.cause, rows)

    return announce


def values(impl: object, properties: Iterable[str]) -> dict[str, Any]:
    """Property names of the contract -> their values now."""
    return {name: getattr(impl, snake(name)) for name in properties}
