"""The one path of every call: read arguments, validate, authorise, act through the engine, record, answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from kerntune.api import names
from kerntune.api.authorization import Authorization, Permit
from kerntune.api.describe import Host
from kerntune.config.active import ActiveConfig
from kerntune.dbus.messages import Variant
from kerntune.dbus.name_watch import CallerGone
from kerntune.dbus.service import Caller, Service
from kerntune.engine.claims import Selection
from kerntune.engine.reconciler import Reconciler
from kerntune.engine.requests import Request
from kerntune.engine.results import Answer
from kerntune.engine.writer import Progress
from kerntune.errors import InvalidArgs
from kerntune.guard.guard import MemoryGuard
from kerntune.kernel import processes
from kerntune.model import Hold, Outcome, Reading, Setting, Target

log = logging.getLogger(__name__)
Options = Mapping[str, Variant]
Row = list[str]

PERSIST: Final = {"persist": "b"}
SET: Final = PERSIST | {"allow-partial": "b"}
LEAVE: Final = {"cancel-on-leave": "b"}
CHANGE_ASKED: Final = "7b0e5a2f93c84d1e8f6d2a51c4e9b370"  # MESSAGE_ID
MOMENT: Final = 0.05  # seconds after which a call may have lost its caller before it began


@dataclass(slots=True)
class Record:
    """The journal's record of a call: the caller, and whether the call has changed anything or failed."""

    caller: Caller
    who: str
    changed: bool = True


class Calls:
    """The shared part of all interfaces: the engine, the bus, and the one path from a call to an answer."""

    def __init__(
        self,
        service: Service,
        engine: Reconciler,
        host: Host,
        troubles: Set[str],
        config: ActiveConfig,
        *,
        guard: MemoryGuard,
    ) -> None:
        """Take the parts; `troubles` are slugs of the daemon's own problems, and the set changes."""
        self.service, self.engine, self.host = service, engine, host
        self.troubles, self.config, self.guard = troubles, config, guard
        self._authorization = Authorization(service)

    async def change(self, caller: Caller, request: Request, *, endable: bool = False) -> Answer:
        """Validate, authorise, and carry out; a refused call writes nothing. `endable`: the call ends with its caller.

        A request that takes long to validate is authorised before. So a caller without permission makes no work, and
        an administrator does not wait in one line with strangers. A detached hold needs the permission to manage. A
        hold is known by the name that the client gives itself, and by a description of the client.
        """
        came, world, hold = self._now(), self.engine.observed.world, request.hold
        tunables = {world.tunable(setting.tunable) for setting in request.settings}
        if not self.engine.is_large(request):
            await self.engine.check(request)
        permit = await self._authorization.permit(caller, tunables, manage=bool(hold and not hold.client))
        async with self._recorded(permit, spelled(request.settings)) as record:
            await self._begin(record, came)
            if hold:
                hold = replace(hold, who=", ".join(filter(None, (hold.who, record.who))))
            request = replace(request, who=record.who, hold=hold)
            changing = self.engine.change(request, caller.member, self._progress(caller), endable=endable)
            return await self._answered(record, changing, endable=endable)

    async def release(self, caller: Caller, hold: Hold) -> None:
        """End a hold: its owner may do that, and callers that may manage."""
        came = self._now()
        permit = await self._authorization.permit_owner(caller, hold.uid, f"hold {hold.number}")
        async with self._recorded(permit, f"{hold.number} of {hold.who}") as record:
            await self._begin(record, came)
            answer = await self.engine.release([hold.number], caller.member)
            record.changed = answer.changed

    async def choose(self, caller: Caller, selection: Selection, *, endable: bool = False) -> Answer:
        """Validate, authorise, and carry out a selection for the files as a whole."""
        came = self._now()
        await self.config.check(selection)
        permit = await self._authorization.permit(caller)
        words = selection.profile, "baseline" if selection.baseline else "", "holds" if selection.holds else ""
        named = " ".join(word for word in words if word)
        async with self._recorded(permit, named) as record:
            progress, begins = self._progress(caller), partial(self._begin, record, came)
            choosing = self.config.choose(selection, caller.member, progress, begins=begins, endable=endable)
            return await self._answered(record, choosing, endable=endable)

    async def _answered(self, record: Record, work: Awaitable[Answer], *, endable: bool) -> Answer:
        """Await a change, if `endable` only until its caller leaves, and record whether anything was changed."""
        answer = await (self.service.clients.while_present(record.caller.name, work) if endable else work)
        record.changed = answer.changed
        return answer

    async def reload(self, caller: Caller) -> None:
        """Authorise the call, and read the files again."""
        came = self._now()
        permit = await self._authorization.permit(caller)
        async with self._recorded(permit, "") as record:
            await self._begin(record, came)
            await self.config.reload()

    async def plan_reload(self, caller: Caller) -> Answer:
        """Authorise the call, for it shows what is in the files, and return what `reload` would do."""
        await self._authorization.permit(caller, manage=True)
        return await self.config.plan_reload()

    async def repair(self, caller: Caller, *, endable: bool = False) -> Answer:
        """Authorise the call, and have every value that is managed put right now."""
        came = self._now()
        permit = await self._authorization.permit(caller)
        async with self._recorded(permit, "") as record:
            await self._begin(record, came)
            repairing = self.engine.repair(caller.member, self._progress(caller), endable=endable)
            return await self._answered(record, repairing, endable=endable)

    async def name_of(self, caller: Caller) -> str:
        """Return the words for a caller that its claims would have; anybody may ask."""
        return await self.engine.threads.open(processes.describe, caller.pid, caller.uid)

    @asynccontextmanager
    async def _recorded(self, permit: Permit, what: str) -> AsyncIterator[Record]:
        """Give the record of a permitted call; at the end log caller, request and result, unless nothing changed."""
        caller = permit.caller
        record = Record(caller, await self.engine.threads.read(processes.describe, caller.pid, caller.uid))
        ended = "done"
        try:
            yield record
        except BaseException as error:
            ended = f"{type(error).__name__}: {error}"
            raise
        finally:
            if record.changed:
                self._log(record, what, ended)

    def _log(self, record: Record, what: str, ended: str) -> None:
        """Log one change; names and texts that callers chose are made fit for a line."""
        caller, who = record.caller, record.who
        asked = f"{caller.member} {processes.printable(what)}".strip()
        extra = {
            "MESSAGE_ID": CHANGE_ASKED,
            "KERNTUNE_WHO": who,
            "KERNTUNE_UID": str(caller.uid),
            "KERNTUNE_CAUSE": caller.member,
        }
        words = asked, who, caller.uid, processes.printable(ended)
        log.info("%.300s, asked by %s, uid %d: %.300s", *words, extra=extra)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _begin(self, record: Record, came: float) -> None:
        """Raise CallerGone, and log nothing, if the caller left while the call waited to begin.

        The bus is not asked about a call that has only just come.
        """
        if self._now() - came > MOMENT and not await self.service.clients.is_present(record.caller.name):
            record.changed = False
            raise CallerGone(f"{record.caller.name} left the bus before its call had begun")

    def _progress(self, caller: Caller) -> Progress:
        """Return a callback that tells the caller how far the kernel has come."""

        def progress(target: Target, done: int, wanted: int) -> None:
            what = (target.tunable, target.instance, done, wanted)
            self.service.emit(names.ROOT, names.MANAGER, "Progress", *what, to=caller.name)

        return progress

    def choices(self, target: Target, reading: Reading) -> list[str]:
        """Return the values that can be chosen for a target."""
        tunable = self.engine.observed.world.tunable(target.tunable)
        return tunable.choices(reading, self.host.loads.get(tunable.name, ()))

    async def set_one(self, caller: Caller, setting: Setting, options: Mapping[str, Any]) -> Answer:
        """Carry out a typed setter: one setting that must win somewhere."""
        request = Request(
            (setting,),
            persist=options.get("persist", False),
            partial=options.get("allow-partial", False),
            must_win=True,
        )
        return await self.change(caller, request, endable=options.get("cancel-on-leave", False))


