"""The nouns: the order of the origins, and the words that go over the wire."""

from __future__ import annotations

import dataclasses

import pytest

from kerntune import model
from kerntune.model import Claim, ClaimId, DesiredState, Memory, Origin, Reason, State, Target


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


def test_the_states_are_those_of_the_design() -> None:
    assert {str(state) for state in State} == {
        "satisfied",
        "planned",
        "partial",
        "overridden",
        "contested",
        "refused",
        "unsupported",
        "failed",
        "unmanaged",
    }


def test_the_reasons_are_those_of_the_design() -> None:
    assert {str(reason) for reason in Reason} == {
        "ok",
        "no-such-target",
        "device-gone",
        "device-hangs",
        "no-kernel-support",
        "cpu-offline",
        "value-not-offered",
        "out-of-range",
        "kernel-rejected",
        "read-back-differs",
        "partially-allocated",
        "pages-in-use",
        "overridden",
        "config-wins",
        "guard-limit",
        "governor-decides",
        "over-limit",
        "boot-parameter-wins",
        "read-only",
        "changed-by-others",
        "interrupted",
    }


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
