"""The Debian package as dpkg and systemd see it: installed, upgraded, removed, and purged at the end.

Its service has no capability, and no file to write outside of what it tunes.
"""

from __future__ import annotations

import json
import re

import pytest

from tests.system.host import UNIT, Host, Setting
from tests.system.image.installed import IN_GUEST
from tests.system.machine import Machine

pytestmark = [pytest.mark.own_machine, pytest.mark.usefixtures("as_found")]

UNPACK = 240.0  # seconds: a busy machine compiles all modules slowly
NEWER = "/root/newer"
RUNTIME: Setting = ("cpu-governor", "*", "performance")
SAVED: Setting = ("hugepages", "2M", "40")
CLAIMS = {"runtime:cpu-governor@*": "performance", "persistent:hugepages@2M": "40"}


@pytest.mark.every_system
def test_it_is_installed_enabled_and_running(host: Host, vm: Machine) -> None:
    assert vm.check("dpkg-query -W -f '${db:Status-Status}' kerntune") == "installed"
    assert vm.run("dpkg --verify kerntune").out == ""
    assert (host.unit("UnitFileState"), host.unit("ActiveState")) == ("enabled", "active")
    assert vm.check("systemctl is-system-running") == "running"
    assert "bob" in vm.check("getent group kerntune")
    assert (host.unit("UnitFileState", TIMER), host.unit("ActiveState", TIMER)) == ("disabled", "inactive")
    assert [host.pages(), host.governor(0), host.claims()] == [0, "schedutil", {}], "it has changed nothing"
    for folder in ("/var/lib/kerntune", "/run/kerntune"):
        assert vm.run(["ls", folder], user="alice").status != 0, f"{folder} is for root"


# What the running service may do


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
TIMER = "kerntune-metrics.timer"
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


@pytest.mark.every_system
def test_the_score_of_its_exposure(vm: Machine) -> None:
    shown = vm.check(["systemd-analyze", "security", "--no-pager", UNIT])
    found = re.search(r"Overall exposure level for kerntuned\.service: ([\d.]+)", shown)
    assert found, shown
    assert float(found[1]) <= WORST, shown


@pytest.mark.every_system
def test_its_units_are_in_order(vm: Machine) -> None:
    units = "/usr/lib/systemd/system/kerntuned.service /usr/lib/systemd/system/kerntune.target"
    checked = vm.run(f"systemd-analyze verify --man=no {units}")
    assert (checked.status, checked.out, checked.err) == (0, "", "")


