"""One request at a time: who wins, what changes, what each pass publishes; and the claims of the configuration."""

from __future__ import annotations

import asyncio
import threading

import pytest

from kerntune.errors import (
    NoSuchTarget,
    OverLimit,
    Overridden,
    PartiallyAllocated,
    UnknownTunable,
)
from kerntune.model import Claim, Limits, Origin, Reason, State, Target
from tests.unit.lab import (
    BOUND,
    PAGE,
    Clock,
    Lab,
    claim,
    have_pages,
    large_host,
    pages,
    queue,
    request,
    running,
    small_host,
)

# Idempotence


async def test_setting_twice_changes_once() -> None:
    async with running(large_host()) as lab:
        settings = [("io-scheduler", "*", "none"), ("hugepages", "2M", "64"), ("overcommit", "", "always:95")]
        assert (await lab.set(*settings)).changed
        lab.writes()
        generation, reports = lab.engine.observed.generation, len(lab.reports)
        again = await lab.set(*settings)
        assert not again.changed
        assert {outcome.state for outcome in again.outcomes} == {State.SATISFIED}
        assert lab.writes() == []
        assert lab.engine.observed.generation == generation
        assert [report.outcomes for report in lab.reports[reports:]] == [(), ()]


async def test_a_claim_on_what_is_in_place_is_a_change_without_a_write() -> None:
    async with running(large_host()) as lab:
        assert (await lab.set(("io-scheduler", "sda", "mq-deadline"))).changed
        assert lab.writes() == []
        assert not lab.store.baselines


async def test_the_same_value_for_good_is_a_change() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "none"))
        lab.writes()
        assert (await lab.set(("io-scheduler", "sda", "none"), persist=True)).changed
        assert lab.claims == ["persistent:io-scheduler@sda=none"]
        assert not (await lab.set(("io-scheduler", "sda", "none"), persist=True)).changed
        assert lab.writes() == []


async def test_allowing_less_is_a_change() -> None:
    async with running(large_host()) as lab:
        await lab.set(("hugepages", "2M", 10))
        assert (await lab.set(("hugepages", "2M", 10), partial=True)).changed


async def test_unsetting_twice_changes_once() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "none"))
        first, second = await lab.unset(("io-scheduler", "sda")), await lab.unset(("io-scheduler", "sda"))
        assert (first.changed, second.changed) == (True, False)
        assert [(o.state, o.actual) for o in first.outcomes] == [(State.UNMANAGED, "mq-deadline")]
        lab.writes()
        assert not (await lab.unset(("io-scheduler", "*"), ("hugepages", "*"), ("overcommit", "*"))).changed
        assert lab.writes() == []


@pytest.mark.parametrize("everything", ["", "*"])
async def test_the_one_setting_of_the_host_is_answered_whatever_stands_for_it(everything: str) -> None:
    async with running(large_host()) as lab:
        (outcome,) = (await lab.unset(("overcommit", everything))).outcomes
        assert (outcome.target, outcome.state) == (Target("overcommit"), State.UNMANAGED)


async def test_unsetting_takes_only_what_it_names() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "nvme*", "mq-deadline"), ("io-scheduler", "sda", "none"))
        await lab.set(("io-scheduler", "nvme0n1", "none"), persist=True)
        await lab.set(("io-scheduler", "nvme*", "mq-deadline"), ("io-scheduler", "sda", "none"))
        await lab.unset(("io-scheduler", "nvme0n1"))  # no runtime claim of that identity
        assert len(lab.claims) == 3
        await lab.unset(("io-scheduler", "*"))
        assert lab.claims == ["persistent:io-scheduler@nvme0n1=none"]
        await lab.unset(("io-scheduler", "*"), persist=True)
        assert lab.claims == []


async def test_unsetting_what_nobody_knows() -> None:
    async with running(large_host()) as lab:
        with pytest.raises(NoSuchTarget, match="no claim names it"):
            await lab.unset(("io-scheduler", "sdz"))
        with pytest.raises(UnknownTunable):
            await lab.unset(("io-sched", "*"))


async def test_the_claim_on_a_drive_that_is_gone_can_be_unset() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "none"))
        lab.kernel.unplug("sda")
        assert (await lab.unset(("io-scheduler", "sda"))).changed
        assert lab.claims == []


# Patterns


async def test_a_pattern_that_matches_nothing_is_kept_for_later() -> None:
    async with running(large_host()) as lab:
        outcome = await lab.one("io-scheduler", "vd*", "mq-deadline")
        assert (outcome.target.instance, outcome.state, outcome.reason) == (
            "vd*",
            State.UNSUPPORTED,
            Reason.NO_SUCH_TARGET,
        )
        assert lab.claims == ["runtime:io-scheduler@vd*=mq-deadline"]
        lab.kernel.plug("vda")
        await lab.engine.reconcile("hotplug")
        assert lab.kernel.disks["vda"].scheduler == "mq-deadline"


