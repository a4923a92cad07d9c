"""Baselines and saved claims: the host's own value comes back, also after a crash."""

from __future__ import annotations

import threading

import pytest

from kerntune.errors import Failed
from kerntune.model import Origin, State, Target
from tests.unit.lab import (
    BOUND,
    claim,
    have_pages,
    host_values,
    large_host,
    pages,
    queue,
    running,
)

SDA = Target("io-scheduler", "sda", key="3")


# Baselines


async def test_the_hosts_own_value_is_saved_before_it_is_overwritten() -> None:
    kernel = large_host()
    have_pages(kernel, 3, 4)
    saved: list[dict[str, str]] = []
    async with running(kernel) as lab:
        kernel.before_write = lambda path, text: saved.append({str(t): v for t, v in lab.store.baselines.items()})
        await lab.set(("hugepages", "2M/node0", 50))
        assert saved == [{"hugepages@2M/node0": "3"}]
        await lab.set(("hugepages", "2M/node0", 60))
        assert saved[-1] == {"hugepages@2M/node0": "3"}


async def test_a_baseline_is_saved_once() -> None:
    async with running(large_host()) as lab:
        for value in ("bfq", "none", "kyber"):
            await lab.set(("io-scheduler", "sda", value))
        assert [target.instance for target in lab.store.kept] == ["sda"]


async def test_only_what_was_written_has_a_baseline() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "*", "mq-deadline"))
        assert {target.instance for target in lab.store.baselines} == {"nvme0n1", "nvme1n1"}


async def test_what_nobody_claims_any_more_is_put_back_once() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        lab.writes()
        await lab.unset(("io-scheduler", "sda"))
        assert lab.writes() == [(queue("sda"), "mq-deadline")]
        lab.kernel.disks["sda"].scheduler = "kyber"  # it is the admin's again
        await lab.engine.reconcile("timer")
        assert lab.writes() == []
        assert lab.engine.outcomes == {}


async def test_a_value_that_never_was_changed_is_not_put_back() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "mq-deadline"))
        lab.kernel.disks["sda"].scheduler = "bfq"
        await lab.unset(("io-scheduler", "sda"))
        assert lab.writes() == []


async def test_after_a_crash_between_write_and_commit_the_host_has_its_own_back() -> None:
    """The baseline is on disk and the value in place, but nobody was answered."""
    kernel = large_host()
    kernel.disks["sda"].scheduler = "bfq"
    async with running(kernel, baselines={SDA: "mq-deadline"}) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert kernel.disks["sda"].scheduler == "mq-deadline"
        assert not lab.store.baselines


# Saved claims


async def test_saved_claims_are_in_force_after_boot() -> None:
    saved = [claim(Origin.PERSISTENT, "hugepages", "2M", 10), claim(Origin.RUNTIME, "io-scheduler", "sda", "bfq")]
    async with running(large_host(), claims=saved) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert (pages(lab.kernel), lab.kernel.disks["sda"].scheduler) == ([5, 5], "bfq")
        lab.writes()
        await lab.engine.reconcile("again")
        assert lab.writes() == []


async def test_a_saved_claim_that_no_call_could_have_made_is_left_out() -> None:
    bad = [
        claim(Origin.PERSISTENT, "hugepages", "2M", "1x0"),
        claim(Origin.PERSISTENT, "hugepages", "*", "1"),
        claim(Origin.PERSISTENT, "hugepages", "2048K", "1"),
        claim(Origin.RUNTIME, "overcommit", "", "never:1048576k"),
        claim(Origin.RUNTIME, "no-such-tunable", "", "1"),
        claim(Origin.RUNTIME, "io-scheduler", "../sda", "none"),
    ]
    good = claim(Origin.PERSISTENT, "io-scheduler", "sda", "bfq")
    async with running(large_host(), claims=[*bad, good]) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert set(lab.engine.unsound) == set(bad)
        assert list(lab.engine.claims.by_id.values()) == [good]
        assert lab.writes() == [(queue("sda"), "bfq")]


# Put back at the end


async def test_at_the_end_the_host_has_its_own_values_and_the_claims_stay_saved() -> None:
    kernel = large_host()
    have_pages(kernel, 3, 4)
    files = [claim(Origin.CONFIG, "overcommit", "", "always:95")]
    async with running(kernel) as lab:
        before = host_values(kernel)
        lab.engine.configure(files, lab.engine.limits)
        await lab.set(("hugepages", "2M/node0", 50), ("io-scheduler", "*", "bfq"), persist=True)
        await lab.set(("read-ahead", "sda", 2048))
        saved = lab.store.claims
        assert await lab.engine.put_back(BOUND)
        assert host_values(kernel) == before
        assert (lab.store.claims, lab.store.baselines) == (saved, {})
        with pytest.raises(Failed, match="is stopping"):
            await lab.set(("read-ahead", "sda", 4096))
        await lab.engine.reconcile("hotplug")
        assert host_values(kernel) == before
        assert lab.store.claims == saved
    async with running(kernel, claims=saved.by_id.values()) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert (pages(kernel)[0], kernel.disks["sda"].scheduler, kernel.disks["sda"].read_ahead) == (50, "bfq", 2048)


async def test_what_is_fought_over_is_put_back_at_the_end_too() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        for _ in range(4):
            lab.kernel.disks["sda"].scheduler = "kyber"
            await lab.engine.reconcile("drift")
        assert lab.engine.outcomes[SDA].state is State.CONTESTED
        assert await lab.engine.put_back(BOUND)
        assert lab.kernel.disks["sda"].scheduler == "mq-deadline"


async def test_the_end_waits_for_no_kernel_that_does_not_answer() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        answered = threading.Event()

        def block(path: str, text: str) -> None:
            answered.wait(BOUND)

        lab.kernel.before_write = block
        assert await lab.engine.put_back(0.05) is False
        answered.set()
