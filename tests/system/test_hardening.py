"""What the running service may do: no capability, and no file to write outside of what it tunes."""

from __future__ import annotations

import json
import re

import pytest

from tests.system.host import UNIT, Host
from tests.system.machine import Machine

pytestmark = pytest.mark.every_system

WORST = 2.0
MAY = (
    "/proc/sys/vm/nr_hugepages",
    "/proc/sys/vm/overcommit_memory",
    "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
    "/sys/devices/system/node/node1/hugepages/hugepages-1048576kB/nr_hugepages",
    "/sys/devices/system/cpu/cpufreq/policy0/scaling_governor",
    "/sys/block/vdb/queue/scheduler",
    "/var/lib/kerntune/new",
    "/run/kerntune/new",
)
MAY_NOT = (
    *("/etc/passwd", "/etc/new", "/etc/kerntune/kerntune.toml", "/etc/kerntune/kerntune.d/new.toml"),
    *("/usr/bin/kerntuned", "/usr/bin/new", "/usr/lib/python3/dist-packages/kerntune/__init__.py", "/boot/new"),
    *("/root/kerntune.deb", "/root/new", "/home/bob/.bashrc", "/home/new", "/var/lib/new", "/var/log/new", "/run/new"),
    *("/proc/sys/kernel/panic", "/proc/sys/kernel/core_pattern", "/proc/sys/fs/file-max", "/proc/sysrq-trigger"),
    "/proc/irq/default_smp_affinity",
    *("/sys/module/printk/parameters/time", "/sys/power/state", "/sys/fs/cgroup/cgroup.procs", "/dev/vda"),
)
# The mounts of its namespace that can be written to, and those that cannot; the same with each systemd.
WRITABLE = {
    *("/proc", "/proc/sys/vm", "/sys/devices", "/sys/kernel/mm"),
    *("/var/lib/kerntune", "/run/kerntune", "/tmp", "/var/tmp", "/dev/pts", "/dev/shm", "/dev/hugepages"),
}
READ_ONLY = {
    *("/", "/dev", "/etc/kerntune", "/home", "/root", "/run", "/run/user", "/proc/sys", "/proc/sysrq-trigger"),
    *("/proc/acpi", "/proc/fs", "/proc/irq", "/proc/kmsg", "/usr/lib/modules"),
    *("/sys", "/sys/fs/bpf", "/sys/fs/cgroup", "/sys/fs/pstore", "/sys/kernel/config", "/sys/kernel/debug"),
    "/sys/kernel/security",
}
# Through it a service hears of pressure on its own memory (systemd from 254 on).
PRESSURE = "/sys/fs/cgroup/system.slice/{unit}/memory.pressure"
METRICS, METRICS_UNIT = "/var/lib/prometheus/node-exporter", "kerntune-metrics.service"
# In the service's view of the file system and with its capabilities; files that are opened are not written to.
TRY = """
import errno, json, os, sys
said = {}
for path in json.load(sys.stdin):
    new = os.O_CREAT if path.rpartition("/")[2].startswith("new") else 0
    try:
        os.close(os.open(path, os.O_WRONLY | new, 0o600))
    except OSError as error:
        said[path] = errno.errorcode[error.errno]
    else:
        said[path] = "written"
        if new:
            os.unlink(path)
print(json.dumps(said))
"""
# Those mounts of its namespace that a path leads to: what lies under another mount is out of reach.
REACHED = """
import os
for row in open("/proc/self/mountinfo"):
    number, place = row.split()[0], row.split()[4]
    try:
        file = os.open(place, os.O_PATH)
    except OSError:
        continue
    if f"mnt_id:\\t{number}\\n" in open(f"/proc/self/fdinfo/{file}").readlines():
        print(row, end="")
    os.close(file)
"""
POWERLESS = ("--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs")


def test_the_score_of_its_exposure(vm: Machine) -> None:
    shown = vm.check(["systemd-analyze", "security", "--no-pager", UNIT])
    found = re.search(r"Overall exposure level for kerntuned\.service: ([\d.]+)", shown)
    assert found, shown
    assert float(found[1]) <= WORST, shown


def test_its_units_are_in_order(vm: Machine) -> None:
    units = "/usr/lib/systemd/system/kerntuned.service /usr/lib/systemd/system/kerntune.target"
    checked = vm.run(f"systemd-analyze verify --man=no {units}")
    assert (checked.status, checked.out, checked.err) == (0, "", "")


