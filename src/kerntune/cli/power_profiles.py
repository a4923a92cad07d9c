"""Holds of power-profiles-daemon and tuned-ppd: where they rule the CPUs, their profile is held for the governor."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kerntune.api.names import POWER_PROFILES
from kerntune.dbus.standard import PROPERTIES
from kerntune.errors import AccessDenied, Failed, KerntuneError, Unreachable

if TYPE_CHECKING:
    from kerntune.dbus.blocking import BlockingClient

LIMIT_SECONDS: Final = 2.0  # without polkitd the daemon answers nobody for 25 s
PROFILES: Final = {"performance": "performance", "powersave": "power-saver"}  # governor -> profile
SERVICES: Final = ("power-profiles-daemon", "tuned-ppd")
COMM: Final = 15  # characters of a program's name that the kernel keeps
APPLICATION: Final = "kerntune"
POLKIT: Final = "org.freedesktop.PolicyKit1"  # in the text of a refusal where polkit is not on the bus
PLACEHOLDER: Final = "placeholder"  # the driver of a host for which power-profiles-daemon has none


@dataclass(frozen=True, slots=True)
class NotHeld:
    """A profile that is not held, or not any more: what happened, then the likely cause and what to try."""

    what: str
    hint: str


class Held:
    """A profile that a service holds for us. `poll` takes it as a descriptor: readable means that `take` has news."""

    def __init__(self, client: BlockingClient, interface: str, service: str, profile: str) -> None:
        self.service, self.profile = service, profile
        self.degraded = ""  # why the hardware gives less than the profile promises, in the service's words
        self._client, self._interface = client, interface
        self._path = "/" + interface.replace(".", "/")
        self._cookie: int | None = None
        self._active = ""
        self._is_released = False

    def __str__(self) -> str:
        return f"{self.service} holds the profile {self.profile}"

    def fileno(self) -> int:
        """Return the descriptor of the connection."""
        return self._client.fileno()

    def take(self) -> NotHeld | None:
        """Read what has come, and return why the profile is not in force any more; None while it is.

        Watch no longer once it has told: a connection that is lost stays readable.
        """
        try:
            while signal := self._client.next_signal(timeout=0):
                match signal.member, signal.args:
                    case "ProfileReleased", [self._cookie]:  # tuned-ppd tells everybody of every hold
                        self._is_released = True
                    case "PropertiesChanged", [_, changed, _]:
                        self._active = changed.get("ActiveProfile", self._active)
        except KerntuneError as error:
            what = "it has left the bus" if self._client.has_left else error.what
            return NotHeld(
                f"{self.service} holds the profile {self.profile} no longer: {what}",
                f"It was stopped, or has crashed: {journal(self.service)}",
            )
        now = f"; its profile is now {self._active}" if self._active != self.profile else ""
        if self._is_released:
            return NotHeld(
                f"{self.service} has released the hold on the profile {self.profile}{now}",
                "Somebody chose another profile or ended the hold; the governor follows the service from now on",
            )
        return NotHeld(f"{self} in vain{now}", self._rivals()) if now else None

    def begin(self, reason: str) -> None:
        """Have the service hold the profile. Raise a KerntuneError unless it is in force then."""
        offered = {row["Profile"]: row for row in self._properties().get("Profiles", ())}
        if self.profile not in offered:
            raise Failed(
                f"it does not offer this profile on this host, only {', '.join(offered) or 'none'}",
                "It has no driver for this hardware; in a virtual machine that is usual",
            )
        drivers = {offered[self.profile].get(key) for key in ("Driver", "CpuDriver", "PlatformDriver")}
        if drivers - {None} == {PLACEHOLDER}:
            raise Failed(
                "the profile changes nothing on this host",
                f"Its driver is {PLACEHOLDER}: it has none for this hardware; in a virtual machine that is usual",
            )
        self._client.listen(self._path)
        reason = reason.encode(errors="replace").decode()  # the words of a command may be no UTF-8
        (self._cookie,) = self._call(self._interface, "HoldProfile", "sss", self.profile, reason, APPLICATION)
        # power-profiles-daemon answers before it applies, and drops the errors of its drivers.
        found = self._properties()
        self._active = found.get("ActiveProfile", "")
        if self._active != self.profile:
            raise Failed(f"it took the hold, but its profile is {self._active or 'unknown'}", self._rivals())
        if self.profile == "performance":
            self.degraded = found.get("PerformanceDegraded", "")

    def end(self) -> None:
        """Have the service release the hold; where it does not answer, the end of the connection does the same."""
        if self._cookie is not None and not self._is_released:
            self._client.deadline = time.monotonic() + LIMIT_SECONDS
            with suppress(KerntuneError):
                self._call(self._interface, "ReleaseProfile", "u", self._cookie)

    def _properties(self) -> Mapping[str, Any]:
        (found,) = self._call(PROPERTIES, "GetAll", "s", self._interface)
        return found  # type: ignore[no-any-return]  # a{sv}

    def _call(self, interface: str, member: str, signature: str, *args: Any) -> list[Any]:
        return self._client.call(self._path, interface, member, signature, *args, start=False, timeout=LIMIT_SECONDS)

    def _rivals(self) -> str:
        rival = "Another program's hold on power-saver goes first (powerprofilesctl list-holds)"
        return f"{rival}, or a driver failed: {journal(self.service)}"


@contextmanager
def held(governor: str, reason: str) -> Iterator[Held | NotHeld | None]:
    """Hold the profile that stands for a governor until the block ends, where a service for profiles runs now.

    Give None where none runs, or no profile stands for the governor. All calls together take 2 s at most, and start
    no service; so do those at the end. The service ends the hold too when this process dies.
    """
    from kerntune.dbus import blocking  # noqa: PLC0415  # importing it takes longer than a call

    with ExitStack() as stack:
        hold = None
        if profile := PROFILES.get(governor):
            with suppress(KerntuneError):  # no bus: who needs kerntuned will tell
                deadline = time.monotonic() + LIMIT_SECONDS
                client = stack.enter_context(blocking.connect(POWER_PROFILES[0], deadline=deadline))
                if name := client.bind(*POWER_PROFILES):
                    hold = Held(client, name, service_of(client, name), profile)
        if hold is None:
            stack.close()
            yield None
            return
        stack.callback(hold.end)
        outcome: Held | NotHeld = hold
        try:
            hold.begin(reason)
        except KerntuneError as error:
            outcome = refusal(hold, name, error)
            stack.close()
        yield outcome


def service_of(client: BlockingClient, name: str) -> str:
    """Return what people call the service that owns this name on the bus; its program tells."""
    from kerntune.kernel.processes import program  # noqa: PLC0415  # where such a service runs only

    comm = ""
    with suppress(KerntuneError):
        comm = program(client.pid())
    return next((service for service in SERVICES if comm == service[:COMM]), comm or name)


def journal(service: str) -> str:
    """Return the command that shows what a service has logged."""
    return f"journalctl -u {service}" if service in SERVICES else "journalctl -b"


def refusal(hold: Held, name: str, error: KerntuneError) -> NotHeld:
    """Return why a service does not hold a profile, with the likely cause and what to try."""
    from kerntune.dbus.messages import TimedOut  # noqa: PLC0415  # as in `held`

    what, hint = error.what, error.hint or journal(hold.service)
    if isinstance(error, AccessDenied) and POLKIT in what:
        what, hint = "it cannot ask polkit", "Does polkit run? systemctl status polkit"
    elif isinstance(error, AccessDenied):
        hint = (
            "Its policy lets root and the active local session hold a profile, not services and logins by ssh; "
            f"a rule of polkit for {name}.hold-profile may allow more"
        )
    elif isinstance(error.__cause__, TimedOut):
        what = f"it has not answered within {LIMIT_SECONDS:g} s"
        hint = f"Without polkit it waits in vain: systemctl status polkit; {journal(hold.service)}"
    elif isinstance(error, Unreachable):
        hint = f"It has just ended: {journal(hold.service)}"
    return NotHeld(f"{hold.service} does not hold the profile {hold.profile}: {what}", hint)
