"""Commands of systemd units and `@reboot` lines of cron: which ones a boot runs, and what they set."""

from __future__ import annotations

import os
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
    return list(startup_units.read_units(Files(root)))


def in_force(root: Path) -> list[tuple[str, str]]:
    found = units(root)
    assert not [line for line in found if isinstance(line, Left)], found
    return [(line.path, line.value) for line in found if isinstance(line, Assignment)]


def cron(root: Path) -> list[Assignment | Left]:
    return list(startup_units.read_cron(Files(root)))


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
    enable(tmp_path, "llm.service", f"[Service]\n{text}[X]\n{text}")
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
    ],
)
def test_conditions_and_users(tmp_path: Path, unit: str, service: str, why: str) -> None:
    (line,) = units(enable(tmp_path, "llm.service", f"[Unit]\n{unit}\n{SETS_8}{service}\n"))
    assert isinstance(line, Left) is bool(why)
    assert not isinstance(line, Left) or line.why == f"{why}: translate it by hand"


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
    assert len(units(tmp_path)) == 2


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