@pytest.mark.every_system
def test_it_has_no_capability(host: Host, vm: Machine) -> None:
    rows = (line.partition(":") for line in vm.read(f"/proc/{host.pid}/status").splitlines())
    status = {name: value.strip() for name, _, value in rows}
    for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
        assert int(status[f"Cap{kind}"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["Uid"].split()[0] == "0"


@pytest.mark.every_system
def test_with_the_guard_on_it_stays_in_memory_and_alive(host: Host, vm: Machine) -> None:
    host.set(("overcommit", "", "always:95"), user="bob")
    locked, badness = vm.check(f"cd /proc/{host.pid}; awk '/^VmLck/ {{print $2}}' status; cat oom_score_adj").split()
    assert int(locked) > 0
    assert badness == "-900"


@pytest.mark.every_system
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


@pytest.mark.every_system
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


@pytest.mark.every_system
def test_it_writes_what_it_tunes_and_nothing_else(host: Host, vm: Machine) -> None:
    # They are there, so that a refusal means something.
    vm.check(["ls", *(path for path in (*MAY, *MAY_NOT) if not path.rpartition("/")[2].startswith("new"))])
    inside = ["nsenter", f"--target={host.pid}", "--mount", "setpriv", *POWERLESS, "python3", "-c", TRY]
    said = json.loads(vm.check(inside, data=json.dumps([*MAY, *MAY_NOT])))
    assert {path: said[path] for path in MAY} == dict.fromkeys(MAY, "written")
    assert {path: said[path] for path in MAY_NOT if said[path] == "written"} == {}
    assert set(said.values()) <= {"written", "EROFS", "EACCES", "ENOENT", "EPERM", "ENXIO"}


@pytest.mark.every_system
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


@pytest.mark.every_system
def test_all_values_are_as_they_were_found(host: Host, as_found: dict[str, str]) -> None:
    """It comes before the tests that take the package away."""
    assert host.snapshot() == as_found


# Upgrade, removal and purge


def test_an_upgrade_leaves_values_and_claims(host: Host, vm: Machine) -> None:
    host.set(RUNTIME, user="bob")
    host.set(SAVED, user="bob", persist=True)
    vm.check(f"dpkg-deb -R {IN_GUEST} {NEWER} && sed -i 's/^Version: .*/&+newer/' {NEWER}/DEBIAN/control")
    vm.check(f"dpkg-deb -Znone -b {NEWER} {NEWER}.deb && rm -r {NEWER}")
    vm.check(f"systemctl enable --now {TIMER}")
    pid = host.pid
    vm.check(f"dpkg -i {NEWER}.deb", limit=UNPACK)
    assert host.wait_restarted(pid) != pid
    assert host.unit("ActiveState", TIMER) == "active"
    assert vm.check("dpkg-query -W -f '${Version}' kerntune").endswith("+newer")
    assert host.claims() == CLAIMS
    assert [host.pages(), host.governor(0), host.governor(1)] == [40, "performance", "performance"]
    said = vm.check(f"journalctl --output=cat _SYSTEMD_INVOCATION_ID={host.unit('InvocationID')}")
    assert ", was " not in said, f"nothing was put back and set again: {said}"


def test_removed_it_is_gone_and_values_stay_and_the_older_one_knows_them(host: Host, vm: Machine) -> None:
    """The newer version is removed, and the older one comes back: a downgrade goes like an upgrade."""
    host.set(RUNTIME, user="bob")
    host.set(SAVED, user="bob", persist=True)
    vm.check(f"systemctl enable --now {TIMER}")
    vm.write(f"{METRICS}/kerntune.prom", "kerntune_well 1\n")
    vm.check("dpkg --remove kerntune", limit=UNPACK)
    assert vm.run(f"systemctl is-active {UNIT}").out.strip() in ("inactive", "unknown")
    assert vm.run(f"systemctl is-active {TIMER}").out.strip() in ("inactive", "unknown"), "it has not failed either"
    vm.check(f"rmdir {METRICS}")  # nobody renews the metrics
    assert [host.pages(), host.governor(0)] == [40, "performance"]
    assert "not activatable" in host.set(SAVED).refusal or "not provided" in host.set(SAVED).refusal
    assert vm.run("ls /usr/lib/python3/dist-packages/kerntune").status != 0, "nothing is left of the modules"
    vm.check("test -e /var/lib/kerntune/claims.json && test -e /etc/kerntune/kerntune.toml")
    vm.check(f"dpkg -i {IN_GUEST}", limit=UNPACK)
    for unit in (UNIT, TIMER):
        assert (host.unit("UnitFileState", unit), host.unit("ActiveState", unit)) == ("enabled", "active")
    assert host.claims() == CLAIMS
    host.release()
    assert [host.pages(), host.governor(0)] == [0, "schedutil"], "the host's own values are still known"


@pytest.mark.every_system
def test_purged_nothing_is_left(host: Host, vm: Machine) -> None:
    host.set(SAVED, user="bob", persist=True)
    vm.check("dpkg --purge kerntune", limit=UNPACK)
    left = vm.run("ls -d /etc/kerntune /var/lib/kerntune /run/kerntune /etc/systemd/system/*/*kerntune*")
    assert left.out == ""
    assert host.pages() == 40
    vm.check(f"echo 0 > /proc/sys/vm/nr_hugepages; dpkg -i {IN_GUEST}")
    assert host.claims() == {}
