"""NVMe's native multipath: the drive has nothing to schedule, its hidden paths do and go by its names."""

from __future__ import annotations

from kerntune.kernel.simulated import Node, SimulatedKernel
from kerntune.model import Reason, State
from tests.unit.lab import GIB, Lab, running, told


def host() -> SimulatedKernel:
    """nvme1n1 has two paths; nvme0n1 is a drive as any other, and nvme0c9n9 only looks like a path."""
    kernel = SimulatedKernel([Node(8 * GIB)])
    kernel.plug("nvme0n1", by_id="nvme-Plain")
    kernel.plug("nvme0c9n9")
    kernel.plug("nvme1n1", offered=(), by_id="nvme-Shared")
    for controller in (1, 2):
        plug_path(kernel, controller)
    return kernel


def plug_path(kernel: SimulatedKernel, controller: int) -> None:
    kernel.plug(f"nvme1c{controller}n1", hidden=True)


def schedulers(lab: Lab) -> dict[str, str]:
    return {name: disk.scheduler for name, disk in lab.kernel.disks.items() if disk.hidden}


async def test_the_drive_is_no_target_and_its_paths_are() -> None:
    async with running(host()) as lab:
        names = [target.instance for target in lab.engine.readings if target.tunable == "io-scheduler"]
        assert names == ["nvme0c9n9", "nvme0n1", "nvme1c1n1", "nvme1c2n1"]


async def test_the_drives_names_reach_its_paths() -> None:
    for pattern in ("nvme1n1", "nvme1n?", "by-id/nvme-Shared", "nvme*", "nvme1c*", "*"):
        async with running(host()) as lab:
            answer = await lab.set(("io-scheduler", pattern, "mq-deadline"))
            assert {o.state for o in answer.outcomes} == {State.SATISFIED}, pattern
            assert schedulers(lab) == {"nvme1c1n1": "mq-deadline", "nvme1c2n1": "mq-deadline"}, pattern


async def test_one_path_by_its_own_name() -> None:
    async with running(host()) as lab:
        await lab.one("io-scheduler", "nvme1c2n1", "mq-deadline")
        assert schedulers(lab) == {"nvme1c1n1": "none", "nvme1c2n1": "mq-deadline"}


async def test_a_path_that_appears_later_is_set_on_the_next_pass() -> None:
    async with running(host()) as lab:
        await lab.set(("io-scheduler", "nvme1n1", "mq-deadline"))
        plug_path(lab.kernel, 3)
        await lab.engine.reconcile("change nvme3")
        assert schedulers(lab)["nvme1c3n1"] == "mq-deadline"


async def test_a_drive_that_has_lost_its_paths_offers_nothing_and_is_no_failure() -> None:
    async with running(host()) as lab:
        await lab.set(("io-scheduler", "nvme1n1", "mq-deadline"))
        for controller in (1, 2):
            lab.kernel.unplug(f"nvme1c{controller}n1")
        await lab.engine.reconcile("change nvme1")
        (outcome,) = lab.engine.outcomes.values()
        assert told(outcome) == ("nvme1n1", "none", State.UNSUPPORTED, Reason.VALUE_NOT_OFFERED)
        assert lab.engine.troubles == set()
