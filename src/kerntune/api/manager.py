"""The interface org.kerntune.Tuner1.Manager."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from kerntune import __version__
from kerntune.api import describe, names
from kerntune.api.calls import LEAVE, PERSIST, SET, Calls, Options, Row, options_from, outcome_rows, settings_from
from kerntune.api.holds import Holds
from kerntune.dbus.service import Caller
from kerntune.engine.claims import Selection
from kerntune.engine.requests import Request
from kerntune.engine.results import Answer
from kerntune.errors import InvalidArgs
from kerntune.model import Report

RESET: Final = {"baseline": "b", "holds": "b"}
WHOLE: Final = {"profile": "s", "reset": "b"} | RESET
HOLD: Final = {"profile": "s", "allow-partial": "b", "ttl-usec": "t", "detached": "b"}


class Manager:
    """The whole daemon: claims, plans, profiles, holds, and the description of everything."""

    def __init__(self, calls: Calls, holds: Holds) -> None:
        self._calls, self._engine, self._holds = calls, calls.engine, holds
        self.version = __version__

    @property
    def generation(self) -> int:
        return self._engine.observed.generation

    @property
    def degraded(self) -> list[str]:
        engine = self._engine
        slugs = {reason.value for reason in engine.observed.troubles} | engine.edits.claims.choice.troubles
        return sorted(slugs | self._calls.guard.troubles | self._calls.troubles)

    @property
    def active_profile(self) -> str:
        return self._calls.config.profile

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
        return reply(await self._calls.change(caller, request, endable=endable))

    async def unset(self, caller: Caller, what: list[Row], options: Options) -> tuple[bool, list[Row]]:
        chosen = options_from(options, PERSIST | LEAVE)
        if not what:
            raise InvalidArgs("nothing was named", "Give at least one (tunable, instances)")
        request = Request(settings_from(what), unset=True, persist=chosen.get("persist", False))
        endable = chosen.get("cancel-on-leave", False)
        return reply(await self._calls.change(caller, request, endable=endable))

    async def plan(self, caller: Caller, settings: list[Row], options: Options) -> tuple[bool, list[Row]]:
        chosen = options_from(options, SET | {"unset": "b", "strict": "b", "reload": "b"} | WHOLE)
        selection, reload = selection_in(chosen), chosen.get("reload", False)
        if (selection or reload) and (settings or chosen.keys() - ({"reload"} if reload else WHOLE.keys())):
            raise InvalidArgs(
                "a plan of profile, reset or reload takes no settings", "Nor other options: ask for one thing at a time"
            )
        if reload:
            return reply(await self._calls.plan_reload(caller))
        if selection:
            return reply(await self._calls.config.plan(selection))
        unset = chosen.get("unset", False)
        request = Request(
            settings_from(settings),
            unset=unset,
            persist=chosen.get("persist", False),
            partial=chosen.get("allow-partial", False),
            # A claim that the caller has made already is the same one.
            who="" if unset else await self._calls.name_of(caller),
        )
        return reply(await self._engine.plan(request, strict=chosen.get("strict", False)))

    async def verify(self, caller: Caller) -> list[Row]:  # noqa: ARG002
        return outcome_rows(await self._engine.verify())

    async def repair(self, caller: Caller, options: Options) -> tuple[bool, list[Row]]:
        endable = options_from(options, LEAVE).get("cancel-on-leave", False)
        return reply(await self._calls.repair(caller, endable=endable))

    async def reload(self, caller: Caller, options: Options) -> None:
        options_from(options, {})
        await self._calls.reload(caller)

    async def set_profile(self, caller: Caller, name: str, options: Options) -> tuple[bool, list[Row]]:
        endable = options_from(options, LEAVE).get("cancel-on-leave", False)
        if not name:
            raise InvalidArgs("no profile was named", "ListProfiles has those there are; ClearProfile ends one")
        return reply(await self._calls.choose(caller, Selection(name), endable=endable))

    async def clear_profile(self, caller: Caller, options: Options) -> tuple[bool, list[Row]]:
        endable = options_from(options, LEAVE).get("cancel-on-leave", False)
        return reply(await self._calls.choose(caller, Selection(""), endable=endable))

    async def list_profiles(self, caller: Caller) -> list[list[str]]:  # noqa: ARG002
        return [list(row) for row in await self._calls.config.listing()]

    async def reset(self, caller: Caller, options: Options) -> tuple[bool, list[Row]]:
        chosen = options_from(options, RESET | LEAVE)
        selection = Selection(reset=True, baseline=chosen.get("baseline", False), holds=chosen.get("holds", False))
        endable = chosen.get("cancel-on-leave", False)
        return reply(await self._calls.choose(caller, selection, endable=endable))

    async def describe(self, caller: Caller) -> str:  # noqa: ARG002
        if waiting := self._engine.observed.refresh():
            await waiting
        calls = self._calls
        return await describe.document(
            self._engine, calls.guard, calls.host, degraded=self.degraded, profile=self.active_profile
        )


def selection_in(chosen: Mapping[str, Any]) -> Selection | None:
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


def publisher(calls: Calls) -> Callable[[Report], None]:
    """Return a listener that publishes each pass: new values of properties, and Changed."""
    service = calls.service

    def publish(report: Report) -> None:
        service.publish_changes(names.ROOT)
        if report.outcomes:
            rows = outcome_rows(report.outcomes)
            service.emit(names.ROOT, names.MANAGER, "Changed", report.generation, report.cause, rows)

    return publish
