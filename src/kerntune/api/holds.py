"""Holds on the bus: each has an object, and ends with its client, at its time, or by a release."""

from __future__ import annotations

import asyncio
import logging
import re
import unicodedata
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from kerntune.api import names
from kerntune.api.calls import Calls, Row, options_from, outcome_rows
from kerntune.dbus.messages import Variant
from kerntune.dbus.service import Caller, Service
from kerntune.dbus.users import UNKNOWN
from kerntune.engine.edits import boottime
from kerntune.engine.requests import Request, World, claim_for, instances_of
from kerntune.engine.results import Answer
from kerntune.errors import Failed, InvalidArgs, NoSuchTarget, NotOffered, NotSupported
from kerntune.model import Claim, Hold, Setting
from kerntune.units import MAX_HOLD

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_TEXT_BYTES: Final = 256  # bytes of `who` and of `why`
RETRY: Final = 1.0  # seconds until work that must not fail is tried again, doubled each time
MAX_RETRY: Final = 60.0
LOOK: Final = 60.0  # seconds; while the host sleeps, the clock of timers stands still, but the clock of holds runs
HOLD_ENDED: Final = "3f8a6d52c1b94e7f9d0e5b27a48c6f13"  # MESSAGE_ID
LEFT: Final = "client gone"
EXPIRED: Final = "expired"
MARKS: Final = 4  # combining marks in a row; Hebrew and Tibetan have as many
# The code points that str.isprintable takes for letters, marks or signs, among blank U+2800 and those that are
# Default_Ignorable (DerivedCoreProperties.txt of Unicode 15).
UNSEEN: Final = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


class HeldObject:
    """One hold, as the interface org.kerntune.Tuner1.Hold."""

    def __init__(self, calls: Calls, hold: Hold, outcomes: list[Row]) -> None:
        """Take the hold, with its claims; `outcomes` are those last known."""
        self._calls, self.hold, self._outcomes = calls, hold, outcomes
        claims = (claim for claim in calls.engine.edits.committed.by_id.values() if claim.hold == hold.number)
        self.claims: tuple[Claim, ...] = tuple(sorted(claims, key=lambda claim: claim.seq))

    @property
    def who(self) -> str:
        return self.hold.who

    @property
    def why(self) -> str:
        return self.hold.why

    @property
    def uid(self) -> int:
        return self.hold.uid

    @property
    def settings(self) -> list[Row]:
        return [[claim.tunable, claim.instances, claim.value] for claim in self.claims]

    @property
    def outcomes(self) -> list[Row]:
        return self._outcomes

    @property
    def since_usec(self) -> int:
        return self.hold.since

    @property
    def expires_usec(self) -> int:
        return self.hold.expires

    async def refresh(self) -> None:
        """Read the outcomes of the hold again."""
        if waiting := self._calls.engine.observed.refresh():
            await waiting
        await self.look_up()

    async def look_up(self) -> None:
        """Update the outcomes with those that the engine knows."""
        engine = self._calls.engine
        self._outcomes = outcome_rows(await engine.threads.open(engine.looking_up(self.claims)))

    async def release(self, caller: Caller, options: Mapping[str, Variant]) -> None:
        options_from(options, {})
        await self._calls.release(caller, self.hold)


