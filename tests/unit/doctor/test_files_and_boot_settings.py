"""The kernel's command line, sysctl.d(5), tmpfiles.d(5) and udev rules: what is read, in which order, what masks it.

Files below a root, whatever is odd about them and whatever stands in them: nothing fails, and no line is lost.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kerntune.doctor import boot_settings, udev_rules
from kerntune.doctor.examine import examine, look
from kerntune.doctor.files import Files, Line, whole
from kerntune.doctor.shell_script import Script
from kerntune.doctor.types import Assignment, Cause, Left, Place, Stage
from tests.harness import often
from tests.hosts import lay_out
from tests.unit.doctor.lab import HANDMADE, write

POOLS = "sys/kernel/mm/hugepages"
NODES = "sys/devices/system/node"
MIB = 1 << 20
RATIO = "vm.overcommit_ratio = {}\n"


def read(root: Path) -> list[Assignment]:
    return [line for line in boot_settings.read_sysctls(Files(root)) if isinstance(line, Assignment)]


def in_force(root: Path) -> list[tuple[str, str]]:
    return [(str(line.place), line.value) for line in read(root) if not line.idle]


@pytest.mark.parametrize(
    ("line", "path", "value"),
    [
        ("vm.nr_hugepages = 128", "vm/nr_hugepages", "128"),
        ("vm.nr_hugepages=128", "vm/nr_hugepages", "128"),
        ("  -vm/nr_hugepages =  128  ", "vm/nr_hugepages", "128"),
        ("net.ipv4.tcp_rmem = 4096\t87380   6291456", "net/ipv4/tcp_rmem", "4096 87380 6291456"),
        ("net.ipv4.conf.eth0/1.rp_filter=2", "net/ipv4/conf/eth0.1/rp_filter", "2"),
        ("net/ipv4/conf/eth0.1/rp_filter=2", "net/ipv4/conf/eth0.1/rp_filter", "2"),
        ("kernel.core_pattern=|/bin/x a=b", "kernel/core_pattern", "|/bin/x a=b"),
    ],
)
def test_a_line(tmp_path: Path, line: str, path: str, value: str) -> None:
    (found,) = read(write(tmp_path, {"etc/sysctl.d/a.conf": f"# x\n; y\n\n{line}\nno value\n=3\n-vm.x\n"}))
    assert (found.path, found.value, found.place.line) == (f"proc/sys/{path}", value, 4)


def test_files_are_read_by_name_whatever_their_folder(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "usr/lib/sysctl.d/50-a.conf": RATIO.format(1),
            "etc/sysctl.d/40-b.conf": RATIO.format(2),
            "run/sysctl.d/60-c.conf": RATIO.format(3),
            "usr/local/lib/sysctl.d/45-d.conf": RATIO.format(4),
            "etc/sysctl.d/README": RATIO.format(5),
        },
    )
    assert in_force(tmp_path) == [
        ("/etc/sysctl.d/40-b.conf:1", "2"),
        ("/usr/local/lib/sysctl.d/45-d.conf:1", "4"),
        ("/usr/lib/sysctl.d/50-a.conf:1", "1"),
        ("/run/sysctl.d/60-c.conf:1", "3"),
    ]


def test_the_same_name_masks(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "usr/lib/sysctl.d/50-a.conf": RATIO.format(1),
            "run/sysctl.d/50-a.conf": RATIO.format(2),
            "usr/lib/sysctl.d/60-b.conf": RATIO.format(3),
        },
    )
    (tmp_path / "etc/sysctl.d").mkdir(parents=True)
    (tmp_path / "etc/sysctl.d/60-b.conf").symlink_to("/dev/null")
    assert in_force(tmp_path) == [("/run/sysctl.d/50-a.conf:1", "2")]
    assert [line.idle for line in read(tmp_path) if line.idle] == [
        "/run/sysctl.d/50-a.conf has the same name and is read in its place",
        "/etc/sysctl.d/60-b.conf has the same name and is read in its place",
    ]


def test_lib_that_is_a_link_to_usr_lib_is_not_read_twice(tmp_path: Path) -> None:
    write(tmp_path, {"usr/lib/sysctl.d/a.conf": RATIO.format(1)})
    (tmp_path / "lib").symlink_to("usr/lib")
    assert [str(line.place) for line in read(tmp_path)] == ["/usr/lib/sysctl.d/a.conf:1"]


@pytest.mark.parametrize("link", ["../sysctl.conf", "/etc/sysctl.conf"])
def test_sysctl_conf_is_read_where_a_link_says(tmp_path: Path, link: str) -> None:
    write(
        tmp_path,
        {
            "etc/sysctl.conf": RATIO.format(1),
            "etc/sysctl.d/98-a.conf": RATIO.format(2),
            "etc/sysctl.d/zz.conf": RATIO.format(3),
        },
    )
    (tmp_path / "etc/sysctl.d/99-sysctl.conf").symlink_to(link)
    assert [place for place, _ in in_force(tmp_path)] == [
        "/etc/sysctl.d/98-a.conf:1",
        "/etc/sysctl.conf:1",
        "/etc/sysctl.d/zz.conf:1",
    ]


def test_sysctl_conf_without_a_link_is_not_read(tmp_path: Path) -> None:
    """Debian 13 has dropped the link."""
    (line,) = read(write(tmp_path, {"etc/sysctl.conf": RATIO.format(1)}))
    assert line.idle == boot_settings.NOT_READ


def cmdline(root: Path, text: str, *, default: int = 2 * MIB) -> list[Assignment | Left]:
    return boot_settings.read_cmdline(Files(write(root, {"proc/cmdline": f"{text}\n"})), default)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("quiet root=/dev/sda1", []),
        ("hugepages=64", [(f"{POOLS}/hugepages-2048kB/nr_hugepages", "64")]),
        (
            "hugepages=64 hugepagesz=1G hugepages=4",
            [
                (f"{POOLS}/hugepages-2048kB/nr_hugepages", "64"),
                (f"{POOLS}/hugepages-1048576kB/nr_hugepages", "4"),
            ],
        ),
        ("default_hugepagesz=1G hugepages=4", [(f"{POOLS}/hugepages-1048576kB/nr_hugepages", "4")]),
        (
            "hugepagesz=2M hugepages=0:8,1:16",
            [
                (f"{NODES}/node0/hugepages/hugepages-2048kB/nr_hugepages", "8"),
                (f"{NODES}/node1/hugepages/hugepages-2048kB/nr_hugepages", "16"),
            ],
        ),
        ("transparent_hugepage=madvise", [("sys/kernel/mm/transparent_hugepage/enabled", "madvise")]),
        (
            "cpufreq.default_governor=performance",
            [("sys/devices/system/cpu/cpu*/cpufreq/scaling_governor", "performance")],
        ),
        ("sysctl.vm.overcommit_memory=1", [("proc/sys/vm/overcommit_memory", "1")]),
        ("numa_balancing=disable", [("proc/sys/kernel/numa_balancing", "0")]),
        ("init=/x -- hugepages=64", []),
    ],
)
def test_parameters(tmp_path: Path, text: str, expected: list[tuple[str, str]]) -> None:
    assert [(line.path, line.value) for line in cmdline(tmp_path, text) if isinstance(line, Assignment)] == expected
    assert not [line for line in cmdline(tmp_path, text) if isinstance(line, Left)]


@pytest.mark.parametrize("text", ["hugepages=many", "hugepagesz=big", "hugepages=0:1,x", "elevator=noop"])
def test_what_is_no_setting_is_left(tmp_path: Path, text: str) -> None:
    assert [type(line) for line in cmdline(tmp_path, text)][-1] is Left


def test_elevator_has_no_effect(tmp_path: Path) -> None:
    (line,) = cmdline(tmp_path, "elevator=none")
    assert isinstance(line, Left)
    assert line.cause is Cause.NO_EFFECT


def test_without_huge_pages_there_is_no_default_size(tmp_path: Path) -> None:
    (line,) = cmdline(tmp_path, "hugepages=64", default=0)
    assert isinstance(line, Left)


THP_FILE = "sys/kernel/mm/transparent_hugepage/enabled"


def tmpfiles(root: Path) -> list[Assignment | Left]:
    return boot_settings.read_tmpfiles(Files(root))


@pytest.mark.parametrize(
    ("line", "path", "value"),
    [
        (f"w /{THP_FILE} - - - - never", THP_FILE, "never"),
        (f"w  /{THP_FILE}\t-  - - -  never  ", THP_FILE, "never"),
        (f"w! /{THP_FILE} - - - - madvise", THP_FILE, "madvise"),
        (f"w+!- /{THP_FILE} 0644 root root 10d madvise", THP_FILE, "madvise"),
        (f"w-= /{THP_FILE} :- - - - never\\n", THP_FILE, "never"),
        (f'w "/{THP_FILE}" - - - - never', THP_FILE, "never"),
        (f"\"w\" '/{THP_FILE}' - - - - never", THP_FILE, "never"),
        (f"'w!'\t/{THP_FILE} - - - - never", THP_FILE, "never"),
        ("w /sys/block/nvme*/queue/scheduler - - - - none", "sys/block/nvme*/queue/scheduler", "none"),
        ("w /proc/sys/kernel/core_pattern - - - - |/bin/x %%p a b", "proc/sys/kernel/core_pattern", "|/bin/x %p a b"),
    ],
)
def test_a_line_of_tmpfiles(tmp_path: Path, line: str, path: str, value: str) -> None:
    text = f"# w /x - - - - y\n\nd /run/x 0755 root root -\nz /sys/block/* 0600 - - -\nw /x - - - -\n{line}\n"
    (found,) = tmpfiles(write(tmp_path, {"etc/tmpfiles.d/a.conf": text}))
    assert isinstance(found, Assignment)
    assert (found.path, found.value, found.stage, found.place.line) == (path, value, Stage.TMPFILES, 6)


@pytest.mark.parametrize(
    "line",
    [
        f"f+ /{THP_FILE} - - - - never",
        f"F /{THP_FILE} - - - - never",
        f"w^ /{THP_FILE} - - - - thp",
        f"w~ /{THP_FILE} - - - - bmV2ZXI=",
        f"w /{THP_FILE} - - - - ne\\x76er",
        f"w /{THP_FILE} - - - - %m",
        f"w /{THP_FILE} - - - never",
        f'"w /{THP_FILE} - - - - never',
        "w /proc/sys/vm/nr\\x5fhugepages - - - - 8",
    ],
)
def test_a_line_of_tmpfiles_that_cannot_be_read_is_left(tmp_path: Path, line: str) -> None:
    (found,) = tmpfiles(write(tmp_path, {"etc/tmpfiles.d/a.conf": f"{line}\nf+ /run/x - - - - %m\n"}))
    assert isinstance(found, Left)
    assert (found.place.line, found.cause) == (1, Cause.NOT_UNDERSTOOD)
    assert found.why.endswith("translate it by hand")


def test_the_first_line_of_tmpfiles_for_a_path_counts(tmp_path: Path) -> None:
    """tmpfiles.d(5): the lexicographically earliest file, and of files of the same name the one in /etc."""
    line = f"w /{THP_FILE} - - - - {{}}\n"
    write(
        tmp_path,
        {
            "usr/lib/tmpfiles.d/50-a.conf": line.format("always"),
            "etc/tmpfiles.d/50-a.conf": line.format("never") + line.format("madvise"),
            "run/tmpfiles.d/60-b.conf": line.format("inherit") + f"w+ /{THP_FILE} - - - - always\n",
        },
    )
    found = [(str(line.place), line.idle) for line in tmpfiles(tmp_path) if isinstance(line, Assignment)]
    second = "/etc/tmpfiles.d/50-a.conf:1 is for the same path, and systemd-tmpfiles takes the first line"
    assert found == [
        ("/usr/lib/tmpfiles.d/50-a.conf:1", "/etc/tmpfiles.d/50-a.conf has the same name and is read in its place"),
        ("/etc/tmpfiles.d/50-a.conf:1", ""),
        ("/etc/tmpfiles.d/50-a.conf:2", second),
        ("/run/tmpfiles.d/60-b.conf:1", second),
        ("/run/tmpfiles.d/60-b.conf:2", ""),
    ]


def test_lines_that_create_files_run_before_those_that_write(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "etc/tmpfiles.d/10-a.conf": f"f+ /{THP_FILE} - - - - never\nF /{THP_FILE} - - - - never\n",
            "etc/tmpfiles.d/20-b.conf": f"w /{THP_FILE} - - - - always\nw /{THP_FILE} - - - - madvise\n",
        },
    )
    found = [
        (str(one.place), type(one), one.idle if isinstance(one, Assignment) else one.why) for one in tmpfiles(tmp_path)
    ]
    second = "/etc/tmpfiles.d/{} is for the same path, and systemd-tmpfiles takes the first line"
    assert found == [
        ("/etc/tmpfiles.d/10-a.conf:1", Left, boot_settings.BY_HAND),
        ("/etc/tmpfiles.d/10-a.conf:2", Left, second.format("10-a.conf:1")),
        ("/etc/tmpfiles.d/20-b.conf:1", Assignment, ""),
        ("/etc/tmpfiles.d/20-b.conf:2", Assignment, second.format("20-b.conf:1")),
    ]


# udev rules as distributions ship them and people paste them


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


# Files below a root, whatever is odd about them


NOBODY = 65534


@pytest.mark.parametrize(
    ("link", "leads_to"),
    [("b", "etc/b"), ("../x", "x"), ("/etc/b", "etc/b"), ("../../../../x/y", "x/y"), ("/dev/null", "dev/null")],
)
def test_links_are_followed_as_below_the_root(tmp_path: Path, link: str, leads_to: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/a").symlink_to(link)
    assert Files(tmp_path).resolve("etc/a") == leads_to


def test_a_link_out_of_the_root_finds_nothing_outside(tmp_path: Path) -> None:
    write(tmp_path, {"secret": "outside", "root/etc/b": "inside"})
    (tmp_path / "root/etc/a").symlink_to(tmp_path / "secret")
    assert Files(tmp_path / "root").text("etc/a") is None


def test_a_loop_of_links_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    files = Files(tmp_path)
    assert files.text("a") is None
    assert files.leads_to("a") == ""
    assert "/a" in files.unreadable


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    files = Files(tmp_path)
    assert [files.text(name) for name in ("fifo", "folder", "nothing", "nothing/below")] == [None] * 4
    assert files.names("nothing") == []
    assert not files.runs("folder")


def test_a_folder_that_cannot_be_listed_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "crontabs").mkdir(mode=0o100)
    files, user = Files(tmp_path), os.geteuid()
    os.seteuid(user or NOBODY)  # root may list every folder
    try:
        assert files.names("crontabs") == []
    finally:
        os.seteuid(user)
    assert files.unreadable == {"/crontabs": "Permission denied"}


def test_lines_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\n\none\r\n\xfftwo\0")
    assert list(Files(tmp_path).lines("a"))[2:] == [
        (3, "one"),
        (4, "\N{REPLACEMENT CHARACTER}two\N{REPLACEMENT CHARACTER}"),
    ]


@pytest.mark.parametrize(("text", "number"), [("7", 7), (" 12 ", 12), ("", None), ("-1", None), ("9" * 99, None)])
def test_whole_numbers(text: str, number: int | None) -> None:
    assert whole(text) == number


# Whatever stands in the files, the doctor has something to say


FILES = (
    "etc/rc.local",
    "etc/sysctl.conf",
    "etc/sysctl.d/a.conf",
    "usr/lib/sysctl.d/a.conf",
    "etc/udev/rules.d/a.rules",
    "proc/cmdline",
    "etc/tmpfiles.d/a.conf",
    "usr/lib/tmpfiles.d/a.conf",
    "etc/systemd/system/a.service",
    "etc/systemd/system/a.service.d/b.conf",
    "etc/systemd/system/multi-user.target.wants/a.service",
    "etc/crontab",
    "etc/cron.d/a",
    "var/spool/cron/crontabs/root",
    "etc/default/cpufrequtils",
    "etc/init.d/cpufrequtils",
    "proc/self/cgroup",
    "proc/self/limits",
    "etc/tuned/active_profile",
    "proc/1/comm",
)
PIECES = st.sampled_from(
    [
        *"=.-/*?[]{}()<>|&;$`'\"\\# \n\t,:!~@%^+0",
        *("echo", "128", "for", "in", "do", "done", "if", "then", "fi", "tee", "sudo", "sh -c", "exit", "<<EOF"),
        *("sysctl", "-w", "vm.nr_hugepages", "vm.overcommit_memory=1", "cpupower frequency-set -g", "blockdev --setra"),
        *("/proc/sys/vm/nr_hugepages", "/sys/block/nvme*/queue/scheduler", "/sys/block/sda/queue/scheduler", "{0..9}"),
        *("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "$f", "${f}", "f=", "9" * 5000, "..", "none"),
        *('KERNEL=="nvme*"', 'ATTR{queue/scheduler}="none"', 'RUN+="/bin/sh -c ', 'GOTO="', 'LABEL="', "ACTION"),
        *("\nExecStart=", "/bin/sh -c '", "[Service]\n", "[Unit]\n", "ConditionPathExists=", "User=", "%i", "$$f"),
        *("\n@reboot ", "root ", "\nw ", "w! ", " - - - - ", "\nF+ ", "/sys/kernel/mm/transparent_hugepage/enabled"),
        *("hugepages=", "hugepagesz=1G", "0:1,", "transparent_hugepage=", "--", "GOVERNOR=", "0::/", "memory", "\0"),
    ]
)
TEXTS = st.one_of(
    st.lists(PIECES, max_size=40).map("".join),
    st.lists(PIECES, max_size=40).map(" ".join),
    st.text(max_size=200),
    st.sampled_from(list(HANDMADE.values())),
)


@settings(max_examples=often(150), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(texts={"proc/self/cgroup": "0::/\0"})
@given(texts=st.dictionaries(st.sampled_from(FILES), TEXTS, min_size=1))
def test_no_text_makes_it_fail(texts: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        lay_out("two-sockets", root)
        for path, text in texts.items():
            place = root / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(text.encode(errors="surrogatepass"))
            place.chmod(0o755)
        found = examine(root)
        assert all(finding.what and finding.topic for finding in found)
        for proposal in look(root).proposals:
            assert proposal.places
            assert proposal.setting.value


# A line that writes a file which kerntune tunes, as a person sees it.
TUNED = "(/proc/sys/vm/nr_hugepages|/sys/block/sda/queue/scheduler|/sys/kernel/mm/transparent_hugepage/enabled)"
WRITING = re.compile(rf"(>[>|]?[ ]?|\btee( -a)? ){TUNED}(?=[\s;|&)]|$)")
WRITERS = (
    "echo 1 > /proc/sys/vm/nr_hugepages",
    "cat /x >| /proc/sys/vm/nr_hugepages",
    "echo none | sudo tee /sys/block/sda/queue/scheduler",
    "tee -a /sys/block/sda/queue/scheduler < /x",
    "printf never >>/sys/kernel/mm/transparent_hugepage/enabled",
)
BETWEEN = """
if true; then |; else |; fi |while read x; do |for f in a b; do |for f in $(ls); do |case $1 in a) |; done|; esac
{ |; }|( | )|fn() { |function g { |exit 0|return|break|[ -e /x ] && |! |$(|`|${|"|'|cat <<EOF|EOF|sh -c '|sudo |x=
f=/dev/null |$f|((|[[ | ]]|case|in|do|done|fi|then|<|>|2>|&> |<<|<<< |word| -c |\\|&&|;|&| ;; |}|)|\t|\0|\x0b
"""
AROUND = st.sampled_from([" | ", "||", "\n", "\\\n", *BETWEEN.strip().replace("\n", "|").split("|")])


@settings(max_examples=often(600), deadline=None)
@given(parts=st.lists(st.one_of(st.sampled_from(WRITERS), AROUND, AROUND, st.just("\n")), max_size=25))
def test_no_line_of_a_script_is_lost(parts: list[str]) -> None:
    """Each line that writes such a file is translated, or shown to people."""
    text = "".join(parts)
    shown = [" ".join(entry.place.text.split()) for entry in Script("/etc/rc.local").read(text)]
    for line in text.split("\n"):
        if WRITING.search(line):
            words = " ".join(line.removesuffix("\\").split())
            assert any(words in place for place in shown), (text, shown)


# Fields of a line of tmpfiles.d that systemd-tmpfiles takes as an order to write.
TYPES = st.sampled_from(["w", "w!", "w+", '"w"', "'w-!'", "f", "f+", "F", "F!", "w^", "w~"])
PATHS = st.sampled_from(
    ["/proc/sys/vm/nr_hugepages", "/sys/block/sda/queue/scheduler", "/sys/kernel/mm/transparent_hugepage/enabled"]
)
QUOTES = st.sampled_from(["{}", '"{}"', "'{}'", "/{}", "{}/"])
GAPS = st.sampled_from([" ", "\t", "  "])
FIELDS = st.sampled_from(["-", "0644", "root", "10d", ":-", '"-"', "~0:1"])
VALUES = st.sampled_from(["never", "8", "ne\\x76er", "%m", "%%", "a b", '"8"', "8\\n"])
ORDER = st.tuples(
    TYPES, GAPS, st.builds(str.format, QUOTES, PATHS), st.lists(st.tuples(GAPS, FIELDS), min_size=4, max_size=4),
    GAPS, VALUES,
)  # fmt: skip
OTHERS = st.sampled_from(["", "# w /proc/sys/vm/nr_hugepages - - - - 8", "d /run/x", "w", "\\", '"', "w /x - - - - y"])


@settings(max_examples=often(300), deadline=None)
@given(lines=st.lists(st.one_of(ORDER, OTHERS), max_size=12))
def test_no_line_of_tmpfiles_is_lost(lines: list[str | tuple[str, str, str, list[tuple[str, str]], str, str]]) -> None:
    texts = [
        line if isinstance(line, str) else "".join([*line[:3], *(part for pair in line[3] for part in pair), *line[4:]])
        for line in lines
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "etc/tmpfiles.d/a.conf"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(texts))
        shown = {entry.place.line for entry in boot_settings.read_tmpfiles(Files(Path(folder)))}
    assert {number for number, line in enumerate(lines, 1) if isinstance(line, tuple)} <= shown, texts
