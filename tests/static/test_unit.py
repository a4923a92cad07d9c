"""The units: systemd accepts them, each opening has a reason, and the daemon can write what it has to and no more."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kerntune.daemon.app import RESTORE, SETTLE, Status
from kerntune.kernel.files import WRITABLE
from tests.harness import CHECKOUT

FOLDER = CHECKOUT / "systemd"
DAEMON, TARGET, METRICS = "kerntuned.service", "kerntune.target", "kerntune-metrics.service"
UNIT = (FOLDER / DAEMON).read_text()
WRITTEN = [Path("/", re.sub(r"^sys/(block|class)/", "sys/devices/", pattern)) for pattern in WRITABLE]

# What `systemd-analyze security` finds open in a service, and why it has to be.
OPEN = {
    "RootDirectoryOrRootImage": "Python and the host's programs are in the host's root",
    "UserOrDynamicUser": "root owns the files that are tuned",
    "RestrictAddressFamilies_AF_UNIX": "D-Bus and the journal are unix sockets",
    "ProcSubset": "/proc/meminfo and /proc/sys are read",
    "PrivateUsers": "root of another user namespace owns no file that is tuned",
    "DeviceAllow": "systemd adds the clock by ProtectClock=, which is read-only",
}
# Debian 12's systemd-analyze does not see that ProtectSystem= and others bring a namespace for mounts.
NOT_SEEN = {"PrivateMounts"}
OPEN_FOR_METRICS = {"UMask": "everybody may read the metrics"}
OPEN_FOR_THE_DAEMON = {
    "ProtectKernelTunables": "it makes /proc/sys and /sys read-only over ReadWritePaths=",
    "RestrictAddressFamilies_AF_NETLINK": "device events are netlink",
    "ProtectProc": "who holds huge pages is read from /proc/PID/status of every process",
    "PrivateNetwork": "device events arrive in the host's network namespace only",
}


def settings(name: str, text: str = UNIT) -> list[str]:
    """Return the values of a setting, in the order of the file."""
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


def words(name: str) -> list[str]:
    """Return the words of all values of a setting."""
    return " ".join(settings(name)).split()


def analyze(unit: Path, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Ask systemd-analyze about a unit."""
    return subprocess.run(
        ["systemd-analyze", verb, *options, str(unit)], capture_output=True, text=True, timeout=30, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the units; their programs are ones that are there, for systemd-analyze looks for them."""
    for unit in (path for path in FOLDER.iterdir() if path.suffix in {".service", ".target", ".timer"}):
        text = re.sub(r"^(Exec\w+)=\S+", r"\1=/bin/true", unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
    return tmp_path


def exposed(unit: Path) -> set[str]:
    """Return what systemd-analyze finds open in a service."""
    done = analyze(unit, "security", "--offline=true", "--json=short", "--no-pager")
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return {row["json_field"] for row in rows if float(row["exposure"] or 0)} - NOT_SEEN


@pytest.mark.parametrize("unit", [DAEMON, TARGET, METRICS, "kerntune-metrics.timer"])
def test_systemd_accepts_it(folder: Path, unit: str) -> None:
    done = analyze(folder / unit, "verify", "--man=no")
    assert (done.returncode, done.stderr) == (0, "")


def test_verify_would_see_a_mistake(folder: Path) -> None:
    unit = folder / DAEMON
    unit.write_text(unit.read_text().replace("LockPersonality=", "LockPersonalty="))
    assert "LockPersonalty" in analyze(unit, "verify", "--man=no").stderr


@pytest.mark.parametrize(
    ("unit", "reasons"), [(DAEMON, OPEN | OPEN_FOR_THE_DAEMON), (METRICS, OPEN | OPEN_FOR_METRICS)]
)
def test_what_is_open_has_its_reason_and_nothing_else_is_open(folder: Path, unit: str, reasons: dict[str, str]) -> None:
    assert exposed(folder / unit) == reasons.keys()


def test_what_strict_leaves_open_is_closed() -> None:
    """ProtectSystem=strict excepts /proc and /sys, and systemd makes the folder of the configuration writable."""
    (configuration,) = settings("ConfigurationDirectory")
    assert {*words("ReadOnlyPaths"), *words("BindReadOnlyPaths")} >= {
        "/proc/sys", "/sys", "/run", f"/etc/{configuration}"
    }  # fmt: skip


def test_every_setting_is_said_once() -> None:
    names = re.findall(r"^(\w+)=", UNIT, re.MULTILINE)
    repeated = {name for name in names if names.count(name) > 1}
    assert repeated == {"Wants", "After", "Before", "SystemCallFilter"}


@pytest.mark.parametrize(
    ("name", "value", "because"),
    [
        ("Type", "notify", "workloads start when READY=1 has come"),
        ("WatchdogSec", "30", "a daemon that hangs is started anew"),
        ("Restart", "always", "a daemon that crashed comes back"),
        ("StartLimitIntervalSec", "0", "however often"),
        ("RestartPreventExitStatus", str(Status.TAKEN.value), "but not beside another one that has the name"),
        ("OOMScoreAdjust", "-900", "it is needed when memory is short"),
        ("LimitMEMLOCK", "infinity", "so is what it has locked"),
        ("LimitCORE", "0", "an abort would write all that is locked to a disk"),
        ("RuntimeDirectoryPreserve", "yes", "what the host had is known over a stop"),
        ("StateDirectoryMode", "0700", "what it saves names users"),
        ("RuntimeDirectoryMode", "0700", "so does this"),
        ("UMask", "0077", "and each file"),
        ("WantedBy", "multi-user.target", "it starts at boot"),
    ],
)
def test_what_a_host_can_rely_on(name: str, value: str, because: str) -> None:
    assert settings(name) == [value], because


def test_there_is_time_to_stop() -> None:
    (seconds,) = settings("TimeoutStopSec")
    assert int(seconds) >= SETTLE + RESTORE + 10


@pytest.mark.parametrize(
    ("name", "because"),
    [
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


def test_what_the_daemon_writes_is_writable_and_no_path_is_writable_in_vain() -> None:
    # /sys/block and /sys/class hold links into /sys/devices only.
    allowed = [path.lstrip("-") for path in words("ReadWritePaths")]
    assert [path for path in WRITTEN if not any(path.is_relative_to(root) for root in allowed)] == []
    assert [root for root in allowed if not any(path.is_relative_to(root) for path in WRITTEN)] == []


def test_order_of_the_boot() -> None:
    assert set(words("Wants")) == {"dbus.socket", TARGET}
    assert set(words("After")) >= {"dbus.socket", "dbus.service", "systemd-sysctl.service", "tuned.service"}
    assert set(words("After")) >= {"systemd-modules-load.service", "power-profiles-daemon.service"}
    # kerntuned(8) promises it to these.
    assert set(words("Before")) >= {TARGET, "kubelet.service", "docker.service", "containerd.service"}
    assert set(words("Before")) >= {"ollama.service", "libvirtd.service", "slurmd.service"}
    # Before one of these would close a circle with the default dependencies.
    assert not {"basic.target", "sysinit.target"} & set(words("Before"))


def test_the_target_brings_the_service_and_does_not_bind_to_it() -> None:
    said = dict(re.findall(r"^(\w+)=(.*)$", (FOLDER / TARGET).read_text(), re.MULTILINE))
    assert (said.pop("Wants"), said.pop("After")) == (DAEMON, DAEMON)
    # Anything more, such as Requires=, would stop workloads when the service is restarted.
    assert set(said) == {"Description", "Documentation"}
