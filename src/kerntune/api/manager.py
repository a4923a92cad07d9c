"""Manager, and the one path of every call: read arguments, validate, authorise, act through the engine, reply."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol

from kerntune import __version__
from kerntune.api import names
from kerntune.api.authorization import Gate, Permit
from kerntune.api.describe import Host, prepare
from kerntune.api.wire import Row, options_from, outcome_rows, settings_from
from kerntune.dbus.interface import snake
from kerntune.dbus.messages import Variant
from kerntune.dbus.service import Caller, CallerGone, Service
from kerntune.engine.answers import Answer
from kerntune.engine.claims import Selection
from kerntune.engine.progress import Progress
from kerntune.engine.reconciler import Reconciler
from kerntune.engine.requests import Request
from kerntune.errors import InvalidArgs
from kerntune.guard.guard import OBSERVES, MemoryGuard
from kerntune.guard.policy import GuardState
from kerntune.kernel import processes
from kerntune.model import Hold, Report, Setting, Target

log = logging.getLogger(__name__)
Options = Mapping[str, Variant]

PERSIST: Final = {"persist": "b"}
SET: Final = PERSIST | {"allow-partial": "b"}
RESET: Final = {"baseline": "b", "holds": "b"}
LEAVE: Final = {"cancel-on-leave": "b"}
CHANGE_ASKED: Final = "7b0e5a2f93c84d1e8f6d2a51c4e9b370"  # MESSAGE_ID
WHOLE: Final = {"profile": "s", "reset": "b"} | RESET
HOLD: Final = {"profile": "s", "allow-partial": "b", "ttl-usec": "t", "detached": "b"}
MOMENT: Final = 0.05  # seconds after which a call may have lost its caller before it began
SMALL: Final = 1000  # targets, and comparisons with claims; with less the event loop makes a document, in milliseconds


class Files(Protocol):
    """The configuration and the profiles, as the daemon keeps them."""

    @property
    def profile(self) -> str:
        """The profile in force, "" for none."""

    async def reload(self) -> None:
        """Read the files again, and return after the pass."""

    async def listing(self) -> list[tuple[str, str]]:
        """Return the name and summary of each profile."""

    async def settings_of(self, profile: str) -> Sequence[Setting]:
        """Return the settings that a profile asks for. Raise as `check` does."""

    async def check(self, selection: Selection) -> None:
        """Raise the error that would refuse the selection."""

    async def plan(self, selection: Selection) -> Answer:
        """Return what `choose` would do."""

    async def choose(
        self,
        selection: Selection,
        cause: str,
        progress: Progress | None = None,
        *,
        begins: Callable[[], Awaitable[None]] | None = None,
        endable: bool = False,
    ) -> Answer:
        """Put the selection in force in one pass, once `begins` permits it. `endable`: a cancellation puts it back."""


class HoldKeeper(Protocol):
    """The holds on the bus (api/holds.py)."""

    @property
    def paths(self) -> list[str]:
        """The object paths of all holds."""

    async def begin(
        self, caller: Caller, settings: Sequence[Setting], who: str, why: str, options: Mapping[str, Any]
    ) -> tuple[str, Answer]:
        """Begin a hold, and return its object path with the answer."""


@dataclass(slots=True)
class Record:
    """The journal's record of a call: the caller, and whether the call has changed anything or failed."""

    caller: Caller
    who: str
    changed: bool = True


