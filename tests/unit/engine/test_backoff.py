"""When a pool that fell short is asked for again: tables of the decision, and passes on a clock that stands."""

from __future__ import annotations

import pytest

from kerntune.engine.backoff import FIRST, LONGEST_WAIT, Attempt, is_due, next_attempt
from kerntune.kernel.simulated import SimulatedKernel
from kerntune.model import Origin, Reason, State, Target
from tests.unit.lab import COMPACT, GIB, PAGE, POOL, Clock, Lab, claim, pages, running, small_host, told

WHOLE = Target("hugepages", "2M")
LACKING = 400


@pytest.mark.parametrize(
    ("waited", "grown", "asked"),
    [
        (FIRST - 1, LACKING, False),
        (FIRST, LACKING // 4 - 1, False),
        (FIRST, LACKING // 4, True),
        (FIRST, 0, False),
        (FIRST, -LACKING, False),
        (LONGEST_WAIT, 0, False),
        (LONGEST_WAIT, LACKING, True),
    ],
)
def test_asked_again_when_a_quarter_of_what_is_lacking_became_free(waited: float, grown: int, asked: bool) -> None:
    tried = Attempt("150", LACKING, at=1000.0, free=5000)
    assert is_due(tried, 1000.0 + waited, 5000 + grown) is asked


@pytest.mark.parametrize(
    ("before", "wait"),
    [
        (None, FIRST),
        (Attempt("150", LACKING, 0.0, 0), 2 * FIRST),
        (Attempt("150", LACKING, 0.0, 0, 2000.0), LONGEST_WAIT),
        (Attempt("150", LACKING, 0.0, 0, LONGEST_WAIT), LONGEST_WAIT),
        (Attempt("150", LACKING + 1, 0.0, 0, LONGEST_WAIT), FIRST),
        (Attempt("151", LACKING, 0.0, 0, LONGEST_WAIT), FIRST),
    ],
)
def test_the_wait_doubles_while_nothing_is_gained(before: Attempt | None, wait: float) -> None:
    assert next_attempt(before, "150", LACKING, 7.0, 9) == Attempt("150", LACKING, 7.0, 9, wait)


def short_host() -> SimulatedKernel:
    """100 pages can be had; 400 are desired."""
    return small_host(programs=8 * GIB, whole=100 * PAGE)


async def boot(lab: Lab) -> None:
    await lab.engine.reconcile("boot", enforce=True)
    assert told(lab.engine.outcomes[WHOLE]) == ("2M", "100", State.PARTIAL, Reason.PARTIALLY_ALLOCATED)
    lab.writes()


async def look(lab: Lab, clock: Clock, seconds: float = 60.0) -> list[tuple[str, str]]:
    """A look at the memory lane after so many seconds: what it wrote."""
    clock.now += seconds
    await lab.engine.reconcile("drift")
    return lab.writes()


async def test_a_pool_that_cannot_grow_is_not_written_at_each_look() -> None:
    clock, kernel = Clock(), short_host()
    async with running(kernel, claims=[claim(Origin.CONFIG, "hugepages", "2M", 400)], clock=clock) as lab:
        await boot(lab)
        for _ in range(5):
            assert await look(lab, clock) == []
        assert told(lab.engine.outcomes[WHOLE]) == ("2M", "100", State.PARTIAL, Reason.PARTIALLY_ALLOCATED)
        assert [outcome.reason for outcome in await lab.engine.verify()] == [Reason.PARTIALLY_ALLOCATED]


async def test_it_is_asked_again_without_compaction_when_memory_became_free_and_less_often_when_that_is_in_vain() -> (
    None
):
    clock, kernel = Clock(), short_host()
    async with running(kernel, claims=[claim(Origin.CONFIG, "hugepages", "2M", 400)], clock=clock) as lab:
        await boot(lab)
        kernel.nodes[0].programs -= 80 * PAGE  # a quarter of 300 lacking
        assert await look(lab, clock, 59.0) == []
        assert await look(lab, clock, 1.0) == [(POOL, "400")]
        kernel.nodes[0].programs -= 80 * PAGE
        assert await look(lab, clock, 119.0) == []
        assert await look(lab, clock, 1.0) == [(POOL, "400")]
        kernel.nodes[0].whole = 50 * PAGE
        kernel.nodes[0].programs -= 80 * PAGE
        assert await look(lab, clock, 240.0) == [(POOL, "400")]
        assert pages(kernel) == [150]
        kernel.nodes[0].whole = None
        kernel.nodes[0].programs -= 80 * PAGE
        assert await look(lab, clock, 60.0) == [(POOL, "400")], "what helped starts anew"
        assert told(lab.engine.outcomes[WHOLE]) == ("2M", "400", State.SATISFIED, Reason.OK)


async def test_memory_that_was_taken_and_came_back_is_memory_that_became_free() -> None:
    clock, kernel = Clock(), short_host()
    async with running(kernel, claims=[claim(Origin.CONFIG, "hugepages", "2M", 400)], clock=clock) as lab:
        await boot(lab)
        kernel.nodes[0].programs += 80 * PAGE
        assert await look(lab, clock) == []
        kernel.nodes[0].programs -= 80 * PAGE
        assert await look(lab, clock) == [(POOL, "400")]


async def test_who_asks_does_not_wait_and_nor_does_what_others_took() -> None:
    clock, kernel = Clock(), short_host()
    async with running(kernel, clock=clock) as lab:
        assert (await lab.one("hugepages", "2M", 400, partial=True)).actual == "100"
        lab.writes()
        assert await look(lab, clock) == []
        kernel.nodes[0].pools[PAGE].asked = 60  # somebody else shrank it
        kernel.nodes[0].whole = 50 * PAGE
        assert await look(lab, clock) == [(POOL, "400")]
        assert pages(kernel) == [110]
        assert (await lab.one("hugepages", "2M", 400, partial=True)).actual == "110"
        assert (COMPACT, "1") in lab.writes()
