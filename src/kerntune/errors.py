"""The exceptions of kerntune: each class states its D-Bus error name and the command line's exit code."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

FREEDESKTOP = "org.freedesktop.DBus.Error."
OURS = "org.kerntune.Tuner1.Error."


class Exit(IntEnum):
    """Exit codes of `kerntune`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_AUTHORISED = 4
    UNREACHABLE = 5
    PARTLY = 6


class KerntuneError(Exception):
    """An error: what happened, then the likely cause and what to try (`hint`); both reach the client."""

    dbus_name: ClassVar[str] = FREEDESKTOP + "Failed"
    exit_code: ClassVar[Exit] = Exit.FAILED

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(f"{what}. {hint}" if hint else what)
        self.what = what
        self.hint = hint


class Failed(KerntuneError):
    """Something went wrong that has no name of its own."""


class InvalidArgs(KerntuneError):
    """A wrong signature, an unknown option key, an option of the wrong type."""

    dbus_name = FREEDESKTOP + "InvalidArgs"
    exit_code = Exit.USAGE


class AccessDenied(KerntuneError):
    """The bus does not let the caller do this; refusals of the daemon are NotAuthorized."""

    dbus_name = FREEDESKTOP + "AccessDenied"
    exit_code = Exit.NOT_AUTHORISED


class NotAuthorized(AccessDenied):
    """The caller may not do this; the message says why (busctl shows none of AccessDenied)."""

    dbus_name = OURS + "NotAuthorized"


class InteractiveAuthorizationRequired(KerntuneError):
    """The caller may do this after authenticating, but did not allow interaction."""

    dbus_name = FREEDESKTOP + "InteractiveAuthorizationRequired"
    exit_code = Exit.NOT_AUTHORISED


class UnknownMethod(KerntuneError):
    """No such member."""

    dbus_name = FREEDESKTOP + "UnknownMethod"


class UnknownObject(KerntuneError):
    """No such object path."""

    dbus_name = FREEDESKTOP + "UnknownObject"


class UnknownInterface(KerntuneError):
    """The object has no such interface."""

    dbus_name = FREEDESKTOP + "UnknownInterface"


class UnknownProperty(KerntuneError):
    """The interface has no such property."""

    dbus_name = FREEDESKTOP + "UnknownProperty"


class PropertyReadOnly(KerntuneError):
    """The property cannot be set; use the method that goes with it."""

    dbus_name = FREEDESKTOP + "PropertyReadOnly"


class LimitsExceeded(KerntuneError):
    """Too many calls in flight, too many claims, too large a message (64 KiB, root 256 KiB)."""

    dbus_name = FREEDESKTOP + "LimitsExceeded"


class UnknownTunable(KerntuneError):
    """No tunable of that name."""

    dbus_name = OURS + "UnknownTunable"
    exit_code = Exit.NOT_FOUND


class NoSuchTarget(KerntuneError):
    """A device, page size, node or CPU that was named exactly is not there."""

    dbus_name = OURS + "NoSuchTarget"
    exit_code = Exit.NOT_FOUND


class NotSupported(KerntuneError):
    """The kernel or the hardware of this host does not offer the tunable."""

    dbus_name = OURS + "NotSupported"
    exit_code = Exit.NOT_FOUND


class InvalidValue(KerntuneError):
    """The value is not one the tunable can take."""

    dbus_name = OURS + "InvalidValue"
    exit_code = Exit.USAGE


class NotOffered(InvalidValue):
    """The device does not offer the value now; it may after its driver or scheduler has been loaded."""


class NoSuchName(InvalidValue):
    """The name is not on the list of names; callers get the error NoSuchTarget."""

    dbus_name = NoSuchTarget.dbus_name
    exit_code = NoSuchTarget.exit_code


class PartiallyAllocated(KerntuneError):
    """The kernel had fewer huge pages than asked; the old count was put back."""

    dbus_name = OURS + "PartiallyAllocated"
    exit_code = Exit.PARTLY


class KernelRejected(KerntuneError):
    """The kernel refused the write, or did not do what was written."""

    dbus_name = OURS + "KernelRejected"


class Overridden(KerntuneError):
    """A stronger or newer claim holds every target that was named."""

    dbus_name = OURS + "Overridden"


class OverLimit(KerntuneError):
    """The request would endanger the host; nothing was written."""

    dbus_name = OURS + "OverLimit"


class NoSuchProfile(KerntuneError):
    """No profile of that name, neither shipped nor of the administrator."""

    dbus_name = OURS + "NoSuchProfile"
    exit_code = Exit.NOT_FOUND


class NoSuchHold(KerntuneError):
    """Only in clients: no hold of that number."""

    dbus_name = OURS + "NoSuchHold"
    exit_code = Exit.NOT_FOUND


class NotOwner(KerntuneError):
    """The hold is another user's, and the caller may not manage it."""

    dbus_name = OURS + "NotOwner"
    exit_code = Exit.NOT_AUTHORISED


class Unreachable(KerntuneError):
    """Only in clients: there is no bus, or nobody owns the daemon's name."""

    dbus_name = FREEDESKTOP + "ServiceUnknown"
    exit_code = Exit.UNREACHABLE


class Usage(KerntuneError):
    """Only in clients: the arguments do not fit."""

    dbus_name = FREEDESKTOP + "InvalidArgs"
    exit_code = Exit.USAGE


# The user of the process may be their cause; kerntune.membership says whether.
REFUSALS = (NotAuthorized, InteractiveAuthorizationRequired, Unreachable)


def by_name() -> dict[str, type[KerntuneError]]:
    """Return the class of each D-Bus error name, for clients that turn a reply into an exception again."""
    found = [cls for cls in KerntuneError.__subclasses__() if cls.__module__ == __name__]
    found += [finer for cls in found for finer in cls.__subclasses__() if finer.__module__ == __name__]
    # Some classes share a name, among them those that only clients raise: the first one stands for it.
    return {cls.dbus_name: cls for cls in reversed(found)}
