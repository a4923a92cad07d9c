"""What a real kernel makes of each kind of setting: single files, CPU governors, overcommit, and pools of huge pages.

The pools are in use, on two nodes and in both sizes, and last in memory that has few huge pages to give.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from typing import Final

import pytest

from kerntune.api.names import BUS_NAME, MANAGER, ROOT
from kerntune.errors import Exit
from tests.system.host import CPUFREQ, DRIVE, HOLD, ONE_GIB, RESET, Host, Setting, call, fragment, holder, plug
from tests.system.machine import Machine
from tests.system.pressure import MODE
from tests.system.shell import Job

pytestmark = [pytest.mark.own_machine, pytest.mark.usefixtures("as_found")]

# Files that no other test here writes: what is desired, the file, and what the file then reads.
VALUES: Final[tuple[tuple[Setting, str, str], ...]] = (
    (("thp", "enabled", "never"), "/sys/kernel/mm/transparent_hugepage/enabled", "[never]"),
    (("thp", "defrag", "defer+madvise"), "/sys/kernel/mm/transparent_hugepage/defrag", "[defer+madvise]"),
    (("read-ahead", "nvme0n1", "4096"), f"{DRIVE}/read_ahead_kb", "4096"),
    (("hugepages-overcommit", "2M", "24"), "/proc/sys/vm/nr_overcommit_hugepages", "24"),
    (("sysctl", "vm.swappiness", "11"), "/proc/sys/vm/swappiness", "11"),
    (("sysctl", "vm.zone_reclaim_mode", "1"), "/proc/sys/vm/zone_reclaim_mode", "1"),
    (("sysctl", "vm.watermark_scale_factor", "125"), "/proc/sys/vm/watermark_scale_factor", "125"),
)


@pytest.fixture(scope="module")
def drive(vm: Machine) -> Iterator[None]:
    """Plug a drive in, and pull it out when all tests of this file have ended."""
    plug(vm, "values")
    yield
    vm.nvme_del("values")


@pytest.mark.every_system
@pytest.mark.usefixtures("drive")
@pytest.mark.parametrize(
    ("desired", "file", "reads"), VALUES, ids=[f"{desired[0]}@{desired[1]}" for desired, _, _ in VALUES]
)
def test_the_service_sets_it_and_lets_go_again(host: Host, desired: Setting, file: str, reads: str) -> None:
    own = host.vm.read(file)
    assert reads not in own.split(), "it is not so by itself"
    answer = host.set(desired, user="bob")
    assert answer.short == [(desired[1], "satisfied", "ok")], answer.refusal
    assert reads in host.vm.read(file).split()
    assert not host.unset(desired[:2], user="bob").refusal
    assert host.vm.read(file) == own


def test_metrics_are_written_where_node_exporter_reads_them(host: Host) -> None:
    folder = "/var/lib/prometheus/node-exporter"
    host.vm.check(f"mkdir -p {folder} && systemctl start kerntune-metrics.service")
    lines = host.vm.check(f"cat {folder}/kerntune.prom; rm -r /var/lib/prometheus").splitlines()
    samples = [line for line in lines if line.startswith("kerntune_")]
    assert [line for line in lines if line not in samples and not line.startswith("# ")] == []
    assert any('page_size="2097152"' in line for line in samples), "the host's pools are among them"
    assert host.unit("Result", "kerntune-metrics.service") == "success"


GOVERNOR: Final = "cpu-governor"
OWN_GOVERNOR: Final = "schedutil"
ROUNDS: Final = 5  # one more than what makes a fight of it
VERIFY: Final = call("Verify", "--json=short")
REPAIRS: Final = "kerntune metrics | grep '^kerntune_drift_repairs_total '"


def governors(host: Host) -> list[str]:
    """Return the governor of each policy."""
    return [host.governor(policy) for policy in (0, 1)]


def performs(policy: int) -> str:
    """Return the shell's condition that a policy has the governor `performance`."""
    return f"[ $(cat {CPUFREQ}/policy{policy}/scaling_governor) = performance ]"


