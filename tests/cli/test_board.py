"""The lines of the live screen: what they say, and that they fit."""

from __future__ import annotations

from typing import Any

import pytest

from kerntune.api.document import GuardChange, Health, Pass
from kerntune.cli.monitor import Board, screen
from tests.cli.scripted import document, outcome

GIB = 1 << 30
MEMORY: dict[str, Any] = {
    "Headroom": 6 * GIB, "Floor": 2 * GIB, "GuardState": "relaxed", "WarningLevel": 0, "OvercommitMode": "always",
}  # fmt: skip


def lines(board: Board, *, width: int = 80, height: int = 24, coloured: bool = False) -> list[str]:
    return screen(board, "12:00:00", width=width, height=height, coloured=coloured)


def board(**more: Any) -> Board:
    return Board(document(), **{"memory": MEMORY, **more})


def test_the_first_line_is_the_daemon_s_health_now() -> None:
    shown = lines(board(manager={"Generation": 7, "Degraded": ["over-limit"], "ActiveProfile": "balanced"}), width=120)
    assert shown[0].startswith("kerntuned 0.1.0 on Linux 6.1.0, generation 7, profile balanced, degraded: over-limit")
    assert shown[0].endswith("  12:00:00")


@pytest.mark.parametrize(
    ("headroom", "bar"),
    [(9, "#" * 5 + "|" + "#" * 14), (4, "#" * 5 + "|" + "#" * 4 + "-" * 10), (1, "#" * 2 + "-" * 3 + "|" + "-" * 14)],
)
def test_headroom_above_the_floor(headroom: int, bar: str) -> None:
    shown = lines(board(memory=MEMORY | {"Headroom": headroom * GIB}))
    assert f"memory      {headroom}.0 GiB left  [{bar}] | floor 2.0 GiB, end 8.0 GiB" in shown


def test_a_host_with_little_to_tune() -> None:
    shown = lines(board(memory={"Headroom": GIB, "Floor": 0, "GuardState": "off", "OvercommitMode": ""}))
    assert shown[2:7] == [
        "memory      1.0 GiB left",
        "guard       off, overcommit not there",
        "huge pages  none",
        "governors   no frequency scaling here",
        "drives      none",
    ]


def test_pools_governors_and_drives() -> None:
    pools = [
        (2 << 20, "", 64, 60, 0, 0, 128), (2 << 20, "0", 64, 60, 0, 0, 0), (2 << 20, "1", 0, 0, 0, 0, 0),
        (1 << 30, "", 0, 0, 0, 0, 0), (1 << 30, "0", 0, 0, 0, 0, 0),
    ]  # fmt: skip
    policies = {"policy0": ("performance", "0-3"), "policy4": ("performance", "4-7"), "policy8": ("", "8")}
    drives = {"nvme0n1": ("none", ["none"]), "sda": ("bfq", ["bfq"]), "md0": ("", [])}
    shown = lines(
        board(pools={"Pools": pools}, governors={"Policies": policies}, drives={"Devices": drives}), width=100
    )
    assert "huge pages  2M 64 pages, 60 free, 128 desired (node0 64, node1 0)" in shown
    assert "governors   performance (2), cpu-offline (1)" in shown
    assert "drives      -: md0; bfq: sda; none: nvme0n1" in shown


def test_the_newest_events_are_kept_and_nothing_is_too_large() -> None:
    host = board(drives={"Devices": {f"nvme{number}n1": ("none", []) for number in range(40)}})
    for number in range(300):
        host.note("11:00:00", Pass(number, "Set", (outcome("overcommit", requested="always", detail="why " * 40),)))
    host.note("11:00:01", Health(("over-limit",)))
    for width, height in ((80, 24), (40, 8), (200, 50), (20, 4)):
        shown = lines(host, width=width, height=height)
        assert len(shown) <= height
        assert max(map(len, shown)) <= width
        assert shown[-1] == "Ctrl-C ends it"
    assert lines(host)[-2] == "11:00:01  degraded: over-limit"


@pytest.mark.parametrize("height", [4, 6, 8, 9])
def test_the_newest_event_has_room_in_a_small_window(height: int) -> None:
    host = board()
    assert "Nothing has changed yet" in lines(host, height=height)
    for state in ("capped", "released", "relaxed"):
        host.note("11:00:00", GuardChange(state, 0, "", GIB, GIB, 0, (), ()))
    shown = lines(host, height=height)
    assert len(shown) <= height
    assert shown[-2] == "11:00:00  memory guard  relaxed, 1.0 GiB left, floor 1.0 GiB"
    assert "Last events" in shown
    assert "Nothing has changed yet" not in shown


def test_an_alarm_is_red_and_no_name_can_move_the_cursor() -> None:
    host = board(memory=MEMORY | {"GuardState": "capped", "WarningLevel": 100})
    host.note("11:00:00", GuardChange("capped", 100, "", GIB, GIB, GIB, ((1, "\x1b[2Jhog", 0, GIB),), ()))
    shown = lines(host, coloured=True)
    assert "\x1b[1;31mguard       capped, overcommit always\x1b[0m" in shown
    assert not any("\x1b[2J" in line for line in shown)