# Who wins


async def test_runtime_overrides_persistent_then_config_then_profile() -> None:
    below = [claim(Origin.PROFILE, "io-scheduler", "*", "bfq"), claim(Origin.CONFIG, "io-scheduler", "sda", "kyber")]
    async with running(large_host(), claims=below) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert lab.kernel.disks["sda"].scheduler == "kyber"
        await lab.set(("io-scheduler", "sda", "mq-deadline"), persist=True)
        await lab.set(("io-scheduler", "sda", "none"))
        assert lab.kernel.disks["sda"].scheduler == "none"
        for persist, left in [(False, "mq-deadline"), (True, "kyber")]:
            (outcome,) = (await lab.unset(("io-scheduler", "sda"), persist=persist)).outcomes
            assert (outcome.actual, outcome.state, outcome.requested) == (left, State.SATISFIED, left)


async def test_within_an_origin_the_newest_wins_also_after_a_restart() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "none"))
        await lab.set(("io-scheduler", "*", "kyber"))
        assert lab.kernel.disks["sda"].scheduler == "kyber"
    async with running(lab.kernel, claims=lab.store.claims.by_id.values(), baselines=lab.store.baselines) as later:
        await later.engine.reconcile("boot", enforce=True)
        assert later.kernel.disks["sda"].scheduler == "kyber"
        await later.set(("io-scheduler", "sda", "bfq"))
        assert later.kernel.disks["sda"].scheduler == "bfq"
        assert later.kernel.disks["nvme0n1"].scheduler == "kyber"


async def test_an_overridden_claim_is_kept_and_its_outcome_names_the_winner() -> None:
    async with running(large_host(), claims=[claim(Origin.HOLD, "io-scheduler", "sda", "bfq")]) as lab:
        outcome = await lab.one("io-scheduler", "sda", "none")
        assert (outcome.state, outcome.reason, outcome.requested, outcome.actual) == (
            State.OVERRIDDEN,
            Reason.OVERRIDDEN,
            "none",
            "bfq",
        )
        assert "hold:io-scheduler@sda = bfq, by hold wins" in outcome.detail
        assert "runtime:io-scheduler@sda=none" in lab.claims


async def test_who_must_win_and_does_not_leaves_no_claim() -> None:
    async with running(large_host(), claims=[claim(Origin.HOLD, "io-scheduler", "sda", "bfq")]) as lab:
        with pytest.raises(Overridden, match="hold:io-scheduler@sda = bfq"):
            await lab.set(("io-scheduler", "sda", "none"), must_win=True)
        assert lab.claims == ["hold:io-scheduler@sda=bfq"]
        assert lab.kernel.disks["sda"].scheduler == "bfq"


async def test_who_must_win_wins_somewhere() -> None:
    async with running(large_host(), claims=[claim(Origin.HOLD, "io-scheduler", "sda", "bfq")]) as lab:
        answer = await lab.set(("io-scheduler", "*", "mq-deadline"), must_win=True)
        assert [o.state for o in answer.outcomes] == [State.SATISFIED, State.SATISFIED, State.OVERRIDDEN]


async def test_who_must_win_may_want_what_the_winner_wants() -> None:
    async with running(large_host(), claims=[claim(Origin.HOLD, "io-scheduler", "sda", "bfq")]) as lab:
        outcome = await lab.one("io-scheduler", "sda", "bfq", must_win=True)
        assert (outcome.state, outcome.actual) == (State.SATISFIED, "bfq")


async def test_a_total_that_the_nodes_override_is_an_error_for_who_must_win() -> None:
    async with running(large_host()) as lab:
        await lab.set(("hugepages", "2M/node0", 80))
        with pytest.raises(Overridden, match="80 pages in all"):
            await lab.set(("hugepages", "2M", 40), must_win=True)
        assert lab.claims == ["runtime:hugepages@2M/node0=80"]


# For good


async def test_for_good_also_means_now() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "nvme0n1", "kyber"))
        await lab.set(("io-scheduler", "*", "bfq"))
        await lab.set(("io-scheduler", "vd*", "bfq"))
        await lab.set(("overcommit", "", "always"))
        answer = await lab.set(("io-scheduler", "nvme*", "mq-deadline"), persist=True)
        assert [(o.actual, o.state) for o in answer.outcomes] == [("mq-deadline", State.SATISFIED)] * 2
        # What covers none of the same drives stays.
        assert lab.claims == [
            "persistent:io-scheduler@nvme*=mq-deadline",
            "runtime:io-scheduler@vd*=bfq",
            "runtime:overcommit=always:95",
        ]


async def test_for_good_replaces_the_same_pattern_though_it_covers_nothing() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "vd*", "bfq"))
        await lab.set(("io-scheduler", "vd*", "none"), persist=True)
        assert lab.claims == ["persistent:io-scheduler@vd*=none"]


