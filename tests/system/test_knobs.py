"""Pools whose huge pages programs hold: whatever is claimed meanwhile, in the end they are the host's own."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import Final

import pytest

from kerntune.api.names import BUS_NAME, MANAGER, ROOT
from kerntune.errors import Exit
from tests.system.host import Host
from tests.system.machine import Machine
from tests.system.scenes import HOLD, holder
from tests.system.shell import Job

HUGE: Final = "hugepages"
NODES: Final = "/sys/devices/system/node"
OWN: Final = (4, 8)  # pages that each node has before anybody claims some
HELD: Final = 16
SOON: Final = 60.0  # seconds, emulated: the daemon looks again with growing pauses
POOLS: Final = ("2M", "2M/node0", "2M/node1", "2M/*")
SEQUENCES, IN_THE_SOAK, STEPS = 10, 20, 9
MOST: Final = 24  # pages, of a claim or held on a node
CALL: Final = f"busctl --quiet call {BUS_NAME} {ROOT} {MANAGER}"
SHELL: Final = f"""{HOLD}
claim() {{ {CALL} Set 'a(sss)a{{sv}}' 1 {HUGE} "$1" "$2" 1 allow-partial b true || :; }}
withdraw() {{ {CALL} Unset 'a(ss)a{{sv}}' 1 {HUGE} "$1" 0 || :; }}
look() {{ echo "$*: $(cat {NODES}/node?/hugepages/hugepages-2048kB/nr_hugepages | xargs)"; }}
step() {{ "$@" && look "$@"; }}
"""


def own(pages: tuple[int, int]) -> str:
    """Return the shell's line that gives each node pages of its own."""
    files = (f"{NODES}/node{node}/hugepages/hugepages-2048kB/nr_hugepages" for node in (0, 1))
    return "; ".join(f"echo {number} > {file}" for number, file in zip(pages, files, strict=True))


@pytest.fixture
def program(vm: Machine, host: Host) -> Iterator[Job]:
    """A program that holds pages; when it has ended and all is withdrawn, the host has no pages again."""
    with holder(vm) as job:
        yield job
    host.release()
    vm.check("echo 0 > /proc/sys/vm/nr_hugepages")


def owed(host: Host) -> dict[str, tuple[str, str]]:
    """Return state and reason of each pool that kerntuned has still to put back."""
    rows = (row for row in host.describe()["targets"] if row["tunable"] == HUGE)
    return {row["instance"]: (row["state"], row["reason"]) for row in rows if row["baseline"] is not None}


def are(pools: dict[str, int]) -> str:
    """Return the shell's condition that the pools have those numbers."""
    return " && ".join(f"[ $(cat /sys/{path}) = {number} ]" for path, number in pools.items())


NOTHING_OWED: Final = (
    f"[ \"$(busctl get-property {BUS_NAME} {ROOT} {MANAGER} Degraded)\" = 'as 0' ] && "
    f"! busctl --json=short call {BUS_NAME} {ROOT} {MANAGER} Describe | tr '{{' '\\n' | "
    f"grep 'tunable.*{HUGE}.*2M' | grep -q 'baseline[^,]*[0-9]'"
)


def test_pages_in_use_on_both_nodes_are_owed_until_their_program_has_ended(
    host: Host, vm: Machine, program: Job
) -> None:
    vm.check(own(OWN))
    before = host.pools()
    assert not host.set((HUGE, "2M", "64"), user="bob").refusal
    assert vm.check(["bash", "-c", f"{HOLD}; hold take 0 {HELD}; hold take 1 {HELD}"]).split("\n") == ["holds 16"] * 2

    done = vm.run("kerntune unset hugepages; echo $?; kerntune status", user="bob")
    answer, _, status = done.out.partition(f"\n{Exit.PARTLY.value}\n")
    assert status, f"the exit status is not {Exit.PARTLY.value}: {done.out}{done.err}"
    assert "pages-in-use" in answer
    assert "pages-in-use" in status
    states = owed(host)
    assert ("partial", "pages-in-use") in states.values(), states
    assert [host.pages(node) for node in (0, 1)] == [HELD, HELD], "no page is there that nobody uses"

    # A part that goes is no other hand: the rest is owed as before.
    vm.check(["bash", "-c", f"{HOLD}; hold give 0 {HELD // 2}; hold give 1 1"])
    assert ("partial", "pages-in-use") in owed(host).values()

    program.kill(9)
    program.wait()
    vm.wait_for(are(before), SOON)
    vm.wait_for(NOTHING_OWED, SOON)
    assert owed(host) == {}


def sequence(chance: random.Random) -> list[str]:
    """Return claims, withdrawals, and pages that the program takes and gives back, as lines for the shell.

    In the beginning there is something on each node to take, and the program has some of it.
    """
    lines = [f"claim 2M/* {chance.randrange(1, MOST)}"]
    lines += [f"hold take {node} {chance.randrange(1, MOST)}" for node in (0, 1)]
    for _ in range(STEPS):
        pool, node, number = chance.choice(POOLS), chance.randrange(2), chance.randrange(1, MOST)
        claim, withdraw = f"claim {pool} {number}", f"withdraw {pool}"
        take, give = f"hold take {node} {number}", f"hold give {node} {number // 3}"
        lines.append(chance.choice([claim, claim, withdraw, take, give]))
    return lines


@pytest.mark.parametrize(
    "seed",
    [
        *range(SEQUENCES),
        *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(SEQUENCES, SEQUENCES + IN_THE_SOAK)),
    ],
)
def test_after_the_last_claim_and_the_last_program_every_pool_is_the_hosts_own(
    host: Host, vm: Machine, program: Job, seed: int
) -> None:
    chance = random.Random(seed)
    pages = chance.randrange(8), chance.randrange(8)
    vm.check(own(pages))
    before = host.pools()
    lines = [f"step {line}" for line in sequence(chance)]
    # The last claim goes before the program, or after it.
    last = [f"{CALL} Reset 'a{{sv}}' 0", "look Reset"]
    program_first = chance.random() < 0.5
    did = vm.run(["bash", "-c", "\n".join([SHELL, *lines, *([] if program_first else last)])])
    program.kill(9)
    program.wait()
    if program_first:
        vm.check(["bash", "-c", "\n".join([SHELL, *last])])
    sys.stdout.write(f"seed {seed}, own pages {pages}, program first {program_first}\n{did.out}{did.err}\n")
    vm.wait_for(are(before), SOON)
    vm.wait_for(NOTHING_OWED, SOON)
    assert owed(host) == {}
