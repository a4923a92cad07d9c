"""Errors for names that are not there: at most a handful of those that are, as patterns, in the order people count."""

from __future__ import annotations

import pytest

from kerntune.errors import NoSuchTarget
from kerntune.model import Target
from kerntune.patterns import Kind
from kerntune.suggest import MAX_LISTED, listed, no_such_target, there_are

POLICIES = [Target("cpu-governor", f"policy{n}", aliases=(f"cpu{n}",)) for n in reversed(range(192))]
DRIVES = [Target("io-scheduler", f"{name}") for name in ("sdb", "nvme10n1", "nvme2n1", "vda", "sdc")]
POOLS = [Target("hugepages", f"{size}{node}") for size in ("2M", "1G") for node in ("", "/node1", "/node0")]


@pytest.mark.parametrize(
    ("kind", "there", "pattern", "said"),
    [
        (Kind.CPUS, POLICIES, "500", "cpu-governor has no CPU 500. There are CPUs 0-191"),
        (Kind.CPUS, POLICIES, "300-310,500", "cpu-governor has no CPU 300-310,500. There are CPUs 0-191"),
        (Kind.CPUS, POLICIES[-1:], "1", "cpu-governor has no CPU 1. There is CPU 0 alone"),
        (Kind.CPUS, POLICIES, "policy500", "cpu-governor has no 'policy500'. There are policy0-191"),
        (Kind.DRIVES, DRIVES, "sdz", "io-scheduler has no 'sdz'. There are nvme2n1, nvme10n1, sdb-sdc, vda"),
        (Kind.DRIVES, DRIVES[:1], "sdz", "io-scheduler has no 'sdz'. There is sdb"),
        (Kind.DRIVES, [], "sdz", "io-scheduler has no 'sdz'. This host has no io-scheduler now"),
        (Kind.POOLS, POOLS, "64K", "hugepages has no '64K'. There are 1G, 1G/node0-1, 2M, 2M/node0-1"),
    ],
)
def test_what_is_not_there(kind: Kind, there: list[Target], pattern: str, said: str) -> None:
    name = {Kind.CPUS: "cpu-governor", Kind.DRIVES: "io-scheduler", Kind.POOLS: "hugepages"}[kind]
    error = no_such_target(name, kind, pattern, there)
    assert isinstance(error, NoSuchTarget)
    assert str(error) == said


def test_a_message_lists_a_handful_and_counts_the_others() -> None:
    names = [f"{letter}{letter}{n}" for letter in "abcdefgh" for n in range(3)]
    assert listed(names) == "aa0-aa2, bb0-bb2, cc0-cc2, dd0-dd2, ee0-ee2, ff0-ff2 and 6 more"
    assert listed(names).count(",") == MAX_LISTED - 1
    assert listed([]) == ""


def test_of_many_settings_or_profiles_a_few_are_named_as_they_are() -> None:
    names = [f"web{n}" for n in range(9)]
    assert there_are(names, "wob3") == "Did you mean 'web3'? There are web0, web1, web2, web3, web4, web5 and 3 more"
    assert there_are(names[:6], "x") == "There are web0, web1, web2, web3, web4, web5"
    assert there_are([], "x") == "There are none"
