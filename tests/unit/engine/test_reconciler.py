"""One request at a time: who wins, what changes, and what each pass tells."""

from __future__ import annotations

import pytest

from kerntune.errors import (
    NoSuchTarget,
    OverLimit,
    Overridden,
    UnknownTunable,
)
from kerntune.model import Origin, Reason, State, Target
from tests.unit.lab import (
    claim,
    large_host,
    pages,
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
        generation, reports = lab.engine.generation, len(lab.reports)
        again = await lab.set(*settings)
        assert not again.changed
        assert {outcome.state for outcome in again.outcomes} == {State.SATISFIED}
        assert lab.writes() == []
        assert lab.engine.generation == generation
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


async def test_runtime_beats_persistent_beats_config_beats_profile() -> None:
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


async def test_a_beaten_claim_is_kept_and_told_by_whom() -> None:
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


async def test_a_total_that_the_nodes_beat_is_an_error_for_who_must_win() -> None:
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
        seen = [lab.engine.generation]

        def grown() -> bool:
            seen.append(lab.engine.generation)
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
