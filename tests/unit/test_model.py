"""The nouns and the errors: what makes two of them the same, their words, and the exit code that outcomes amount to."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from kerntune import cli, errors, model
from kerntune.errors import FREEDESKTOP, OURS, Exit, KerntuneError, by_name
from kerntune.model import Claim, ClaimId, DesiredState, Memory, Origin, Reason, State, Target
from kerntune.results import WELL, Condition, condition, exit_code, profile_exit_code
from tests.cli.scripted import outcome


def test_the_origins_are_in_the_order_of_the_design() -> None:
    ranks = [(origin.word, int(origin)) for origin in sorted(Origin)]
    assert ranks == [
        ("baseline", 0),
        ("profile", 10),
        ("config", 20),
        ("persistent", 30),
        ("runtime", 40),
        ("hold", 50),
        ("guard", 60),
    ]


def test_the_nouns_are_frozen_and_slotted() -> None:
    for noun in vars(model).values():
        if dataclasses.is_dataclass(noun):
            assert getattr(noun, "__dataclass_params__").frozen, noun  # noqa: B009  (not in typeshed)
            assert hasattr(noun, "__slots__"), noun


def test_setting_again_is_the_same_claim() -> None:
    first = Claim(Origin.RUNTIME, "io-scheduler", "nvme*", "none", who="alice", seq=1)
    again = Claim(Origin.RUNTIME, "io-scheduler", "nvme*", "bfq", who="bob", seq=2)
    for_good = dataclasses.replace(first, origin=Origin.PERSISTENT)
    assert first.id == again.id == ClaimId(Origin.RUNTIME, "io-scheduler", "nvme*")
    assert first.id != for_good.id


def test_a_drive_is_itself_by_its_queue_and_not_by_its_links() -> None:
    drive = Target("io-scheduler", "nvme0n1", key="3", aliases=("by-id/nvme-A",))
    assert drive == Target("io-scheduler", "nvme0n1", key="3")
    assert hash(drive) == hash(Target("io-scheduler", "nvme0n1", key="3"))
    assert drive != Target("io-scheduler", "nvme0n1", key="4", aliases=("by-id/nvme-A",))


@pytest.mark.parametrize(
    ("noun", "text"),
    [
        (Target("io-scheduler", "sda"), "io-scheduler@sda"),
        (Target("overcommit"), "overcommit"),
        (ClaimId(Origin.HOLD, "hugepages", "2M"), "hold:hugepages@2M"),
        (ClaimId(Origin.RUNTIME, "overcommit", ""), "runtime:overcommit"),
    ],
)
def test_in_prose(noun: object, text: str) -> None:
    assert str(noun) == text


def test_only_a_baseline_wins_where_nobody_claims() -> None:
    target = Target("overcommit")
    assert DesiredState(target, "never:50", Claim(Origin.BASELINE, "overcommit", "", "never:50")).is_baseline
    assert not DesiredState(target, "never:50", Claim(Origin.CONFIG, "overcommit", "", "never:50")).is_baseline


@pytest.mark.parametrize(("total", "reserve"), [(2 << 30, 512 << 20), (10 << 30, 512 << 20), (100 << 30, 5 << 30)])
def test_the_reserve_is_512_mib_or_5_percent(total: int, reserve: int) -> None:
    memory = Memory(total, 0, 0, 0, 0, 0, 0, None, 50, 0)
    assert memory.reserve == reserve


# Errors

# Classes that only a client raises share a name with what the bus would say.
IN_CLIENTS = {errors.Unreachable, errors.Usage}
# Others define classes without a name of their own; they cross the bus as Failed.
SERVED = [
    cls
    for cls in KerntuneError.__subclasses__()
    if cls.__module__ == KerntuneError.__module__ and cls not in IN_CLIENTS
]
# Names that D-Bus has itself (dbus-protocol.h); bindings know them.
STANDARD = {
    "Failed",
    "InvalidArgs",
    "AccessDenied",
    "InteractiveAuthorizationRequired",
    "UnknownMethod",
    "UnknownObject",
    "UnknownInterface",
    "UnknownProperty",
    "PropertyReadOnly",
    "LimitsExceeded",
}


@pytest.mark.parametrize("cls", SERVED, ids=lambda cls: cls.__name__)
def test_an_error_has_the_name_that_dbus_has_for_it_or_one_of_ours(cls: type[KerntuneError]) -> None:
    assert cls.dbus_name == (FREEDESKTOP if cls.__name__ in STANDARD else OURS) + cls.__name__
    assert cls.__doc__


def test_a_reply_becomes_the_class_again() -> None:
    names = by_name()
    for cls in SERVED:
        assert names[cls.dbus_name] is cls
    assert names[FREEDESKTOP + "ServiceUnknown"] is errors.Unreachable


def test_a_refusal_has_a_name_of_which_busctl_shows_the_text_and_is_caught_as_the_bus_own() -> None:
    assert errors.NotAuthorized.dbus_name == OURS + "NotAuthorized"
    assert by_name()[OURS + "NotAuthorized"] is errors.NotAuthorized
    assert issubclass(errors.NotAuthorized, errors.AccessDenied)
    assert errors.NotAuthorized.exit_code == errors.AccessDenied.exit_code == Exit.NOT_AUTHORISED


def test_a_message_has_two_parts() -> None:
    error = errors.NoSuchTarget("there is no sdz", "See `kerntune list`")
    assert (str(error), error.what, error.hint) == (
        "there is no sdz. See `kerntune list`",
        "there is no sdz",
        "See `kerntune list`",
    )
    assert str(errors.Failed("internal error")) == "internal error"


# Exit codes: what was done, what set would do, what verify found


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ("", Exit.OK),
        ("satisfied", Exit.OK),
        ("satisfied unmanaged", Exit.OK),
        ("planned", Exit.OK),
        ("failed", Exit.FAILED),
        ("refused", Exit.FAILED),
        ("overridden", Exit.FAILED),
        ("contested", Exit.FAILED),
        ("pondering", Exit.FAILED),
        ("failed unsupported", Exit.FAILED),
        ("unsupported", Exit.NOT_FOUND),
        ("unsupported unsupported", Exit.NOT_FOUND),
        ("satisfied failed", Exit.PARTLY),
        ("satisfied unsupported", Exit.PARTLY),
        ("unmanaged overridden", Exit.PARTLY),
        ("partial", Exit.PARTLY),
        ("partial failed", Exit.PARTLY),
        ("partial unsupported", Exit.PARTLY),
    ],
)
def test_exit_code(states: str, code: Exit) -> None:
    assert exit_code([outcome("overcommit", state) for state in states.split()]) is code


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ("", Exit.OK),
        ("overridden/config-wins", Exit.OK),
        ("satisfied/ok overridden/config-wins", Exit.OK),
        ("planned/ok overridden/config-wins unsupported/no-kernel-support", Exit.OK),
        ("overridden/overridden", Exit.FAILED),
        ("satisfied/ok overridden/overridden", Exit.PARTLY),
        ("satisfied/ok overridden/guard-limit", Exit.PARTLY),
        ("overridden/config-wins overridden/overridden", Exit.FAILED),
        ("overridden/config-wins failed/kernel-rejected", Exit.FAILED),
        ("overridden/config-wins unsupported/read-only", Exit.NOT_FOUND),
    ],
)
def test_what_a_profile_ends_with(rows: str, code: Exit) -> None:
    """The administrator's own file is no failure of it, nor is what the host lacks; what others claim is."""
    found = [row.split("/") for row in rows.split()]
    assert profile_exit_code([outcome("overcommit", state, reason=reason) for state, reason in found]) is code