@pytest.fixture
def half(host: Host) -> Iterator[Host]:
    """Give the machine with CPU 1 offline; it is online again after the test."""
    host.set_online(1, online=False)
    yield host
    host.set_online(1, online=True)


@pytest.fixture
def without_cpufreq(host: Host) -> Iterator[Host]:
    """Give the machine without its cpufreq driver; the driver is back after the test."""
    host.vm.check("rmmod acpi_cpufreq")
    yield host
    host.vm.check("modprobe acpi_cpufreq")


def test_a_member_sets_every_cpu_and_lets_go_again(host: Host) -> None:
    answer = host.set((GOVERNOR, "*", "performance"), user="bob")
    assert answer.short == [("policy0", "satisfied", "ok"), ("policy1", "satisfied", "ok")]
    for policy in (0, 1):
        assert host.governor(policy) == "performance"
        host.vm.wait_for(f"[ $(cat {CPUFREQ}/policy{policy}/scaling_cur_freq) = 3000000 ]")
    host.unset((GOVERNOR, "*"), user="bob")
    assert governors(host) == [OWN_GOVERNOR] * 2


@pytest.mark.every_system
def test_a_governor_in_a_module_is_loaded_when_it_is_named(host: Host) -> None:
    host.vm.check("modprobe --remove cpufreq_powersave")
    offered = host.vm.read(f"{CPUFREQ}/policy0/scaling_available_governors")
    assert "powersave" not in offered.split(), "this test wants a governor that is not loaded"
    answer = host.set((GOVERNOR, "*", "powersave"), user="bob")
    assert [row.state for row in answer.outcomes] == ["satisfied", "satisfied"]
    assert host.governor(0) == "powersave"
    assert "cpufreq_powersave" in host.vm.check("lsmod")


def test_a_list_of_cpus_moves_those_only(host: Host) -> None:
    host.set((GOVERNOR, "*", "performance"))
    answer = host.set((GOVERNOR, "1", "powersave"), user="bob")
    assert answer.short == [("policy1", "satisfied", "ok")]
    assert governors(host) == ["performance", "powersave"]


@pytest.mark.every_system
def test_an_offline_cpu_is_named_and_its_wish_is_kept(half: Host) -> None:
    answer = half.set((GOVERNOR, "*", "performance"), user="bob")
    assert answer.short == [("policy0", "satisfied", "ok"), ("policy1", "unsupported", "cpu-offline")]
    assert half.claims() == {"runtime:cpu-governor@*": "performance"}
    half.set_online(1, online=True)
    half.vm.check("kerntune reload")
    assert half.governor(1) == "performance", "the next look at the CPUs finds it"


@pytest.mark.every_system
def test_a_cpu_comes_back_as_it_was_desired(host: Host) -> None:
    host.set((GOVERNOR, "1", "performance"))
    host.set_online(1, online=False)
    host.set_online(1, online=True)
    host.vm.wait_for(performs(1), 20)
    host.unset((GOVERNOR, "*"))
    assert host.governor(1) == OWN_GOVERNOR


def test_a_cpu_that_goes_and_comes_again_and_again_is_no_fight(host: Host, vm: Machine) -> None:
    begin, repaired = host.journal_end(), vm.check(REPAIRS)
    host.set((GOVERNOR, "*", "performance"), user="bob")
    for _ in range(ROUNDS):
        host.set_online(1, online=False)
        vm.wait_for(f'{VERIFY} | grep -q \'"policy1".*"cpu-offline"\'', 20)
        assert host.get(MANAGER, "Degraded") == []
        host.set_online(1, online=True)
        vm.wait_for(performs(1), 20)
        vm.wait_for(f"! {VERIFY} | grep -q policy1", 20)
    assert host.target(GOVERNOR, "policy1")["state"] == "satisfied"
    assert host.get(MANAGER, "Degraded") == []
    assert vm.check(REPAIRS) == repaired
    said = host.journal(begin)
    assert "cpu-governor@policy1 is performance (online cpu1)" in said
    assert "something else" not in said


