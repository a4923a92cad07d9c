"""What others write kerntune answers next, also where nobody manages the value, and it signals the change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from kerntune.api.names import BUS_NAME, CPU_GOVERNOR, IO_SCHEDULER, MANAGER, MEMORY, ROOT
from tests.system.host import CPUFREQ, Host, listening
from tests.system.machine import Machine

PROPERTIES: Final = "org.freedesktop.DBus.Properties"
DRIVE: Final = "vda"
FILES: Final = {
    "io-scheduler@vda": "/sys/block/vda/queue/scheduler",
    "read-ahead@vda": "/sys/block/vda/queue/read_ahead_kb",
    "cpu-governor@policy0": f"{CPUFREQ}/policy0/scaling_governor",
    "sysctl@vm.swappiness": "/proc/sys/vm/swappiness",
    "thp@enabled": "/sys/kernel/mm/transparent_hugepage/enabled",
    "overcommit": "/proc/sys/vm/overcommit_memory",
}
# What is written, and what kerntune calls it.
OTHERS: Final = {
    "io-scheduler@vda": ("mq-deadline", "mq-deadline"),
    "read-ahead@vda": ("512", "512"),
    "cpu-governor@policy0": ("performance", "performance"),
    "sysctl@vm.swappiness": ("7", "7"),
    "thp@enabled": ("never", "never"),
    "overcommit": ("1", "always:50"),
}
SOON: Final = 10.0  # seconds, emulated
WRITE: Final = "; ".join(f"echo {OTHERS[name][0]} > {file}" for name, file in FILES.items())


@pytest.fixture
def unmanaged(host: Host, vm: Machine) -> Iterator[Host]:
    """Give a host of which kerntune manages nothing; put back by hand what the test writes by hand."""
    assert host.claims() == {}
    before = host.snapshot()
    own = {name: before[file.removeprefix("/")] for name, file in FILES.items()}
    yield host
    vm.check("; ".join(f"echo {own[name]} > {file}" for name, file in FILES.items()))
    assert host.snapshot() == before


def drive_has(scheduler: str) -> str:
    """Return the shell's condition that kerntuned tells of this scheduler."""
    get = f"busctl --json=short get-property {BUS_NAME} {ROOT} {IO_SCHEDULER} Devices"
    return f'{get} | grep -Fq \'"{DRIVE}":["{scheduler}"\''


def changed(line: str) -> dict[str, Any]:
    """Return the properties that a PropertiesChanged has named with their values; busctl's signatures are left out."""
    _interface, values, _invalidated = json.loads(line)["payload"]["data"]
    return {name: value["data"] for name, value in values.items()}


def test_the_command_line_answers_what_the_kernel_holds_now(unmanaged: Host, vm: Machine) -> None:
    asks = "; ".join(f"kerntune get {name}" for name in FILES)
    said = vm.check(f"{WRITE}; {asks}").splitlines()
    assert dict(zip(FILES, said, strict=True)) == {name: spelt for name, (_, spelt) in OTHERS.items()}
    rows = json.loads(vm.check("kerntune --json list"))["targets"]
    shown = {f"{row['tunable']}@{row['instance']}".removesuffix("@"): row["value"] for row in rows}
    assert {name: shown[name] for name in FILES} == {name: spelt for name, (_, spelt) in OTHERS.items()}


def test_properties_are_read_again_and_what_changed_is_announced(unmanaged: Host, vm: Machine) -> None:
    # What is told is a difference, so what was there has to be known first. An answer may be a tenth of a second old.
    vm.wait_for(drive_has(unmanaged.scheduler(DRIVE)), SOON)
    ear = listening(vm, PROPERTIES)
    vm.check(WRITE)
    vm.wait_for(drive_has("mq-deadline"), SOON)
    assert unmanaged.get(CPU_GOVERNOR, "Policies")["policy0"][0] == "performance"
    assert unmanaged.get(MEMORY, "OvercommitMode") == "always"
    for name in ("Devices", "Policies", "OvercommitMode"):
        ear.wait_output(f'"{name}":', SOON)
    ear.kill()
    told: dict[str, Any] = {}
    for line in ear.out.splitlines():
        if '"PropertiesChanged"' in line and BUS_NAME in line:
            told |= changed(line)
    assert told["Devices"][DRIVE][0] == "mq-deadline"
    assert told["Policies"]["policy0"][0] == "performance"
    assert told["OvercommitMode"] == "always"
    assert unmanaged.claims() == {}
    assert unmanaged.get(MANAGER, "Degraded") == []
