"""No request endangers the host: too many huge pages, and a commit limit that would let nobody start a program.

What comes near the limit is done on the simulated host (`--demo`): to reserve three quarters of this machine's memory
even for a moment would hurt what else runs on it. What is refused is refused on the real kernel. Mode never itself is
set in the virtual machine only (tests/system/test_knobs.py).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import pytest

from kerntune.api.names import HUGE_PAGES, MANAGER, MEMORY
from kerntune.errors import OverLimit
from kerntune.model import Claim, Origin
from tests.harness import host
from tests.harness.daemon import Daemon
from tests.live.conftest import saved
from tests.live.users import LIMIT, PARTIAL, PERSIST, RUNTIME, Options, User

MIB: Final = 1 << 20
FAR_TOO_MANY: Final = 99_999_999
NOISE: Final = 512 * MIB  # what else runs here may take as much; the pages asked for are a thousand times that
FIGURES: Final = re.compile(r"(\d+) pages asked for (\S+), (\d+) possible, (\d+) there now")
SAMPLE: Final = 0.001  # seconds

# `--demo`: two nodes of 32 GiB, 6 GiB of them taken by programs.
DEMO_TOTAL: Final = 128 << 30
DEMO_CEILING: Final = DEMO_TOTAL * 75 // 100 // (2 * MIB)


@contextmanager
def memory_watched() -> Iterator[list[dict[str, int]]]:
    """Give samples of /proc/meminfo throughout, the first from before and the last from after."""
    samples, end = [host.meminfo()], threading.Event()

    def sample() -> None:
        while not end.wait(SAMPLE):
            samples.append(host.meminfo())

    watching = threading.Thread(target=sample)
    watching.start()
    try:
        yield samples
    finally:
        end.set()
        watching.join(LIMIT)
        samples.append(host.meminfo())


@pytest.fixture
def demo(daemon_with: Callable[..., Daemon], own_root: User) -> User:
    """Give root before a daemon on the simulated host."""
    daemon = daemon_with("--demo")
    daemon.started()
    return own_root


def pool_of(user: User, node: str = "") -> int:
    """Return the total of the 2M pool as the daemon reads it."""
    rows = user.get(HUGE_PAGES, "Pools")
    return next(int(row[2]) for row in rows if row[:2] == [2 * MIB, node])


# Huge pages


@pytest.mark.parametrize("options", [RUNTIME, PERSIST, {"node": ["u", 0]}], ids=["runtime", "persist", "node"])
def test_far_too_many_pages_are_refused_before_anything_is_written(
    daemon: Daemon, member: User, options: Options
) -> None:
    member.set_count(16)
    before, claims = host.snapshot(), member.claims()
    with memory_watched() as samples:
        for _ in range(20):
            with pytest.raises(OverLimit) as refusal:
                member.set_count(FAR_TOO_MANY, options)
    assert host.snapshot() == before
    assert member.claims() == claims

    found = FIGURES.search(str(refusal.value))
    assert found, refusal.value
    asked, instance, possible, now = int(found[1]), found[2], int(found[3]), int(found[4])
    assert (asked, now) == (FAR_TOO_MANY, 16)
    assert instance.startswith(host.pool())
    memory = samples[0]
    assert 16 <= possible * host.page_size() <= memory["MemTotal"] * 75 // 100
    assert possible * host.page_size() <= memory["MemAvailable"] + 16 * host.page_size()

    assert len(samples) > 5
    assert {sample["Hugetlb"] // host.page_size() for sample in samples} == {16}
    least = min(sample["MemAvailable"] for sample in samples)
    assert least > memory["MemAvailable"] - NOISE


def test_a_plan_foresees_the_refusal(daemon: Daemon, member: User) -> None:
    row = ["hugepages", host.pool(), str(FAR_TOO_MANY)]
    _changed, (outcome,) = member.call(MANAGER, "Plan", "a(sss)a{sv}", [row], {})
    assert outcome[5:7] == ["refused", "over-limit"]
    assert FIGURES.search(outcome[7])
    assert member.claims() == {}


def test_a_small_request_that_may_be_partial_is_met(daemon: Daemon, member: User) -> None:
    assert member.set_count(16, PARTIAL) == host.pages() == 16


def test_one_page_too_many_is_refused_and_the_possible_number_is_had(demo: User) -> None:
    """On the simulated host, where the limit is known to the page."""
    with pytest.raises(OverLimit) as refusal:
        demo.set_count(DEMO_CEILING + 1)
    found = FIGURES.search(str(refusal.value))
    assert found
    assert found.groups() == (str(DEMO_CEILING + 1), "2M", str(DEMO_CEILING), "0")
    assert (pool_of(demo), demo.claims()) == (0, {})
    assert demo.set_count(DEMO_CEILING) == DEMO_CEILING == pool_of(demo)
    with pytest.raises(OverLimit):
        demo.set_count(1, size=1 << 30)
    assert demo.claims() == {"runtime:hugepages@2M": str(DEMO_CEILING)}


@pytest.mark.parametrize("options", [PARTIAL, PARTIAL | PERSIST], ids=["runtime", "persist"])
def test_with_allow_partial_far_too_many_become_the_possible_number(demo: User, options: Options) -> None:
    """On the simulated host: here it would take three quarters of the memory."""
    assert demo.set_count(FAR_TOO_MANY, options) == DEMO_CEILING == pool_of(demo)
    (row,) = (row for row in demo.describe()["targets"] if (row["tunable"], row["instance"]) == ("hugepages", "2M"))
    assert (row["state"], row["reason"]) == ("partial", "over-limit")
    assert f"{DEMO_CEILING} possible" in row["detail"]
    assert "over-limit" in demo.get(MANAGER, "Degraded")
    demo.release()
    assert pool_of(demo) == 0
    assert demo.get(MANAGER, "Degraded") == []


def test_a_node_gives_no_more_than_it_has(demo: User) -> None:
    """On the simulated host: node 0 has 60 GiB free, node 1 has 62."""
    assert demo.set_count(FAR_TOO_MANY, PARTIAL | {"node": ["u", 0]}) <= 60 * 512
    assert pool_of(demo, "1") == 0


# The commit limit


def refuse_to_lock_out(user: User, ratio: int = 1) -> str:
    """Ask for `never` with that ratio in every way there is; what the last refusal says."""
    for options in (RUNTIME, PERSIST):
        with pytest.raises(OverLimit):
            user.set_overcommit("never", ratio, options)
        with pytest.raises(OverLimit) as refusal:
            user.set(("overcommit", "", f"never:{ratio}"), options=options)
        with pytest.raises(OverLimit):
            user.set(("io-scheduler", "zz*", "none"), ("overcommit", "", f"never:{ratio}"), options=options)
    assert user.claims() == {}
    return str(refusal.value)


def test_never_with_a_ratio_of_1_is_refused(demo: User, daemon: Daemon, member: User) -> None:
    """On the real kernel only after the simulated one was spared: were it done, no shell could start here."""
    assert "commit limit 1310 MiB" in refuse_to_lock_out(demo)
    assert demo.get(MEMORY, "OvercommitMode") == "heuristic"

    before, memory = host.snapshot(), host.meminfo()
    said = refuse_to_lock_out(member)
    assert host.snapshot() == before
    limit = re.search(r"commit limit (\d+) MiB", said)
    committed = re.search(r"(\d+) MiB are committed", said)
    assert limit
    assert committed
    assert int(limit[1]) * MIB == pytest.approx((memory["MemTotal"] - memory["Hugetlb"]) // 100, abs=64 * MIB)
    assert int(committed[1]) * MIB == pytest.approx(memory["Committed_AS"], abs=NOISE)


@pytest.mark.parametrize("options", [["--demo"], []], ids=["simulated", "real"])
def test_never_with_a_ratio_of_1_is_refused_at_start(
    daemon_with: Callable[..., Daemon], own_root: User, options: Sequence[str]
) -> None:
    """Nobody is there to be told: the daemon starts all the same, says it, and keeps the other claim in force."""
    before = host.snapshot()
    daemon = daemon_with(*options)
    saved(
        daemon,
        Claim(Origin.PERSISTENT, "overcommit", "", "never:1", seq=1),
        Claim(Origin.PERSISTENT, "hugepages", host.pool(), "8", seq=2),
    )
    daemon.started()
    rows = {(row["tunable"], row["instance"]): row for row in own_root.describe()["targets"]}
    refused, given = rows["overcommit", ""], rows["hugepages", host.pool()]
    assert (refused["state"], refused["reason"]) == ("refused", "over-limit")
    assert own_root.get(MANAGER, "Degraded") == ["over-limit"]
    assert own_root.get(MEMORY, "OvercommitMode") == ("heuristic" if options else host.overcommit()[0])
    assert (given["value"], given["state"]) == ("8", "satisfied")
    assert "overcommit refused, over-limit" in daemon.journal()
    after = host.snapshot()
    assert {path: text for path, text in after.items() if "overcommit" in path} == {
        path: text for path, text in before.items() if "overcommit" in path
    }
    own_root.release()
    assert host.snapshot() == before


def test_huge_pages_do_not_grow_into_the_commit_limit(demo: User) -> None:
    """On the simulated host: never:10 promises 12.8 GiB of 128, 8.4 GiB of them needed; huge pages lower it by a tenth
    of their size.
    """
    demo.set_overcommit("never", 10)
    spare = DEMO_TOTAL // 10 - (2 << 30) - DEMO_TOTAL // 20
    possible = spare * 10 // (2 * MIB)
    with pytest.raises(OverLimit, match="never:10") as refusal:
        demo.set_count(2 * possible)
    found = FIGURES.search(str(refusal.value))
    assert found
    assert int(found[3]) == pytest.approx(possible, abs=8)
    assert pool_of(demo) == 0
    assert demo.set_count(2 * possible, PARTIAL) == int(found[3])
    demo.release()

    # The other way round: the pages are there, and the ratio would no longer do.
    demo.set_count(2 * possible)
    with pytest.raises(OverLimit):
        demo.set_overcommit("never", 10)
    # Both in one call, which has to look at what both would do.
    demo.release()
    with pytest.raises(OverLimit):
        demo.set(("hugepages", "2M", str(2 * possible)), ("overcommit", "", "never:10"))
    assert (pool_of(demo), demo.get(MEMORY, "OvercommitMode"), demo.claims()) == (0, "heuristic", {})


def test_a_refused_limit_leaves_the_mode_that_was(daemon: Daemon, member: User, root: User) -> None:
    member.set_overcommit("always", 60)
    for ratio in (1, 2):
        with pytest.raises(OverLimit):
            member.set_overcommit("never", ratio)
        assert host.overcommit() == ("always", 60)
    outcomes: list[Any] = root.call(MANAGER, "Verify")[0]
    assert outcomes == []
