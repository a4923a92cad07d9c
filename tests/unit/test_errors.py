"""The exceptions: their names on the bus are those of the contract, and each has one class."""

from __future__ import annotations

from collections import Counter

import pytest

from kerntune import errors
from kerntune.errors import FREEDESKTOP, OURS, Exit, KerntuneError, by_name

# Classes that only a client raises share a name with what the bus would say.
IN_CLIENTS = {errors.Unreachable, errors.Usage}
CONTRACT = {
    *(
        FREEDESKTOP + name
        for name in (
            "InvalidArgs",
            "AccessDenied",
            "InteractiveAuthorizationRequired",
            "UnknownMethod",
            "UnknownObject",
            "UnknownInterface",
            "UnknownProperty",
            "PropertyReadOnly",
            "LimitsExceeded",
            "Failed",
        )
    ),
    *(
        OURS + name
        for name in (
            "UnknownTunable",
            "NoSuchTarget",
            "NotSupported",
            "InvalidValue",
            "PartiallyAllocated",
            "KernelRejected",
            "Overridden",
            "GuardRefused",
            "OverLimit",
            "NoSuchProfile",
            "NoSuchHold",
            "NotOwner",
        )
    ),
}
# Others define classes without a name of their own; they cross the bus as Failed.
CLASSES = [cls for cls in KerntuneError.__subclasses__() if cls.__module__ == KerntuneError.__module__]
SERVED = [cls for cls in CLASSES if cls not in IN_CLIENTS]


def test_each_name_has_one_class() -> None:
    assert [name for name, times in Counter(cls.dbus_name for cls in SERVED).items() if times > 1] == []


def test_the_names_are_those_of_the_contract() -> None:
    assert {cls.dbus_name for cls in SERVED} <= CONTRACT
    assert {FREEDESKTOP + "Failed", OURS + "OverLimit", OURS + "NoSuchTarget"} <= {cls.dbus_name for cls in SERVED}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_name_says_what_the_class_says(cls: type[KerntuneError]) -> None:
    if cls not in IN_CLIENTS:
        assert cls.dbus_name.rpartition(".")[2] == cls.__name__
    assert cls.__doc__


def test_a_reply_becomes_the_class_again() -> None:
    names = by_name()
    for cls in SERVED:
        assert names[cls.dbus_name] is cls
    assert names[FREEDESKTOP + "ServiceUnknown"] is errors.Unreachable


@pytest.mark.parametrize(
    ("cls", "code"),
    [
        (errors.Failed, 1),
        (errors.KernelRejected, 1),
        (errors.Overridden, 1),
        (errors.OverLimit, 1),
        (errors.LimitsExceeded, 1),
        (errors.InvalidArgs, 2),
        (errors.InvalidValue, 2),
        (errors.UnknownTunable, 2),
        (errors.Usage, 2),
        (errors.NoSuchTarget, 3),
        (errors.NotSupported, 3),
        (errors.NoSuchProfile, 3),
        (errors.AccessDenied, 4),
        (errors.InteractiveAuthorizationRequired, 4),
        (errors.Unreachable, 5),
        (errors.PartiallyAllocated, 6),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_exit_codes(cls: type[KerntuneError], code: int) -> None:
    assert cls.exit_code == code
    assert cls.exit_code is not Exit.OK


def test_a_message_has_two_parts() -> None:
    error = errors.NoSuchTarget("there is no sdz", "See `kerntune list`")
    assert (str(error), error.what, error.hint) == (
        "there is no sdz. See `kerntune list`",
        "there is no sdz",
        "See `kerntune list`",
    )
    assert str(errors.Failed("internal error")) == "internal error"
