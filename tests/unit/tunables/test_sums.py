"""The numbers of pools that holds have a part in, on hosts of none, one and two nodes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from kerntune.model import Claim, Origin, Target
from kerntune.tunables.sums import apart, of_pools

OWN = 7  # pages that each pool has by itself


def pool(instance: str) -> Target:
    return Target("hugepages", instance)


def claims(*asked: tuple[Origin, str, int]) -> list[Claim]:
    """Each is newer than the one before."""
    return [
        Claim(origin, "hugepages", instances, str(value), seq=seq, hold=seq if origin is Origin.HOLD else 0)
        for seq, (origin, instances, value) in enumerate(asked)
    ]


def numbers(there: tuple[str, ...], asked: list[Claim]) -> Mapping[str, tuple[int, bool]]:
    """What the pools should be, each exactly or at least."""
    own = {pool(name): OWN for name in there}
    covering = {each: [c for c in reversed(asked) if c.instances == each.instance] for each in own}
    found = of_pools(covering, own)
    return {target.instance: (total.value, total.sum.at_least) for target, total in found.items()}


HOLD, SET = Origin.HOLD, Origin.RUNTIME
ONE, TWO = ("2M", "2M/node0"), ("2M", "2M/node0", "2M/node1")


@pytest.mark.parametrize(
    ("there", "asked", "expected"),
    [
        (("2M",), [(HOLD, "2M", 5)], {"2M": (12, False)}),
        (("2M",), [(HOLD, "2M", 5), (SET, "2M", 20)], {"2M": (25, False)}),
        (ONE, [(HOLD, "2M", 5), (HOLD, "2M/node0", 3)], {"2M": (15, False), "2M/node0": (15, False)}),
        (ONE, [(HOLD, "2M", 5), (SET, "2M/node0", 3)], {"2M": (8, False), "2M/node0": (8, False)}),
        (TWO, [(SET, "2M", 20)], {}),
        (TWO, [(HOLD, "2M", 5)], {"2M": (19, False)}),
        (TWO, [(HOLD, "2M/node0", 5)], {"2M/node0": (12, False)}),
        (TWO, [(SET, "2M", 20), (HOLD, "2M/node0", 5)], {"2M": (25, False), "2M/node0": (5, True)}),
        (TWO, [(HOLD, "2M", 4), (HOLD, "2M/node0", 5)], {"2M": (23, False), "2M/node0": (12, True)}),
        (TWO, [(HOLD, "2M", 4), (SET, "2M/node0", 9)], {"2M": (20, False), "2M/node0": (9, True)}),
        (TWO, [(SET, "2M/node1", 9), (HOLD, "2M/node0", 5)], {"2M/node0": (12, False)}),
        # Without the host's own pool, which is going away.
        (("2M/node0",), [(HOLD, "2M/node0", 5)], {"2M/node0": (12, False)}),
    ],
)
def test_what_is_held_is_added(
    there: tuple[str, ...], asked: list[tuple[Origin, str, int]], expected: dict[str, tuple[int, bool]]
) -> None:
    assert numbers(there, claims(*asked)) == expected


def test_each_page_size_for_itself() -> None:
    asked = claims((HOLD, "2M", 5), (HOLD, "1G", 1))
    assert numbers(("2M", "1G"), asked) == {"2M": (12, False), "1G": (8, False)}


def test_apart_each_target_has_its_own() -> None:
    first, second, nothing = pool("2M"), pool("1G"), pool("64K")
    asked = claims((SET, "2M", 20), (HOLD, "2M", 5), (HOLD, "1G", 1))
    found = apart({first: asked[1::-1], second: asked[2:], nothing: []}, dict.fromkeys((first, second, nothing), OWN))
    assert {target.instance: total.value for target, total in found.items()} == {"2M": 25, "1G": 8}
    assert found[first].sum.base == asked[0]
    assert found[second].sum.base is None