@pytest.mark.parametrize(
    ("state", "reason", "owed", "meant"),
    [
        ("satisfied", "ok", False, Condition.SATISFIED),
        ("planned", "ok", True, Condition.PLANNED),
        ("unsupported", "no-such-target", False, Condition.WAITING),
        ("unsupported", "device-gone", False, Condition.WAITING),
        ("unsupported", "cpu-offline", False, Condition.WAITING),
        ("unsupported", "governor-decides", False, Condition.WAITING),
        ("unsupported", "governor-decides", True, Condition.WAITING),
        ("unsupported", "no-kernel-support", False, Condition.NOT_APPLICABLE),
        ("unsupported", "value-not-offered", False, Condition.NOT_APPLICABLE),
        ("unsupported", "boot-parameter-wins", False, Condition.NOT_APPLICABLE),
        ("overridden", "guard-limit", False, Condition.OVERRIDDEN),
        ("overridden", "config-wins", False, Condition.OVERRIDDEN),
        ("unsupported", "out-of-range", False, Condition.REFUSED),
        ("unsupported", "read-only", False, Condition.FAILED),
        ("unsupported", "read-only", True, Condition.OWED),
        ("partial", "pages-in-use", True, Condition.OWED),
        ("failed", "kernel-rejected", True, Condition.OWED),
        ("failed", "kernel-rejected", False, Condition.FAILED),
        ("partial", "partially-allocated", False, Condition.PARTIAL),
        ("contested", "changed-by-others", False, Condition.CONTESTED),
        ("refused", "over-limit", False, Condition.REFUSED),
        ("pondering", "mood", False, "pondering"),
    ],
)
def test_what_an_outcome_means_for_the_health(state: str, reason: str, owed: bool, meant: str) -> None:
    """What waits, is overridden or does not apply is no trouble; all else is, a newer daemon's state too."""
    well = {"satisfied", "planned", "waiting", "not-applicable", "overridden"}
    assert condition(state, reason, owed=owed) == meant
    assert (meant in WELL) is (meant in well)


def test_every_state_and_reason_has_a_condition() -> None:
    found = {condition(state, reason) for state in State for reason in Reason}
    assert found | {Condition.OWED} == {*Condition, State.UNMANAGED}


def test_every_state_has_an_exit_code() -> None:
    assert {exit_code([outcome("overcommit", state)]) for state in State} == {0, 1, 3, 6}


def test_no_other_module_of_the_command_line_chooses_an_exit_code() -> None:
    chosen = {
        (path.name, name)
        for path in Path(cli.__path__[0]).glob("*.py")
        for name in re.findall(r"\bExit\.([A-Z_]+)", path.read_text(encoding="utf-8"))
    }
    assert {name for _, name in chosen} == {"OK"}, chosen