@dataclass(slots=True)
class Holds:
    """The holds of the daemon: each committed hold has an object, and ends when it has no client any more."""

    calls: Calls
    _objects: dict[int, HeldObject] = field(default_factory=dict)
    _ends: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    _beginning: set[int] = field(default_factory=set)

    @property
    def paths(self) -> list[str]:
        return [names.hold_path(number) for number in self._objects]

    async def inherit(self) -> None:
        """Drop the holds of a former daemon whose clients have gone meanwhile, before the boot pass."""
        engine = self.calls.engine
        over = [(hold, why) for hold in engine.edits.committed.holds.values() if (why := await self._why_over(hold))]
        for hold, why in over:
            log_end(hold, why)
        if over:
            await engine.edits.drop_holds([hold.number for hold, _ in over])

    async def _why_over(self, hold: Hold) -> str:
        """Return the reason why a hold of a former daemon is over; "" for one that goes on."""
        if 0 < hold.ends_boottime <= boottime():
            return EXPIRED
        if not hold.client:
            return ""
        service = self.calls.service
        same = hold.bus == await bus_id(service) and await service.connection.users.still(hold.client) in (
            hold.uid,
            UNKNOWN,
        )
        return "" if same else LEFT

    async def look_up(self) -> None:
        """Update the outcomes of each object."""
        for each in [*self._objects.values()]:
            await each.look_up()

    async def begin(
        self, caller: Caller, settings: Sequence[Setting], who: str, why: str, options: Mapping[str, Any]
    ) -> tuple[str, Answer]:
        """Begin a hold of the caller, and return its object path with the answer."""
        ttl, detached = options.get("ttl-usec", 0), options.get("detached", False)
        who, why = printable(who=who), printable(why=why)
        if ttl > MAX_HOLD or ("ttl-usec" in options and not ttl):
            raise InvalidArgs(f"ttl-usec is {ttl}", f"Give microseconds, 1 to {MAX_HOLD}, or leave it out")
        if detached and not ttl:
            raise InvalidArgs("a detached hold has no client to end with", "Give it a time to end: ttl-usec")
        engine = self.calls.engine
        if profile := options.get("profile"):
            asked = await self.calls.config.settings_of(profile)
            settings = [*await engine.threads.open(offered, asked, tuple(settings), engine.observed.world), *settings]
        if not settings:
            raise InvalidArgs("nothing is to be held", "Give at least one (tunable, instances, value), or a profile")
        client, bus = "" if detached else caller.name, await bus_id(self.calls.service)
        hold = Hold(engine.edits.number_for_a_hold(), who, why, caller.uid, client, bus, ttl)
        request = Request(tuple(settings), partial=options.get("allow-partial", False), hold=hold)
        self._beginning.add(hold.number)
        try:
            # If the client leaves halfway, its hold is ended and put back.
            answer = await self.calls.change(caller, request, endable=bool(client))
            if hold.number in engine.edits.committed.holds:
                self._add(hold.number, outcome_rows(answer.outcomes))
        finally:
            # A committed hold gets an object and an end, even if the call has failed.
            self._beginning.discard(hold.number)
            self.sync(caller.member)
        if hold.number not in self._objects:
            hint = "Ask again; likely: a reset of everything, kerntune reset --holds"
            raise Failed(f"hold {hold.number} was ended before it was answered", hint)
        engine.observed.notify(caller.member)
        return names.hold_path(hold.number), answer

    def sync(self, cause: str = "") -> None:
        """Keep an object for each committed hold and for no other, and wait for the end of each.

        `cause` is the reason for the end of holds that are not committed any more.
        """
        holds = self.calls.engine.edits.committed.holds
        for number in [number for number in self._objects if number not in holds]:
            log_end(self._objects.pop(number).hold, cause)
            self.calls.service.retract(names.hold_path(number))
            if ending := self._ends.pop(number, None):
                ending.cancel()
        for number in holds.keys() - self._objects.keys() - self._beginning:
            self._add(number, [])

    def _add(self, number: int, outcomes: list[Row]) -> None:
        hold = self.calls.engine.edits.committed.holds[number]
        # The task of its end comes first: without an object a hold would only not be seen.
        self._ends[number] = asyncio.get_running_loop().create_task(self._end(hold), name=f"end of hold {number}")
        self._objects[number] = HeldObject(self.calls, hold, outcomes)
        self.calls.service.publish(names.hold_path(number), {names.HOLD: self._objects[number]})

    async def _end(self, hold: Hold) -> None:
        """Wait until a hold is over, and end it; try again as often as that fails."""
        waiting: dict[asyncio.Future[None], str] = {}
        if hold.client:
            left = until_done(partial(self._leave, hold.client), f"whether the client of hold {hold.number} is there")
            waiting[asyncio.ensure_future(left)] = LEFT
        if hold.ends_boottime:
            waiting[asyncio.ensure_future(until(hold.ends_boottime))] = EXPIRED
        if not waiting:
            return
        try:
            over, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
        del self._ends[hold.number]  # from now on this task is not cancelled
        cause = waiting[over.pop()]
        release = partial(self.calls.engine.release, [hold.number], cause, is_fact=True)
        while hold.number in self.calls.engine.edits.committed.holds:
            await until_done(release, f"the end of hold {hold.number}")

    async def _leave(self, client: str) -> None:
        """Wait until a client leaves the bus."""
        async with self.calls.service.clients.watching(client) as gone:
            await asyncio.wait([gone])  # others wait for it too, so it must not be cancelled


