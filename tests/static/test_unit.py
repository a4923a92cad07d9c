"""The unit file: systemd accepts it, it is as closed as it says, and it leaves open what the daemon needs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from kerntune.daemon.app import RESTORE, SETTLE
from kerntune.kernel.files import WRITABLE

CHECKOUT = Path(__file__).parents[2]
UNIT = CHECKOUT / "systemd/kerntuned.service"
TARGET = CHECKOUT / "systemd/kerntune.target"


def settings(name: str) -> list[str]:
    """The values of a setting, in the order of the file."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def words(name: str) -> list[str]:
    return " ".join(settings(name)).split()


def analyze(unit: Path, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", verb, *options, str(unit)], capture_output=True, text=True, timeout=30, check=False
    )


@pytest.fixture
def runnable(tmp_path: Path) -> Path:
    """The unit with programs that are there, beside its target: systemd-analyze looks for all of them."""
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"^(Exec\w+)=\S+", r"\1=/bin/true", UNIT.read_text(), flags=re.MULTILINE))
    (tmp_path / TARGET.name).write_text(TARGET.read_text())
    return copy


def test_systemd_accepts_it(runnable: Path) -> None:
    done = analyze(runnable, "verify", "--man=no")
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_accepts_the_target(runnable: Path) -> None:
    done = analyze(runnable.with_name(TARGET.name), "verify", "--man=no")
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_accepts_the_metrics(tmp_path: Path) -> None:
    for unit in UNIT.parent.glob("kerntune-metrics.*"):
        copy = tmp_path / unit.name
        copy.write_text(re.sub(r"^(Exec\w+)=\S+", r"\1=/bin/true", unit.read_text(), flags=re.MULTILINE))
    for name in ("kerntune-metrics.service", "kerntune-metrics.timer"):
        done = analyze(tmp_path / name, "verify", "--man=no")
        assert (done.returncode, done.stderr) == (0, "")
    done = analyze(tmp_path / "kerntune-metrics.service", "security", "--offline=true", "--threshold=20", "--no-pager")
    assert done.returncode == 0, done.stdout


def test_verify_would_see_a_mistake(runnable: Path) -> None:
    runnable.write_text(runnable.read_text().replace("LockPersonality=", "LockPersonalty="))
    assert "LockPersonalty" in analyze(runnable, "verify", "--man=no").stderr


def test_exposure_is_at_most_2(runnable: Path) -> None:
    done = analyze(runnable, "security", "--offline=true", "--threshold=20", "--no-pager")
    assert done.returncode == 0, done.stdout


def test_the_threshold_would_see_a_hole(runnable: Path) -> None:
    runnable.write_text(runnable.read_text().replace("CapabilityBoundingSet=\n", ""))
    assert analyze(runnable, "security", "--offline=true", "--threshold=20", "--no-pager").returncode != 0


def test_every_setting_is_said_once() -> None:
    names = re.findall(r"^(\w+)=", UNIT.read_text(), re.MULTILINE)
    repeated = {name for name in names if names.count(name) > 1}
    assert repeated == {"Wants", "After", "Before", "SystemCallFilter"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Type", "notify"),
        ("ExecStart", "/usr/bin/kerntuned"),
        ("ExecReload", "/usr/bin/kerntune reload"),
        ("WatchdogSec", "30"),
        ("Restart", "always"),
        ("RestartSec", "200ms"),
        ("StartLimitIntervalSec", "0"),
        ("RestartPreventExitStatus", "17"),
        ("OOMScoreAdjust", "-900"),
        ("LimitMEMLOCK", "infinity"),
        ("LimitCORE", "0"),
        ("ConfigurationDirectory", "kerntune"),
        ("StateDirectory", "kerntune"),
        ("StateDirectoryMode", "0700"),
        ("RuntimeDirectory", "kerntune"),
        ("RuntimeDirectoryMode", "0700"),
        ("RuntimeDirectoryPreserve", "yes"),
        ("WantedBy", "multi-user.target"),
    ],
)
def test_life_of_the_service(name: str, value: str) -> None:
    assert settings(name) == [value]


