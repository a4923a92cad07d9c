"""The daemon as the verbs see it; no other module of the command line reaches kerntuned."""

from __future__ import annotations

import json
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

from kerntune.api.document import Change, Document, Event, GuardChange, Health, Outcome, Pass, Pool
from kerntune.api.names import (
    BACK_SECONDS,
    BUS_NAME,
    EDIT_SECONDS,
    HINT,
    HOLD,
    HUGE_PAGES,
    LATE,
    LOOK_SECONDS,
    MANAGER,
    MEMORY,
    ROOT,
    hold_number,
    hold_path,
)
from kerntune.dbus.standard import OBJECT_MANAGER, PROPERTIES
from kerntune.errors import REFUSALS, Failed, NoSuchHold, UnknownObject, Unreachable

if TYPE_CHECKING:
    from kerntune.dbus.blocking import BlockingClient, Signal
    from kerntune.model import Setting

READ_SECONDS: Final = 15.0
# A user who interrupts a command does not want its result any more.
LEAVING: Final = {"cancel-on-leave": True}


class Manager:
    """The daemon; its methods block, and raise the classes of kerntune.errors."""

    def __init__(self, client: BlockingClient) -> None:
        self._client = client

    def running(self) -> bool:
        """Return True if the daemon runs now; every other call starts it where the bus knows how to."""
        return self._client.running()

    def describe(self, beside: Sequence[int] = (), *, start: bool = True) -> Document:
        """Return the daemon's description of everything.

        Raise Interrupted when one of the descriptors `beside` becomes readable.
        """
        (text,) = self._client.call(ROOT, MANAGER, "Describe", "", start=start, timeout=READ_SECONDS, beside=beside)
        try:
            return cast(Document, json.loads(text))
        except ValueError as error:
            raise Failed("the daemon's description is not JSON", str(error)) from error

    def pools(self) -> list[Pool]:
        """Return the pools of huge pages; the daemon reads the host's memory again for this."""
        return [Pool(*row) for row in self._client.get(ROOT, HUGE_PAGES, "Pools")]

    def set(self, settings: Sequence[Setting], options: Mapping[str, bool]) -> Change:
        """Claim values; `options` are those of Manager.Set."""
        return self._edit("Set", "a(sss)a{sv}", settings, {**options, **LEAVING})

    def unset(self, what: Sequence[tuple[str, str]], options: Mapping[str, bool]) -> Change:
        """Withdraw claims; `options` are those of Manager.Unset."""
        return self._edit("Unset", "a(ss)a{sv}", what, {**options, **LEAVING})

    def plan(self, settings: Sequence[Setting], options: Mapping[str, bool | str]) -> Change:
        """Return what `set` would do, or what `unset`, `profile`, `reset` or `reload` in the options would."""
        return self._edit("Plan", "a(sss)a{sv}", settings, options)

    def profiles(self) -> list[tuple[str, str]]:
        """Return the name and summary of each profile."""
        (rows,) = self._client.call(ROOT, MANAGER, "ListProfiles", timeout=READ_SECONDS)
        return [(name, summary) for name, summary in rows]

    def set_profile(self, name: str) -> Change:
        """Put a profile in force."""
        return self._change("SetProfile", "sa{sv}", name, _variants(LEAVING))

    def clear_profile(self) -> Change:
        """End the profile in force."""
        return self._change("ClearProfile", "a{sv}", _variants(LEAVING))

    def reset(self, options: Mapping[str, bool]) -> Change:
        """Withdraw the claims of all callers; `options` are those of Manager.Reset."""
        return self._change("Reset", "a{sv}", _variants({**options, **LEAVING}))

    def hold(
        self, settings: Sequence[Setting], who: str, why: str, options: Mapping[str, bool | int | str]
    ) -> tuple[int, tuple[Outcome, ...]]:
        """Hold values for as long as this connection lives; `options` are those of Manager.Hold.

        Return the number of the hold, and the outcomes of its settings.
        """
        rows, chosen = [list(row) for row in settings], {name: value for name, value in options.items() if value}
        path, outcomes = self._long_call("Hold", "a(sss)ssa{sv}", rows, who.strip(), why.strip(), _variants(chosen))
        return hold_number(path), _outcomes(outcomes)

    def release(self, number: int, *, timeout: float = EDIT_SECONDS, beside: Sequence[int] = ()) -> None:
        """End a hold, and return when the kernel has the values without it. Raise NoSuchHold where there is none.

        Raise Interrupted when one of the descriptors `beside` becomes readable; the daemon ends the hold all the same.
        """
        where = hold_path(number), HOLD, "Release"
        try:
            self._client.call(*where, "a{sv}", {}, interactive=True, timeout=timeout, beside=beside)
        except UnknownObject as error:
            raise NoSuchHold(f"there is no hold {number}", "kerntune holds shows those there are") from error

    def fileno(self) -> int:
        """Return a descriptor that is readable when the daemon or the bus has told something."""
        return self._client.fileno()

    def follow_holds(self, beside: Sequence[int] = ()) -> frozenset[int]:
        """Keep the ends of holds from now on for `ended_holds`, and return the holds that there are.

        Raise Unreachable when no daemon is there, and Interrupted when one of the descriptors `beside` is readable.
        """
        self._client.listen(ROOT, OBJECT_MANAGER)
        return frozenset(map(hold_number, self.properties(MANAGER, beside)["Holds"]))

    def ended_holds(self) -> frozenset[int]:
        """Return the holds that have ended since the last question; do not wait. Raise Unreachable without a daemon."""
        found = set()
        while signal := self._client.next_signal(timeout=0):
            found.add(_ended_hold(signal))
        return frozenset(found)

    def wait_for_end(self, number: int, beside: Sequence[int]) -> bool:
        """Return True when a hold has ended, or False when one of the descriptors `beside` is readable.

        The hold survives a restart of the daemon. Raise Unreachable when the bus is lost, or no daemon comes back.
        """
        from kerntune.dbus.blocking import Interrupted  # noqa: PLC0415  # as in `connect`

        while True:
            try:
                if number not in self.follow_holds(beside):
                    return True
                while signal := self._client.next_signal(beside):
                    if number == _ended_hold(signal):
                        return True
            except Interrupted:
                pass
            except Unreachable:
                if self._is_back(beside):
                    continue
            return False

    def _is_back(self, beside: Sequence[int]) -> bool:
        """Wait for the next daemon: return True when it is there, False when one `beside` is readable.

        Raise Unreachable when the bus is gone, or no daemon comes.
        """
        deadline = time.monotonic() + BACK_SECONDS
        while not self._is_there(deadline):
            if select.select(beside, (), (), LOOK_SECONDS)[0]:
                return False
        return True

    def _is_there(self, deadline: float) -> bool:
        """Return whether a daemon is on the bus. Raise Unreachable without a bus, or without one at the deadline."""
        if self._client.running():
            return True
        if time.monotonic() >= deadline:
            raise Unreachable("kerntuned has left the bus", "systemctl status kerntuned")
        return False

    def verify(self) -> tuple[Outcome, ...]:
        """Return the outcomes of managed targets that are not in the desired state."""
        (rows,) = self._client.call(ROOT, MANAGER, "Verify", timeout=READ_SECONDS)
        return _outcomes(rows)

    def repair(self) -> Change:
        """Have every managed value put right; return what was put back, and what is not in the desired state."""
        return self._change("Repair", "a{sv}", _variants(LEAVING))

    def reload(self) -> None:
        """Have the daemon read the configuration files again, and wait for the pass."""
        self._client.call(ROOT, MANAGER, "Reload", "a{sv}", {}, interactive=True, timeout=EDIT_SECONDS)

    def properties(self, interface: str, beside: Sequence[int] = ()) -> Mapping[str, Any]:
        """Return all properties of one interface, as the contract has them; start no daemon.

        Raise Interrupted when one of the descriptors `beside` becomes readable.
        """
        # A command that asks repeatedly must not start a daemon that was just stopped.
        (found,) = self._client.call(
            ROOT, PROPERTIES, "GetAll", "s", interface, start=False, timeout=READ_SECONDS, beside=beside
        )
        return cast("Mapping[str, Any]", found)

    def watch(self, *, start: bool = True) -> None:
        """Keep every change from now on for `next_event`."""
        self._client.listen(ROOT, start=start)

    def has_left(self) -> bool:
        """Return whether the daemon has left the bus since `watch`; the next one may be there. Raise Unreachable."""
        self._client.running()  # the bus has told us before it answers this
        return self._client.has_left

    def next_daemon(self, deadline: float, beside: Sequence[int] = ()) -> Document | None:
        """Watch the daemon that follows one that has left, and return its description; None while there is none.

        Raise Unreachable without a bus, and without a daemon at the deadline (of time.monotonic).
        """
        if not self._is_there(deadline):
            return None
        try:
            self.watch(start=False)
            return self.describe(beside, start=False)
        except Unreachable:
            if not self.has_left():
                raise
            return None

    def next_event(self, beside: Sequence[int] = (), *, timeout: float | None = None) -> Event | None:
        """Wait for the next change. Return None after `timeout` seconds, or when one `beside` is readable.

        Raise Unreachable when the daemon goes.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            signal = self._client.next_signal(beside, timeout=left)
            if signal is None or (event := _event(signal)):
                return None if signal is None else event

    def _edit(
        self, member: str, signature: str, rows: Sequence[Sequence[str]], options: Mapping[str, bool | str]
    ) -> Change:
        return self._change(member, signature, [list(row) for row in rows], _variants(options))

    def _change(self, member: str, signature: str, *body: Any) -> Change:
        changed, outcomes = self._long_call(member, signature, *body)
        return Change(changed, _outcomes(outcomes))

    def _long_call(self, member: str, signature: str, *body: Any) -> list[Any]:
        """Call a method that may take long, and show its progress."""
        from kerntune.cli import progress  # noqa: PLC0415  # status does without it

        with progress.shown(self._client, sys.stderr):
            return self._client.call(ROOT, MANAGER, member, signature, *body, interactive=True, timeout=EDIT_SECONDS)


Connect = Callable[[], AbstractContextManager[Manager]]


@contextmanager
def connect() -> Iterator[Manager]:
    """Connect to the daemon on the system bus (`DBUS_SYSTEM_BUS_ADDRESS` when set). Raise Unreachable."""
    from kerntune.dbus import blocking  # noqa: PLC0415  # importing it takes longer than a call; some verbs ask nobody

    try:
        with blocking.connect(BUS_NAME, hint=HINT, late=LATE) as client:
            yield Manager(client)
    except REFUSALS as error:
        from kerntune.membership import for_this_user  # noqa: PLC0415  # only a refusal needs it

        raise for_this_user(error) from error


def _variants(options: Mapping[str, bool | int | str]) -> dict[str, Any]:
    """Return options as a{sv}."""
    from kerntune.dbus.blocking import Variant  # noqa: PLC0415  # as above

    kinds = {bool: "b", int: "t", str: "s"}
    return {key: Variant(kinds[type(value)], value) for key, value in options.items()}


def _ended_hold(signal: Signal) -> int:
    """Return the number of the hold whose end a signal tells, 0 where it tells something else."""
    return hold_number(signal.args[0]) if signal.member == "InterfacesRemoved" else 0


def _outcomes(rows: Sequence[Sequence[str]]) -> tuple[Outcome, ...]:
    return tuple(Outcome(*row) for row in rows)


def _event(signal: Signal) -> Event | None:
    """Return a signal as an event, or None if it is not about managed targets."""
    match signal.member, signal.args:
        case "Changed", [generation, cause, rows] if signal.interface == MANAGER:
            return Pass(generation, cause, _outcomes(rows))
        case "PropertiesChanged", [interface, {"Degraded": degraded}, _] if interface == MANAGER:
            return Health(tuple(degraded))
        case "GuardChanged", [state, level, details] if signal.interface == MEMORY:
            return _guard_change(state, level, details)
    return None


def _guard_change(state: str, level: int, details: Mapping[str, Any]) -> GuardChange:
    headroom, floor, limit = (details.get(name, 0) for name in ("headroom", "floor", "limit"))
    largest, growing = (tuple(tuple(row) for row in details.get(name, ())) for name in ("largest", "growing"))
    reason, culprit = details.get("reason", ""), details.get("culprit", "")
    return GuardChange(state, level, reason, headroom, floor, limit, largest, growing, culprit)
