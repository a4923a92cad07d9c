"""One request at a time: what it answers, what it leaves behind, and that an error leaves nothing."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

import pytest

from kerntune.errors import (
    Failed,
    InvalidValue,
    KernelRejected,
    KerntuneError,
    LimitsExceeded,
    NoSuchTarget,
    OverLimit,
    Overridden,
    PartiallyAllocated,
    UnknownTunable,
)
from kerntune.kernel.simulated import SimulatedKernel
from kerntune.model import Limits, Origin, Reason, State, Target
from tests.unit.lab import (
    BOUND,
    FULL,
    PAGE,
    POOL,
    VM,
    claim,
    have_pages,
    host_values,
    large_host,
    node_pool,
    pages,
    queue,
    request,
    running,
    small_host,
)

SDA = Target("io-scheduler", "sda", key="3")


# Looking


async def test_looking_writes_nothing() -> None:
    kernel = large_host()
    async with running(kernel) as lab:
        assert {target.tunable for target in lab.engine.readings} == {"hugepages", "overcommit", "io-scheduler"}
        assert lab.engine.memory is not None
        assert "cpu-governor" in lab.engine.missing
        await lab.engine.reconcile("boot", enforce=True)
        assert (kernel.journal, lab.engine.outcomes, lab.engine.generation) == ([], {}, 0)


async def test_a_drive_that_came_a_moment_ago_is_found() -> None:
    async with running(large_host()) as lab:
        lab.kernel.plug("nvme7n1")
        assert (await lab.one("io-scheduler", "nvme7n1", "mq-deadline")).state is State.SATISFIED


# Refused before anything is asked of the kernel


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        (("io-sched", "sda", "none"), UnknownTunable),
        (("io-scheduler", "sdz", "none"), NoSuchTarget),
        (("io-scheduler", "by-id/none-such", "none"), NoSuchTarget),
        (("io-scheduler", "sda", "no!"), InvalidValue),
        (("io-scheduler", "sda/..", "none"), InvalidValue),
        (("io-scheduler", "a" * 257, "none"), InvalidValue),
        (("hugepages", "2M", "many"), InvalidValue),
        (("hugepages", "3M", "1"), NoSuchTarget),
        (("overcommit", "", "never"), InvalidValue),
    ],
)
async def test_one_bad_setting_refuses_the_whole_call(
    setting: tuple[str, str, str], error: type[KerntuneError]
) -> None:
    async with running(large_host()) as lab:
        with pytest.raises(error):
            await lab.set(("io-scheduler", "nvme*", "mq-deadline"), setting, ("hugepages", "2M", 10))
        assert (lab.writes(), lab.claims, lab.engine.generation) == ([], [], 0)


async def test_the_same_instances_twice_in_one_call() -> None:
    async with running(large_host()) as lab:
        with pytest.raises(InvalidValue, match="name the same instances"):
            await lab.set(("hugepages", "2M", 1), ("hugepages", "2048K", 2))


async def test_claims_have_a_limit_and_replacing_is_no_new_one() -> None:
    async with running(large_host(), limits=Limits(claims=2)) as lab:
        await lab.set(("io-scheduler", "nvme*", "none"))
        await lab.set(("io-scheduler", "sda", "none"))
        with pytest.raises(LimitsExceeded, match="2 runtime claims already"):
            await lab.set(("io-scheduler", "vd*", "none"))
        await lab.set(("io-scheduler", "sda", "bfq"))
        await lab.set(("io-scheduler", "vd*", "none"), persist=True)
        await lab.unset(("io-scheduler", "nvme*"))
        await lab.set(("io-scheduler", "vd*", "none"))
        assert len(lab.claims) == 3


async def test_a_call_of_too_many_settings_writes_nothing() -> None:
    async with running(large_host(), limits=Limits(claims=2)) as lab:
        with pytest.raises(LimitsExceeded):
            await lab.set(*(("io-scheduler", name, "mq-deadline") for name in ("nvme0n1", "nvme1n1", "sda")))
        assert (lab.writes(), lab.claims) == ([], [])


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
        assert not lab.ledger.baselines


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


async def test_runtime_beats_persistent_beats_profile_beats_config() -> None:
    below = [claim(Origin.CONFIG, "io-scheduler", "*", "bfq"), claim(Origin.PROFILE, "io-scheduler", "sda", "kyber")]
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
    async with running(lab.kernel, claims=lab.ledger.book.claims.values(), baselines=lab.ledger.baselines) as later:
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
            "runtime:overcommit=always",
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


# Errors leave nothing


async def test_a_failure_in_one_lane_withdraws_the_other_lanes_part() -> None:
    kernel = large_host()
    kernel.nodes[0].whole = kernel.nodes[1].whole = 10 * PAGE
    async with running(kernel) as lab:
        await lab.set(("io-scheduler", "nvme0n1", "kyber"))
        before = host_values(kernel)
        with pytest.raises(PartiallyAllocated):
            await lab.set(
                ("io-scheduler", "*", "bfq"), ("hugepages", "2M", 100), ("overcommit", "", "always"), persist=True
            )
        assert host_values(kernel) == before
        assert lab.claims == ["runtime:io-scheduler@nvme0n1=kyber"]
        assert [target.instance for target in lab.ledger.baselines] == ["nvme0n1"]


async def test_what_can_be_foreseen_is_refused_before_any_lane_writes() -> None:
    async with running(large_host()) as lab:
        with pytest.raises(OverLimit):
            await lab.set(("io-scheduler", "*", "bfq"), ("hugepages", "2M", 99_999_999))
        assert (lab.writes(), lab.claims) == ([], [])


async def test_all_lanes_in_one_call() -> None:
    async with running(large_host()) as lab:
        answer = await lab.set(("io-scheduler", "sda", "bfq"), ("hugepages", "2M", 10), ("overcommit", "", "always"))
        assert [(o.target.tunable, o.state) for o in answer.outcomes] == [
            ("io-scheduler", State.SATISFIED),
            ("hugepages", State.SATISFIED),
            ("overcommit", State.SATISFIED),
        ]


async def test_a_kernel_that_ignores_a_write() -> None:
    async with running(large_host()) as lab:
        lab.kernel.ignore.add(queue("sda"))
        with pytest.raises(KernelRejected, match="accepted, but io-scheduler@sda still reads mq-deadline"):
            await lab.set(("io-scheduler", "sda", "bfq"))
        assert lab.claims == []
        assert not lab.ledger.baselines


async def test_a_kernel_that_ignores_some_writes() -> None:
    async with running(large_host()) as lab:
        lab.kernel.ignore.add(queue("sda"))
        answer = await lab.set(("io-scheduler", "*", "kyber"))
        assert [(o.state, o.reason) for o in answer.outcomes] == [
            (State.SATISFIED, Reason.OK),
            (State.SATISFIED, Reason.OK),
            (State.FAILED, Reason.READ_BACK_DIFFERS),
        ]
        assert lab.claims == ["runtime:io-scheduler@*=kyber"]
        assert lab.engine.troubles == {Reason.READ_BACK_DIFFERS}


@pytest.mark.parametrize("reads", [0, 1, 2, 3])
async def test_a_kernel_that_obeys_late_is_waited_for(reads: int) -> None:
    async with running(large_host()) as lab:
        lab.kernel.late[queue("sda")] = reads
        outcome = await lab.one("io-scheduler", "sda", "bfq")
        assert (outcome.state, outcome.actual) == (State.SATISFIED, "bfq")
        assert lab.writes() == [(queue("sda"), "bfq")]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO, errno.EPERM, errno.EBUSY, errno.ENODEV])
async def test_a_kernel_that_refuses(code: int) -> None:
    async with running(large_host()) as lab:
        lab.kernel.refuse[queue("sda")] = code
        with pytest.raises(KerntuneError):
            await lab.set(("io-scheduler", "sda", "bfq"))
        assert lab.claims == []
        assert not lab.ledger.baselines


async def test_of_the_writes_of_a_step_none_follows_one_that_was_refused() -> None:
    async with running(large_host()) as lab:
        lab.kernel.refuse[f"{VM}ratio"] = errno.EINVAL
        with pytest.raises(KernelRejected, match="the kernel refused never:80"):
            await lab.set(("overcommit", "", "never:80"))
        assert (f"{VM}memory", "2") not in lab.writes()
        assert lab.kernel.overcommit == {"memory": 0, "ratio": 50, "kbytes": 0}


SETTINGS = [("io-scheduler", "*", "bfq"), ("hugepages", "2M", "100"), ("overcommit", "", "always:95")]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting[0])
async def test_a_claim_that_cannot_be_saved_is_withdrawn(setting: tuple[str, str, str]) -> None:
    kernel = large_host()
    have_pages(kernel, 3, 4)
    before = host_values(kernel)
    async with running(kernel) as lab:
        lab.ledger.full_for_claims = FULL
        with pytest.raises(Failed, match="cannot be saved: No space left on device"):
            await lab.set(setting)
        assert host_values(kernel) == before
        assert (lab.claims, dict(lab.ledger.baselines)) == ([], {})


async def test_a_claim_that_cannot_be_saved_puts_back_the_one_before() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        lab.ledger.full_for_claims = FULL
        with pytest.raises(Failed):
            await lab.set(("io-scheduler", "sda", "none"), persist=True)
        assert lab.kernel.disks["sda"].scheduler == "bfq"
        with pytest.raises(Failed):
            await lab.unset(("io-scheduler", "sda"))
        assert lab.kernel.disks["sda"].scheduler == "bfq"
        assert lab.claims == ["runtime:io-scheduler@sda=bfq"]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting[0])
async def test_without_a_saved_baseline_nothing_is_written(setting: tuple[str, str, str]) -> None:
    async with running(large_host()) as lab:
        lab.ledger.full = FULL
        with pytest.raises(Failed, match="own values cannot be saved"):
            await lab.set(setting)
        assert (lab.writes(), lab.claims) == ([], [])


@pytest.mark.parametrize("part", ["full", "full_for_claims"])
async def test_an_error_without_a_file_name_is_told_without_one(part: str) -> None:
    async with running(large_host()) as lab:
        setattr(lab.ledger, part, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(Failed) as caught:
            await lab.set(("io-scheduler", "sda", "bfq"))
        assert "None" not in str(caught.value)


async def test_baselines_that_cannot_be_dropped_do_not_fail_the_call() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        lab.ledger.full = FULL
        with pytest.raises(Failed):
            await lab.unset(("io-scheduler", "sda"))
        assert lab.kernel.disks["sda"].scheduler == "bfq"
        lab.ledger.full = None
        await lab.unset(("io-scheduler", "sda"))
        assert not lab.ledger.baselines


async def test_a_bug_in_a_pass_is_told_as_such_and_the_lane_goes_on() -> None:
    async with running(large_host()) as lab:

        def stumble(path: str, text: str) -> None:
            raise RuntimeError("no such thing should happen")

        lab.kernel.before_write = stumble
        with pytest.raises(Failed) as caught:
            await lab.set(("io-scheduler", "sda", "bfq"))
        assert str(caught.value) == "internal error. The daemon's journal says more"
        lab.kernel.before_write = None
        assert lab.claims == []
        assert (await lab.one("io-scheduler", "sda", "bfq")).state is State.SATISFIED


# Baselines


async def test_the_hosts_own_value_is_saved_before_it_is_overwritten() -> None:
    kernel = large_host()
    have_pages(kernel, 3, 4)
    saved: list[dict[str, str]] = []
    async with running(kernel) as lab:
        kernel.before_write = lambda path, text: saved.append({str(t): v for t, v in lab.ledger.baselines.items()})
        await lab.set(("hugepages", "2M/node0", 50))
        assert saved == [{"hugepages@2M/node0": "3"}]
        await lab.set(("hugepages", "2M/node0", 60))
        assert saved[-1] == {"hugepages@2M/node0": "3"}


async def test_a_baseline_is_saved_once() -> None:
    async with running(large_host()) as lab:
        for value in ("bfq", "none", "kyber"):
            await lab.set(("io-scheduler", "sda", value))
        assert [target.instance for target in lab.ledger.kept] == ["sda"]


async def test_only_what_was_written_has_a_baseline() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "*", "mq-deadline"))
        assert {target.instance for target in lab.ledger.baselines} == {"nvme0n1", "nvme1n1"}


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
        assert not lab.ledger.baselines


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
        assert list(lab.engine.book.claims.values()) == [good]
        assert lab.writes() == [(queue("sda"), "bfq")]


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


# Dry runs


def everything(lab_kernel: SimulatedKernel) -> object:
    return host_values(lab_kernel), list(lab_kernel.journal)


@pytest.mark.parametrize(
    ("setting", "state", "changed"),
    [
        (("hugepages", "2M", 10), State.PLANNED, True),
        (("hugepages", "2M", 7), State.SATISFIED, True),
        (("hugepages", "2M", 99999), State.REFUSED, True),
        (("overcommit", "", "never:1"), State.REFUSED, True),
        (("overcommit", "", "always"), State.PLANNED, True),
        (("io-scheduler", "sda", "bfq"), State.PLANNED, True),
        (("io-scheduler", "nvme0n1", "mq-deadline"), State.SATISFIED, False),
        (("io-scheduler", "vd*", "bfq"), State.UNSUPPORTED, True),
    ],
)
async def test_a_plan_is_what_a_set_would_do(setting: tuple[str, str, str | int], state: State, changed: bool) -> None:
    kernel = large_host()
    have_pages(kernel, 3, 4)
    async with running(kernel) as lab:
        await lab.set(("io-scheduler", "nvme0n1", "mq-deadline"))
        before, claims = everything(kernel), lab.claims
        answer = await lab.engine.plan(request(setting))
        assert ([o.state for o in answer.outcomes], answer.changed) == ([state], changed)
        assert (everything(kernel), lab.claims) == (before, claims)


async def test_a_plan_to_unset() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        lab.writes()
        answer = await lab.engine.plan(request(("io-scheduler", "sda", ""), unset=True))
        assert ([(o.state, o.actual) for o in answer.outcomes], answer.changed) == ([(State.PLANNED, "bfq")], True)
        assert not (await lab.engine.plan(request(("io-scheduler", "vd*", ""), unset=True))).changed
        assert lab.writes() == []
        assert lab.claims == ["runtime:io-scheduler@sda=bfq"]


# Verifying


async def test_verifying_a_host_that_is_as_it_should_be() -> None:
    async with running(large_host()) as lab:
        assert await lab.engine.verify() == ()
        await lab.set(*SETTINGS)
        lab.writes()
        assert await lab.engine.verify() == ()
        assert lab.writes() == []


@pytest.mark.parametrize(
    ("change", "target", "actual"),
    [
        (lambda kernel: setattr(kernel.disks["sda"], "scheduler", "none"), "io-scheduler@sda", "none"),
        (lambda kernel: setattr(kernel.nodes[0].pools[PAGE], "asked", 1), "hugepages@2M", "51"),
    ],
    ids=["scheduler", "pages"],
)
async def test_verifying_a_host_that_others_changed(
    change: Callable[[SimulatedKernel], None], target: str, actual: str
) -> None:
    async with running(large_host()) as lab:
        await lab.set(*SETTINGS)
        lab.writes()
        change(lab.kernel)
        (found,) = await lab.engine.verify()
        assert (str(found.target), found.actual, found.state, found.reason) == (
            target,
            actual,
            State.FAILED,
            Reason.CHANGED_BY_OTHERS,
        )
        assert lab.writes() == []


async def test_verifying_what_could_not_be_had_does_not_blame_others() -> None:
    async with running(small_host(whole=10 * PAGE)) as lab:
        await lab.set(("hugepages", "2M", 100), partial=True)
        (found,) = await lab.engine.verify()
        assert (found.actual, found.state, found.reason) == ("10", State.PARTIAL, Reason.PARTIALLY_ALLOCATED)


async def test_verifying_what_the_kernel_refused_does_not_blame_others() -> None:
    async with running(large_host()) as lab:
        lab.kernel.refuse[queue("sda")] = errno.EIO
        await lab.set(("io-scheduler", "*", "kyber"))
        (found,) = await lab.engine.verify()
        assert (found.target.instance, found.state, found.reason) == ("sda", State.FAILED, Reason.KERNEL_REJECTED)


async def test_verifying_a_drive_that_is_gone() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        lab.kernel.unplug("sda")
        (found,) = await lab.engine.verify()
        assert (found.target.instance, found.state, found.reason) == ("sda", State.UNSUPPORTED, Reason.NO_SUCH_TARGET)


async def test_progress_is_told_while_pages_are_made() -> None:
    """The kernel takes its time; between two looks the caller hears how far it is."""
    kernel = large_host()
    told: list[tuple[str, int, int]] = []
    heard = threading.Event()
    async with running(kernel) as lab:

        def slowly(path: str, text: str) -> None:
            if path == node_pool(1):
                heard.wait(BOUND)

        def progress(target: Target, done: int, wanted: int) -> None:
            told.append((target.instance, done, wanted))
            heard.set()

        kernel.before_write = slowly
        await lab.engine.change(request(("hugepages", "2M", 100)), "Set", progress)
    assert told[0] == ("2M", 50, 100)
    assert POOL not in [path for path, _ in kernel.journal]