class Core:
    """The shared part of all interfaces: the engine, the bus, and the one path from a request to an answer."""

    def __init__(
        self,
        service: Service,
        engine: Reconciler,
        host: Host,
        troubles: Set[str],
        files: Files,
        *,
        guard: MemoryGuard,
    ) -> None:
        """Take the parts; `troubles` are slugs of the daemon's own problems, and the set changes."""
        self.service, self.engine, self.host = service, engine, host
        self.troubles, self.files, self.guard = troubles, files, guard
        self._gate = Gate(service)

    async def change(self, caller: Caller, request: Request, *, endable: bool = False) -> Answer:
        """Validate, authorise, and carry out; a refused call writes nothing. `endable`: the call ends with its caller.

        A request that takes long to validate is authorised before. So a caller without permission makes no work, and
        an administrator does not wait in one line with strangers.
        """
        came, world = self._now(), self.engine.world
        tunables = {world.tunable(setting.tunable) for setting in request.settings}
        if not self.engine.is_large(request):
            await self.engine.check(request)
        permit = await self._gate.let_pass(caller, tunables)
        async with self._recorded(permit, spelled(request.settings)) as record:
            await self._begin(record, came)
            request = replace(request, who=record.who)
            changing = self.engine.change(request, caller.member, self._progress(caller), endable=endable)
            return await self._answered(record, changing, endable=endable)

    async def hold(self, caller: Caller, request: Request, hold: Hold) -> Answer:
        """Begin a hold; add a description of the client to the name that the client gives itself.

        If the client leaves halfway, the hold is ended and put back, unless it is detached.
        """
        came, world = self._now(), self.engine.world
        tunables = {world.tunable(setting.tunable) for setting in request.settings}
        if not self.engine.is_large(request):
            await self.engine.check(replace(request, hold=hold))
        permit = await self._gate.let_pass(caller, tunables, manage=not hold.client)
        async with self._recorded(permit, spelled(request.settings)) as record:
            await self._begin(record, came)
            who = f"{hold.who}, {record.who}" if hold.who else record.who
            request = replace(request, who=record.who, hold=replace(hold, who=who))
            endable = bool(hold.client)
            changing = self.engine.change(request, caller.member, self._progress(caller), endable=endable)
            return await self._answered(record, changing, endable=endable)

    async def release(self, caller: Caller, hold: Hold) -> None:
        """End a hold: its owner may do that, and callers that may manage."""
        came = self._now()
        permit = await self._gate.let_owner_pass(caller, hold.uid, f"hold {hold.number}")
        async with self._recorded(permit, f"{hold.number} of {hold.who}") as record:
            await self._begin(record, came)
            answer = await self.engine.release([hold.number], caller.member)
            record.changed = answer.changed

    async def choose(self, caller: Caller, selection: Selection, *, endable: bool = False) -> Answer:
        """Validate, authorise, and carry out a selection for the files as a whole."""
        came = self._now()
        await self.files.check(selection)
        permit = await self._gate.let_pass(caller)
        words = selection.profile, "baseline" if selection.baseline else "", "holds" if selection.holds else ""
        named = " ".join(word for word in words if word)
        async with self._recorded(permit, named) as record:
            telling, begins = self._progress(caller), partial(self._begin, record, came)
            choosing = self.files.choose(selection, caller.member, telling, begins=begins, endable=endable)
            return await self._answered(record, choosing, endable=endable)

    async def _answered(self, record: Record, work: Awaitable[Answer], *, endable: bool) -> Answer:
        """Await a change, if `endable` only until its caller leaves, and record whether anything was changed."""
        answer = await (self.service.while_present(record.caller, work) if endable else work)
        record.changed = answer.changed
        return answer

    async def reload(self, caller: Caller) -> None:
        """Authorise the call, and read the files again."""
        came = self._now()
        permit = await self._gate.let_pass(caller)
        async with self._recorded(permit, "") as record:
            await self._begin(record, came)
            await self.files.reload()

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
        if self._now() - came > MOMENT and not await self.service.present(record.caller):
            record.changed = False
            raise CallerGone(f"{record.caller.name} left the bus before its call had begun")

    def _progress(self, caller: Caller) -> Progress:
        """Return a callback that tells the caller how far the kernel has come."""

        def progress(target: Target, done: int, wanted: int) -> None:
            what = (target.tunable, target.instance, done, wanted)
            self.service.emit(names.ROOT, names.MANAGER, "Progress", *what, to=caller.name)

        return progress

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


