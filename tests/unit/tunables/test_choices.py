"""Choices are what can be chosen: what the kernel lists, what it would load a module for, and ranges of numbers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kerntune.api.describe import loads_of
from kerntune.errors import NotOffered
from kerntune.kernel.files import HostKernel
from kerntune.kernel.modules import BARRED, loadable
from kerntune.kernel.simulated import Policy
from kerntune.model import Reading, Target
from kerntune.tunables import REGISTRY
from kerntune.tunables.base import Tunable
from kerntune.tunables.knobs import CPU_GOVERNOR, IO_SCHEDULER
from tests.unit.lab import large_host

BY_NAME: dict[str, Tunable] = {tunable.name: tunable for tunable in REGISTRY}
CONFIG = "CONFIG_IOSCHED_BFQ=m\nCONFIG_MQ_IOSCHED_DEADLINE=y\n# CONFIG_MQ_IOSCHED_KYBER is not set\n"


def host(root: Path, **files: str) -> HostKernel:
    """Return a host with these files; `__` in a name stands for a slash."""
    for name, text in {"proc__sys__kernel__osrelease": "6.1.0-9", **files}.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")
    return HostKernel(root)


def with_config(root: Path, text: str = CONFIG, **files: str) -> HostKernel:
    (root / "boot").mkdir()
    (root / "boot/config-6.1.0-9").write_text(text, encoding="utf-8")
    return host(root, **files)


def test_a_module_is_loaded_where_the_kernel_was_built_with_it(tmp_path: Path) -> None:
    assert loads_of(with_config(tmp_path), REGISTRY) == {"cpu-governor": frozenset(), "io-scheduler": {"bfq"}}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("proc__sys__kernel__modules_disabled", "1"),
        ("proc__sys__kernel__modprobe", ""),
        ("etc__modprobe.d__no.conf", "# none\nblacklist bfq"),
        ("usr__lib__modprobe.d__no.conf", "  install bfq /bin/false"),
    ],
)
def test_a_host_that_loads_none(file: str, text: str, tmp_path: Path) -> None:
    assert loadable(with_config(tmp_path, **{file: text}), IO_SCHEDULER.modules) == frozenset()


MODULES = "CONFIG_MQ_IOSCHED_KYBER=m\nCONFIG_IOSCHED_BFQ=m\nCONFIG_MQ_IOSCHED_DEADLINE=m\n"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("install kyber-iosched /bin/false", {"bfq", "mq-deadline"}),
        ("blacklist mq-deadline", {"bfq", "kyber"}),
        ("install bfq-iosched /bin/false", {"kyber", "mq-deadline"}),
        # modprobe.d(5): it keeps aliases from loading a module, and the kernel asks for this one by its own name.
        ("blacklist kyber-iosched", {"bfq", "kyber", "mq-deadline"}),
    ],
)
def test_what_modprobes_files_keep_from_being_loaded(text: str, left: set[str], tmp_path: Path) -> None:
    kernel = with_config(tmp_path, MODULES, **{"run__modprobe.d__no.conf": text})
    assert loadable(kernel, IO_SCHEDULER.modules) == left


def test_blank_lines_cost_what_their_number_costs() -> None:
    started = time.process_time()
    assert not BARRED.findall("\n" * 100_000)
    assert time.process_time() - started < 1


def test_without_a_readable_configuration_nothing_is_promised_and_nothing_refused(tmp_path: Path) -> None:
    assert loadable(host(tmp_path), IO_SCHEDULER.modules) == frozenset()
    reading = Reading(Target("io-scheduler", "sda"), "none", ("none", "mq-deadline"), figures={"schedulable": 1})
    assert IO_SCHEDULER.choices(reading) == ["none", "mq-deadline"]
    IO_SCHEDULER.validate(reading, "bfq")


LOADS = frozenset({"bfq", "kyber", "mq-deadline"})
GOVERNORS = frozenset({"ondemand", "performance", "powersave"})


@pytest.mark.parametrize(
    ("reading", "loads", "choices"),
    [
        (
            Reading(Target("io-scheduler", "sda"), "none", ("none", "mq-deadline"), figures={"schedulable": 1}),
            LOADS,
            "none mq-deadline kyber bfq",
        ),
        # It has no queue to schedule.
        (Reading(Target("io-scheduler", "ram0"), "none", ("none",), figures={"schedulable": 0}), LOADS, "none"),
        (
            Reading(Target("cpu-governor", "policy0", "acpi-cpufreq"), "schedutil", ("performance", "schedutil")),
            GOVERNORS,
            "performance schedutil ondemand powersave",
        ),
        # The driver chooses by itself, and loads no governor.
        (
            Reading(Target("cpu-governor", "policy0", "intel_pstate"), "powersave", ("performance", "powersave")),
            GOVERNORS,
            "performance powersave",
        ),
        (Reading(Target("cpu-governor", "policy0"), None), GOVERNORS, ""),
        (Reading(Target("sysctl", "vm.swappiness"), "60"), (), "0..200"),
        (Reading(Target("sysctl", "vm.watermark_scale_factor"), "10"), (), "1..3000"),
        # The service may not write it.
        (Reading(Target("sysctl", "kernel.numa_balancing"), "1"), (), ""),
        (Reading(Target("read-ahead", "sda"), "128"), (), "0..65536"),
        (Reading(Target("thp", "enabled"), "always", ("always", "never")), (), "always never"),
        (
            Reading(Target("overcommit"), "heuristic", ("heuristic", "always", "never")),
            (),
            "heuristic always always:1..99 never:1..100",
        ),
        (Reading(Target("hugepages", "2M"), "0"), (), ""),
    ],
)
def test_choices(reading: Reading, loads: frozenset[str], choices: str) -> None:
    assert BY_NAME[reading.target.tunable].choices(reading, loads) == choices.split()


def test_a_driver_that_chooses_by_itself_is_not_asked_for_a_governor() -> None:
    kernel = large_host()
    kernel.policies = {"policy0": Policy((0,), "powersave", ("performance", "powersave"), driver="intel_pstate")}
    (target,) = CPU_GOVERNOR.targets(kernel)
    reading = CPU_GOVERNOR.read(kernel, target)
    CPU_GOVERNOR.validate(reading, "performance")
    with pytest.raises(NotOffered, match="policy0 offers performance, powersave, not schedutil, because its driver"):
        CPU_GOVERNOR.validate(reading, "schedutil")
