"""Lines that people paste into rc.local, as they are found in forums and in vendors' guides."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kerntune.doctor import shell_script
from kerntune.doctor.files import Files
from kerntune.doctor.shell_reader import MAX_TEXT
from kerntune.doctor.shell_script import Script
from kerntune.doctor.types import Assignment, Cause, Left, Stage
from tests.unit.doctor.lab import write

POOL = "proc/sys/vm/nr_hugepages"
GOVERNORS = "sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
THP = "sys/kernel/mm/transparent_hugepage"


def script(text: str, files: Files | None = None) -> list[Assignment | Left]:
    return Script("/etc/rc.local", files).read(text)


def pairs(text: str) -> list[tuple[str, str]]:
    """What a script sets, and that nothing of it was left."""
    found = script(text)
    assert not [line for line in found if isinstance(line, Left)], found
    return [(line.path, line.value) for line in found if isinstance(line, Assignment)]


def left_lines(text: str) -> list[tuple[int, str]]:
    """The lines that are left to people, with the reasons, and that nothing is set."""
    found = script(text)
    assert not [line for line in found if isinstance(line, Assignment)], found
    return [(line.place.line, line.why) for line in found if isinstance(line, Left)]


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        (f"echo 128 > /{POOL}", POOL, "128"),
        (f"echo 128 >/{POOL}", POOL, "128"),
        (f"echo '128'> /{POOL}", POOL, "128"),
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
        (f"sudo sh -c \"sh -c 'echo 1' ; echo 128 > /{POOL}\"", POOL, "128"),
        (f"sleep 30 && echo 128 > /{POOL}", POOL, "128"),
        (f"echo 128 > /{POOL} || true", POOL, "128"),
        (f"echo 1 > /{THP}/enabled && echo 128 > /{POOL}", POOL, "128"),
        (f"[ $# -eq 0 ]; echo 128 > /{POOL}", POOL, "128"),
        ("echo 128 > //proc/sys/vm/../vm/nr_hugepages", POOL, "128"),
        ("sysctl -w vm.nr_hugepages=128", POOL, "128"),
        ("/sbin/sysctl -q vm.nr_hugepages=128 >/dev/null", POOL, "128"),
        ("sudo sysctl vm/nr_hugepages=128", POOL, "128"),
        ("sysctl -w 'vm.nr_hugepages = 128'", POOL, "128"),
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
    assert pairs(text)[-1] == (path, value)
    assert script(text)[-1].place.line == 1


@pytest.mark.parametrize(
    "text",
    [
        "for f in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do echo performance > $f; done",
        'for f in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do echo performance > "$f"; done',
        "for f in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor\ndo\n  echo performance > ${f}\ndone",
        "for f in /sys/devices/system/cpu/cpu*; do\n  echo performance | tee $f/cpufreq/scaling_governor\ndone",
        "for i in /sys/devices/system/cpu/cpu*/cpufreq\ndo [ -d $i ]; echo performance > $i/scaling_governor; done",
        "for f in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do [ -w $f ] && echo performance > $f; done",
        "for f in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do\n  [ -f $f ] || continue\n"
        "  echo -n performance > $f\ndone",
        "sudo sh -c 'for f in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do echo performance > $f; done'",
        'for f in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do\n  sh -c "echo performance > $f"\ndone',
    ],
)
def test_the_loop_over_all_cpus(text: str) -> None:
    assert pairs(text) == [(GOVERNORS, "performance")]


def test_a_loop_is_read_once_for_each_word() -> None:
    assert pairs("for d in sda nvme0n1; do\n  echo none > /sys/block/$d/queue/scheduler\n  echo $d > /tmp/x\ndone") == [
        (f"sys/block/{name}/queue/scheduler", "none") for name in ("sda", "nvme0n1")
    ]
    assert pairs(f"for n in 1 2; do echo $n > /{POOL}; done") == [(POOL, "1"), (POOL, "2")]


@pytest.mark.parametrize(
    "loop",
    [
        "for f in {}; do echo 1 > $f; break; done",
        "for f in {}; do echo 1 > $f; [ -e /x ] && continue; echo 2 > $f; done",
        "for f in {}; do if [ -e /x ]; then break; fi; echo 1 > $f; done",
        "for f in {}; do f=/tmp/x; echo 1 > $f; done",
        "for f in {}; do read f; echo 1 > $f; done",
        "for f in {} $MORE; do echo 1 > $f; done",
        "for f in $(ls {}); do echo 1 > $f; done",
        "for f in `ls {}`; do echo 1 > $f; done",
        "for f in {{a,b}} {}; do echo 1 > $f; done",
        "for f in {}; do for g in a b; do echo 1 > $f; done; done",
        "for f in {}; do echo 1 > '$f'; echo 1 > ${{f%x}}; done",
        "for f in {}; do echo 1 > $f",
        "for f in {}; do grep -q x $f || continue; echo 1 > $f; done",
        "for f in {}; do [ -e $f ] || exit; echo 1 > $f; done",
        "for f in {}; do [ -e $g ] || continue; echo 1 > $f; done",
        "for f in {}; do [ -e /etc/gpu ] || continue; echo 1 > $f; done",
        "for f in {}; do echo $f > $f; done",
        "for f in {}; do echo 1 > $f; exec /x; done",
        "true && for f in {}; do echo 1 > $f; done",
        "select f in {}; do echo 1 > $f; done",
        "for ((f=0;f<9;f++)); do echo $f > /{}; done",
        "while read f; do echo 1 > {}; done < /x",
        "for f in" + " {}" * 513 + "; do echo 1 > $f; done",
    ],
)  # fmt: skip
def test_any_other_loop_is_left(loop: str) -> None:
    """What it does depends on more than its words, or what it goes over is not known."""
    lines = left_lines(loop.replace("{}", "/sys/block/*/queue/scheduler").replace("{{", "{").replace("}}", "}"))
    assert [line for line, _ in lines] == [1]
    assert "translate it by hand" in lines[0][1]


@pytest.mark.parametrize(
    ("text", "remark"),
    [
        (f"[ -e /{POOL} ] &&\n  echo 1 > /{POOL}\n", shell_script.SPLIT.format(1, 2)),
        (f"echo 1 |\n # x\n tee /{POOL}", shell_script.SPLIT.format(1, 3)),
        (f"\n# x\nsh -c 'echo 1 > /{POOL}' \\\n  > /x", shell_script.SPLIT.format(3, 4)),
        (f"for n in 1 2; do\n  echo $n > /{POOL}\ndone", shell_script.IN_LOOP.format(1, 3)),
        (f'true\nfor n in 1\ndo sh -c "echo $n > /{POOL}"; done', shell_script.IN_LOOP.format(2, 3)),
        (f"for n in 1 2; do echo $n > /{POOL}; done", ""),
        (f"  [ -e /{POOL} ] && echo 1 > /{POOL}  \n\n", ""),
    ],
)
def test_what_stands_in_several_lines_is_taken_out_as_a_whole(text: str, remark: str) -> None:
    found = script(text)
    assert found
    assert {line.remark for line in found if isinstance(line, Assignment)} == {remark}
    assert not any("\n" in line.place.text for line in found)


def test_several_sysctls_at_once() -> None:
    both = [("proc/sys/vm/overcommit_memory", "1"), ("proc/sys/vm/overcommit_ratio", "95")]
    assert pairs("sysctl -w vm.overcommit_memory=1 vm.overcommit_ratio=95") == both


@pytest.mark.parametrize(
    "text",
    [
        "#!/bin/sh -e\n#\n# rc.local\n\nexit 0",
        f"# echo 128 > /{POOL}",
        f"cat /{POOL}",
        f"echo the pool is at /{POOL}",
        f"true # echo 128 > /{POOL}",
        "sysctl vm.nr_hugepages",
        f"x=$(cat /{POOL})",
        f"[ -e /{POOL} ] && echo it is there",
        "ip link set eth0 up; echo 1 > /tmp/x; echo hello | tee /var/log/x",
        "modprobe cpufreq_ondemand",
        f"gone() {{\n  cat /{POOL}\n}}\ngone",
        "while read line; do echo $line; done < /proc/mounts",
        'case "$1" in\nstart) echo ok;;\nesac',
    ],
)
def test_what_is_nobodys_business(text: str) -> None:
    assert script(text) == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"echo $PAGES > /{POOL}", 1),
        (f"PAGES=128\necho $PAGES > /{POOL}", 2),
        (f"F=/{POOL}\necho 128 > $F", 2),
        (f"export F=/{POOL}\necho 128 | tee ${{F}}", 2),
        (f"echo $(($(nproc) * 64)) > /{POOL}", 1),
        (f"echo `cat /etc/pages` > /{POOL}", 1),
        (f"(echo 128 >/{POOL})", 1),
        (f"(echo 128)>/{POOL}", 1),
        (f"(echo 128) > /{POOL}", 1),
        (f"{{ echo 128 > /{POOL}; }}", 1),
        (f"{{ echo 128; }} > /{POOL}", 1),
        (f"echo 128>/{POOL}", 1),
        (f"echo 1 2>/{POOL}", 1),
        (f"echo > /{POOL}", 1),
        (f"echo 1 > /{POOL} > /tmp/x", 1),
        (f"echo 1 >/tmp/x | tee /{POOL}", 1),
        (f"echo 1 | tee /{POOL} < /etc/pages", 1),
        (f"echo 1 | tee /tmp/x > /{POOL}", 1),
        (f"sh -c 'echo 1 > /{POOL}' | grep -q x", 1),
        (f"echo 1 | tee /{POOL} | true", 1),
        (f"sh -c 'echo 128' > /{POOL}", 1),
        (f"sysctl -p /etc/x > /{POOL}", 1),
        (f"echo 1 > $X && echo 1 > /{POOL}", 1),
        (f"printf %x 128 > /{POOL}", 1),
        (f"cat /etc/pages > /{POOL}", 1),
        (f"cat /etc/pages | tee /{POOL}", 1),
        (f"awk '{{print $2}}' /proc/meminfo > /{POOL}", 1),
        (f"echo 'unclosed > /{POOL}", 1),
        (f"echo \"$(echo \"unclosed > /{POOL}", 1),
        (f"x=$(echo 128 > /{POOL})", 1),
        (f"echo 'echo 128 > /{POOL}' | sh", 1),
        (f"cat <<EOF > /tmp/x\necho 128 > /{POOL}\nEOF", 2),
        (f"cat <<EOF |\necho 128 > /{POOL}\nEOF\n  sh", 2),
        (f"cat <<EOF\nx\nEOF\necho 128 > /{POOL}", 4),
        (f"cat 3<<EOF\n# echo 1 > /{POOL}\necho 128 > /{POOL}\nEOF", 3),
        (f"tee /{POOL} <<< 128", 1),
        (f"x=${{y:-'a'}}\necho 128 > /{POOL}", 2),
        (f"x=$(f $(g $(h \"$(i)\")))\necho 128 > /{POOL}", 2),
        (f"sh <<-'E F'\n\techo 128 > /{POOL}\n\tE F", 2),
        (f"bash -c '\nx=1\necho 128 > /{POOL}\n'", 1),
        (f"sh -c \"echo $PAGES > /{POOL}\"", 1),
        (f"sh -c \"sh -c 'echo 128 > /{POOL}'\"", 1),
        (f"! echo 128 > /{POOL}", 1),
        ("sudo -u bob sysctl -w vm.nr_hugepages=1", 1),
        ("cd /sys/block/sda/queue; echo none > scheduler", 1),
        ("D=/proc/sys\necho 1 > $D/vm/overcommit_memory", 2),
        ("V=/sys\necho none | tee $V/block/sda/queue/scheduler", 2),
        ("V=/sys\ncat /x > $V/block/sda/queue/read_ahead_kb", 2),
        ("cd /proc/sys; echo 1 > vm/overcommit_memory", 1),
        ("cd /sys/devices/system/cpu; for f in cpu*; do echo performance > $f/cpufreq/scaling_governor; done", 1),
        ("sysctl -w vm/overcommit_memory=$X", 1),
        ("sysctl -w vm/dirty_ratio=$X", 1),
        ("echo none > /sys/block/*/queue/scheduler", 1),
        ("echo none > /sys/block/sd?/queue/scheduler", 1),
        ("echo none | tee '/sys/block/*/queue/scheduler'", 1),
        ('echo none | tee "/sys/block/sd[ab]/queue/scheduler"', 1),
        ("echo none | tee /sys/block/\\*/queue/scheduler", 1),
        ("for f in '/sys/block/*/queue/scheduler'; do echo none > $f; done", 1),
        ("for d in sd*; do echo none | tee /sys/block/$d/queue/scheduler; done", 1),
        ("for i in 0 1; do echo x > /sys/devices/system/cpu/cpu$i*/cpufreq/scaling_governor; done", 1),
        ("[ -e /sys/block/*/queue/scheduler ] && echo none | tee /sys/block/*/queue/scheduler", 1),
        ("[ -e /sys/block/nvme0n1 ] && echo none | tee /sys/block/*/queue/scheduler", 1),
        ("blockdev --setra 8192 /dev/sd*", 1),
        (f"[ -f /proc/sys/vm ] && echo 1 > /{POOL}", 1),
        (f"[ -d /{POOL} ] && echo 1 > /{POOL}", 1),
        (f"[ -L /{POOL} ] && echo 1 > /{POOL}", 1),
        (f"[ -b /{POOL} ] && echo 1 > /{POOL}", 1),
        (f"[ -e /{POOL}/ ] && echo 1 > /{POOL}", 1),
        (f"[ -e {POOL} ] && echo 1 > /{POOL}", 1),
        ("exec sysctl -w vm.nr_hugepages=1", 1),
        (f"echo 1 | sudo -ubob tee /{POOL}", 1),
        (f"echo 1 | sudo --user=bob tee /{POOL}", 1),
        ("command -v sysctl vm.nr_hugepages=1", 1),
        (f"for f in /{POOL} /x; do sh -c \"for g in 1; do echo '$f' > $f; done; echo \\$f > $f\"; done", 1),
        ("echo 1 | tee /sys/block/{sda,sdb}/queue/scheduler", 1),
        ("hugeadm --pool-pages-min 2MB:128", 1),
        ("tuned-adm profile throughput-performance", 1),
        ("cpupower idle-set -D 2", 1),
        ('python3 -c \'open("/proc/sys/vm/nr_hugepages", "w").write("1")\'', 1),
    ],
)  # fmt: skip
def test_what_is_not_a_plain_line_is_left_and_shown(text: str, line: int) -> None:
    lines = left_lines(text)
    assert [number for number, _ in lines] == [line]
    assert "translate it by hand" in lines[0][1]


@pytest.mark.parametrize(
    "text",
    [
        f"[ -e /{POOL} ] && echo 1 > /{POOL}",
        f"[ -w /{POOL} ] && echo 1 > /{POOL} || true",
        f"test -f /{POOL} && sysctl -w vm.nr_hugepages=1",
        f'[[ -e /{POOL} ]] && echo 1 | tee "/{POOL}"',
        f"[ -d /proc/sys/vm ] && [ -e /{POOL} ] && echo 1 > /{POOL}",
        f"[ -e /{POOL} ] && sh -c 'echo 1 > /{POOL}'",
        f"if false; then echo x; fi; echo 1 > /{POOL}",
        f"if false\nthen\n  (echo x)\nelse\n  echo y\nfi\necho 1 > /{POOL}",
        f"case x in\na) echo a ;;\n(b) echo b\nesac\necho 1 > /{POOL}",
        f"while false; do sleep 1; done; echo 1 > /{POOL}",
        f"until [ -e /{POOL} ]; do sleep 1; done\necho 1 > /{POOL}",
        f"grep -q x /proc/mounts && echo mounted\necho 1 > /{POOL}",
        f"[ -f /x ] && {{ true; }}; echo 1 > /{POOL}",
        f"awk '\n{{ print }}\n' /etc/x\necho 1 > /{POOL}",
    ],
)  # fmt: skip
def test_a_condition_that_asks_for_the_file_is_none_and_a_block_ends_where_it_ends(text: str) -> None:
    assert pairs(text) == [(POOL, "1")]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"if [ -f /{POOL} ]; then echo 1 > /{POOL}; fi", "the 'if' of line 1"),
        (f"if lspci | grep -q NVIDIA\nthen\n  echo 1 > /{POOL}\nfi", "the 'if' of line 1"),
        (f"if [ -f /{POOL} ]; then :; else\n  echo 1 > /{POOL}\nfi", "the 'if' of line 1"),
        (f"if ! echo 1 > /{POOL}; then :\nfi", "the 'if' of line 1"),
        (f"if [ -f /x ]\nthen if [ -f /{POOL} ]\nthen echo 1 > /{POOL}; fi; fi", "the 'if' of line 1"),
        (f'case "$1" in\nstart)\n  echo 1 > /{POOL} ;;\nesac', "the 'case' of line 1"),
        (f"while true; do echo 1 > /{POOL}; sleep 9; done", "the 'while' of line 1"),
        (f"[ -e /{POOL} ] && {{ echo 1 > /{POOL}; }}", "the '{' of line 1"),
        (f"true\n(cd /tmp; echo 1 > /{POOL})", "the '(' of line 2"),
        (f"fi\necho 1 > /{POOL}", "the 'unexpected fi' of line 1"),
        (f"case x in\nfi) echo x ;;\nesac\necho 1 > /{POOL}", "the 'case' of line 1"),
        (f"f() {{\n  echo 1 > /{POOL}\n}}", "the '{' of line 1"),
    ],
)  # fmt: skip
def test_a_line_inside_a_block_is_left(text: str, why: str) -> None:
    assert [why for _, why in left_lines(text)] == [shell_script.INSIDE.format(why)]


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        (f"grep -q x /proc/cmdline && echo 1 > /{POOL}", "&& in line 1"),
        ("grep -q x /proc/cmdline &&\n  sysctl -w vm.nr_hugepages=1", "&& in line 1"),
        (f"[ $(id -u) -eq 0 ] && echo 1 > /{POOL}", "&& in line 1"),
        (f"[ ! -f /{POOL} ] && echo 1 > /{POOL}", "&& in line 1"),
        (f"[ -f /{POOL} ] || echo 1 > /{POOL}", "|| in line 1"),
        (f"[ -e /{POOL} ] || false && echo 1 > /{POOL}", "|| in line 1"),
        (f"(true) && echo 1 > /{POOL}", "&& in line 1"),
        (f"{{ true; }} && echo 1 > /{POOL}", "&& in line 1"),
        (f"if true; then true; fi && echo 1 > /{POOL}", "&& in line 1"),
        (f"for x in 1; do true; done && echo 1 > /{POOL}", "&& in line 1"),
        (f"[ -f /x ] && echo 1 | tee /{POOL}", "the test of /x"),
        (f"[ -f /x ] && [ -e /{POOL} ] && echo 1 > /{POOL}", "the test of /x"),
        (f"[ -f /x ] && sh -c 'echo 1 > /{POOL}'", "the test of /x"),
        (f"[ -e $F ] && echo 1 > /{POOL}", "the test of ${F}"),
    ],
)  # fmt: skip
def test_a_line_under_any_other_condition_is_left(text: str, condition: str) -> None:
    assert left_lines(text) == [(1, shell_script.CONDITIONAL.format(condition))]


@pytest.mark.parametrize(
    "begin", ["die() {", "die () {", "function die {", "function die() {", "die()\n{", "die() (", "die(){ true"]
)
def test_a_function_is_a_block(begin: str) -> None:
    end = ")" if begin.endswith("(") else "}"
    left, taken = script(
        f'{begin}\n  echo "$1"; echo 1 > /{POOL}\n  [ -z "$1" ] && return\n  exit 1\n{end}\necho 2 > /{POOL}'
    )
    assert isinstance(left, Left)
    assert isinstance(taken, Assignment)
    assert (taken.value, taken.idle) == ("2", "")


@pytest.mark.parametrize(
    "text",
    [
        "sh -c 'exit 1'",
        "(exit 1)",
        "sudo exit",
        "nohup exec foo",
        "exit 0 & true",
        "true && exit 0 & :",
        "die() { if true; then exit 1; fi; }",
    ],
)
def test_an_exit_that_does_not_end_the_script(text: str) -> None:
    (line,) = script(f"{text}; echo 2 > /{POOL}")
    assert isinstance(line, Assignment)
    assert line.idle == ""


def test_of_a_script_that_is_too_long_all_is_left() -> None:
    line = f"echo 1 > /{POOL}\n"
    assert pairs(line + "\n" * (MAX_TEXT - len(line))) == [(POOL, "1")]
    assert left_lines(line + "\n" * MAX_TEXT) == [(1, shell_script.NOT_READ)]


def test_what_stands_behind_exit_is_never_reached() -> None:
    text = f"exec > /tmp/log 2>&1\necho 1 > /{POOL}\nexit 0\necho 2 > /{POOL}\nhugeadm --thp-always"
    first, second, third = script(text)
    assert isinstance(first, Assignment)
    assert isinstance(second, Assignment)
    assert isinstance(third, Left)
    never = shell_script.NEVER_REACHED.format("exit", 3)
    assert (first.idle, second.idle, third.why, third.cause) == ("", never, never, Cause.NO_EFFECT)


@pytest.mark.parametrize("end", ["exec /usr/bin/foo", "exec sleep 1 > /dev/null", "X=1 exec foo", "command exec foo"])
def test_what_stands_behind_exec_is_never_reached(end: str) -> None:
    (line,) = script(f"{end}; echo 1 > /{POOL}")
    assert isinstance(line, Assignment)
    assert line.idle == shell_script.NEVER_REACHED.format("exec", 1)


@pytest.mark.parametrize(
    "text",
    [
        "[ -x /bin/true ] || exit 1",
        f"[ -f /{POOL} ] || exit 1",
        f"[ -f /{POOL} ] && exit 1",
        'if [ "$(id -u)" -ne 0 ]; then echo "must be root" >&2; exit 1; fi',
        "{ exit 1; }",
        "for x in 1; do exit 1; done",
    ],
)
def test_behind_an_exit_under_a_condition_all_is_left(text: str) -> None:
    assert left_lines(f"{text}\necho 1 > /{POOL}") == [(2, shell_script.MAY_END.format("exit", 1))]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("echo never > /sys/kernel/mm/transparent_hugepage/enabled", 1),
        ("echo never | sudo tee /sys/kernel/mm/transparent_hugepage/enabled >/dev/null", 1),
        (
            "if test -f /sys/kernel/mm/transparent_hugepage/enabled; then\n"
            "  echo never > /sys/kernel/mm/transparent_hugepage/enabled\nfi",
            0,
        ),
        (f"[ -f /{THP}/defrag ] && echo never > /{THP}/defrag", 1),
        ("echo 8192 | sudo tee /proc/sys/vm/nr_hugepages", 1),
        ("sudo sysctl -w vm.nr_hugepages=1280 vm.swappiness=10 >/dev/null 2>&1 || true", 2),
        ("for CPUFREQ in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do [ -f $CPUFREQ ] || continue; "
         "echo -n performance > $CPUFREQ; done", 1),
        ("for file in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do"
         ' echo "performance" | sudo tee "${file}"; done', 1),
        ("for i in 0 1 2 3; do\n  echo performance > /sys/devices/system/cpu/cpu$i/cpufreq/scaling_governor\ndone", 4),
        ("for i in $(seq 0 7); do echo performance > /sys/devices/system/cpu/cpu$i/cpufreq/scaling_governor; done", 0),
        ("/usr/bin/cpupower frequency-set --governor performance > /dev/null 2>&1", 1),
        ("for d in /sys/block/nvme*n1; do\n  echo none > $d/queue/scheduler 2>/dev/null || true\ndone", 1),
        ("echo deadline > /sys/block/sda/queue/scheduler\n/sbin/blockdev --setra 4096 /dev/sda", 2),
        ("for node in /sys/devices/system/node/node[0-9]*; do\n"
         "  echo 512 > $node/hugepages/hugepages-2048kB/nr_hugepages\ndone", 1),
        ("sudo bash -c 'echo 0 > /proc/sys/kernel/numa_balancing'", 1),
    ],
)  # fmt: skip
def test_forms_of_forums_and_vendors(text: str, number: int) -> None:
    """Those that ask more than a file are left: an admin sees them, and nobody guesses."""
    found = script(text)
    assert [isinstance(line, Assignment) for line in found] == ([True] * number or [False])


# Their last line in force is the value that a shell leaves behind.
RUNNABLE = [
    f"echo 1 > /{POOL}",
    f"echo 1 | tee /{POOL} > /dev/null 2>&1 || true\necho 2 >> /tmp/no/such/folder || true",
    f"[ -e /{POOL} ] && echo 1 > /{POOL}\n[ -e /no/such/file ] && echo 2 > /{POOL}\ntrue",
    f'for f in /{POOL} /{POOL}; do [ -e $f ] || continue; echo 1 > "$f"; done',
    f"for n in 3 2 1; do\n  echo $n > /{POOL}\ndone",
    f"sh -c 'for f in /{POOL}; do echo 1 > $f; done'",
    f'sh -c "echo 1 > /{POOL}; exit 0; echo 2 > /{POOL}"',
    f"echo 1 > /{POOL}\nexit 0\necho 2 > /{POOL}",
    f"f() {{ exit 1; }}\necho 1 > /{POOL}\nif false; then\n  echo 2 > /{POOL}\nfi",
    f"echo 1 > /{POOL} # > /x\ncat <<EOF\necho 2 > /{POOL}\nEOF",
    f"echo 1 > /{POOL}\necho '\necho 2 > /{POOL}\n'",
    f"echo 1 > /{POOL}\ncase x in\ny) echo 2 > /{POOL} ;;\n(z) echo 3 > /{POOL}\nesac",
    f"echo 1 > /{POOL}\nexec true\necho 2 > /{POOL}",
    f"exit 0 & exec 3>&1; echo 1 > /{POOL}",
    "echo 1 | tee /proc/sys/vm/nr_hugep*; echo 2 > /proc/sys/vm/nr_hugep*; echo 3 | tee '/proc/sys/vm/nr_hugep*'",
    'for f in /proc/sys/v?/nr_hugepages; do echo 1 > $f; done; for f in "/proc/sys/v?/nr_huge"; do echo 2 > $f; done',
    f"echo 1 > /{POOL}; [ -f /proc/sys/vm ] && echo 2 > /{POOL}; [ -d /{POOL} ] && echo 3 > /{POOL}\n"
    f"[ -L /{POOL} ] && echo 4 > /{POOL}; [ -e /{POOL}/ ] && echo 5 > /{POOL}; [ -d /proc/sys ] && echo 1 > /{POOL}",
    f"for f in /{POOL}; do sh -c \"echo 1 > $f\"; sh -c 'echo 2 > /no$f; echo 3 > $f'; done",
    f'x=$(echo $(echo 2)) y="$(echo 2)"; echo 1 \\\n  > /{POOL}',
    f"echo 1 > /{POOL}; false && echo 2 > /{POOL} || false && echo 3 > /{POOL}; [ $# -gt 5 ] && echo 4 > /{POOL}",
]


@pytest.mark.parametrize("text", RUNNABLE)
def test_a_shell_writes_what_is_proposed(tmp_path: Path, text: str) -> None:
    root = write(tmp_path, {POOL: "0\n"})
    subprocess.run(["sh"], input=text.replace("/proc/", f"{root}/proc/"), text=True, timeout=20, check=False)
    in_force = [line.value for line in script(text) if isinstance(line, Assignment) and not line.idle]
    assert (root / POOL).read_text().strip() == in_force[-1] == "1"


@pytest.mark.parametrize(
    "call",
    [
        "sysctl -p /etc/llm.conf",
        "sysctl -q -p /etc/llm.conf > /dev/null",
        "/sbin/sysctl -qp /etc/llm.conf",
        "sysctl -p/etc/llm.conf",
        "sysctl --load=/etc/llm.conf",
        "sudo sysctl -f /etc/llm.conf",
        "[ -f /etc/llm.conf ] && sysctl -p /etc/llm.conf",
    ],
)
def test_a_file_that_sysctl_reads_is_read(tmp_path: Path, call: str) -> None:
    files = Files(write(tmp_path, {"etc/llm.conf": "# for the server\nvm.nr_hugepages = 8\n"}))
    line, again = script(f"{call}\n{call}", files)
    assert line == again
    assert isinstance(line, Assignment)
    assert (line.path, line.value, str(line.place), line.stage) == (POOL, "8", "/etc/llm.conf:2", Stage.RC_LOCAL)


@pytest.mark.parametrize("call", ["sysctl -p", "sysctl -e -p", "sysctl --load"])
def test_without_a_name_it_is_sysctl_conf(tmp_path: Path, call: str) -> None:
    (line,) = script(call, Files(write(tmp_path, {"etc/sysctl.conf": "vm.nr_hugepages = 8\n"})))
    assert isinstance(line, Assignment)
    assert str(line.place) == "/etc/sysctl.conf:1"


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("sysctl -p /etc/no.conf", "it reads /etc/no.conf, and there is no such file here"),
        ("sysctl -p", "it reads /etc/sysctl.conf, and there is no such file here"),
        ("sysctl -p - < /etc/llm.conf", "which file '-' is, is not known here"),
        ("sysctl --load=- < /etc/llm.conf", "which file '-' is, is not known here"),
        ("sysctl --system --pattern ^net", shell_script.NOT_READ),
        ("grep -q x /etc/y && sysctl --system", shell_script.CONDITIONAL.format("&& in line 1")),
        ("sysctl -p llm.conf", "which file 'llm.conf' is, is not known here"),
        ("sysctl -p /etc/$X.conf", "which file '/etc/${X}.conf' is, is not known here"),
        ("sysctl -p /etc/llm.d/*.conf", "which file '/etc/llm.d/*.conf' is, is not known here"),
        ("grep -q x /etc/y && sysctl -p /etc/llm.conf", shell_script.CONDITIONAL.format("&& in line 1")),
    ],
)
def test_a_file_that_is_not_read_is_shown(tmp_path: Path, call: str, why: str) -> None:
    text = "vm.nr_hugepages = 8\n"
    (left,) = script(call, Files(write(tmp_path, {"etc/llm.conf": text, "etc/sysctl.d/a.conf": text})))
    assert isinstance(left, Left)
    assert left.why == why


def test_a_file_is_not_read_without_end(tmp_path: Path) -> None:
    files = Files(write(tmp_path, {"etc/llm.conf": "vm.nr_hugepages = 8\n"}))
    found = script("sysctl -p /etc/llm.conf\n" * (shell_script.MAX_LOADED + 1), files)
    assert [type(line) for line in found] == [Assignment] * shell_script.MAX_LOADED + [Left]


def test_nothing_is_run(tmp_path: Path) -> None:
    for text in (f"touch {tmp_path}/x", f"echo $(touch {tmp_path}/x)", f"echo `touch {tmp_path}/x` > /{POOL}"):
        script(text)
    assert list(tmp_path.iterdir()) == []


def test_rc_local_has_two_names_and_must_be_executable(tmp_path: Path) -> None:
    files = Files(write(tmp_path, {"etc/rc.d/rc.local": f"#!/bin/sh\necho 1 > /{POOL}\n"}))
    (line,) = shell_script.read(files)
    assert isinstance(line, Assignment)
    assert str(line.place) == "/etc/rc.d/rc.local:2"
    assert line.idle.startswith("/etc/rc.d/rc.local is not executable")
    (tmp_path / "etc/rc.local").symlink_to("rc.d/rc.local")
    (tmp_path / "etc/rc.d/rc.local").chmod(0o755)
    (line,) = shell_script.read(files)
    assert isinstance(line, Assignment)
    assert (line.place.file, line.idle) == ("/etc/rc.local", "")


@pytest.mark.parametrize(
    ("start", "why"),
    [
        ("#!/bin/sh", ""),
        ("#!/bin/sh -e", ""),
        ("#! /usr/bin/env bash", ""),
        ("", shell_script.NO_SHELL),
        ("# rc.local", shell_script.NO_SHELL),
        (" #!/bin/sh", shell_script.NO_SHELL),
        ("#!/usr/bin/python3", shell_script.NO_SHELL),
        ("#!/bin/sh -n", shell_script.NO_SHELL),
        ("#!/bin/sh -e\r", shell_script.RETURNS),
        ("#!/bin/sh\n:\r", shell_script.RETURNS),
    ],
)
def test_rc_local_starts_with_its_shell(tmp_path: Path, start: str, why: str) -> None:
    root = write(tmp_path, {})
    (root / "etc").mkdir()
    (root / "etc/rc.local").write_bytes(f"{start}\necho 1 > /{POOL}\n".encode())
    (root / "etc/rc.local").chmod(0o755)
    (line,) = shell_script.read(Files(root))
    assert (line.why if isinstance(line, Left) else line.idle) == why
    assert isinstance(line, Left) == bool(why)
