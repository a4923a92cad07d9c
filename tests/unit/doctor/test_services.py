"""Services that set the same values, and cpufrequtils."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerntune.doctor import services
from kerntune.doctor.files import Files
from kerntune.doctor.types import Assignment
from kerntune.kernel.files import HostKernel
from tests.unit.doctor.lab import write

DEFAULTS = "etc/default/cpufrequtils"
INIT = {"etc/init.d/cpufrequtils": "#!/bin/sh\n"}


def seen(root: Path) -> dict[str, tuple[str, ...]]:
    found = services.rivals(Files(root), services.processes(HostKernel(root)))
    return {one.rival.name: one.evidence for one in found}


def test_those_that_run(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/7/comm": "tuned\n",
            "etc/tuned/active_profile": "balanced\n",
            "proc/8/comm": "power-profiles-\n",
            "proc/9/comm": "tunedx\n",
        },
    )
    assert seen(tmp_path) == {
        "TuneD": (
            "it is running: /proc/7/comm reads tuned",
            "its profile: /etc/tuned/active_profile reads balanced",
        ),
        "power-profiles-daemon": ("it is running: /proc/8/comm reads power-profiles-",),
    }


def test_those_that_start_at_boot(tmp_path: Path) -> None:
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    for unit in ("tlp.service", "cpupower.service"):
        (wants / unit).symlink_to(f"/usr/lib/systemd/system/{unit}")
    (wants.parent / "cpupower.service").symlink_to("/dev/null")
    link = "/etc/systemd/system/multi-user.target.wants/tlp.service"
    assert seen(tmp_path) == {"TLP": (f"it starts at boot: {link}",)}


def test_nobody(tmp_path: Path) -> None:
    assert seen(write(tmp_path, {"proc/1/comm": "systemd\n"})) == {}


@pytest.mark.parametrize(
    ("text", "extra", "governor", "idle"),
    [
        ('ENABLE="true"\nGOVERNOR="performance"\n', INIT, "performance", ""),
        ("# c\nGOVERNOR=powersave # why\nMAX_SPEED=0\n", INIT, "powersave", ""),
        ('ENABLE="false"\nGOVERNOR="performance"\n', INIT, "performance", "ENABLE is not true"),
        ('GOVERNOR="performance"\n', {}, "performance", "is not installed"),
    ],
)
def test_cpufrequtils(tmp_path: Path, text: str, extra: dict[str, str], governor: str, idle: str) -> None:
    (line,) = services.read(Files(write(tmp_path, {DEFAULTS: text, **extra})))
    assert isinstance(line, Assignment)
    assert line.value == governor
    assert idle in line.idle
    assert bool(line.idle) == bool(idle)


@pytest.mark.parametrize("text", ["", "GOVERNOR=\n", 'GOVERNOR="unclosed\n', "governor\n"])
def test_cpufrequtils_without_a_governor(tmp_path: Path, text: str) -> None:
    assert services.read(Files(write(tmp_path, {DEFAULTS: text}))) == []
