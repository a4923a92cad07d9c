"""Lines that people paste into rc.local, as they are found in forums and in vendors' guides."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerntune.doctor import shell
from kerntune.doctor.files import Files, Line
from kerntune.doctor.nouns import Assignment, Left
from tests.unit.doctor.lab import write

POOL = "proc/sys/vm/nr_hugepages"
GOVERNORS = "sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
THP = "sys/kernel/mm/transparent_hugepage"


def script(text: str) -> list[Assignment | Left]:
    return shell.script([Line(number, line) for number, line in enumerate(text.split("\n"), 1)], "/etc/rc.local")


def said(text: str) -> list[tuple[str, str]]:
    """What a script sets, and that nothing of it was left."""
    found = script(text)
    assert not [line for line in found if isinstance(line, Left)], found
    return [(line.path, line.value) for line in found if isinstance(line, Assignment)]


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        (f"echo 128 > /{POOL}", POOL, "128"),
        (f"echo 128 >/{POOL}", POOL, "128"),
        (f"echo 128>/{POOL}", POOL, "128"),
        (f"/bin/echo -n '128' >> /{POOL}  # for the model", POOL, "128"),
        (f"printf '%s\\n' 128 > /{POOL}", POOL, "128"),
        (f"printf '128\\n' > /{POOL}", POOL, "128"),
        (f"echo 128 2>/dev/null >/{POOL}", POOL, "128"),
        (f"echo 128 | sudo tee /{POOL}", POOL, "128"),
        (f"echo 128 | sudo tee -a /{POOL} > /dev/null 2>&1", POOL, "128"),
        (f"echo 128 |\n  tee /{POOL}", POOL, "128"),
        (f"echo 128 \\\n  > /{POOL}", POOL, "128"),
        (f"sudo sh -c 'echo 128 > /{POOL}'", POOL, "128"),
        (f'sudo bash -c "echo 128 > /{POOL}"', POOL, "128"),
        (f"(echo 128 >/{POOL})", POOL, "128"),
        (f"(echo 128)>/{POOL}", POOL, "128"),
        (f"PAGES=128\necho $PAGES > /{POOL}", POOL, "128"),
        (f"PAGES=128; echo ${{PAGES}} > /{POOL}", POOL, "128"),
        (f"F=/{POOL}\necho 128 > $F", POOL, "128"),
        ("sysctl -w vm.nr_hugepages=128", POOL, "128"),
        ("/sbin/sysctl -q vm.nr_hugepages=128 >/dev/null", POOL, "128"),
        ("sudo sysctl vm/nr_hugepages=128", POOL, "128"),
        ("echo none > /sys/block/nvme0n1/queue/scheduler", "sys/block/nvme0n1/queue/scheduler", "none"),
        (f"echo madvise > /{THP}/enabled &", f"{THP}/enabled", "madvise"),
        ("cpupower frequency-set -g performance", GOVERNORS, "performance"),
        ("/usr/bin/cpupower frequency-set --governor=performance > /dev/null", GOVERNORS, "performance"),
        ("cpupower -c 0-3 frequency-set -g powersave", GOVERNORS.replace("*", "0-3"), "powersave"),
        ("cpupower -c all frequency-set -g powersave", GOVERNORS, "powersave"),
        ("cpufreq-set -c 2 -g performance", GOVERNORS.replace("*", "2"), "performance"),
        ("cpufreq-set -g performance", GOVERNORS.replace("*", "0"), "performance"),
        ("blockdev --setra 8192 /dev/nvme0n1", "sys/block/nvme0n1/queue/read_ahead_kb", "4096"),
    ],
)  # fmt: skip
def test_one_line(text: str, path: str, value: str) -> None:
    assert said(text)[-1] == (path, value)


@pytest.mark.parametrize(
    "text",
    [
        "for f in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do echo performance > $f; done",
        'for f in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do echo performance > "$f"; done',
        "for f in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor\ndo\n  echo performance > ${f}\ndone",
        "for f in /sys/devices/system/cpu/cpu*; do\n  echo performance | tee $f/cpufreq/scaling_governor\ndone",
        "for i in /sys/devices/system/cpu/cpu*/cpufreq\ndo [ -d $i ]; echo performance > $i/scaling_governor; done",
        "GOV=performance\nfor c in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do echo $GOV > $c; done",
    ],
)
def test_the_loop_over_all_cpus(text: str) -> None:
    assert said(text) == [(GOVERNORS, "performance")]


def test_braces_and_several_words_in_a_loop() -> None:
    assert said("for d in sda nvme{0,1}n1; do echo none > /sys/block/$d/queue/scheduler; done") == [
        (f"sys/block/{name}/queue/scheduler", "none") for name in ("sda", "nvme0n1", "nvme1n1")
    ]
    assert said("echo 1 | tee /sys/devices/system/node/node{0..2}/x") == [
        (f"sys/devices/system/node/node{number}/x", "1") for number in range(3)
    ]


def test_several_sysctls_at_once() -> None:
    pairs = [("proc/sys/vm/overcommit_memory", "1"), ("proc/sys/vm/overcommit_ratio", "95")]
    assert said("sysctl -w vm.overcommit_memory=1 vm.overcommit_ratio=95") == pairs


@pytest.mark.parametrize(
    "text",
    [
        "#!/bin/sh -e\n#\n# rc.local\n\nexit 0",
        f"# echo 128 > /{POOL}",
        f"cat /{POOL}",
        f"echo the pool is at /{POOL}",
        f"cat <<EOF > /tmp/x\necho 128 > /{POOL}\nEOF",
        "ip link set eth0 up; echo 1 > /tmp/x; echo hello | tee /var/log/x",
        "modprobe cpufreq_ondemand",
        "sysctl -p",
        "sysctl --system",
        "while read line; do echo $line; done < /proc/mounts",
        'case "$1" in\nstart) echo ok;;\nesac',
    ],
)
def test_what_is_nobodys_business(text: str) -> None:
    assert script(text) == []


@pytest.mark.parametrize(
    "text",
    [
        f"echo $PAGES > /{POOL}",
        f"echo $(($(nproc) * 64)) > /{POOL}",
        f"echo `cat /etc/pages` > /{POOL}",
        f"(echo 128) > /{POOL}",
        f"cat /etc/pages > /{POOL}",
        f"cat /etc/pages | tee /{POOL}",
        f"awk '{{print $2}}' /proc/meminfo > /{POOL}",
        f"echo 'unclosed > /{POOL}",
        "for i in $(seq 0 7); do echo performance > /sys/devices/system/cpu/cpu$i/cpufreq/scaling_governor; done",
        "hugeadm --pool-pages-min 2MB:128",
        "tuned-adm profile throughput-performance",
        "cpupower idle-set -D 2",
        'python3 -c \'open("/proc/sys/vm/nr_hugepages", "w").write("1")\'',
    ],
)
def test_what_is_not_understood_is_left_and_said(text: str) -> None:
    found = script(text)
    assert [type(line) for line in found] == [Left]
    assert found[0].place.line == 1


def test_a_line_under_a_condition_is_taken_with_a_remark() -> None:
    text = f"if test -f /{THP}/enabled; then\n  echo never > /{THP}/enabled\nfi\necho 1 > /{POOL}"
    conditional, plain = script(text)
    assert isinstance(conditional, Assignment)
    assert isinstance(plain, Assignment)
    assert (conditional.place.line, conditional.value, conditional.remark) == (2, "never", shell.IN_AN_IF)
    assert (plain.place.line, plain.remark) == (4, "")
    for text in (f"[ -e /{POOL} ] && echo 1 > /{POOL}", f"[ -e /{POOL} ] && echo 1 | tee /{POOL}"):
        (behind,) = script(text)
        assert isinstance(behind, Assignment)
        assert behind.remark == shell.IN_AN_IF


def test_what_stands_behind_exit_is_never_reached() -> None:
    first, second = script(f"[ -x /bin/true ] || exit 1\necho 1 > /{POOL}\nexit 0\necho 2 > /{POOL}")
    assert isinstance(first, Assignment)
    assert isinstance(second, Assignment)
    assert (first.idle, second.idle) == ("", "it stands behind the exit in line 3, so it is never reached")


def test_nothing_is_run(tmp_path: Path) -> None:
    for text in (f"touch {tmp_path}/x", f"echo $(touch {tmp_path}/x)", f"echo `touch {tmp_path}/x` > /{POOL}"):
        script(text)
    assert list(tmp_path.iterdir()) == []


def test_rc_local_has_two_names_and_must_be_executable(tmp_path: Path) -> None:
    files = Files(write(tmp_path, {"etc/rc.d/rc.local": f"echo 1 > /{POOL}\n"}))
    (line,) = shell.read(files)
    assert isinstance(line, Assignment)
    assert str(line.place) == "/etc/rc.d/rc.local:1"
    assert line.idle.startswith("/etc/rc.d/rc.local is not executable")
    (tmp_path / "etc/rc.local").symlink_to("rc.d/rc.local")
    (tmp_path / "etc/rc.d/rc.local").chmod(0o755)
    (line,) = shell.read(files)
    assert isinstance(line, Assignment)
    assert (line.place.file, line.idle) == ("/etc/rc.local", "")
