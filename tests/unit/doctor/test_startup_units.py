"""Commands of systemd units and `@reboot` lines of cron: which ones a boot runs, and what they set."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kerntune.doctor import startup_units
from kerntune.doctor.files import Files
from kerntune.doctor.types import Assignment, Cause, Left, Stage
from tests.unit.doctor.lab import write

SYSTEM = "etc/systemd/system"
POOL = "proc/sys/vm/nr_hugepages"
THP = "sys/kernel/mm/transparent_hugepage"
GOVERNORS = "sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
SETS_8 = f"[Service]\nExecStart=/bin/sh -c 'echo 8 > /{POOL}'\n"


def enable(root: Path, unit: str, text: str = SETS_8, *, target: str = "multi-user.target", file: str = "") -> Path:
    """A unit, and the link that `systemctl enable` makes."""
    file = file or f"{SYSTEM}/{unit}"
    write(root, {file: text})
    link = root / f"{SYSTEM}/{target}.wants/{unit}"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(f"/{file}")
    return root


def units(root: Path) -> list[Assignment | Left]:
    return startup_units.read(Files(root))[0]


def in_force(root: Path) -> list[tuple[str, str]]:
    found = units(root)
    assert not [line for line in found if isinstance(line, Left)], found
    return [(line.path, line.value) for line in found if isinstance(line, Assignment)]


def cron(root: Path) -> list[Assignment | Left]:
    return startup_units.read(Files(root))[1]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (f"/bin/sh -c 'echo never > /{THP}/enabled'", [(f"{THP}/enabled", "never")]),
        (f'/bin/sh -c "echo never | /usr/bin/tee /{THP}/enabled > /dev/null"', [(f"{THP}/enabled", "never")]),
        (
            f"/bin/bash -c 'echo never > /{THP}/enabled && echo never > /{THP}/defrag'",
            [(f"{THP}/enabled", "never"), (f"{THP}/defrag", "never")],
        ),
        (f'/bin/sh -c "echo \\"never\\" > /{THP}/enabled"', [(f"{THP}/enabled", "never")]),
        (f"-/bin/sh -c '[ -w /{POOL} ] && echo 8 > /{POOL} || true'", [(POOL, "8")]),
        (f"+!!/usr/bin/env sh -c 'echo 8 > /{POOL}'", [(POOL, "8")]),
        (f"/bin/sh -c 'for f in /{GOVERNORS}; do echo performance > $f; done'", [(GOVERNORS, "performance")]),
        (f"/bin/sh -c 'for f in /{GOVERNORS}; do echo performance > $$f; done'", [(GOVERNORS, "performance")]),
        (f"/bin/sh -c \\\n  'echo 8 \\\n  > /{POOL}'", [(POOL, "8")]),
        (f"/bin/sh -c 'echo 8 > /{POOL}\n# a comment", []),
        ("/usr/sbin/sysctl -w vm.nr_hugepages=8 vm.swappiness=1", [(POOL, "8"), ("proc/sys/vm/swappiness", "1")]),
        ("/usr/bin/cpupower frequency-set -g performance", [(GOVERNORS, "performance")]),
        ("/sbin/blockdev --setra 8192 /dev/sda", [("sys/block/sda/queue/read_ahead_kb", "4096")]),
        ("/bin/true", []),
        ("/usr/bin/ollama serve", []),
        ("/usr/bin/cat /proc/sys/vm/nr_hugepages", []),
    ],
)
def test_a_command(tmp_path: Path, command: str, expected: list[tuple[str, str]]) -> None:
    text = f"# ExecStart=x\n[Unit]\nDescription=x\n[Service]\nType=oneshot\nExecStart={command}\n[Install]\n"
    enable(tmp_path, "llm.service", text)
    found = [line for line in units(tmp_path) if isinstance(line, Assignment)]
    assert [(line.path, line.value) for line in found] == expected
    for line in found:
        assert (str(line.place), line.stage, line.place.unit) == (
            f"/{SYSTEM}/llm.service:6",
            Stage.SERVICE,
            "llm.service",
        )
        assert line.remark == "sudo systemctl disable llm.service ends it, if the unit does nothing else"


@pytest.mark.parametrize(
    "command",
    [
        f"/bin/sh -c 'if true; then echo 8 > /{POOL}; fi'",
        f"/bin/sh -c 'echo ${{PAGES}} > /{POOL}'",
        f"/bin/sh -c 'echo $PAGES > /{POOL}'",
        f"/bin/sh -c 'echo %m > /{POOL}'",
        f"/bin/sh -c 'printf 8\\n > /{POOL}'",
        f"/bin/sh -c 'echo 8 > /{POOL}' ; /bin/true",
        f"/bin/sh -c 'echo 8 > /{POOL}",
        f"@/bin/sh sh -c 'echo 8 > /{POOL}'",
        f"|/bin/sh -c 'echo 8 > /{POOL}'",
        "/usr/sbin/sysctl -w vm.nr_hugepages=8 > /dev/null",
        "/usr/sbin/sysctl -w vm.nr_hugepages=8 2>/dev/null",
        "/usr/bin/cpupower frequency-set -g performance | /usr/bin/logger",
        f":/bin/sh -c 'echo $$ > /{POOL}'",
        f"/usr/bin/tee /{POOL}",
        "/usr/sbin/sysctl -w vm.nr_hugepages=${PAGES}",
        "/sbin/blockdev --setra 8192 /dev/nvme*",
        "/usr/bin/hugeadm --pool-pages-min 2MB:128",
    ],
)
def test_a_command_that_cannot_be_read_is_left(tmp_path: Path, command: str) -> None:
    (left,) = units(enable(tmp_path, "llm.service", f"[Service]\nExecStart={command}\n"))
    assert isinstance(left, Left)
    assert (str(left.place), left.cause) == (f"/{SYSTEM}/llm.service:2", Cause.NOT_UNDERSTOOD)
    assert left.why.endswith("translate it by hand")


def test_a_redirection_without_a_shell_sets_nothing(tmp_path: Path) -> None:
    (left,) = units(enable(tmp_path, "llm.service", f"[Service]\nExecStart=/bin/echo 8 > /{POOL}\n"))
    assert isinstance(left, Left)
    assert (left.why, left.cause) == (startup_units.NO_SHELL, Cause.NO_EFFECT)


def test_commands_before_and_after_and_those_that_are_taken_back(tmp_path: Path) -> None:
    text = "".join(
        f"{name}=/usr/sbin/sysctl -w vm.nr_hugepages={number}\n"
        for number, name in enumerate(("ExecStop", "ExecStart", "ExecStartPost", "ExecStartPre", "ExecReload"))
    )
    enable(tmp_path, "llm.service", f"[Service]\n{text}RemainAfterExit=yes\n[X]\n{text}")
    assert [value for _, value in in_force(tmp_path)] == ["3", "1", "2"]
    drop_in = "[Service]\nExecStart=\nExecStart=/usr/sbin/sysctl -w vm.nr_hugepages=9\n"
    write(tmp_path, {f"{SYSTEM}/llm.service.d/override.conf": drop_in, f"{SYSTEM}/llm.service.d/README": text})
    assert [value for _, value in in_force(tmp_path)] == ["3", "9", "2"]
    assert str(units(tmp_path)[1].place) == f"/{SYSTEM}/llm.service.d/override.conf:3"


@pytest.mark.parametrize("target", ["multi-user.target", "basic.target", "sysinit.target", "default.target"])
def test_a_unit_that_a_boot_starts(tmp_path: Path, target: str) -> None:
    assert in_force(enable(tmp_path, "llm.service", target=target)) == [(POOL, "8")]


@pytest.mark.parametrize("target", ["sleep.target", "suspend.target", "other.service", "rescue.target"])
def test_a_unit_that_something_else_starts_is_left(tmp_path: Path, target: str) -> None:
    (left,) = units(enable(tmp_path, "llm.service", target=target))
    assert isinstance(left, Left)
    assert left.why == f"llm.service starts with {target}, which a boot may not come to: translate it by hand"


def test_a_unit_that_nobody_enabled_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, {f"{SYSTEM}/llm.service": SETS_8, "usr/lib/systemd/system/other.service": SETS_8})
    assert units(tmp_path) == []


def test_a_masked_unit_is_not_read(tmp_path: Path) -> None:
    enable(tmp_path, "llm.service", file="usr/lib/systemd/system/llm.service")
    assert in_force(tmp_path) == [(POOL, "8")]
    assert [line.place.shipped for line in units(tmp_path)] == [True]
    (tmp_path / f"{SYSTEM}/llm.service").symlink_to("/dev/null")
    assert units(tmp_path) == []


def test_the_unit_file_of_etc_is_read_in_place_of_the_one_of_a_package(tmp_path: Path) -> None:
    enable(tmp_path, "llm.service", file="usr/lib/systemd/system/llm.service")
    write(tmp_path, {f"{SYSTEM}/llm.service": SETS_8.replace("8", "9")})
    assert in_force(tmp_path) == [(POOL, "9")]


def test_what_a_package_wants_statically(tmp_path: Path) -> None:
    write(tmp_path, {"usr/lib/systemd/system/llm.service": SETS_8})
    wants = tmp_path / "usr/lib/systemd/system/sysinit.target.wants"
    wants.mkdir()
    (wants / "llm.service").symlink_to("../llm.service")
    (tmp_path / "lib").symlink_to("usr/lib")
    assert [str(line.place) for line in units(tmp_path)] == ["/usr/lib/systemd/system/llm.service:2"]


def test_an_instance_of_a_template(tmp_path: Path) -> None:
    text = "[Service]\nExecStart=/sbin/blockdev --setra 8192 /dev/%i\n"
    enable(tmp_path, "ra@sda.service", text, file=f"{SYSTEM}/ra@.service")
    (line,) = units(tmp_path)
    assert isinstance(line, Assignment)
    assert (line.path, line.place.unit) == ("sys/block/sda/queue/read_ahead_kb", "ra@sda.service")


@pytest.mark.parametrize(
    ("unit", "service", "why"),
    [
        (f"ConditionPathExists=/{POOL}", "User=root", ""),
        ("ConditionPathExists=/proc/sys/vm", "", ""),
        ("ConditionPathExists=", "", ""),
        ("ConditionPathExists=/etc/gpu", "", "a claim cannot say ConditionPathExists=/etc/gpu"),
        (f"ConditionPathExists=!/{POOL}", "", f"a claim cannot say ConditionPathExists=!/{POOL}"),
        ("ConditionVirtualization=no", "", "a claim cannot say ConditionVirtualization=no"),
        ("AssertHost=big", "", "a claim cannot say AssertHost=big"),
        ("", "User=bob", "it runs as bob, who may not write there"),
        ("", "ExecCondition=/bin/false", "with ExecCondition=/bin/false its unit may not set it"),
        ("", "ExecCondition=/bin/false\nExecCondition=", ""),
        ("", "ProtectKernelTunables=yes", "with ProtectKernelTunables=yes its unit may not set it"),
        ("", "ProtectKernelTunables=no", ""),
        ("", "DynamicUser=true", "with DynamicUser=true its unit may not set it"),
        ("", "RootDirectory=/srv", "with RootDirectory=/srv its unit may not set it"),
        ("", "RootImage=/x.raw", "with RootImage=/x.raw its unit may not set it"),
        ("", f"ExecStopPost=/bin/sh -c 'echo 0 > /{POOL}'", "its unit sets something again when it ends"),
        (
            "\n".join(f"ConditionPathExists=/{'/' * n}{POOL}" for n in range(11)),
            "",
            "its unit has more conditions than kerntune reads",
        ),
    ],
)
def test_conditions_and_users(tmp_path: Path, unit: str, service: str, why: str) -> None:
    (line,) = units(enable(tmp_path, "llm.service", f"[Unit]\n{unit}\n{SETS_8}{service}\n"))
    assert isinstance(line, Left) is bool(why)
    assert not isinstance(line, Left) or line.why == f"{why}: translate it by hand"


@pytest.mark.parametrize(("end", "goes_on"), [("\\", True), ("\\ ", False), ("\\\\", False), ("\\\\\\", True)])
def test_only_an_odd_backslash_at_the_very_end_continues_a_line(tmp_path: Path, end: str, goes_on: bool) -> None:
    text = f"[Service]\nExecStart=-/bin/echo {end}\nExecStartPost=/usr/sbin/sysctl -w vm.nr_hugepages=8\n"
    found = units(enable(tmp_path, "llm.service", text))
    assert [str(line.place)[-2:] for line in found if isinstance(line, Assignment)] == [":3"] * (not goes_on)


def test_a_line_that_the_end_of_the_file_ends(tmp_path: Path) -> None:
    assert in_force(enable(tmp_path, "llm.service", f"{SETS_8.strip()} \\")) == [(POOL, "8")]


def test_several_commands_need_a_oneshot(tmp_path: Path) -> None:
    text = f"{SETS_8}ExecStart=-/usr/sbin/sysctl -w vm.swappiness=1\n"
    found = units(enable(tmp_path, "llm.service", text))
    why = "systemd starts a unit with several ExecStart= only if it has Type=oneshot: translate it by hand"
    assert [line.why for line in found if isinstance(line, Left)] == [why, why]
    write(tmp_path, {f"{SYSTEM}/llm.service": f"{text}Type=oneshot\n"})
    assert in_force(tmp_path) == [(POOL, "8"), ("proc/sys/vm/swappiness", "1")]


@pytest.mark.parametrize(
    ("before", "sure"),
    [
        ("/usr/local/bin/ready", False),
        ("-/usr/local/bin/ready", True),
        ("/usr/sbin/sysctl -w vm.swappiness=1", True),
        ("/usr/sbin/sysctl -w vm.swappiness=$ONE", False),
        ("/usr/sbin/sysctl -w net.ipv4.ip_forward=1", False),
    ],
)
def test_behind_a_command_that_may_fail_all_is_left(tmp_path: Path, before: str, sure: bool) -> None:
    enable(tmp_path, "llm.service", f"{SETS_8}ExecStartPre={before}\n")
    found = units(tmp_path)[-1]
    assert isinstance(found, Assignment) is sure
    assert isinstance(found, Assignment) or found.why == (
        f"it does not run if the command at /{SYSTEM}/llm.service:3 fails: translate it by hand"
    )


@pytest.mark.parametrize(("flags", "as_root"), [("", False), ("+", True), ("-!", True), ("!!", False), ("-", False)])
def test_a_prefix_that_makes_a_command_run_as_root(tmp_path: Path, flags: str, as_root: bool) -> None:
    enable(tmp_path, "llm.service", f"[Service]\nUser=bob\nExecStart={flags}/usr/sbin/sysctl -w vm.nr_hugepages=8\n")
    (line,) = units(tmp_path)
    assert isinstance(line, Assignment) is as_root


def test_of_another_user_with_sudo_nothing_is_said_that_is_not_known(tmp_path: Path) -> None:
    enable(tmp_path, "llm.service", "[Service]\nUser=bob\nExecStart=/usr/bin/sudo sysctl -w vm.nr_hugepages=8\n")
    write(tmp_path, {"var/spool/cron/crontabs/bob": f"@reboot echo 8 | sudo tee /{POOL}\n"})
    for line in (*units(tmp_path), *cron(tmp_path)):
        assert isinstance(line, Left)
        assert line.why == (
            "it runs as bob, and kerntune does not know what sudo lets that user do: translate it by hand"
        )


def sets(value: str, key: str = "vm.nr_hugepages") -> str:
    return f"[Service]\nExecStart=/usr/sbin/sysctl -w {key}={value}\n"


def test_what_two_units_set_to_different_values_is_left(tmp_path: Path) -> None:
    """The order of their names says nothing of when they start."""
    enable(tmp_path, "a.service", sets("8"))
    enable(tmp_path, "b.service", sets("9"))
    enable(tmp_path, "c.service", sets("1", "vm.swappiness"))
    enable(tmp_path, "d.service", sets("1", "vm.swappiness"))
    found = units(tmp_path)
    assert [line.place.file[-9:] for line in found if isinstance(line, Left)] == ["a.service", "b.service"]
    assert {line.why for line in found if isinstance(line, Left)} == {startup_units.NO_ORDER}
    assert [line.value for line in found if isinstance(line, Assignment)] == ["1", "1"]


@pytest.mark.parametrize(
    ("unit", "other", "differ"),
    [
        (f"echo 8 > /{POOL}", f"echo 9 > /{POOL}", True),
        (f"echo 8 > /{POOL}", f"echo 8 > /{POOL}", False),
        (f"echo 8 > /{POOL}", "echo 9 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", True),
        ("echo none > /sys/block/sda/queue/scheduler", "echo bfq > /sys/class/block/sda/queue/scheduler", True),
        ("echo none > /sys/block/sda/queue/scheduler", "echo bfq > /sys/block/sdb/queue/scheduler", False),
        ("echo none > /sys/block/sda/queue/scheduler", "for f in /sys/block/s*/queue/scheduler; do echo bfq > $f; done",
         True),
        ("echo never > /sys/kernel/mm/transparent_hugepage/enabled",
         "echo madvise > /sys/kernel/mm/transparent_hugepage/defrag", False),
        ("sysctl -w vm.overcommit_memory=2", "sysctl -w vm.overcommit_ratio=90", False),
    ],
)  # fmt: skip
def test_cron_starts_as_a_unit_too(tmp_path: Path, unit: str, other: str, differ: bool) -> None:
    enable(tmp_path, "a.service", f"[Service]\nExecStart=/bin/sh -c '{unit}'\n")
    write(tmp_path, {"etc/crontab": f"@reboot root {other}\n"})
    for line in (*units(tmp_path), *cron(tmp_path)):
        assert isinstance(line, Left) is differ


def test_lines_of_cron_start_together(tmp_path: Path) -> None:
    write(tmp_path, {"etc/crontab": f"@reboot root echo 8 > /{POOL}\n@reboot root echo 9 > /{POOL}\n"})
    assert [isinstance(line, Left) for line in cron(tmp_path)] == [True, True]


def test_one_unit_may_set_a_value_twice(tmp_path: Path) -> None:
    enable(tmp_path, "a.service", f"{sets('8')}ExecStartPost=/usr/sbin/sysctl -w vm.nr_hugepages=9\n")
    assert in_force(tmp_path) == [(POOL, "8"), (POOL, "9")]


def test_a_unit_of_a_package_does_not_hide_a_persons(tmp_path: Path) -> None:
    enable(tmp_path, "a.service", sets("8"))
    enable(tmp_path, "b.service", sets("8"), file="usr/lib/systemd/system/b.service")
    assert [line.place.shipped for line in units(tmp_path)] == [True, False]


@pytest.mark.parametrize(
    ("command", "text", "mode"),
    [
        ("/opt/tune", "#!/bin/sh -e\n\nsysctl -w vm.nr_hugepages=8\n", 0o755),
        ("/opt/tune start", "#!/usr/bin/env bash\n\necho 8 > /proc/sys/vm/nr_hugepages\n", 0o755),
        ("/bin/sh /opt/tune", "\n\nsysctl -w vm.nr_hugepages=8\n", 0o644),
        ("-/bin/bash -x /opt/tune", "#!/bin/bash\n\nsysctl -w vm.nr_hugepages=8\n", 0o644),
        ("/usr/bin/env bash /opt/tune", "#!/bin/bash\n\nsysctl -w vm.nr_hugepages=8\n", 0o644),
        ("/bin/sh -c /opt/tune", "#!/bin/bash\n\nsysctl -w vm.nr_hugepages=8\n", 0o755),
    ],
)
def test_a_script_that_a_unit_runs(tmp_path: Path, command: str, text: str, mode: int) -> None:
    write(enable(tmp_path, "a.service", f"[Service]\nExecStart={command}\n"), {"opt/tune": text})
    (tmp_path / "opt/tune").chmod(mode)
    (line,) = units(tmp_path)
    assert isinstance(line, Assignment)
    assert (str(line.place), line.place.unit, line.path, line.value) == ("/opt/tune:3", "a.service", POOL, "8")
    assert line.place.text == text.split("\n")[2]


@pytest.mark.parametrize(
    ("command", "text", "shown"),
    [
        ("/opt/tune", f"#!/bin/sh\nif true; then\necho 8 > /{POOL}; fi\n", "/opt/tune:3"),
        ("/opt/tune", "#!/bin/sh\nsysctl -w vm.nr_hugepages=$1\n", "/opt/tune:2"),
        ("/opt/tune", f"#!/usr/bin/python3\nopen('/{POOL}', 'w').write('8')\n", f"/{SYSTEM}/a.service:2"),
        ("/usr/bin/python3 /opt/tune", f"open('/{POOL}', 'w').write('8')\n", f"/{SYSTEM}/a.service:2"),
        ("/opt/tune", "#!/usr/bin/python3\nvm.start()\n", ""),
        ("/opt/tune", f"\x7fELF\0/{POOL}", ""),
        ("/opt/other", "#!/bin/sh\nsysctl -w vm.nr_hugepages=8\n", ""),
        ("/bin/sh /proc/tune", "", ""),
    ],
)
def test_a_script_that_is_not_translated(tmp_path: Path, command: str, text: str, shown: str) -> None:
    write(enable(tmp_path, "a.service", f"[Service]\nExecStart={command}\n"), {"opt/tune": text})
    write(tmp_path, {"proc/tune": "sysctl -w vm.nr_hugepages=8\n"})
    (tmp_path / "opt/tune").chmod(0o755)
    found = units(tmp_path)
    assert [str(line.place) for line in found] == [shown] * bool(shown)
    assert all(isinstance(line, Left) and line.why.endswith("translate it by hand") for line in found)


def test_a_script_that_nobody_may_run_sets_nothing(tmp_path: Path) -> None:
    enable(tmp_path, "a.service", "[Service]\nExecStart=/opt/tune\n")
    write(tmp_path, {"opt/tune": f"#!/bin/sh\necho 8 > /{POOL}\n"})
    (line,) = units(tmp_path)
    assert isinstance(line, Assignment)
    assert line.idle.startswith("/opt/tune is not executable")


def test_rc_local_is_not_read_as_a_script_of_its_unit(tmp_path: Path) -> None:
    enable(tmp_path, "rc-local.service", "[Service]\nExecStart=/etc/rc.local start\n")
    write(tmp_path, {"etc/rc.local": f"#!/bin/sh\necho 8 > /{POOL}\n"})
    (tmp_path / "etc/rc.local").chmod(0o755)
    assert units(tmp_path) == []


def test_a_unit_belongs_to_people_unless_all_of_it_is_taken_over(tmp_path: Path) -> None:
    enable(tmp_path, "a.service", f"{SETS_8}ExecStartPost=/usr/local/bin/serve\n")
    (line,) = units(tmp_path)
    assert isinstance(line, Assignment)
    assert (line.place.unit, line.remark) == ("", "")


@pytest.mark.parametrize(
    ("target", "stage"), [("sysinit.target", Stage.TMPFILES), ("multi-user.target", Stage.SERVICE)]
)
def test_the_stage_of_a_unit(tmp_path: Path, target: str, stage: Stage) -> None:
    (line,) = units(enable(tmp_path, "a.service", target=target))
    assert isinstance(line, Assignment)
    assert line.stage is stage


def test_drop_ins_are_sorted_by_their_names_alone(tmp_path: Path) -> None:
    enable(tmp_path, "ra-x@sda.service", "[Service]\nType=oneshot\n", file=f"{SYSTEM}/ra-x@.service")
    folders = ("ra-x@.service.d/4", "ra-x@sda.service.d/3", "ra-.service.d/2", "service.d/1")
    for folder in folders:
        number = folder[-1]
        write(
            tmp_path, {f"{SYSTEM}/{folder}.conf": f"[Service]\nExecStart=/usr/sbin/sysctl -w vm.swappiness={number}\n"}
        )
    assert [value for _, value in in_force(tmp_path)] == ["1", "2", "3", "4"]
    write(tmp_path, {f"{SYSTEM}/ra-x@sda.service.d/4.conf": "", f"{SYSTEM}/ra-x@.service.d/1.conf": ""})
    assert [value for _, value in in_force(tmp_path)] == ["2", "3"]


def test_an_alias_has_the_drop_ins_of_its_file_and_is_read_once(tmp_path: Path) -> None:
    enable(tmp_path, "real.service", "[Service]\nType=oneshot\n", file="usr/lib/systemd/system/real.service")
    (tmp_path / f"{SYSTEM}/alias.service").symlink_to("/usr/lib/systemd/system/real.service")
    (tmp_path / f"{SYSTEM}/multi-user.target.wants/alias.service").symlink_to("../alias.service")
    write(tmp_path, {f"{SYSTEM}/real.service.d/a.conf": SETS_8, f"{SYSTEM}/alias.service.d/b.conf": sets("9")})
    assert [value for _, value in in_force(tmp_path)] == ["8", "9"]
    assert {line.place.unit for line in units(tmp_path)} == {"real.service"}
    (tmp_path / f"{SYSTEM}/multi-user.target.wants/real.service").unlink()
    assert [value for _, value in in_force(tmp_path)] == ["8", "9"]


def test_long_files_take_no_long_time(tmp_path: Path) -> None:
    """Neither many spaces in a crontab nor many conditions on many commands."""
    slashes = ["/" * number for number in range(1, 71)]
    conditions = "".join(f"ConditionPathExists={one}proc{two}sys\n" for one in slashes for two in slashes)
    commands = "ExecStart=/usr/sbin/sysctl -w vm.nr_hugepages=8\n" * 10000
    enable(tmp_path, "a.service", f"[Unit]\n{conditions}[Service]\nType=oneshot\n{commands}")
    write(tmp_path, {"etc/crontab": f"@reboot{' ' * 100000}\n@reboot{' a' * 50000}{' ' * 50000}\n"})
    begin = time.process_time()
    assert len(units(tmp_path)) == 10000
    assert cron(tmp_path) == []
    assert time.process_time() - begin < 60


def test_odd_files_do_not_stop_the_reader(tmp_path: Path) -> None:
    """Pipes, loops of links and folders in place of files; no file outside of the root is read."""
    wants = tmp_path / f"root/{SYSTEM}/multi-user.target.wants"
    wants.mkdir(parents=True)
    write(tmp_path, {"outside.service": SETS_8})
    os.mkfifo(wants.parent / "a.service")
    (wants.parent / "b.service").symlink_to("b.service")
    (wants.parent / "c.service").mkdir()
    (wants.parent / "d.service").symlink_to(tmp_path / "outside.service")
    (wants.parent / "d.service.d").symlink_to("d.service.d")
    for name in ("a", "b", "c", "d", "e@", "@f", "g\n"):
        (wants / f"{name}.service").symlink_to("/nowhere")
    os.mkfifo(tmp_path / "root/etc/crontab")
    assert units(tmp_path / "root") == []
    assert cron(tmp_path / "root") == []


def test_no_more_than_so_many_units_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup_units, "MAX_UNITS", 2)
    for name in "abc":
        enable(tmp_path, f"{name}.service")
    link = tmp_path / f"{SYSTEM}/multi-user.target.wants/aa.service"
    link.symlink_to("/nowhere")
    *read, left = units(tmp_path)
    assert [line.place.file for line in read] == [f"/{SYSTEM}/a.service", f"/{SYSTEM}/b.service"]
    assert isinstance(left, Left)
    why = "of 3 files like this kerntune reads the first 2 only: translate it by hand"
    assert (left.place.quoted, left.why) == (f"/{SYSTEM}:1: c.service", why)
    monkeypatch.setattr(startup_units, "MAX_UNITS", 3)
    assert len(in_force(tmp_path)) == 3
    monkeypatch.setattr(startup_units, "MAX_CRONTABS", 1)
    write(tmp_path, {f"etc/cron.d/{name}": f"@reboot root echo 8 > /{POOL}\n" for name in "abc"})
    assert [line.place.text for line in cron(tmp_path)] == [f"@reboot root echo 8 > /{POOL}", "b"]


@pytest.mark.parametrize(
    ("file", "line", "expected"),
    [
        ("etc/crontab", f"@reboot root echo 8 > /{POOL}", "8"),
        ("etc/cron.d/llm", f" @reboot\troot\tsleep 30 && echo 8 | tee /{POOL} >/dev/null", "8"),
        ("etc/cron.d/llm", "@reboot root /usr/sbin/sysctl -q -w vm.nr_hugepages=8", "8"),
        ("var/spool/cron/crontabs/root", f"@reboot echo 8 > /{POOL}", "8"),
        ("etc/cron.d/llm.dpkg-old", f"@reboot root echo 8 > /{POOL}", ""),
        ("etc/crontab", f"#@reboot root echo 8 > /{POOL}", ""),
        ("etc/crontab", f"5 * * * * root echo 8 > /{POOL}", ""),
        ("etc/crontab", "@reboot root", ""),
        ("etc/crontab", "@reboot", ""),
        ("etc/crontab", "@reboot root /usr/local/bin/backup %x", ""),
        ("etc/crontab", f"@reboot bob echo 8 > /{POOL}", "it runs as bob, who may not write there"),
        ("var/spool/cron/crontabs/bob", f"@reboot echo 8 > /{POOL}", "it runs as bob, who may not write there"),
        ("etc/crontab", f"@reboot root echo 8 > /{POOL}%x", "kerntune cannot read it"),
        ("etc/crontab", f"@reboot root [ -e /x ] && echo 8 > /{POOL}", "it stands under a condition"),
        ("etc/crontab", f"@reboot root (sleep 9; echo 8 > /{POOL})", "it stands inside the '(' of line 3"),
    ],
)
def test_cron(tmp_path: Path, file: str, line: str, expected: str) -> None:
    write(tmp_path, {file: f"SHELL=/bin/sh\n\n{line}\n"})
    found = cron(tmp_path)
    assert len(found) == bool(expected)
    for one in found:
        assert (str(one.place), one.place.text) == (f"/{file}:3", line.strip())
        if isinstance(one, Assignment):
            assert (one.path, one.value, one.stage) == (POOL, expected, Stage.CRON)
        else:
            assert one.why.startswith(expected)
            assert one.why.endswith("translate it by hand")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"@reboot root echo 8 > /{POOL}", "the file does not end with a newline, and then cron may ignore it"),
        (f"@reboot root echo 8 > /{POOL}\n#", "the file does not end with a newline, and then cron may ignore it"),
        (f"SHELL=/usr/bin/python3\n@reboot root echo 8 > /{POOL}\n", "cron runs it with SHELL=/usr/bin/python3"),
        (f"SHELL = '/bin/zsh'\n@reboot root echo 8 > /{POOL}\n", "cron runs it with SHELL=/bin/zsh"),
        (f'SHELL=/bin/zsh\nSHELL="/bin/bash"\n@reboot root echo 8 > /{POOL}\n', ""),
        (f"@reboot root echo 8 > /{POOL}\nSHELL=/bin/zsh\n", ""),
    ],
)
def test_a_crontab_that_cron_may_read_otherwise(tmp_path: Path, text: str, why: str) -> None:
    write(tmp_path, {"etc/cron.d/llm": text})
    (line,) = cron(tmp_path)
    assert isinstance(line, Left) is bool(why)
    assert not isinstance(line, Left) or line.why == f"{why}: translate it by hand"
