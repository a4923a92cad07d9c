"""How people name instances, sizes and CPUs: patterns, globs, units; and what patterns cost."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from kerntune import patterns
from kerntune.engine.claims import resolve
from kerntune.engine.results import Result, by_tunable, own_outcomes
from kerntune.errors import InvalidValue
from kerntune.globs import Glob, Set
from kerntune.model import Origin, Reading, Target
from kerntune.patterns import PATTERNS, UNSTABLE, Kind, Pool, Span, full_name, is_unstable, joined, parse_pool
from kerntune.tunables.knobs import CPU_GOVERNOR, IO_SCHEDULER
from kerntune.units import (
    CpuList,
    in_kib,
    in_pages,
    parse_cpus,
    parse_size,
    spell_alike,
    spell_cpus,
    spell_size,
    unit_of,
)
from tests.unit.lab import claim

KIB, MIB, GIB, TIB = (1 << bits for bits in (10, 20, 30, 40))


# Names of each kind


@pytest.mark.parametrize(
    ("kind", "given", "normal"),
    [
        *((Kind.POOLS, given, normal) for given, normal in (
            ("2m", "2M"), ("2MB", "2M"), ("2MiB", "2M"), ("2048K", "2M"), ("1024M", "1G"), ("2M/node0", "2M/node0"),
            ("2M/NODE12", "2M/node12"), ("2048k/*", "2M/*"), ("2M/node3,0-1", "2M/node0-1,3"), ("2M/0", "2M/node0"),
            ("2M/3,0-1", "2M/node0-1,3"), ("2M/node*", "2M/*"))),
        *((Kind.CPUS, given, normal) for given, normal in (
            ("*", "*"), ("policy0", "policy0"), ("policy127", "policy127"), ("0", "0"), ("0-3,8", "0-3,8"),
            ("3,2,1,0", "0-3"), ("0-3,2-5", "0-5"), ("8,0-1", "0-1,8"), ("cpu3", "3"), ("cpu0-3,8", "0-3,8"),
            ("policy0-7", "policy0-7"), ("policy3,0-2", "policy0-3"), ("policy?", "policy?"))),
        *((Kind.DRIVES, name, name) for name in (
            "nvme0n1", "nvme*", "by-id/nvme-eui.*", "sda", "dm-0", "md127", "cciss!c0d0", "mmcblk0boot0", "nvme0c0n1",
            "nvme0n1-nvme3n1", "sda-sdd", "sdy-sdab", "dm-0-dm-12")),
        *((Kind.DRIVES, given, normal) for given, normal in (
            ("/dev/nvme0n1", "nvme0n1"), ("/dev/disk/by-id/nvme-a", "by-id/nvme-a"), ("/dev/nvme*", "nvme*"))),
        (Kind.NAMES, "vm/swappiness", "vm.swappiness"), (Kind.NAMES, "/proc/sys/vm/swappiness", "vm.swappiness"),
        (Kind.SINGLE, "", ""), (Kind.SINGLE, "*", ""),
    ],
)  # fmt: skip
def test_a_name_in_normal_form(kind: Kind, given: str, normal: str) -> None:
    assert PATTERNS[kind].normal(given) == normal
    assert PATTERNS[kind].normal(normal) == normal


NO_NAMES = {
    Kind.POOLS: ("", "*", "2M/", "2M/node", "2M/nodex", "2M/node3-1", "2M/node0,", "2M/node0/x", "2M/../x", "2M\n",
                 " 2M", "0M", "-2M", "1.5G", "3M", "G", "2", "2M*", "node0", "2M/nodes", "2M/0*"),
    Kind.CPUS: ("", "policy", "policyX", "policy7-0", "cpu?", "cpu*", "policy[0-3", "po*", "?", "cpu", "cpux",
                "thecpu*/x", "0-", "-1", "3-1", "0,,1", "0 1", "0-3\n", "all", "10000", "1-2-3", "policy0/..",
                "\u0663"),
    Kind.DRIVES: ("", ".", "..", "../nvme0n1", "nvme0n1/..", "nvme0n1/queue", "/dev/disk/by-path/x", "/dev/mapper/root",
                  "/dev/..", "/dev/", "/dev", "/nvme0n1", "dev/nvme0n1", "sdd-sda", "nvme3n1-nvme0n1", "nvme0n1\n",
                  "\n", "nvme0n1 ", "nvme 0", "nvme0n1\0", "by-id/", "by-id/..", "by-id/../nvme0n1",
                  "by-path/pci-0000:00", "n\u00fc", "x" * 257),
    Kind.SINGLE: ("node0", "**"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in NO_NAMES.items() for text in texts])
def test_what_is_no_name(kind: Kind, text: str) -> None:
    with pytest.raises(InvalidValue):
        PATTERNS[kind].normal(text)


DRIVE = Target("io-scheduler", "nvme0n1", aliases=("by-id/nvme-First", "by-id/nvme-eui.01"))
POLICY = Target("cpu-governor", "policy4", aliases=("cpu4", "cpu5"))
POOL = Target("hugepages", "2M/node1")


@pytest.mark.parametrize(
    ("kind", "target", "yes", "no"),
    [
        (Kind.DRIVES, DRIVE,
         "nvme0n1-nvme3n1 nvme0n0-nvme0n2 /dev/nvme0n1 /dev/disk/by-id/nvme-First "
         "nvme0n1 nvme* * nvme[0-3]n1 nvme?n1 by-id/nvme-First by-id/nvme-eui.* by-id/*",
         # A glob does not cross the slash of by-id/.
         "nvme1n1-nvme3n1 nvme0n1-nvme0n1 nvme0n2-nvme0n3 "
         "nvme0n nvme0n1p1 NVME* nvme1* sda by-id/nvme-Second by-id/nvme-Firs nvme-First *First b*"),
        (Kind.DRIVES, Target("io-scheduler", "loop7"), "loop7 loop* loop[0-9] loop?  loop0-loop7 /dev/loop7",
         "* l* lo*7 [lr]* ?oop7 *7 loop0-loop6 ram* zram*"),
        (Kind.DRIVES, Target("io-scheduler", "zram0"), "zram0 zram* /dev/zram?", "* z* [z]ram0 ram* loop*"),
        (Kind.DRIVES, Target("io-scheduler", "ram15"), "ram15 ram* ram0-ram15", "* r* zram* ram1"),
        (Kind.DRIVES, Target("io-scheduler", "loopback"), "* l* loop*", "loop0-loop9"),
        (Kind.DRIVES, Target("io-scheduler", "sdaa"), "sdaa sdy-sdab sda-sdzz sd*", "sda-sdz vda-vdzz sda-vdzz"),
        (Kind.DRIVES, Target("io-scheduler", "sda1x"), "sda*", "sda-sdz sd0-sd9"),
        (Kind.DRIVES, Target("io-scheduler", "dm-7"), "* dm-7 dm-0-dm-7 dm-*", "dm-0-dm-6 dm-7-x dm-7-"),
        (Kind.DRIVES, Target("io-scheduler", "md_a1-md_a3"), "md_a1-md_a3 md_*", "md_a1 md_a1-md_a2"),
        (Kind.DRIVES, Target("io-scheduler", "nvme1c0n1", aliases=("nvme1n1", "by-id/nvme-First")),
         "nvme1n1 nvme0n1-nvme3n1 nvme0c0n1-nvme2c0n1", "nvme0n1-nvme3n2 nvme2n1-nvme3n1"),
        (Kind.CPUS, POLICY, "* policy4 4 5 0-4 5-9 cpu5 policy? policy0-7",
         "0-3,6 policy5 policy40 44 cpu6 policy[0-3] policy0-3,5-9"),
        (Kind.POOLS, POOL, "2M/node1 2M/* 2M/node0-3", "2M 2M/node10 2M/node0 1G/* 1G/node1 2M/node0,2"),
        (Kind.POOLS, Target("hugepages", "2M"), "2M", "2M/* 2M/node0 1G"),
    ],
)  # fmt: skip
def test_what_a_pattern_covers(kind: Kind, target: Target, yes: str, no: str) -> None:
    def covers(pattern: str) -> bool:
        return PATTERNS[kind].matcher(PATTERNS[kind].normal(pattern))(target)

    assert [pattern for pattern in yes.split() if not covers(pattern)] == []
    assert [pattern for pattern in no.split() if covers(pattern)] == []


@pytest.mark.parametrize(
    ("kind", "exact", "open_"),
    [
        (Kind.DRIVES, "nvme0n1 by-id/nvme-First nvme0n1-nvme3n1 sda-sdd", "nvme* nvme?n1 sd[ab]"),
        (Kind.CPUS, "policy0 0-3,8 policy0-7 3", "* policy?"),
        (Kind.POOLS, "2M 2M/node1 2M/node0-3", "2M/*"),
    ],
)
def test_what_names_present_targets_and_waits_for_none(kind: Kind, exact: str, open_: str) -> None:
    assert all(PATTERNS[kind].exact(pattern) for pattern in exact.split())
    assert not any(PATTERNS[kind].exact(pattern) for pattern in open_.split())


@given(st.integers(10, 49).map(lambda bits: 1 << bits), st.sampled_from(["", "node3", "*"]))
def test_a_pool_there_and_back(size: int, node: str) -> None:
    assert parse_pool(str(Pool(size, node))) == Pool(size, node)


INSTANCES = {
    Kind.CPUS: st.integers(0, 200).map(lambda number: f"policy{number}"),
    Kind.POOLS: st.sampled_from(["2M", "1G", "32M", "64M"])
    | st.builds("{}/node{}".format, st.sampled_from(["2M", "1G"]), st.integers(0, 20)),
    Kind.DRIVES: st.builds("nvme{}n{}".format, st.integers(0, 30), st.integers(1, 2))
    | st.builds("sd{}".format, st.text("abz", min_size=1, max_size=2))
    | st.builds("dm-{}".format, st.integers(0, 30)),
}


@given(st.sampled_from(list(INSTANCES)), st.data())
def test_what_is_printed_for_several_can_be_typed(kind: Kind, data: st.DataObject) -> None:
    names = data.draw(st.sets(INSTANCES[kind]))
    there = [Target("x", name) for name in sorted(names)]
    printed = data.draw(st.lists(st.sampled_from(sorted(names)), unique=True)) if names else []
    found = joined(printed)
    assert sorted(name for _, covered in found for name in covered) == sorted(printed)
    for pattern, covered in found:
        assert PATTERNS[kind].normal(pattern) == pattern
        matches = PATTERNS[kind].matcher(pattern)
        assert sorted(target.instance for target in there if matches(target)) == sorted(covered)


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        (["policy0", "policy1", "policy2", "policy6"], ["policy0-2,6"]),
        (["2M", "2M/node0", "2M/node1", "1G"], ["2M", "2M/node0-1", "1G"]),
        (["sda", "sdb", "sdc", "nvme0n1"], ["sda-sdc", "nvme0n1"]),
        ([f"nvme{number}n1" for number in range(12)], ["nvme0n1-nvme11n1"]),
        (["nvme0n1", "nvme1n1", "nvme3n1", "nvme4n1"], ["nvme0n1-nvme1n1", "nvme3n1-nvme4n1"]),
        (["nvme0n1", "nvme0n2", "nvme1n1", "nvme1n2"], ["nvme0n1-nvme1n1", "nvme0n2-nvme1n2"]),
        (["sda", "sdc", "sdaa", "sdab"], ["sda", "sdc", "sdaa-sdab"]),
        (["dm-0", "dm-1", "mount/data1", "mount/data2"], ["dm-0-dm-1", "mount/data1", "mount/data2"]),
        (["1x", "2x"], ["1x", "2x"]),
        (["vm.swappiness", "vm.zone_reclaim_mode"], ["vm.swappiness", "vm.zone_reclaim_mode"]),
        ([""], [""]),
        ([], []),
    ],
)
def test_instances_that_share_a_row(names: list[str], patterns: list[str]) -> None:
    assert [pattern for pattern, _ in joined(names)] == patterns


@pytest.mark.parametrize(
    ("name", "stable"),
    [("sda", False), ("vda", False), ("xvdb", False), ("nvme0n1", False), ("mmcblk0", False), ("sdab", False),
     ("by-id/nvme-Fast_1", True), ("nvme*", True), ("dm-0", False),
     ("md127", False), ("md_models", True), ("nvme0c0n1", False), ("loop0", True), ("vdaa1x", True)],
)  # fmt: skip
def test_names_that_a_reboot_may_give_to_another_drive(name: str, stable: bool) -> None:
    assert (UNSTABLE.fullmatch(name) is None) is stable


@pytest.mark.parametrize(
    ("name", "unstable"),
    [("sda-sdd", True), ("/dev/sda", True), ("nvme0n1", True), ("by-id/a-b", False), ("sd*", False),
     ("dm-0-dm-3", True), ("/dev/dm-0-dm-3", True), ("dm-0", True), ("loop0-loop3", False)],
)  # fmt: skip
def test_drives_that_a_reboot_may_find_in_another_order(name: str, unstable: bool) -> None:
    assert is_unstable(name) is unstable


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_a_range_has_what_is_between_its_ends(namespace: int, one: int, two: int, number: int) -> None:
    first, last = sorted((one, two))
    pattern = f"nvme{first}n{namespace}-nvme{last}n{namespace}"
    covers = PATTERNS[Kind.DRIVES].matcher(PATTERNS[Kind.DRIVES].normal(pattern))
    assert covers(Target("x", f"nvme{number}n{namespace}")) is (first < last and first <= number <= last)
    assert not covers(Target("x", f"nvme{number}n{namespace}1"))


def test_a_range_costs_what_its_text_costs() -> None:
    """A text of hyphens has many places at which it could be cut in two."""
    for text in ("1-" * 127, "-" * 255, "a1-" * 85, "sd-" * 85):
        assert Span.parse(text) is None


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("swappiness", "vm.swappiness"),
        ("vm.swappiness", "vm.swappiness"),
        ("swap", "swap"),
        ("twice", "twice"),
        ("", ""),
    ],
)
def test_the_last_part_of_a_name_stands_for_it_where_there_is_one(name: str, full: str) -> None:
    assert full_name(name, ["vm.swappiness", "a.twice", "b.twice"]) == full


# Globs of our own: the same answers as fnmatch gives, without its cache, and never slow


TEXTS = st.text("ab-!^[]n01", max_size=9)
GLOBS = st.text("ab-!^[]n01*?", max_size=12)
# After an empty range fnmatch takes what is left of the set for its beginning: [b-a!c] is [!c] to it.
MISREAD = re.compile(r"\[(.-.)+!")


@given(GLOBS, TEXTS)
@example("[]a]", "]")
@example("[!]a]", "b")
@example("[a-", "[a-")
@example("[--0]", ".")
@example("[b-a]", "a")
@example("[!b-a]", "a")
@example("a**?*b", "axb")
def test_it_says_what_fnmatch_says(pattern: str, name: str) -> None:
    assume(not MISREAD.search(pattern))
    assert Glob.parse(pattern).matches(name) is fnmatch.fnmatchcase(name, pattern)


class CountedName(str):
    """A name that counts how often one of its characters is looked at."""

    steps = 0

    def __iter__(self) -> Iterator[str]:
        for char in str(self):
            self.steps += 1
            yield char


@pytest.mark.parametrize(
    "pattern",
    [
        "*a" * 127 + "b",
        "*" * 255 + "b",
        "*?" * 127 + "b",
        "*" + "a" * 49 + "b",
        "*" + "?" * 49 + "b*",
        "[a-b" * 63,
        f"*[{'b' * 250}]*",
        f"*{'[!b-zA-Z]' * 27}b*",
    ],
)
def test_the_work_is_bounded_by_the_length_of_the_name(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set is asked about a character once, however often the name has it."""
    sets, inner = Counter[str](), Set.has

    def counted(self: Set, char: str) -> bool:
        sets[char] += 1
        return inner(self, char)

    monkeypatch.setattr(Set, "has", counted)
    name = CountedName("a" * 99)
    glob = Glob.parse(pattern)
    for _ in range(2):
        assert not glob.matches(name)
    assert name.steps <= 2 * len(name)
    assert sets["a"] <= len(glob.parts)