async def until_done(work: Callable[[], Awaitable[T]], what: str) -> T:
    """Try `work` until it succeeds, and return its result; wait longer after each failure."""
    wait = RETRY
    while True:
        try:
            return await work()
        except Exception as error:  # noqa: BLE001  # after any error the pages would stay for ever
            log.warning("%s: %s; it is tried again in %.0f s", what, error or type(error).__name__, wait)
        await asyncio.sleep(wait)
        wait = min(2 * wait, MAX_RETRY)


def log_end(hold: Hold, cause: str) -> None:
    """Log that a hold has ended, and why."""
    extra = {"MESSAGE_ID": HOLD_ENDED, "KERNTUNE_UID": str(hold.uid), "KERNTUNE_CAUSE": cause}
    log.info("hold %d of %s, uid %d, ends: %s", hold.number, hold.who, hold.uid, cause, extra=extra)


def offered(asked: Sequence[Setting], own: Sequence[Setting], world: World) -> list[Setting]:
    """Return the settings of a profile that this host has, except those that the caller's `own` settings name.

    Some tunables add the held number to the others: a number of 0 adds nothing.
    """
    named = {(each.tunable, instances_of(world.tunable(each.tunable), each.instances, world)) for each in own}
    found = []
    for each in asked:
        tunable = world.tunable(each.tunable)
        if (each.tunable, each.instances) in named or (tunable.adds and int(tunable.normal_value(each.value)) == 0):
            continue
        try:
            claim_for(each, Request((each,)), world)
        except (NotSupported, NoSuchTarget, NotOffered):
            continue
        found.append(each)
    return found


def printable(**text: str) -> str:
    """Return a text as others will see it, without blanks around it.

    Raise InvalidArgs for a text that is too long, or that a terminal would not show as text.
    """
    ((name, given),) = ((name, given.strip()) for name, given in text.items())
    if len(given.encode()) > MAX_TEXT_BYTES:
        raise InvalidArgs(f"{name} has {len(given.encode())} bytes", f"{MAX_TEXT_BYTES} are allowed")
    marks = "".join("^" if unicodedata.category(char) in ("Mn", "Me") else "." for char in given)
    if not given.isprintable() or UNSEEN.search(given) or marks.startswith("^") or "^" * (MARKS + 1) in marks:
        raise InvalidArgs(f"{name} is {given!a:.60}", "Leave out what cannot be seen or printed: others will read it")
    return given


async def until(moment: int) -> None:
    """Wait until a time of CLOCK_BOOTTIME, in microseconds."""
    while (left := (moment - boottime()) / 1e6) > 0:  # noqa: ASYNC110  # a clock sends no event
        await asyncio.sleep(min(left, LOOK))


async def bus_id(service: Service) -> str:
    """Return the id of this bus (GetId). Other buses, and this bus after a restart, have another id."""
    (found,) = await service.connection.call_bus("GetId")
    return str(found)