@pytest.mark.every_system
def test_a_driver_that_comes_is_set_long_before_the_next_look_at_all_values(host: Host, vm: Machine) -> None:
    begin = host.journal_end()
    host.set((GOVERNOR, "*", "performance"))
    vm.check("rmmod acpi_cpufreq && modprobe acpi_cpufreq")
    for policy in (0, 1):
        vm.wait_for(performs(policy), 10)
    seen = f"journalctl --unit=kerntuned --after-cursor='{begin}' --grep='performance, was .*acpi_cpufreq' --quiet"
    vm.wait_for(seen, 10)
    host.unset((GOVERNOR, "*"))
    assert governors(host) == [OWN_GOVERNOR] * 2


def test_a_name_that_is_no_governor_changes_nothing(host: Host) -> None:
    answer = host.set((GOVERNOR, "*", "turbo"), user="bob")
    assert "turbo" in answer.refusal
    assert governors(host) == [OWN_GOVERNOR] * 2
    assert host.claims() == {}


def test_without_cpufreq_it_is_clearly_not_supported(without_cpufreq: Host, vm: Machine) -> None:
    refused = vm.run("kerntune --json set cpu-governor=performance", user="bob")
    assert refused.status == 3
    assert "Error.NotSupported" in refused.out
    assert "no policy" in refused.out
    assert without_cpufreq.claims() == {}
    vm.check("modprobe acpi_cpufreq")
    assert not without_cpufreq.set((GOVERNOR, "*", "performance")).refusal, "the driver is there again"
    without_cpufreq.unset((GOVERNOR, "*"))
    vm.check("rmmod acpi_cpufreq")


LOCKED_OUT: Final = """
import errno, json, mmap, os, subprocess
from pathlib import Path
VM = Path("/proc/sys/vm")

def write(name, value):
    (VM / name).write_text(str(value))

def can_work():
    try:
        return subprocess.run(["/bin/bash", "-c", "/bin/true"], capture_output=True).returncode == 0
    except OSError as error:
        return error.strerror
    except MemoryError:  # Python had none left for itself, before it came to bash
        return os.strerror(errno.ENOMEM)

committed = mmap.mmap(-1, 8 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
said = {"before": can_work()}
try:
    write("overcommit_ratio", 95)
    write("overcommit_memory", 2)
    said["never, ratio 95"] = can_work()
    write("overcommit_memory", 1)
    rows = dict(line.split()[:2] for line in open("/proc/meminfo"))
    # Of that the kernel keeps user_reserve_kbytes from a program as large as this one, 128 MiB (mm/util.c).
    write("overcommit_kbytes", int(rows["Committed_AS:"]) + 300 * 1024)
    write("overcommit_memory", 2)
    said["never, what is committed and 300 MiB"] = can_work()
finally:
    write("overcommit_memory", 0)
    write("overcommit_ratio", 50)
print(json.dumps(said))
"""


def test_mode_never_with_a_ratio_alone_locks_everybody_out(vm: Machine) -> None:
    """More is committed than that ratio allows."""
    vm.check(f"echo 1 > {MODE}")
    said = json.loads(vm.check(["python3", "-c", LOCKED_OUT]))
    sys.stdout.write(f"{said}\n")
    assert said == {
        "before": True,
        "never, ratio 95": "Cannot allocate memory",
        "never, what is committed and 300 MiB": True,
    }


def test_never_with_a_generous_ratio_is_set(host: Host) -> None:
    """The limit is far above what is committed here; kerntune refuses what would come near it, and changes nothing."""
    assert not host.set(("overcommit", "", "never:95"), user="bob").refusal
    assert host.overcommit() == (2, 95)
    assert not host.set(("hugepages", "2M", "16"), user="bob").refusal
    assert "16 (32 MiB) there now" in host.set(("hugepages", "2M", "99999999"), user="bob").refusal
    assert "commit limit" in host.set(("overcommit", "", "never:1"), user="bob").refusal
    assert (host.overcommit(), host.pages()) == ((2, 95), 16)


