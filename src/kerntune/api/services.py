"""Other services on the bus that concern us: those that tune the same knobs, and logind, which reports a resume."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from kerntune import errors
from kerntune.api.names import POWER_PROFILES
from kerntune.dbus import standard
from kerntune.dbus.service import Service

log = logging.getLogger(__name__)

LOGIND: Final = "org.freedesktop.login1"
# Their names on the bus, and the slugs in Degraded.
RIVALS: Final = {
    "com.redhat.tuned": "rival-tuned",
    **dict.fromkeys(POWER_PROFILES, "rival-power-profiles-daemon"),
}
RESUME: Final = (
    f"type='signal',sender='{LOGIND}',path='/org/freedesktop/login1',interface='{LOGIND}.Manager',"
    "member='PrepareForSleep'"
)


class OtherServices:
    """A watch that keeps the slugs of running rivals in `troubles`, and calls `look` with a cause after a change."""

    def __init__(self, service: Service, troubles: set[str], look: Callable[[str], None]) -> None:
        self._service, self._troubles, self._look = service, troubles, look
        self._owners: dict[str, str] = {}

    async def watch(self) -> None:
        """Watch from now on. Raise nothing, because all this is only good to know."""
        self._service.on_signal(standard.BUS, "NameOwnerChanged", "sss", self._owner_changed)
        self._service.on_signal(f"{LOGIND}.Manager", "PrepareForSleep", "b", self._sleep)
        try:
            await self._service.connection.call_bus("AddMatch", "s", RESUME)
            await asyncio.gather(*(self._look_for(name) for name in (LOGIND, *RIVALS)))
        except errors.KerntuneError as error:
            log.warning("who else tunes this host is not known: %s", error)

    async def _look_for(self, name: str) -> None:
        await self._service.connection.call_bus("AddMatch", "s", standard.owner_rule(name))
        try:
            (owner,) = await self._service.connection.call_bus("GetNameOwner", "s", name)
        except errors.KerntuneError:
            return  # the name has no owner
        self._owner_changed(standard.BUS, name, "", owner)

    def _owner_changed(self, sender: str, name: str, _old: str, new: str) -> None:
        if sender != standard.BUS or (name != LOGIND and name not in RIVALS):
            return
        self._owners[name] = new
        before = set(self._troubles)
        self._troubles.difference_update(RIVALS.values())
        self._troubles.update(slug for rival, slug in RIVALS.items() if self._owners.get(rival))
        if self._troubles != before:
            running = [rival for rival in RIVALS if self._owners.get(rival)]
            log.info("services beside us that tune the same values: %s", ", ".join(running) or "none any more")
            self._look("rival")

    def _sleep(self, sender: str, *starts: bool) -> None:
        """Ask for a pass after sleep: `starts` is true before it, false after. Check who sent it: anybody may."""
        if sender == self._owners.get(LOGIND) and not any(starts):
            self._look("resume")
