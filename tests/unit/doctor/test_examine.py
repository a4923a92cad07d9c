"""What the doctor says of hosts: severity, evidence, and a fix; and which services set the same values."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerntune.doctor import services
from kerntune.doctor.examine import examine
from kerntune.doctor.files import Files
from kerntune.doctor.types import Assignment, Daemon, Finding, Severity, Wanted
from kerntune.kernel.files import HostKernel
from tests.hosts import NAMES, lay_out
from tests.unit.doctor.lab import handmade, write
from tests.unit.doctor.test_import_plan import policies

OK, NOTE, WARNING, PROBLEM = Severity.OK, Severity.NOTE, Severity.WARNING, Severity.PROBLEM


def topic(found: list[Finding], name: str) -> list[Finding]:
    return [finding for finding in found if finding.topic == name]


def one(root: Path, about: str, daemon: Daemon | None = None) -> Finding:
    """The one finding whose text holds these words."""
    found = [finding for finding in examine(root, daemon) if about in finding.what]
    assert len(found) == 1, [finding.what for finding in examine(root, daemon)]
    return found[0]


def claim(tunable: str, instances: str, value: str, *matches: str, origin: str = "persistent") -> Daemon:
    return Daemon((Wanted(tunable, instances, value, origin, matches),))


@pytest.mark.parametrize("name", NAMES)
def test_every_captured_host_can_be_examined(tmp_path: Path, name: str) -> None:
    lay_out(name, tmp_path)
    found = examine(tmp_path)
    assert {"hugepages", "cpu-governor", "io-scheduler", "memory", "overcommit", "limits"} <= {f.topic for f in found}
    assert all(finding.evidence for finding in found)
    always = (tmp_path / "proc/sys/vm/overcommit_memory").read_text() == "1\n"
    assert {finding.topic for finding in found if finding.severity is PROBLEM} == ({"overcommit"} if always else set())
    assert [finding for finding in found if finding.severity is WARNING and not finding.fix] == []


def test_what_matters_most_comes_first(tmp_path: Path) -> None:
    severities = [finding.severity for finding in examine(handmade(tmp_path))]
    assert severities == sorted(severities, key=[PROBLEM, WARNING, NOTE, OK].index)
    assert severities[0] is PROBLEM


def test_huge_pages_that_are_not_supported(tmp_path: Path) -> None:
    lay_out("no-hugetlb", tmp_path)
    finding = one(tmp_path, "huge pages are not supported")
    assert finding.severity is WARNING
    assert "HUGETLBFS" in finding.evidence[0]


def test_pages_that_nobody_uses(tmp_path: Path) -> None:
    lay_out("small-vm", tmp_path)
    folder = "sys/kernel/mm/hugepages/hugepages-2048kB"
    write(tmp_path, {f"{folder}/nr_hugepages": "64\n", f"{folder}/free_hugepages": "64\n"})
    assert "kerntune set hugepages@2M=0" in one(tmp_path, "64 huge pages of 2M (128 MiB)").fix


def test_fewer_pages_than_the_command_line_asks_for(tmp_path: Path) -> None:
    finding = one(handmade(tmp_path), "the kernel command line asks for 24")
    assert finding.severity is WARNING
    assert finding.evidence[0] == "/proc/cmdline:1: hugepages=24"


def test_governors(tmp_path: Path) -> None:
    lay_out("small-vm", tmp_path)
    (finding,) = topic(examine(tmp_path), "cpu-governor")
    assert finding.severity is NOTE
    assert finding.what == "CPU frequency scaling is not available: no frequency driver is loaded"
    assert "/proc/config.gz has CONFIG_CPU_FREQ=y" in finding.evidence
    assert finding.fix.startswith("try sudo modprobe acpi_cpufreq")
    write(tmp_path, {"proc/cpuinfo": "flags : fpu hypervisor\n"})
    (finding,) = topic(examine(tmp_path), "cpu-governor")
    assert finding.what.endswith("this is a virtual machine, so its host decides on CPU frequencies")
    assert finding.evidence[1:] == ("/proc/cpuinfo has the flag hypervisor",)
    assert "modprobe" not in finding.fix
    policies(tmp_path, 2)
    write(
        tmp_path,
        {
            "sys/devices/system/cpu/cpufreq/policy1/scaling_governor": "performance\n",
            "proc/cmdline": "intel_pstate=passive\n",
        },
    )
    warning, fine = topic(examine(tmp_path), "cpu-governor")
    assert (warning.severity, fine.severity) == (WARNING, OK)
    assert "/proc/cmdline:1: intel_pstate=passive" in fine.evidence


def test_an_nvme_drive_with_a_scheduler(tmp_path: Path) -> None:
    lay_out("two-sockets", tmp_path)
    (tmp_path / "sys/block/nvme1n1/queue/scheduler").write_text("none [mq-deadline]\n")
    finding = one(tmp_path, "nvme1n1 is scheduled by mq-deadline")
    assert finding.evidence == ("/sys/block/nvme1n1/queue/scheduler reads none [mq-deadline]",)
    assert finding.fix == "kerntune set 'io-scheduler@nvme*=none' --persist"


@pytest.mark.parametrize(
    ("mode", "process", "guard", "severity"),
    [
        ("0", "bash", "", OK),
        ("1", "bash", "", PROBLEM),
        ("1", "bash", "off", PROBLEM),
        ("1", "bash", "observing", PROBLEM),
        ("1", "bash", "relaxed", OK),
        ("1", "earlyoom", "", OK),
        ("1", "systemd-oomd", "", OK),
        ("2", "bash", "", OK),
        ("2", "bash", "capped", WARNING),
    ],
)
def test_always_needs_somebody_who_watches(
    tmp_path: Path, mode: str, process: str, guard: str, severity: Severity
) -> None:
    lay_out("small-vm", tmp_path)
    write(tmp_path, {"proc/sys/vm/overcommit_memory": f"{mode}\n", "proc/9/comm": f"{process}\n"})
    (finding,) = topic(examine(tmp_path, Daemon(guard=guard)), "overcommit")
    assert finding.severity is severity


ALWAYS_FILES = {"proc/sys/vm/overcommit_memory": "1\n", "proc/9/comm": "python3\n"}


def always(tmp_path: Path, files: dict[str, str], host: str = "small-vm", guard: str = "relaxed") -> list[str]:
    """What is said beside overcommit always on a host with these files."""
    lay_out(host, tmp_path)
    write(tmp_path, ALWAYS_FILES | files)
    return [finding.what for finding in topic(examine(tmp_path, Daemon(guard=guard)), "always")]


@pytest.mark.parametrize(("size", "needed"), [(1000, False), (1 << 40, True)])
def test_always_without_a_program_that_needs_it(tmp_path: Path, size: int, needed: bool) -> None:
    said = always(tmp_path, {"proc/9/status": f"Name:\tpython3\nVmData:\t  {size} kB\n"})
    assert any("nothing that runs here needs overcommit always" in what for what in said) is not needed


@pytest.mark.parametrize(("mode", "guard", "told"), [("0", "off", False), ("2", "off", False), ("2", "capped", True)])
def test_of_a_host_that_is_not_always_nothing_is_said_of_it(tmp_path: Path, mode: str, guard: str, told: bool) -> None:
    said = always(tmp_path, {"proc/sys/vm/overcommit_memory": f"{mode}\n"}, "two-sockets", guard)
    assert bool(said) is told


@pytest.mark.parametrize(
    ("cmdline", "config", "insists"),
    [
        ("kubelet\0--protect-kernel-defaults=true\0", "", True),
        ("kubelet\0--protect-kernel-defaults\0", "", True),
        ("kubelet\0--protect-kernel-defaults=false\0", "", False),
        ("kubelet\0", "a: 1\nprotectKernelDefaults: true\n", True),
        ("kubelet\0", "protectKernelDefaults: false\n", False),
    ],
)
def test_a_kubelet_that_insists_on_mode_1(tmp_path: Path, cmdline: str, config: str, insists: bool) -> None:
    files = {"proc/9/comm": "kubelet\n", "proc/9/cmdline": cmdline, "var/lib/kubelet/config.yaml": config}
    assert any("kubelet does not start while" in what for what in always(tmp_path, files)) is insists


@pytest.mark.parametrize(("size", "told"), [(15_000_000_000, True), (1_000_000_000, False)])
def test_zfs_that_has_much_of_ram(tmp_path: Path, size: int, told: bool) -> None:
    said = always(tmp_path, {"proc/spl/kstat/zfs/arcstats": f"c_min 4 500000000\nsize 4 {size}\n"})
    assert any("ZFS gives back" in what for what in said) is told


@pytest.mark.parametrize(("host", "told"), [("two-sockets", True), ("small-vm", False)])
def test_a_single_node_is_watched_by_nobody(tmp_path: Path, host: str, told: bool) -> None:
    assert any("nobody watches a single NUMA node" in what for what in always(tmp_path, {}, host)) is told


def test_never_with_a_limit_that_is_nearly_reached(tmp_path: Path) -> None:
    lay_out("small-vm", tmp_path)
    meminfo = (tmp_path / "proc/meminfo").read_text().replace("125600 kB", "12300000 kB")
    write(tmp_path, {"proc/sys/vm/overcommit_memory": "2\n", "proc/meminfo": meminfo})
    assert one(tmp_path, "soon no program can start").severity is PROBLEM


def test_limits_of_the_session(tmp_path: Path) -> None:
    finding = one(handmade(tmp_path), "memory limits")
    assert finding.evidence == ("/sys/fs/cgroup/user.slice/memory.max reads 17179869184",)
    assert "8 MiB" in one(tmp_path, "may lock").what


@pytest.mark.parametrize(("value", "limited"), [("9223372036854771712", False), ("1073741824", True)])
def test_limits_of_cgroup_v1(tmp_path: Path, value: str, limited: bool) -> None:
    lay_out("small-vm", tmp_path)
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/a\n1:cpu,cpuacct:/b\n",
            "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes": f"{value}\n",
        },
    )
    found = [finding.what for finding in topic(examine(tmp_path), "limits")]
    assert any("has memory limits" in what for what in found) is limited


def test_a_rival_is_a_problem_where_it_sets_what_is_claimed(tmp_path: Path) -> None:
    handmade(tmp_path)
    assert one(tmp_path, "TuneD").severity is WARNING
    assert one(tmp_path, "TuneD", claim("hugepages", "2M", "1", "2M")).severity is PROBLEM


@pytest.mark.parametrize(
    ("daemon", "severity", "words"),
    [
        (None, WARNING, "other lines set it before: the last one wins"),
        (claim("hugepages", "1G", "9", "1G"), WARNING, "other lines set it before"),
        (claim("hugepages", "2M", "9", "2M"), PROBLEM, "but kerntune keeps hugepages@2M at 9"),
        (claim("hugepages", "2M", "512", "2M"), NOTE, "as kerntune does: the line is not needed"),
    ],
)
def test_a_line_and_the_claims(tmp_path: Path, daemon: Daemon | None, severity: Severity, words: str) -> None:
    finding = one(handmade(tmp_path), "/etc/rc.local sets hugepages@2M to 512", daemon)
    assert finding.severity is severity
    assert words in finding.what
    assert finding.evidence[0] == "/etc/rc.local:3: echo 512 > /proc/sys/vm/nr_hugepages"


def test_how_a_fight_is_ended(tmp_path: Path) -> None:
    handmade(tmp_path)
    ours = claim("io-scheduler", "*", "bfq", "nvme0n1", "sda")
    fix = one(tmp_path, "/etc/udev/rules.d/60-io.rules sets", ours).fix
    assert fix.startswith("put a # in front of the rule (/etc/udev/rules.d/60-io.rules:1)")
    assert fix.endswith("kerntune unset io-scheduler@* --persist")
    (tmp_path / "usr/lib/udev/rules.d").mkdir(parents=True)
    (tmp_path / "etc/udev/rules.d/60-io.rules").rename(tmp_path / "usr/lib/udev/rules.d/60-io.rules")
    fix = one(tmp_path, "/usr/lib/udev/rules.d/60-io.rules sets", ours).fix
    assert "sudo ln -s /dev/null /etc/udev/rules.d/60-io.rules" in fix


@pytest.mark.parametrize("value", ["9", "8"])
def test_a_loop_is_taken_out_as_a_whole(tmp_path: Path, value: str) -> None:
    text = "#!/bin/sh\nfor n in 4 9; do\n  echo $n > /proc/sys/vm/nr_hugepages\ndone\n"
    write(handmade(tmp_path), {"etc/rc.local": text})
    found = one(tmp_path, "/etc/rc.local sets hugepages@2M to 9", claim("hugepages", "2M", value, "2M"))
    assert "(/etc/rc.local:3), but it stands in the loop from line 2 to line 4: take out the whole loop" in found.fix


@pytest.mark.parametrize(
    ("origin", "fix"),
    [
        ("profile", "kerntune profile clear, or change the value in the profile"),
        ("config", "change /etc/kerntune (kerntune status says which line)"),
        ("runtime", "kerntune unset hugepages@2M"),
        ("newer-than-us", "kerntune status says who set hugepages@2M"),
    ],
)
def test_how_a_claim_gives_way(tmp_path: Path, origin: str, fix: str) -> None:
    ours = claim("hugepages", "2M", "9", "2M", origin=origin)
    found = one(handmade(tmp_path), "/etc/rc.local sets hugepages@2M to 512", ours)
    assert found.fix == f"put a # in front of the line (/etc/rc.local:3); or let it win: {fix}"


def test_a_unit_that_fights_is_to_be_disabled(tmp_path: Path) -> None:
    lay_out("two-sockets", tmp_path)
    unit = "etc/systemd/system/{}llm.service"
    text = "[Service]\nExecStart=/usr/sbin/sysctl -w vm.nr_hugepages=8\n"
    write(tmp_path, {unit.format(""): text, unit.format("multi-user.target.wants/"): text})
    found = one(tmp_path, "/etc/systemd/system/llm.service sets", claim("hugepages", "2M", "9", "2M"))
    assert found.severity is PROBLEM
    assert "sudo systemctl disable llm.service if it does nothing else (/etc/systemd/system/llm.service:2)" in found.fix


@pytest.mark.parametrize(
    ("more", "fix"),
    [
        ("", "override the line in a drop-in, or sudo systemctl mask llm.service if it does nothing else"),
        ("ExecStartPost=/usr/bin/serve\n", "override the line in a drop-in of its unit"),
    ],
)
def test_a_unit_of_a_package_is_not_to_be_edited(tmp_path: Path, more: str, fix: str) -> None:
    lay_out("two-sockets", tmp_path)
    unit = "usr/lib/systemd/system/{}llm.service"
    text = f"[Service]\nExecStart=/usr/sbin/sysctl -w vm.nr_hugepages=8\n{more}"
    write(tmp_path, {unit.format(""): text, unit.format("multi-user.target.wants/"): text})
    found = one(tmp_path, "/usr/lib/systemd/system/llm.service sets", claim("hugepages", "2M", "9", "2M"))
    assert found.fix.startswith(f"{fix} (/usr/lib/systemd/system/llm.service:2); or let it win")


def test_a_unit_that_starts_before_kerntuned_is_no_problem(tmp_path: Path) -> None:
    lay_out("two-sockets", tmp_path)
    unit = "etc/systemd/system/{}llm.service"
    text = "[Service]\nExecStart=/usr/sbin/sysctl -w vm.nr_hugepages=8\n"
    write(tmp_path, {unit.format(""): text, unit.format("sysinit.target.wants/"): text})
    found = one(tmp_path, "/etc/systemd/system/llm.service sets", claim("hugepages", "2M", "9", "2M"))
    assert found.severity is WARNING


def test_the_strongest_claim_counts(tmp_path: Path) -> None:
    strong, weak = (claim("hugepages", "2M", value, "2M").claims[0] for value in ("512", "9"))
    assert one(handmade(tmp_path), "/etc/rc.local sets hugepages@2M", Daemon((strong, weak))).severity is NOTE


def test_a_line_that_no_claim_can_replace_is_to_stay(tmp_path: Path) -> None:
    lay_out("two-sockets", tmp_path)
    write(tmp_path, {"etc/sysctl.d/90-numa.conf": "kernel.numa_balancing = 0\n"})
    finding = one(tmp_path, "a line in /etc/sysctl.d/90-numa.conf sets what kerntune cannot: the kernel lets only")
    assert (finding.severity, finding.evidence) == (NOTE, ("/etc/sysctl.d/90-numa.conf:1: kernel.numa_balancing = 0",))
    assert finding.fix.startswith("leave the line as it is")


def test_a_value_that_is_not_in_force(tmp_path: Path) -> None:
    lay_out("small-vm", tmp_path)
    write(tmp_path, {"etc/sysctl.d/a.conf": "vm.overcommit_memory=2\nvm.overcommit_ratio=90\n"})
    finding = one(tmp_path, "that is not what the kernel has now")
    assert finding.evidence[2:] == (
        "/proc/sys/vm/overcommit_memory reads 0",
        "/proc/sys/vm/overcommit_ratio reads 50",
    )


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    lay_out("small-vm", tmp_path)
    (tmp_path / "etc/sysctl.d").mkdir(parents=True)
    (tmp_path / "etc/sysctl.d/a.conf").symlink_to("a.conf")
    assert one(tmp_path, "/etc/sysctl.d/a.conf cannot be read").evidence


# Services that set the same values, and cpufrequtils


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
