"""Claims of the configuration: below all that callers ask for, in force again when that goes, and never saved."""

from __future__ import annotations

import asyncio
import threading

import pytest

from kerntune.errors import OverLimit, PartiallyAllocated
from kerntune.model import Claim, Limits, Origin, Reason, State, Target
from tests.unit.lab import BOUND, PAGE, Clock, Lab, claim, have_pages, large_host, pages, queue, running, small_host

DEFAULT = Limits()


def configured(tunable: str, instances: str, value: str | int, seq: int = 1) -> Claim:
    return Claim(Origin.CONFIG, tunable, instances, str(value), "config", f"kerntune.toml:{seq}", seq, partial=True)


async def boot(lab: Lab, *claims: Claim, limits: Limits = DEFAULT) -> None:
    lab.engine.configure(claims, limits)
    await lab.engine.reconcile("boot", enforce=True)


async def test_they_are_in_force_after_boot_and_nowhere_saved() -> None:
    async with running(large_host()) as lab:
        await boot(lab, configured("io-scheduler", "nvme*", "bfq"), configured("hugepages", "2M", 10, 2))
        assert (pages(lab.kernel), lab.kernel.disks["nvme0n1"].scheduler) == ([5, 5], "bfq")
        await lab.set(("overcommit", "", "always"), persist=True)
        assert [claim.origin for claim in lab.store.claims.by_id.values()] == [Origin.PERSISTENT]
        assert len(lab.engine.claims.by_id) == 3
        lab.writes()
        await lab.engine.reconcile("again")
        assert lab.writes() == []


async def test_what_callers_ask_for_wins_and_unset_falls_back() -> None:
    async with running(large_host()) as lab:
        await boot(lab, configured("io-scheduler", "*", "bfq"))
        for persist in (False, True):
            await lab.set(("io-scheduler", "sda", "kyber"), persist=persist)
        assert lab.kernel.disks["sda"].scheduler == "kyber"
        for persist in (False, True):
            (outcome,) = (await lab.unset(("io-scheduler", "sda"), persist=persist)).outcomes
        assert (outcome.requested, outcome.actual, outcome.state) == ("bfq", "bfq", State.SATISFIED)
        # No Unset reaches further.
        for persist in (False, True):
            await lab.unset(("io-scheduler", "*"), persist=persist)
        assert lab.kernel.disks["sda"].scheduler == "bfq"
        assert [claim.origin for claim in lab.engine.claims.by_id.values()] == [Origin.CONFIG]


async def test_of_two_that_match_the_later_wins() -> None:
    async with running(large_host()) as lab:
        await boot(lab, configured("io-scheduler", "nvme*", "bfq", 2), configured("io-scheduler", "*", "kyber", 1))
        assert [lab.kernel.disks[name].scheduler for name in ("nvme0n1", "sda")] == ["bfq", "kyber"]
        await lab.engine.reload([configured("io-scheduler", "*", "kyber", 3)], DEFAULT)
        assert lab.kernel.disks["nvme0n1"].scheduler == "kyber"


async def test_a_reload_is_one_pass_that_writes_what_is_new_and_puts_back_what_is_gone() -> None:
    async with running(large_host()) as lab:
        await boot(lab, configured("io-scheduler", "sda", "bfq"), configured("hugepages", "2M", 10, 2))
        generation = lab.engine.generation
        lab.writes()
        lab.reports.clear()
        await lab.engine.reload([configured("hugepages", "2M", 20)], DEFAULT)
        assert (pages(lab.kernel), lab.kernel.disks["sda"].scheduler) == ([10, 10], "mq-deadline")
        assert [report.cause for report in lab.reports] == ["reload"] * 3
        assert lab.engine.generation == generation + 2  # memory and block: a lane each
        assert {str(target) for target in lab.engine.outcomes} == {"hugepages@2M"}
        assert not any(target.tunable == "io-scheduler" for target in lab.store.baselines)
        lab.writes()
        await lab.engine.reload([configured("hugepages", "2M", 20, 7)], DEFAULT)
        assert lab.writes() == []


async def test_what_this_host_does_not_have_is_kept_and_waits() -> None:
    async with running(large_host()) as lab:
        await boot(
            lab,
            configured("cpu-governor", "*", "performance"),
            configured("io-scheduler", "nvme7n1", "bfq", 2),
            configured("io-scheduler", "sda", "no-such", 3),
        )
        found = {str(outcome.target): outcome for outcome in lab.engine.outcomes.values()}
        assert {name: (outcome.state, outcome.reason) for name, outcome in found.items()} == {
            "cpu-governor@*": (State.UNSUPPORTED, Reason.NO_KERNEL_SUPPORT),
            "io-scheduler@nvme7n1": (State.UNSUPPORTED, Reason.NO_SUCH_TARGET),
            "io-scheduler@sda": (State.UNSUPPORTED, Reason.VALUE_NOT_OFFERED),
        }
        lab.kernel.plug("nvme7n1")
        await lab.engine.reconcile("add nvme7n1")
        assert lab.kernel.disks["nvme7n1"].scheduler == "bfq"


async def test_a_reload_names_what_others_fight_over() -> None:
    clock = Clock()
    async with running(large_host(), clock=clock) as lab:
        wanted = [configured("io-scheduler", "sda", "bfq")]
        await boot(lab, *wanted)
        for _ in range(4):
            lab.kernel.disks["sda"].scheduler = "none"
            await lab.engine.reconcile("timer")
        assert lab.engine.troubles == {Reason.CHANGED_BY_OTHERS}
        await lab.engine.reload(wanted, DEFAULT)
        assert (lab.kernel.disks["sda"].scheduler, lab.engine.troubles) == ("bfq", set())