async def test_for_good_that_fails_leaves_the_runtime_claim_alone() -> None:
    async with running(small_host()) as lab:
        await lab.set(("hugepages", "2M", 40))
        with pytest.raises(OverLimit):
            await lab.set(("hugepages", "2M", 9000), persist=True)
        assert lab.claims == ["runtime:hugepages@2M=40"]
        assert pages(lab.kernel) == [40]


# Generations and reports


async def test_a_generation_is_a_pass_that_changed_something() -> None:
    async with running(large_host()) as lab:
        seen = [lab.engine.observed.generation]

        def grown() -> bool:
            seen.append(lab.engine.observed.generation)
            assert seen[-1] >= seen[-2]
            return seen[-1] > seen[-2]

        await lab.set(("io-scheduler", "sda", "bfq"))
        assert grown()
        await lab.set(("io-scheduler", "sda", "bfq"))
        await lab.engine.reconcile("timer")
        await lab.unset(("io-scheduler", "nvme*"))
        await lab.engine.plan(request(("io-scheduler", "sda", "none")))
        await lab.engine.verify()
        assert not grown()
        lab.kernel.disks["sda"].scheduler = "none"
        await lab.unset(("io-scheduler", "sda"))
        assert grown()
        await lab.engine.reconcile("timer")
        assert not grown()


async def test_a_report_has_what_changed_and_why() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "*", "mq-deadline"))
        await lab.set(("io-scheduler", "nvme0n1", "none"))
        report = lab.reports[-1]
        assert (report.cause, [o.target.instance for o in report.outcomes]) == ("Set", ["nvme0n1"])
        await lab.unset(("io-scheduler", "*"))
        assert [o.state for o in lab.reports[-1].outcomes] == [State.UNMANAGED] * 3


# Claims of the configuration are below all that callers ask for, and never saved


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
        assert len(lab.engine.edits.claims.by_id) == 3
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
        assert [claim.origin for claim in lab.engine.edits.claims.by_id.values()] == [Origin.CONFIG]


async def test_of_two_that_match_the_later_wins() -> None:
    async with running(large_host()) as lab:
        await boot(lab, configured("io-scheduler", "nvme*", "bfq", 2), configured("io-scheduler", "*", "kyber", 1))
        assert [lab.kernel.disks[name].scheduler for name in ("nvme0n1", "sda")] == ["bfq", "kyber"]
        await lab.engine.reload([configured("io-scheduler", "*", "kyber", 3)], DEFAULT)
        assert lab.kernel.disks["nvme0n1"].scheduler == "kyber"


async def test_a_reload_is_one_pass_that_writes_what_is_new_and_puts_back_what_is_gone() -> None:
    async with running(large_host()) as lab:
        await boot(lab, configured("io-scheduler", "sda", "bfq"), configured("hugepages", "2M", 10, 2))
        generation = lab.engine.observed.generation
        lab.writes()
        lab.reports.clear()
        await lab.engine.reload([configured("hugepages", "2M", 20)], DEFAULT)
        assert (pages(lab.kernel), lab.kernel.disks["sda"].scheduler) == ([10, 10], "mq-deadline")
        assert [report.cause for report in lab.reports] == ["reload"] * 3
        assert lab.engine.observed.generation == generation + 2  # memory and block: a lane each
        assert {str(target) for target in lab.engine.observed.outcomes} == {"hugepages@2M"}
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
        found = {str(outcome.target): outcome for outcome in lab.engine.observed.outcomes.values()}
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
        assert lab.engine.observed.troubles == {Reason.CHANGED_BY_OTHERS}
        await lab.engine.reload(wanted, DEFAULT)
        assert (lab.kernel.disks["sda"].scheduler, lab.engine.observed.troubles) == ("bfq", set())


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
        (pool,) = (outcome for target, outcome in lab.engine.observed.outcomes.items() if target.tunable == "hugepages")
        assert (pool.actual, pool.state, pool.reason) == ("6144", State.PARTIAL, Reason.OVER_LIMIT)
        refused = lab.engine.observed.outcomes[Target("overcommit")]
        assert (refused.actual, refused.state, refused.reason) == ("heuristic", State.REFUSED, Reason.OVER_LIMIT)
        assert lab.engine.observed.troubles == {Reason.OVER_LIMIT}
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
        assert sorted(str(claim_id) for claim_id in lab.engine.edits.claims.by_id) == [
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
        assert [claim.origin for claim in lab.engine.edits.claims.by_id.values()] == [Origin.CONFIG]


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
        outcome = lab.engine.observed.outcomes[Target("hugepages", "2M")]
        assert (outcome.state, outcome.reason, pages(lab.kernel)) == (State.OVERRIDDEN, reason, [30, 30])
