"""udev rules as distributions ship them and people paste them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerntune.doctor import udev_rules
from kerntune.doctor.files import Files, Line
from kerntune.doctor.types import Assignment, Cause, Left, Place
from tests.unit.doctor.lab import write


def of(text: str) -> list[Assignment | Left]:
    return udev_rules.rules([Line(number, line) for number, line in enumerate(text.split("\n"), 1)], "/etc/x.rules")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'ACTION=="add|change", KERNEL=="nvme[0-9]*n[0-9]*", ATTR{queue/scheduler}="none"',
            [("sys/block/nvme[0-9]*n[0-9]*/queue/scheduler", "none")],
        ),
        (
            'ACTION=="add|change", KERNEL=="nvme[0-9]*", ATTR{queue/rotational}=="0", ATTR{queue/scheduler}="none"',
            [("sys/block/nvme[0-9]*/queue/scheduler", "none")],
        ),
        (
            'SUBSYSTEM=="block", ACTION=="add", KERNEL=="sda|sdb", ATTR{queue/read_ahead_kb}="4096",'
            ' ATTR{queue/scheduler}="bfq"',
            [
                ("sys/block/sda/queue/read_ahead_kb", "4096"),
                ("sys/block/sdb/queue/read_ahead_kb", "4096"),
                ("sys/block/sda/queue/scheduler", "bfq"),
                ("sys/block/sdb/queue/scheduler", "bfq"),
            ],
        ),
        (
            'SUBSYSTEM=="block", ENV{DEVTYPE}=="disk", ATTR{bdi/read_ahead_kb}="2048"',
            [("sys/block/*/queue/read_ahead_kb", "2048")],
        ),
        (
            'KERNEL=="sd*", \\\n  ATTR{queue/scheduler}!="none", \\\n  ATTR{queue/scheduler}="none"',
            [("sys/block/sd*/queue/scheduler", "none")],
        ),
        (
            'SUBSYSTEM=="cpu", KERNEL=="cpu[0-9]*", ATTR{cpufreq/scaling_governor}="performance"',
            [("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor", "performance")],
        ),
        (
            'ACTION=="add", KERNEL=="nvme*", RUN+="/bin/sh -c \'echo none > /sys/block/%k/queue/scheduler\'"',
            [("sys/block/nvme*/queue/scheduler", "none")],
        ),
        ('SUBSYSTEM=="net", NAME="eth0"', []),
        ('KERNEL=="sda", ATTR{queue/scheduler}=="none", SYMLINK+="fast"', []),
        ('#KERNEL=="sda", ATTR{queue/scheduler}="none"', []),
        ("no rule at all \\", []),
    ],
)
def test_a_rule(text: str, expected: list[tuple[str, str]]) -> None:
    assert [(line.path, line.value) for line in of(text) if isinstance(line, Assignment)] == expected
    assert not [line for line in of(text) if isinstance(line, Left)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('KERNEL=="sd[a-z]", ATTR{queue/rotational}=="1", ATTR{queue/scheduler}="bfq"', 'ATTR{queue/rotational}=="1"'),
        ('ENV{ID_MODEL}=="Fast", ATTR{queue/scheduler}="none"', 'ENV{ID_MODEL}=="Fast"'),
        ('KERNEL!="sda", ATTR{queue/scheduler}="none"', 'KERNEL!="sda"'),
        ('ACTION=="remove", KERNEL=="sda", ATTR{queue/scheduler}="none"', "an action"),
    ],
)
def test_a_condition_that_a_claim_cannot_say(text: str, why: str) -> None:
    (line,) = of(text)
    assert isinstance(line, Left)
    assert why in line.why


def test_a_command_that_cannot_be_read_is_left() -> None:
    command = "/bin/sh -c 'if true; then echo none > /sys/block/%k/queue/scheduler; fi'"
    (line,) = of(f'ACTION=="add", KERNEL=="nvme*", RUN+="{command}"')
    assert isinstance(line, Left)
    assert line.why.endswith("translate it by hand")


@pytest.mark.parametrize("run", ["/bin/echo none > /sys/block/%k/queue/scheduler", "/bin/echo 1 >/proc/sys/vm/x"])
def test_a_command_has_no_shell(run: str) -> None:
    (line,) = of(f'ACTION=="add", KERNEL=="nvme*", RUN+="{run}"')
    assert isinstance(line, Left)
    assert (line.why, line.cause) == (udev_rules.NO_SHELL, Cause.NO_EFFECT)


def test_a_program_is_read_without_a_shell() -> None:
    (line,) = of('KERNEL=="sda", RUN+="/sbin/blockdev --setra 512 /dev/%k"')
    assert isinstance(line, Assignment)
    assert (line.path, line.value) == ("sys/block/sda/queue/read_ahead_kb", "256")
    (left,) = of('KERNEL=="sda", RUN+="/bin/sh -c \'echo none > /sys/block/%k/queue/scheduler"')
    assert isinstance(left, Left)
    assert left.why.endswith("translate it by hand")


def test_behind_a_goto_nothing_is_sure_until_its_label() -> None:
    text = (
        'SUBSYSTEM!="block", GOTO="end"\nKERNEL=="sdz", ATTR{queue/scheduler}="none"\n'
        'KERNEL!="nvme*", GOTO="other"\nATTR{queue/scheduler}="none"\nLABEL="other"\n'
        'KERNEL=="sda", ATTR{queue/scheduler}="bfq"\nLABEL="end"'
    )
    first, second, third = of(text)
    assert isinstance(first, Assignment)
    assert isinstance(second, Left)
    assert 'GOTO="other"' in second.why
    assert isinstance(third, Assignment)
    assert third.path == "sys/block/sda/queue/scheduler"


def test_folders_and_masks(tmp_path: Path) -> None:
    rule = 'KERNEL=="sda", ATTR{queue/scheduler}="none"\n'
    write(tmp_path, {f"{folder}/60-io.rules": rule for folder in ("etc/udev/rules.d", "usr/lib/udev/rules.d")})
    shipped, ours = udev_rules.read(Files(tmp_path))
    assert isinstance(shipped, Assignment)
    assert isinstance(ours, Assignment)
    assert (shipped.place.shipped, bool(shipped.idle)) == (True, True)
    assert (ours.place, ours.idle) == (Place("/etc/udev/rules.d/60-io.rules", 1, rule.strip()), "")