async def test_pages_that_others_took_are_asked_for_again_by_a_reload() -> None:
    """Drift of huge pages is only reported; a reload puts it right."""
    kernel = small_host()
    async with running(kernel) as lab:
        wanted = [configured("hugepages", "2M", 10)]
        await boot(lab, *wanted)
        have_pages(kernel, 30)
        await lab.engine.reconcile("timer")
        assert pages(kernel) == [30]
        await lab.engine.reload(wanted, DEFAULT)
        assert pages(kernel) == [10]


async def test_too_many_pages_become_what_there_may_be_and_that_is_shown() -> None:
    async with running(small_host()) as lab:
        await boot(lab, configured("hugepages", "2M", 99_999_999), configured("overcommit", "", "never:1", 2))
        (pool,) = (outcome for target, outcome in lab.engine.outcomes.items() if target.tunable == "hugepages")
        assert (pool.actual, pool.state, pool.reason) == ("6144", State.PARTIAL, Reason.OVER_LIMIT)
        refused = lab.engine.outcomes[Target("overcommit")]
        assert (refused.actual, refused.state, refused.reason) == ("heuristic", State.REFUSED, Reason.OVER_LIMIT)
        assert lab.engine.troubles == {Reason.OVER_LIMIT}
        # A reload that asks for it again is no caller who could be refused.
        await lab.engine.reload([configured("hugepages", "2M", 99_999_999)], DEFAULT)
        assert pages(lab.kernel) == [6144]


async def test_limits_are_those_of_the_last_reload() -> None:
    async with running(small_host()) as lab:
        await boot(lab, limits=Limits(hugepages_percent=10, claims=2))
        with pytest.raises(OverLimit, match="10 % of RAM"):
            await lab.set(("hugepages", "2M", 1000))
        await lab.engine.reload([], Limits(hugepages_percent=50))
        await lab.set(("hugepages", "2M", 1000))
        # Less than there is takes nothing away.
        await lab.engine.reload([], Limits(hugepages_percent=1))
        assert pages(lab.kernel) == [1000]
        with pytest.raises(OverLimit, match="1 % of RAM"):
            await lab.set(("hugepages", "2M", 1001))


async def test_a_reload_beside_callers_loses_nobodys_edit() -> None:
    async with running(large_host()) as lab:
        await boot(lab, configured("io-scheduler", "nvme*", "bfq"))
        held, go = threading.Event(), threading.Event()

        def wait(path: str, text: str) -> None:
            held.set()
            assert go.wait(BOUND)

        lab.kernel.before_write = wait
        setting = asyncio.create_task(lab.set(("io-scheduler", "sda", "kyber"), persist=True))
        assert await asyncio.to_thread(held.wait, BOUND)
        reloading = asyncio.create_task(lab.engine.reload([configured("io-scheduler", "nvme*", "none")], DEFAULT))
        await asyncio.sleep(0)
        lab.kernel.before_write = None
        go.set()
        await asyncio.gather(setting, reloading)
        assert [lab.kernel.disks[name].scheduler for name in ("nvme0n1", "sda")] == ["none", "kyber"]
        assert sorted(str(claim_id) for claim_id in lab.engine.claims.by_id) == [
            "config:io-scheduler@nvme*",
            "persistent:io-scheduler@sda",
        ]
        assert sorted(map(str, lab.store.claims.by_id)) == ["persistent:io-scheduler@sda"]


async def test_a_failed_set_brings_back_what_the_configuration_wants() -> None:
    async with running(small_host(whole=600 * PAGE)) as lab:
        await boot(lab, configured("hugepages", "2M", 100))
        with pytest.raises(PartiallyAllocated):
            await lab.set(("hugepages", "2M", 1000))
        assert pages(lab.kernel) == [100]
        assert [claim.origin for claim in lab.engine.claims.by_id.values()] == [Origin.CONFIG]


async def test_a_baseline_is_the_hosts_own_value_not_the_configurations() -> None:
    async with running(large_host(), claims=[claim(Origin.PERSISTENT, "io-scheduler", "sda", "kyber")]) as lab:
        await boot(lab, configured("io-scheduler", "sda", "bfq"))
        await lab.unset(("io-scheduler", "sda"), persist=True)
        assert lab.kernel.disks["sda"].scheduler == "bfq"
        lab.writes()
        await lab.engine.reload([], DEFAULT)
        assert lab.writes() == [(queue("sda"), "mq-deadline")]


@pytest.mark.parametrize(
    ("nodes", "reason"), [(Origin.CONFIG, Reason.CONFIG_WINS), (Origin.PERSISTENT, Reason.OVERRIDDEN)]
)
async def test_a_total_of_a_profile_that_claims_on_nodes_override(nodes: Origin, reason: Reason) -> None:
    claims = [
        claim(Origin.PROFILE, "hugepages", "2M", 40, seq=1),
        claim(nodes, "hugepages", "2M/*", 30, seq=2),
    ]
    async with running(large_host(), claims=claims) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        outcome = lab.engine.outcomes[Target("hugepages", "2M")]
        assert (outcome.state, outcome.reason, pages(lab.kernel)) == (State.OVERRIDDEN, reason, [30, 30])