HUGE: Final = "hugepages"
NODES: Final = "/sys/devices/system/node"
OWN_PAGES: Final = (4, 8)  # pages that each node has before anybody claims some
HELD: Final = 16
SOON: Final = 60.0  # seconds, emulated: the daemon looks again with growing pauses
POOLS: Final = ("2M", "2M/node0", "2M/node1", "2M/*")
SEQUENCES, IN_THE_SOAK, STEPS = 10, 20, 9
MAX_PAGES: Final = 24  # of a claim or held on a node
CLAIM: Final = call(f"Set 'a(sss)a{{sv}}' 1 {HUGE}", "--quiet")
WITHDRAW: Final = call(f"Unset 'a(ss)a{{sv}}' 1 {HUGE}", "--quiet")
SHELL: Final = f"""{HOLD}
claim() {{ {CLAIM} "$1" "$2" 1 allow-partial b true || :; }}
withdraw() {{ {WITHDRAW} "$1" 0 || :; }}
look() {{ echo "$*: $(cat {NODES}/node?/hugepages/hugepages-2048kB/nr_hugepages | xargs)"; }}
step() {{ "$@" && look "$@"; }}
"""


def give_own(pages: tuple[int, int]) -> str:
    """Return the shell's line that gives each node pages of its own."""
    files = (f"{NODES}/node{node}/hugepages/hugepages-2048kB/nr_hugepages" for node in (0, 1))
    return "; ".join(f"echo {number} > {file}" for number, file in zip(pages, files, strict=True))


@pytest.fixture
def program(vm: Machine, host: Host) -> Iterator[Job]:
    """Give a program that holds pages; when it has ended and all is withdrawn, the host has no pages again."""
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
    f"! {call('Describe', '--json=short')} | tr '{{' '\\n' | "
    f"grep 'tunable.*{HUGE}.*2M' | grep -q 'baseline[^,]*[0-9]'"
)


def test_pages_in_use_on_both_nodes_are_owed_until_their_program_has_ended(
    host: Host, vm: Machine, program: Job
) -> None:
    vm.check(give_own(OWN_PAGES))
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
    lines = [f"claim 2M/* {chance.randrange(1, MAX_PAGES)}"]
    lines += [f"hold take {node} {chance.randrange(1, MAX_PAGES)}" for node in (0, 1)]
    for _ in range(STEPS):
        pool, node, number = chance.choice(POOLS), chance.randrange(2), chance.randrange(1, MAX_PAGES)
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
    vm.check(give_own(pages))
    before = host.pools()
    lines = [f"step {line}" for line in sequence(chance)]
    # The last claim goes before the program, or after it.
    last = [call(RESET, "--quiet"), "look Reset"]
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


def test_all_values_are_as_they_were_found(host: Host, as_found: dict[str, str]) -> None:
    """It comes before the tests that spoil the memory. The drive of these tests has files that were not there."""
    now = host.snapshot()
    assert {path: now.get(path) for path in as_found} == as_found


# Pools where memory has few huge pages to give


NODE = 1
MORE = 150  # pages: the node has the memory for them, but in pieces
HOLDS_PAGES = """
import mmap, signal
held = mmap.mmap(-1, 16 << 21, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
for page in range(16):
    held[page << 21] = 1
print("held", flush=True)
signal.pause()
"""


@pytest.fixture
def fragmented(host: Host) -> Iterator[Host]:
    """Give a host whose node 1 has 700 MiB free, most of it in pieces."""
    spoiler = fragment(host, NODE)
    yield host
    spoiler.kill(9)
    spoiler.wait()
    host.release()
    host.vm.check("echo 0 > /proc/sys/vm/nr_hugepages")


