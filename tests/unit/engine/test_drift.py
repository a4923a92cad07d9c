"""When to stop fighting over a value."""

from __future__ import annotations

from kerntune.engine.drift import DriftLog
from kerntune.model import Target

DRIVE, OTHER = Target("io-scheduler", "nvme0n1"), Target("io-scheduler", "nvme1n1")


def after_repairs(*times: float) -> DriftLog:
    log = DriftLog()
    for now in times:
        log.repaired(DRIVE, now)
    return log


def test_three_repairs_in_ten_minutes_are_a_fight() -> None:
    assert not after_repairs(0, 299).contested(DRIVE, 300)
    assert after_repairs(0, 299, 599).contested(DRIVE, 599)


def test_repairs_longer_ago_do_not_count() -> None:
    log = after_repairs(0, 1, 2)
    assert log.contested(DRIVE, 599)
    assert not log.contested(DRIVE, 600)
    assert not after_repairs(0, 601, 602).contested(DRIVE, 603)


def test_each_target_has_its_own() -> None:
    assert not after_repairs(0, 1, 2).contested(OTHER, 3)


def test_all_are_counted() -> None:
    log = after_repairs(0, 1, 9999)
    log.repaired(OTHER, 10000)
    log.forgive([DRIVE, OTHER])
    assert log.total == 4


def test_forgiving() -> None:
    log = after_repairs(0, 1, 2)
    log.forgive([OTHER])
    assert log.contested(DRIVE, 3)
    log.forgive([DRIVE, OTHER])
    assert not log.contested(DRIVE, 3)
