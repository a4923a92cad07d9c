"""A plan to withdraw says of every target it names whether it would change."""

from __future__ import annotations

import pytest

from kerntune.engine.requests import Request
from kerntune.model import State
from tests.unit.lab import large_host, request, running, small_host


@pytest.mark.parametrize("nodes", [1, 2])
async def test_a_total_of_several_pools_changes_with_its_nodes(nodes: int) -> None:
    async with running(small_host() if nodes == 1 else large_host(nodes)) as lab:
        await lab.set(("hugepages", "2M", 64), ("overcommit", "", "heuristic"))
        lab.writes()
        named = request(("hugepages", "*", ""), ("overcommit", "", ""))
        planned = await lab.engine.plan(Request(named.settings, unset=True))
        assert [(one.target.tunable, one.actual, one.state) for one in planned.outcomes] == [
            ("hugepages", "64", State.PLANNED),
            ("overcommit", "heuristic", State.UNMANAGED),
        ]
        assert lab.writes() == []
        done = await lab.unset(("hugepages", "*"), ("overcommit", ""))
        assert [(one.before, one.actual, one.state) for one in done.outcomes] == [
            ("64", "0", State.UNMANAGED),
            ("heuristic", "heuristic", State.UNMANAGED),
        ]
