"""Lines that people paste into rc.local, as they are found in forums and in vendors' guides."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerntune.doctor import shell_script
from kerntune.doctor.files import Files, Line
from kerntune.doctor.types import Assignment, Left, Stage
from tests.unit.doctor.lab import write

POOL = "proc/sys/vm/nr_hugepages"
GOVERNORS = "sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
THP = "sys/kernel/mm/transparent_hugepage"


def script(text: str, files: Files | None = None) -> list[Assignment | Left]:
    rows = [Line(number, line) for number, line in enumerate(text.split("\n"), 1)]
    return shell_script.script(rows, "/etc/rc.local", files)


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
        "sysctl --system",
        f"gone() {{\n  cat /{POOL}\n}}\ngone",
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


@pytest.mark.parametrize(
    "text",
    [
        f"if test -f /{POOL}; then\n  echo 1 > /{POOL}\nfi",
        f"if [ -w /{POOL} ]\nthen echo 1 > /{POOL}; fi",
        f"if [ -e /{POOL} ] && [ -w /{POOL} ]; then echo 1 > /{POOL}; fi",
        "if [ -d /proc/sys/vm ]; then sysctl -w vm.nr_hugepages=1; fi",
        f"F=/{POOL}; [ -w $F ] && echo 1 > $F",
        f'[[ -e /{POOL} ]] && echo 1 | tee "/{POOL}"',
        f"[ -e /{POOL} ] && {{ echo 1 > /{POOL}; }}",
        f"[ -e /{POOL} ] && (echo 1 > /{POOL})",
        f"[ $(id -u) -eq 0 ] && echo 1 > /{POOL}",
        f'if [ "$(id -u)" = "0" ]; then echo 1 > /{POOL}; fi',
        f"if [[ $EUID -eq 0 ]]; then echo 1 > /{POOL}; fi",
        f"test `whoami` = root && echo 1 > /{POOL}",
        f"sleep 10 && echo 1 > /{POOL}",
        "echo 1 > /proc/sys/net/x && sysctl -w vm.nr_hugepages=1",
        f"if false; then echo x; fi; echo 1 > /{POOL}",
        f"if false\nthen\n  (echo x)\nelse\n  echo y\nfi\necho 1 > /{POOL}",
        f"case x in\na) echo a ;;\n(b) echo b\nesac\necho 1 > /{POOL}",
        f"while false; do sleep 1; done; echo 1 > /{POOL}",
        f"until [ -e /{POOL} ]; do sleep 1; done\necho 1 > /{POOL}",
        "if ! sysctl -w vm.nr_hugepages=1; then echo failed; fi",
        f"for f in /{POOL}; do [ -f $f ] || continue; echo 1 > $f; done",
        f"grep -q x /proc/mounts && echo mounted\necho 1 > /{POOL}",
    ],
)  # fmt: skip
def test_a_condition_that_only_asks_for_the_file_or_for_root_is_none(text: str) -> None:
    assert [pair for pair in said(text) if not pair[0].startswith("proc/sys/net")] == [(POOL, "1")]
    assert all(line.remark == "" for line in script(text) if isinstance(line, Assignment))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (f"if [ -f /etc/gpu ]; then echo 1 > /{POOL}; fi", "if in line 1"),
        (f"if [ ! -f /{POOL} ]; then echo 1 > /{POOL}; fi", "if in line 1"),
        (f"if ! [ -f /{POOL} ]; then echo 1 > /{POOL}; fi", "if in line 1"),
        (f"if [ -f /{POOL} ] || [ -f /x ]; then echo 1 > /{POOL}; fi", "if in line 1"),
        (f"if lspci | grep -q NVIDIA\nthen\n  echo 1 > /{POOL}\nfi", "if in line 1"),
        (f"if [ -f /{POOL} ]; then :; else\n  echo 1 > /{POOL}\nfi", "else in line 1"),
        (f"if [ -f /{POOL} ]; then :\nelif [ -f /{POOL} ]; then echo 1 > /{POOL}; fi", "else in line 1"),
        (f"if [ -f /x ]\nthen if [ -f /{POOL} ]\nthen echo 1 > /{POOL}; fi; fi", "if in line 1"),
        (f"if [ -f /x ]; then {{ echo 1 > /{POOL}; }}; fi", "if in line 1"),
        (f"if [ $(id -u) -ne 0 ]; then echo 1 > /{POOL}; fi", "if in line 1"),
        (f'case "$1" in\nstart)\n  echo 1 > /{POOL} ;;\nesac', "case in line 1"),
        (f"while true; do echo 1 > /{POOL}; sleep 9; done", "while in line 1"),
        (f"grep -q x /proc/cmdline && echo 1 > /{POOL}", "&& in line 1"),
        (f"grep -q x /proc/cmdline && {{ true\n  echo 1 > /{POOL}\n}}", "&& in line 1"),
        (f"[ -f /x ] && echo 1 | tee /{POOL}", "&& in line 1"),
        (f"[ -f /{POOL} ] || echo 1 > /{POOL}", "|| in line 1"),
        (f"grep -q x /proc/cmdline && sh -c 'echo 1 > /{POOL}'", "&& in line 1"),
        ("grep -q x /proc/cmdline && sysctl -w vm.nr_hugepages=1", "&& in line 1"),
        (f"for f in /{POOL}; do grep -q x $f || continue; echo 1 > $f; done", "the continue in line 1"),
        (f"( grep -q x /etc/y || exit 0; echo 1 > /{POOL} )", "the exit in line 1"),
    ],
)  # fmt: skip
def test_a_line_under_any_other_condition_is_left(text: str, where: str) -> None:
    (left,) = script(text)
    assert isinstance(left, Left)
    assert left.why == shell_script.CONDITIONAL.format(where)


def test_a_condition_is_at_an_end_where_it_ends() -> None:
    left, taken = script(f"[ -f /x ] && ( echo 1 > /{POOL} )\necho 2 > /{POOL}")
    assert (type(left), type(taken)) == (Left, Assignment)
    left, taken = script(f"if [ -f /x ]; then\n  [ -e /y ] && {{ :; }}\n  echo 1 > /{POOL}; fi; echo 2 > /{POOL}")
    assert (type(left), type(taken)) == (Left, Assignment)


def test_what_is_set_under_a_condition_is_not_known_behind_it() -> None:
    (left,) = script(f"N=1\nif grep -q big /etc/host; then N=2; fi\necho $N > /{POOL}")
    assert isinstance(left, Left)


@pytest.mark.parametrize(
    "begin", ["die() {", "die () {", "function die {", "function die() {", "die()\n{", "die() (", "die(){ true"]
)
def test_a_function_is_only_defined(begin: str) -> None:
    end = ")" if begin.endswith("(") else "}"
    text = f'{begin}\n  echo "$1"; echo 1 > /{POOL}\n  [ -z "$1" ] && return\n  exit 1\n{end}\necho 2 > /{POOL}'
    left, taken = script(text)
    assert isinstance(left, Left)
    assert left.why == shell_script.IN_A_FUNCTION
    assert isinstance(taken, Assignment)
    assert (taken.value, taken.idle, taken.remark) == ("2", "", "")


def test_a_function_in_one_line() -> None:
    for text in (
        f'die() {{ echo "$1"; exit 1; }}\necho 2 > /{POOL}',
        f'die() {{ if true; then exit 1; fi; }}; echo 2 > /{POOL}',
        f'(exit 1); {{ true; }}; echo 2 > /{POOL}',
    ):  # fmt: skip
        assert said(text) == [(POOL, "2")]
        assert [line.idle for line in script(text) if isinstance(line, Assignment)] == [""]


def test_what_stands_behind_exit_is_never_reached() -> None:
    first, second = script(f"[ -x /bin/true ] || exit 1\necho 1 > /{POOL}\nexit 0\necho 2 > /{POOL}")
    assert isinstance(first, Assignment)
    assert isinstance(second, Assignment)
    assert (first.idle, second.idle) == ("", "it stands behind the exit in line 3, so it is never reached")
    assert first.remark == shell_script.MAY_END.format("the exit in line 1")


@pytest.mark.parametrize(
    "text",
    [
        "[ $(id -u) -eq 0 ] || exit 1",
        f"[ -f /{POOL} ] || exit 0",
        'if [ "$(id -u)" -ne 0 ]; then\n  echo "must be root" >&2\n  exit 1\nfi',
    ],
)
def test_an_exit_that_no_boot_comes_to(text: str) -> None:
    (line,) = script(f"{text}\necho 1 > /{POOL}")
    assert isinstance(line, Assignment)
    assert (line.idle, line.remark) == ("", "")


@pytest.mark.parametrize(
    "call",
    [
        "sysctl -p /etc/llm.conf",
        "sysctl -q -p /etc/llm.conf > /dev/null",
        "/sbin/sysctl -qp /etc/llm.conf",
        "sysctl -p/etc/llm.conf",
        "sysctl --load=/etc/llm.conf",
        "sudo sysctl -f /etc/llm.conf",
        "C=/etc/llm.conf; sysctl -p $C",
        "[ -f /etc/llm.conf ] && sysctl -p /etc/llm.conf",
    ],
)
def test_a_file_that_sysctl_reads_is_read(tmp_path: Path, call: str) -> None:
    files = Files(write(tmp_path, {"etc/llm.conf": "# for the server\nvm.nr_hugepages = 8\n"}))
    (line,) = script(f"{call}\n{call}", files)
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
        ("sysctl -p llm.conf", "which file 'llm.conf' is, is not known here"),
        ("sysctl -p /etc/$X.conf", "which file '/etc/$X.conf' is, is not known here"),
        ("sysctl -p /etc/llm.d/*.conf", "which file '/etc/llm.d/*.conf' is, is not known here"),
        ("grep -q x /etc/y && sysctl -p /etc/llm.conf", shell_script.CONDITIONAL.format("&& in line 1")),
    ],
)
def test_a_file_that_is_not_read_is_said(tmp_path: Path, call: str, why: str) -> None:
    (left,) = script(call, Files(write(tmp_path, {"etc/llm.conf": "vm.nr_hugepages = 8\n"})))
    assert isinstance(left, Left)
    assert left.why == why


def test_nothing_is_run(tmp_path: Path) -> None:
    for text in (f"touch {tmp_path}/x", f"echo $(touch {tmp_path}/x)", f"echo `touch {tmp_path}/x` > /{POOL}"):
        script(text)
    assert list(tmp_path.iterdir()) == []


def test_rc_local_has_two_names_and_must_be_executable(tmp_path: Path) -> None:
    files = Files(write(tmp_path, {"etc/rc.d/rc.local": f"echo 1 > /{POOL}\n"}))
    (line,) = shell_script.read(files)
    assert isinstance(line, Assignment)
    assert str(line.place) == "/etc/rc.d/rc.local:1"
    assert line.idle.startswith("/etc/rc.d/rc.local is not executable")
    (tmp_path / "etc/rc.local").symlink_to("rc.d/rc.local")
    (tmp_path / "etc/rc.d/rc.local").chmod(0o755)
    (line,) = shell_script.read(files)
    assert isinstance(line, Assignment)
    assert (line.place.file, line.idle) == ("/etc/rc.local", "")