def spelled(settings: Iterable[Setting]) -> str:
    """Return settings, or patterns to withdraw, as people write them."""
    return " ".join(f"{tunable}@{instances}{value and '='}{value}" for tunable, instances, value in settings)


def outcome_row(outcome: Outcome) -> Row:
    """Return an outcome as (ssssssss), with ? for what D-Bus cannot carry: a damaged file has any text in a claim."""
    texts = (
        outcome.target.tunable,
        outcome.target.instance,
        outcome.requested,
        outcome.before,
        outcome.actual,
        outcome.state.value,
        outcome.reason.value,
        outcome.detail,
    )
    return [text.encode(errors="replace").decode().replace("\0", "?") for text in texts]


def outcome_rows(outcomes: Iterable[Outcome]) -> list[Row]:
    """Return outcomes as a(ssssssss)."""
    return [outcome_row(outcome) for outcome in outcomes]


def settings_from(rows: Sequence[Sequence[str]]) -> tuple[Setting, ...]:
    """Return the settings in a(sss), or in a(ss) without values."""
    return tuple(Setting(*row, *[""] * (3 - len(row))) for row in rows)


def options_from(options: Mapping[str, Variant], allowed: Mapping[str, str]) -> dict[str, Any]:
    """Return the options as plain values. Raise InvalidArgs for a key or a type that the method does not take."""
    for key, value in options.items():
        if key not in allowed:
            known = ", ".join(sorted(allowed)) or "none"
            raise InvalidArgs(f"there is no option {key!r} here", f"This method takes: {known}")
        if value.signature != allowed[key]:
            raise InvalidArgs(f"option {key} has the type {value.signature!r}", f"It takes {allowed[key]!r}")
    return {key: value.value for key, value in options.items()}