def test_there_is_time_to_stop() -> None:
    (seconds,) = settings("TimeoutStopSec")
    assert int(seconds) >= SETTLE + RESTORE + 10


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CapabilityBoundingSet", ""),
        ("AmbientCapabilities", ""),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ReadOnlyPaths", "/proc/sys /run /etc/kerntune -/proc/sysrq-trigger -/proc/irq -/proc/fs -/proc/acpi"),
        ("BindReadOnlyPaths", "/sys"),
        ("ProtectHome", "yes"),
        ("PrivateTmp", "yes"),
        ("PrivateDevices", "yes"),
        ("ProtectClock", "yes"),
        ("ProtectHostname", "yes"),
        ("ProtectKernelLogs", "yes"),
        ("ProtectKernelModules", "yes"),
        ("ProtectControlGroups", "yes"),
        ("RestrictNamespaces", "yes"),
        ("RestrictRealtime", "yes"),
        ("RestrictSUIDSGID", "yes"),
        ("LockPersonality", "yes"),
        ("MemoryDenyWriteExecute", "yes"),
        ("RestrictAddressFamilies", "AF_UNIX AF_NETLINK"),
        ("IPAddressDeny", "any"),
        ("SystemCallArchitectures", "native"),
        ("UMask", "0077"),
    ],
)
def test_what_is_closed(name: str, value: str) -> None:
    assert settings(name) == [value]


def test_system_calls() -> None:
    assert settings("SystemCallFilter") == ["@system-service", "~@privileged @resources"]


@pytest.mark.parametrize(
    ("name", "because"),
    [
        ("ProtectKernelTunables", "it makes /proc/sys and /sys read-only over ReadWritePaths"),
        ("PrivateNetwork", "device events arrive in the host's network namespace only"),
        ("ProtectProc", "who holds huge pages is read from /proc/PID/status of every process"),
        ("ProcSubset", "/proc/meminfo and /proc/sys are read"),
        ("PrivateUsers", "root of another user namespace owns no file that is tuned"),
        ("User", "root owns the files that are tuned"),
        ("DynamicUser", "root owns the files that are tuned"),
        ("BusName", "it belongs to Type=dbus; READY=1 comes later than the name"),
        ("Alias", "activation names the unit itself, so that it works where the unit is not enabled"),
        ("Conflicts", "one unprivileged call to the bus could then stop the other service"),
        ("DefaultDependencies", "the order of the boot is the usual one"),
    ],
)
def test_what_must_stay_unset(name: str, because: str) -> None:
    assert settings(name) == [], because


def test_a_missing_path_does_not_fail_the_start() -> None:
    assert words("ReadWritePaths")
    assert all(path.startswith("-/") for path in words("ReadWritePaths"))


@pytest.mark.parametrize("pattern", WRITABLE)
def test_what_the_daemon_writes_is_writable(pattern: str) -> None:
    # /sys/block and /sys/class hold links into /sys/devices only.
    path = Path("/", re.sub(r"^sys/(block|class)/", "sys/devices/", pattern))
    assert any(path.is_relative_to(allowed.lstrip("-")) for allowed in words("ReadWritePaths"))


def test_nothing_is_writable_in_vain() -> None:
    wanted = [Path("/", re.sub(r"^sys/(block|class)/", "sys/devices/", pattern)) for pattern in WRITABLE]
    for allowed in words("ReadWritePaths"):
        assert any(path.is_relative_to(allowed.lstrip("-")) for path in wanted), allowed


def test_order_of_the_boot() -> None:
    assert set(words("Wants")) == {"dbus.socket", "kerntune.target"}
    assert set(words("After")) >= {"dbus.socket", "dbus.service"}
    assert set(words("After")) >= {"systemd-sysctl.service", "systemd-modules-load.service"}
    assert set(words("After")) >= {"tuned.service", "power-profiles-daemon.service"}
    assert set(words("Before")) >= {"kubelet.service", "docker.service", "containerd.service", "ollama.service"}
    assert set(words("Before")) >= {"libvirtd.service", "slurmd.service", "kerntune.target"}
    # Before one of these would close a circle with the default dependencies.
    assert not {"basic.target", "sysinit.target"} & set(words("Before"))


def test_the_target_brings_the_service_and_does_not_bind_to_it() -> None:
    said = dict(re.findall(r"^(\w+)=(.*)$", TARGET.read_text(), re.MULTILINE))
    assert (said.pop("Wants"), said.pop("After")) == (UNIT.name, UNIT.name)
    # Anything more, such as Requires=, would stop workloads when the service is restarted.
    assert set(said) == {"Description", "Documentation"}