def test_it_has_no_capability(host: Host, vm: Machine) -> None:
    rows = (line.partition(":") for line in vm.read(f"/proc/{host.pid}/status").splitlines())
    status = {name: value.strip() for name, _, value in rows}
    for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
        assert int(status[f"Cap{kind}"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["Uid"].split()[0] == "0"


def test_with_the_guard_on_it_stays_in_memory_and_alive(host: Host, vm: Machine) -> None:
    host.set(("overcommit", "", "always:95"), user="bob")
    locked, badness = vm.check(f"cd /proc/{host.pid}; awk '/^VmLck/ {{print $2}}' status; cat oom_score_adj").split()
    assert int(locked) > 0
    assert badness == "-900"


def test_the_mounts_of_its_namespace(host: Host, vm: Machine) -> None:
    # As each login does for its user; the mount comes into every namespace.
    vm.check("mkdir /run/user/1 && mount -t tmpfs tmpfs /run/user/1")
    try:
        reached = vm.check(["nsenter", f"--target={host.pid}", "--mount", "python3", "-c", REACHED])
    finally:
        vm.check("umount /run/user/1 && rmdir /run/user/1")
    writable, read_only = mounts(reached)
    assert writable - {PRESSURE.format(unit=UNIT)} == WRITABLE
    assert read_only >= READ_ONLY


def mounts(mountinfo: str) -> tuple[set[str], set[str]]:
    """Return the places of mounts that can be written to, and of those that cannot (proc_pid_mountinfo(5))."""
    rows = [line.split() for line in mountinfo.splitlines()]
    # Of several mounts in one place the last lies on top.
    ways = {row[4]: row[5].split(",")[0] for row in rows}
    writable = {place for place, way in ways.items() if way == "rw"}
    return writable, ways.keys() - writable


def test_the_metrics_change_nothing_of_the_kernel(vm: Machine) -> None:
    look = f"[Service]\nExecStartPost=/bin/cp /proc/self/mountinfo {METRICS}/mounts\n"
    vm.write(f"/run/systemd/system/{METRICS_UNIT}.d/look.conf", look)
    vm.check(f"mkdir -p {METRICS} && systemctl daemon-reload && systemctl start {METRICS_UNIT}")
    writable, read_only = mounts(vm.read(f"{METRICS}/mounts"))
    vm.check(f"rm -r {METRICS} /run/systemd/system/{METRICS_UNIT}.d && systemctl daemon-reload")
    of_the_kernel = {place for place in writable if place.startswith(("/sys", "/proc/"))}
    # What there is of SELinux systemd leaves as it is.
    assert of_the_kernel - {PRESSURE.format(unit=METRICS_UNIT), "/sys/fs/selinux"} == set()
    assert read_only >= {"/", "/sys", "/sys/fs/cgroup", "/proc/sys", "/proc/irq"}


def test_it_writes_what_it_tunes_and_nothing_else(host: Host, vm: Machine) -> None:
    # They are there, so that a refusal means something.
    vm.check(["ls", *(path for path in (*MAY, *MAY_NOT) if not path.rpartition("/")[2].startswith("new"))])
    inside = ["nsenter", f"--target={host.pid}", "--mount", "setpriv", *POWERLESS, "python3", "-c", TRY]
    said = json.loads(vm.check(inside, data=json.dumps([*MAY, *MAY_NOT])))
    assert {path: said[path] for path in MAY} == dict.fromkeys(MAY, "written")
    assert {path: said[path] for path in MAY_NOT if said[path] == "written"} == {}
    assert set(said.values()) <= {"written", "EROFS", "EACCES", "ENOENT", "EPERM", "ENXIO"}


def test_the_sandbox_fences_mistakes_not_a_takeover(host: Host, vm: Machine) -> None:
    """As docs/adr/0002 says: uid 0 on the system bus may still have systemd run any program outside the sandbox."""
    proof = "/etc/kerntune-proof"
    unit = ["kerntune-proof.service", "fail", "1", "ExecStart", "a(sasb)", "1"]
    program = ["/usr/bin/touch", "2", "/usr/bin/touch", proof, "false", "0"]
    systemd = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"]
    inside = ["nsenter", f"--target={host.pid}", "--mount", "setpriv", *POWERLESS]
    try:
        vm.check([*inside, "busctl", "call", *systemd, "StartTransientUnit", "ssa(sv)a(sa(sv))", *unit, *program])
        assert vm.check(f"timeout 10 sh -c 'until [ -e {proof} ]; do sleep 0.1; done'; ls {proof}").strip() == proof
    finally:
        vm.check(f"rm -f {proof}")