@pytest.mark.every_system
def test_each_node_gets_its_own(host: Host) -> None:
    answer = host.set((HUGE, "2M/node0", "32"), (HUGE, "2M/node1", "64"), user="bob")
    assert answer.short == [("2M/node0", "satisfied", "ok"), ("2M/node1", "satisfied", "ok")]
    assert [host.pages(node) for node in (0, 1, None)] == [32, 64, 96]
    host.set((HUGE, "2M", "128"), user="bob")
    assert [host.pages(node) for node in (0, 1, None)] == [32, 64, 96], "the claims on the nodes decide"
    host.unset((HUGE, "2M/node0"), user="bob")
    assert [host.pages(node) for node in (0, 1, None)] == [64, 64, 128]
    host.unset((HUGE, "*"), user="bob")
    assert host.pages() == 0


def test_pages_of_1_gib_go_and_come_back(host: Host) -> None:
    assert [host.pages(node, size=ONE_GIB) for node in (0, 1)] == [1, 1], "of boot"
    host.set((HUGE, "1G/node0", "0"), (HUGE, "2M/node0", "16"), user="bob")
    assert [host.pages(node, size=ONE_GIB) for node in (0, 1)] == [0, 1]
    assert host.pages(0) == 16
    answer = host.unset((HUGE, "*"), user="bob")
    assert host.pages() == 0
    assert host.pages(1, size=ONE_GIB) == 1
    if host.pages(0, size=ONE_GIB) == 0:
        # Something that cannot be moved has come to lie there meanwhile: whoever withdraws the claim is told, and it is
        # owed until the next boot, which this is for kerntuned.
        assert ("1G/node0", "partial", "partially-allocated") in answer.short
        host.vm.check("systemctl stop kerntuned && rm /run/kerntune/runtime.json && systemctl start kerntuned")


@pytest.mark.every_system
def test_fragmented_memory_gives_the_true_number_and_all_or_nothing_puts_back(fragmented: Host) -> None:
    own = fragmented.pages(NODE)
    wanted = own + MORE
    compacted = compactions(fragmented)
    answer = fragmented.set((HUGE, f"2M/node{NODE}", str(wanted)), user="bob")
    found = re.search(rf"{wanted} pages \(.*\) asked for 2M/node{NODE}, (\d+)(?: \(.*\))? had", answer.refusal)
    assert found, answer.refusal
    had = int(found[1])
    assert own < had < wanted
    assert compactions(fragmented) > compacted, "compaction comes before giving up"
    assert fragmented.pages(NODE) == own, "put back"
    assert fragmented.claims() == {}


def test_fragmented_memory_gives_what_it_has_when_a_part_will_do(fragmented: Host) -> None:
    own = fragmented.pages(NODE)
    wanted = own + MORE
    answer = fragmented.set((HUGE, f"2M/node{NODE}", str(wanted)), user="bob", allow_partial=True)
    (row,) = answer.outcomes
    assert (row.state, row.reason, row.requested) == ("partial", "partially-allocated", str(wanted))
    assert own < int(row.actual) == fragmented.pages(NODE) < wanted
    assert fragmented.describe()["degraded"] == ["partially-allocated"]
    fragmented.unset((HUGE, "*"), user="bob")
    assert fragmented.pages(NODE) == own


def test_pages_in_use_stay_and_their_holder_is_named(host: Host) -> None:
    host.set((HUGE, "2M", "16"), user="bob")
    job = host.vm.spawn(["python3", "-c", HOLDS_PAGES], user="alice")
    job.wait_output("held")
    answer = host.set((HUGE, "2M", "4"), user="bob", allow_partial=True)
    assert not answer.refusal
    (row,) = answer.outcomes
    assert (row.state, row.reason, row.actual) == ("partial", "pages-in-use", "16")
    assert "python3" in row.detail
    job.kill(9)
    job.wait()
    host.vm.wait_for("[ $(cat /proc/sys/vm/nr_hugepages) = 4 ]")


def compactions(host: Host) -> int:
    """Return how many pages compaction has looked at so far."""
    return int(host.vm.check("awk '/compact_migrate_scanned/ {print $2}' /proc/vmstat"))