def test_patterns_of_callers_become_no_regular_expressions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules re and fnmatch cache what they compile."""

    def refuse(*_args: object) -> None:
        raise AssertionError("a pattern of a caller was compiled")

    monkeypatch.setattr(re, "compile", refuse)
    for number in range(100):
        assert not IO_SCHEDULER.matches(f"*no{number}*such?drive*", DRIVE)


# How sizes and CPU lists are written


PAGE_SIZES = st.sampled_from([64 * KIB, 2 * MIB, 16 * MIB, 32 * MIB, 512 * MIB, GIB, 16 * GIB])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4K", 4 * KIB),
        ("2M", 2 * MIB),
        ("2m", 2 * MIB),
        ("2MB", 2 * MIB),
        ("2MiB", 2 * MIB),
        ("2mib", 2 * MIB),
        ("64G", 64 * GIB),
        ("1T", TIB),
        ("0G", 0),
        ("007M", 7 * MIB),
    ],
)
def test_a_size(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "2", "G", "2X", "-2M", "2 M", "1.5G", "2MM", "2iB", "2B", "٢M", "2M\n", "1e3M"])
def test_no_size(text: str) -> None:
    assert parse_size(text) is None
    assert in_kib(text) == in_pages(text, 2 * MIB) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (1000, "1000"), (KIB, "1K"), (2 * MIB, "2M"), (1536 * MIB, "1536M"), (4 * TIB, "4T")]
)
def test_a_size_is_spelt_in_the_largest_exact_unit(count: int, text: str) -> None:
    assert spell_size(count) == text


@given(st.integers(0, 1 << 50))
def test_a_spelt_size_reads_back(count: int) -> None:
    text = spell_size(count)
    assert parse_size(text) == (count if not text.isdigit() else None)
    assert not text.isdigit() or int(text) == count


@given(PAGE_SIZES, st.integers(0, 1 << 30))
def test_a_size_is_exact_or_refused_with_its_neighbours(page_size: int, kib: int) -> None:
    pages, rest = divmod(kib * KIB, page_size)
    if not rest:
        assert in_pages(f"{kib}K", page_size) == str(pages)
        return
    with pytest.raises(InvalidValue) as raised:
        in_pages(f"{kib}K", page_size)
    below, above = pages * page_size, (pages + 1) * page_size
    said = f"{pages} ({spell_size(below)}) and {pages + 1} ({spell_size(above)})"
    assert raised.value.hint == f"The nearest numbers of pages are {said}"


@pytest.mark.parametrize(("text", "kib"), [("4M", "4096"), ("512KiB", "512"), ("0M", "0"), ("128", "128")])
def test_a_size_in_kib(text: str, kib: str) -> None:
    assert in_kib(text) == kib


def test_cpu_lists_are_read_as_the_kernel_writes_them() -> None:
    assert CpuList.parse("0-2,5").bits == 0b100111
    assert str(CpuList.parse("8,0-2,1-3,4,8")) == "0-4,8"
    assert parse_cpus("0-2,5\n") == {0, 1, 2, 5}
    assert parse_cpus("\n") == frozenset()
    assert spell_cpus({5, 2, 0, 1}) == "0-2,5"
    assert spell_cpus(()) == ""


@pytest.mark.parametrize("text", ["3-1", "0-", "-1", "0,", "a", "0-1-2", "10000", "٢"])
def test_no_cpu_list(text: str) -> None:
    with pytest.raises(InvalidValue):
        parse_cpus(text)


# What patterns cost: a claim is parsed once for all targets, whatever its text names


POLICIES = [
    Target("cpu-governor", f"policy{n}", aliases=tuple(f"cpu{cpu}" for cpu in range(8 * n, 8 * n + 8)))
    for n in range(64)
]
DRIVES = [Target("io-scheduler", f"nvme{n}n1", aliases=(f"by-id/nvme-{n}",)) for n in range(64)]


class Counted:
    """Counts how often something is parsed."""

    def __init__(self, cls: type[CpuList] | type[Glob]) -> None:
        self.parse_text, self.times = cls.parse, 0

    def parse(self, text: str) -> object:
        self.times += 1
        return self.parse_text(text)


def test_a_cpu_list_is_parsed_once_for_all_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = [",".join(map(str, range(n, n + 400, 7))) for n in range(300)]
    claims = [claim(Origin.RUNTIME, "cpu-governor", each, "performance", seq) for seq, each in enumerate(lists)]
    counted = Counted(CpuList)
    monkeypatch.setattr(patterns, "CpuList", counted)
    desired_states = resolve(CPU_GOVERNOR, claims, {}, POLICIES)
    assert len(desired_states) == len(POLICIES)
    assert counted.times == len(claims)


def test_a_glob_is_parsed_once_for_all_drives(monkeypatch: pytest.MonkeyPatch) -> None:
    claims = [claim(Origin.RUNTIME, "io-scheduler", f"nvme{n}*", "none", n) for n in range(64)]
    counted = Counted(Glob)
    monkeypatch.setattr(patterns, "Glob", counted)
    resolve(IO_SCHEDULER, claims, {}, DRIVES)
    result = Result(readings={target: Reading(target, "none") for target in DRIVES})
    there = by_tunable(result)
    for each in claims:
        own_outcomes(each, IO_SCHEDULER, result, there)
    assert counted.times == 2 * len(claims)


def test_a_list_costs_what_its_text_costs() -> None:
    """The widest range there is, 40 times, is one range."""
    everything = CpuList.parse(",".join(["0-9999"] * 40))
    assert everything.spans == ((0, 9999),)
    assert CPU_GOVERNOR.normal("0-9999,5-9998,3") == "0-9999"
    assert CPU_GOVERNOR.matches("0-9999", POLICIES[-1])


# Sizes of one message in one unit


@pytest.mark.parametrize(
    ("counts", "unit", "said"),
    [
        ((100 * GIB, 96 * GIB + 700 * MIB, 0), "", "100 GiB, 96.6 GiB, 0 GiB"),
        ((6 * GIB, 819 * MIB + 1), "", "6144 MiB, 819 MiB"),
        ((1 * GIB, 512 * KIB), "", "1024 MiB, 0.5 MiB"),
        ((512 * KIB, 4 * KIB), "", "512 KiB, 4 KiB"),
        ((), "", ""),
        ((0,), "", "0 GiB"),
        ((100 * GIB, 20 * MIB, 1), "G", "100 GiB, 0.019 GiB, 0 GiB"),
        ((1 << 40, 96 * GIB), "T", "1 TiB, 0.093 TiB"),
        ((102_400 * MIB,), "M", "102400 MiB"),
        ((GIB,), "K", "1048576 KiB"),
    ],
)
def test_alike(counts: tuple[int, ...], unit: str, said: str) -> None:
    assert ", ".join(spell_alike(counts, unit)) == said


@pytest.mark.parametrize(
    ("text", "unit"), [("64G", "G"), ("4mib", "M"), ("1kB", "K"), ("512", ""), (">=4M", ""), ("never:50", "")]
)
def test_unit_of(text: str, unit: str) -> None:
    assert unit_of(text) == unit