class Manager:
    """The interface org.kerntune.Tuner1.Manager."""

    def __init__(self, core: Core, holds: HoldKeeper) -> None:
        self._core, self._engine, self._holds = core, core.engine, holds
        self.version = __version__

    @property
    def generation(self) -> int:
        return self._engine.generation

    @property
    def degraded(self) -> list[str]:
        engine = self._engine
        slugs = {reason.value for reason in engine.troubles} | engine.claims.choice.troubles
        observes = {OBSERVES} if self._core.guard.verdict.state is GuardState.OBSERVING else set()
        return sorted(slugs | observes | self._core.troubles)

    @property
    def active_profile(self) -> str:
        return self._core.files.profile

    @property
    def holds(self) -> list[str]:
        return self._holds.paths

    async def hold(
        self, caller: Caller, settings: list[Row], who: str, why: str, options: Options
    ) -> tuple[str, list[Row]]:
        path, answer = await self._holds.begin(caller, settings_from(settings), who, why, options_from(options, HOLD))
        return path, outcome_rows(answer.outcomes)

    async def set(self, caller: Caller, settings: list[Row], options: Options) -> tuple[bool, list[Row]]:
        chosen = options_from(options, SET | LEAVE)
        if not settings:
            raise InvalidArgs("no setting was given", "Give at least one (tunable, instances, value)")
        request = Request(
            settings_from(settings), persist=chosen.get("persist", False), partial=chosen.get("allow-partial", False)
        )
        endable = chosen.get("cancel-on-leave", False)
        return reply(await self._core.change(caller, request, endable=endable))

    async def unset(self, caller: Caller, what: list[Row], options: Options) -> tuple[bool, list[Row]]:
        chosen = options_from(options, PERSIST | LEAVE)
        if not what:
            raise InvalidArgs("nothing was named", "Give at least one (tunable, instances)")
        request = Request(settings_from(what), unset=True, persist=chosen.get("persist", False))
        endable = chosen.get("cancel-on-leave", False)
        return reply(await self._core.change(caller, request, endable=endable))

    async def plan(self, caller: Caller, settings: list[Row], options: Options) -> tuple[bool, list[Row]]:  # noqa: ARG002
        chosen = options_from(options, SET | {"unset": "b", "strict": "b"} | WHOLE)
        if selection := whole(chosen):
            if settings or chosen.keys() - WHOLE.keys():
                raise InvalidArgs(
                    "a plan of profile or reset takes no settings", "Nor other options: ask for one thing at a time"
                )
            return reply(await self._core.files.plan(selection))
        request = Request(
            settings_from(settings),
            unset=chosen.get("unset", False),
            persist=chosen.get("persist", False),
            partial=chosen.get("allow-partial", False),
        )
        return reply(await self._engine.plan(request, strict=chosen.get("strict", False)))

    async def verify(self, caller: Caller) -> list[Row]:  # noqa: ARG002
        return outcome_rows(await self._engine.verify())

    async def reload(self, caller: Caller, options: Options) -> None:
        options_from(options, {})
        await self._core.reload(caller)

    async def set_profile(self, caller: Caller, name: str, options: Options) -> tuple[bool, list[Row]]:
        endable = options_from(options, LEAVE).get("cancel-on-leave", False)
        if not name:
            raise InvalidArgs("no profile was named", "ListProfiles has those there are; ClearProfile ends one")
        return reply(await self._core.choose(caller, Selection(name), endable=endable))

    async def clear_profile(self, caller: Caller, options: Options) -> tuple[bool, list[Row]]:
        endable = options_from(options, LEAVE).get("cancel-on-leave", False)
        return reply(await self._core.choose(caller, Selection(""), endable=endable))

    async def list_profiles(self, caller: Caller) -> list[list[str]]:  # noqa: ARG002
        return [list(row) for row in await self._core.files.listing()]

    async def reset(self, caller: Caller, options: Options) -> tuple[bool, list[Row]]:
        chosen = options_from(options, RESET | LEAVE)
        selection = Selection(reset=True, baseline=chosen.get("baseline", False), holds=chosen.get("holds", False))
        endable = chosen.get("cancel-on-leave", False)
        return reply(await self._core.choose(caller, selection, endable=endable))

    async def describe(self, caller: Caller) -> str:  # noqa: ARG002
        if waiting := self._engine.refresh():
            await waiting
        engine = self._engine
        head, rows = prepare(engine, self._core.guard, self._core.host, self.degraded, self.active_profile)
        if len(engine.readings) * (1 + len(engine.claims.by_id)) <= SMALL:
            return json.dumps(head | rows(), ensure_ascii=False)
        return await engine.threads.open(in_parts, head, rows)


def in_parts(head: Mapping[str, Any], rows: Callable[[], Mapping[str, Any]]) -> str:
    """Return the document as JSON. An encoder lets no other thread run, so it gets one row at a time."""
    begin = json.dumps(head, ensure_ascii=False)[:-1]
    parts = (
        f"{json.dumps(name)}: [{', '.join(json.dumps(row, ensure_ascii=False) for row in found)}]"
        for name, found in rows().items()
    )
    return f"{begin}, {', '.join(parts)}}}"


def whole(chosen: Mapping[str, Any]) -> Selection | None:
    """Return the selection in a plan's options for the files as a whole, or None."""
    profile, reset, baseline, holds = (chosen.get(name) for name in WHOLE)
    if (baseline or holds) and not reset:
        raise InvalidArgs(f"the option {'baseline' if baseline else 'holds'} belongs to reset", "Give both, or neither")
    if profile is not None and reset:
        raise InvalidArgs("a plan is of a profile or of a reset", "Ask for one thing at a time")
    return Selection(profile, bool(reset), bool(baseline), bool(holds)) if profile is not None or reset else None


def reply(answer: Answer) -> tuple[bool, list[Row]]:
    """Return (changed, outcomes)."""
    return answer.changed, outcome_rows(answer.outcomes)


def announcer(service: Service, watched: Mapping[str, tuple[object, Iterable[str]]]) -> Callable[[Report], None]:
    """Return a listener that publishes each pass: Changed, and one PropertiesChanged for an interface with new values.

    `watched`: interface -> its object and the names of the properties that publish changes, as in the contract.
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
    """Return the property names of the contract with their current values."""
    return {name: getattr(impl, snake(name)) for name in properties}
