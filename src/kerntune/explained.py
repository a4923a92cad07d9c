"""What there is to know of each tunable before it is set: use, evidence, risk. Data only: nothing is read or decided.

An entry may be here before its tunable is; `kerntune explain` shows those of the registry. "Measured" figures are of
loading models (a guest with 2 CPUs and 23 GiB, kernel 6.18, ext4 on a virtual disk), in pairs.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class Grade(StrEnum):
    """How well something is known, best first."""

    MEASURED = "measured"
    VENDOR = "vendor documentation"
    KERNEL = "kernel documentation"
    NONE = "none"


class Evidence(NamedTuple):
    """What is known, and how well."""

    grade: Grade
    said: str


class Example(NamedTuple):
    """A setting as it is typed, and what it is for."""

    setting: str
    about: str


class Explanation(NamedTuple):
    """A tunable; `files` are paths on the host, `document` is one of the kernel's sources."""

    tunable: str
    what: str
    helps: str
    evidence: tuple[Evidence, ...]
    risk: str
    files: tuple[str, ...]
    document: str
    instances: str
    values: str
    example: Example


HUGETLBPAGE: Final = "Documentation/admin-guide/mm/hugetlbpage.rst"

EXPLAINED: Final = (
    Explanation(
        "hugepages",
        "Memory set aside in pages of 2 MiB, 1 GiB or another size for programs that ask for them (MAP_HUGETLB, "
        "hugetlbfs, glibc.malloc.hugetlb=2).",
        "Loaders that copy a model into memory of their own (torch.load, read() into malloc) or ask for MAP_HUGETLB. "
        "Loaders that map the file (safetensors, llama.cpp by default) are not reached: see read-ahead.",
        (
            Evidence(Grade.MEASURED, "torch.load of 1 GiB, warm, in pages of 2 MiB: 0.50 of the time [0.35, 0.51]"),
            Evidence(Grade.MEASURED, "reading in order gains 0 to 5 %, random access 18 to 35 %"),
        ),
        "The pages are lost to all other programs. Children that write inherited memory die by SIGBUS when the pool "
        "is used up. The kernel may give fewer than asked without an error, so they are counted again.",
        (
            "/sys/kernel/mm/hugepages/hugepages-*kB/nr_hugepages",
            "/sys/devices/system/node/node*/hugepages/hugepages-*kB/nr_hugepages",
        ),
        HUGETLBPAGE,
        "a page size (2M, 1G), one NUMA node of it (2M/node0) or each node (2M/*); left out: the default size",
        "a number of pages, or a size that is a whole number of them (64G)",
        Example("hugepages=64G", "as many pages of the default size as 64 GiB are"),
    ),
    Explanation(
        "hugepages-overcommit",
        "How many huge pages beyond those set aside may be made when a program asks, and given back when it ends.",
        "Programs that use huge pages now and then, where memory set aside for good would be wasted.",
        (
            Evidence(Grade.MEASURED, "models were loaded into borrowed pages"),
            Evidence(Grade.KERNEL, "pages are taken from normal memory when the pool is used up"),
        ),
        "Nothing is set aside: where memory is fragmented there may be no pages when a program asks.",
        ("/sys/kernel/mm/hugepages/hugepages-*kB/nr_overcommit_hugepages",),
        HUGETLBPAGE,
        "a page size (2M); left out: the default size",
        "a number of pages, or a size that is a whole number of them (16G)",
        Example("hugepages-overcommit@2M=16G", "up to 16 GiB in pages of 2 MiB for who asks"),
    ),
    Explanation(
        "overcommit",
        "How much memory the kernel promises to programs: by its own judgement, whatever they ask, or never more than "
        "a limit.",
        "One file that is mapped and larger than RAM and swap together: some loaders map it as if it were to be "
        "written, and are refused. Otherwise leave it at 'heuristic'.",
        (
            Evidence(
                Grade.MEASURED, "a sparse model of 40 GiB on 23 GiB: refused in mode 'heuristic', opened in 'always'"
            ),
            Evidence(Grade.KERNEL, "the ratio is read in mode 'never' only"),
        ),
        "With 'always', the kernel refuses nothing, and ends a program when memory is gone. The memory guard caps "
        "promises before that, by the ratio (95 where it is not named); what was promised before the cap can still be "
        "used. A low limit with 'never' locks everybody out, and is refused.",
        ("/proc/sys/vm/overcommit_memory", "/proc/sys/vm/overcommit_ratio"),
        "Documentation/mm/overcommit-accounting.rst",
        "there are no instances, it is one setting of the host",
        "heuristic, always, always:RATIO or never:RATIO, with a RATIO from 1 to 100 (percent of RAM)",
        Example("overcommit=always:95", "promise whatever is asked for; the memory guard has a floor of 5 % of RAM"),
    ),
    Explanation(
        "thp",
        "Transparent huge pages: which programs get them without changes of their own (enabled), and which wait while "
        "the kernel makes room for them (defrag).",
        "Loaders that copy, and allocators that ask with madvise(2). enabled at 'madvise' suits most hosts, 'always' "
        "those with a single purpose; defrag at 'madvise'.",
        (
            Evidence(Grade.MEASURED, "copying loaders that get them: 0.58 of the time"),
            Evidence(Grade.KERNEL, "with defrag at 'always' every program may wait for compaction"),
        ),
        "With 'always', programs that touch memory sparsely grow, and may stall.",
        ("/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/mm/transparent_hugepage/defrag"),
        "Documentation/admin-guide/mm/transhuge.rst",
        "enabled or defrag",
        "always, madvise or never; for defrag also defer or defer+madvise",
        Example("thp@enabled=madvise", "for programs that ask for them"),
    ),
    Explanation(
        "sysctl",
        "Three settings of memory: vm.swappiness (page cache or programs, which goes first), vm.zone_reclaim_mode "
        "(whether a full NUMA node drops page cache before it takes memory of another), kernel.numa_balancing (whether "
        "pages are moved after threads).",
        "Servers that hold a model in memory: swappiness 1 to 10, and 0 for the other two.",
        (
            Evidence(Grade.VENDOR, "recommended for inference by AMD (ROCm), NVIDIA (Grace) and SGLang"),
            Evidence(Grade.NONE, "nothing is known to speak for other values of dirty ratios or vfs_cache_pressure"),
        ),
        "With a low swappiness page cache is dropped earlier. kernel.numa_balancing is compared with what is "
        "wished, and not written, for that takes a capability and kerntuned has none: a line in /etc/sysctl.d sets it.",
        ("/proc/sys/vm/swappiness", "/proc/sys/vm/zone_reclaim_mode", "/proc/sys/kernel/numa_balancing"),
        "Documentation/admin-guide/sysctl/vm.rst, kernel.rst",
        "vm.swappiness, vm.zone_reclaim_mode or kernel.numa_balancing",
        "a whole number: to 200, 7 and 3 in that order",
        Example("sysctl@vm.swappiness=10", "keep programs in memory rather than page cache"),
    ),
    Explanation(
        "cpu-governor",
        "How CPUs choose their frequency, one setting for all CPUs of a policy.",
        "Hosts where requests should not wait for the clock to rise: 'performance'. Many virtual machines have no "
        "frequency scaling, and their host decides.",
        (Evidence(Grade.VENDOR, "'performance' is recommended for inference; no gain was measured here"),),
        "Power, and with it heat.",
        ("/sys/devices/system/cpu/cpufreq/policy*/scaling_governor",),
        "Documentation/admin-guide/pm/cpufreq.rst",
        "a policy (policy0) or a list of CPUs (0-3,8); left out: all of them",
        "the kernel's name of a governor (performance, powersave, schedutil)",
        Example("cpu-governor=performance", "the highest frequency on every CPU"),
    ),
    Explanation(
        "cpu-epp",
        "What CPUs that choose their own frequency prefer, speed or power (energy performance preference).",
        "As cpu-governor, on CPUs with intel_pstate (HWP) or amd_pstate (active).",
        (Evidence(Grade.VENDOR, "'performance' is recommended for inference; no gain was measured here"),),
        "Power, and with it heat. With the governor 'performance' most drivers take no other preference.",
        ("/sys/devices/system/cpu/cpufreq/policy*/energy_performance_preference",),
        "Documentation/admin-guide/pm/intel_pstate.rst, amd-pstate.rst",
        "a policy (policy0) or a list of CPUs (0-3,8); left out: all of them",
        "the kernel's name of a preference (performance, balance_performance, balance_power, power)",
        Example("cpu-epp=performance", "speed at any price"),
    ),
    Explanation(
        "io-scheduler",
        "Who puts the requests to a block device in order: the kernel (mq-deadline, bfq, kyber), or nobody ('none').",
        "'none' for NVMe and virtual disks, which order their own queue; 'mq-deadline' for disks that turn.",
        (
            Evidence(Grade.VENDOR, "'none' for NVMe, 'mq-deadline' for disks"),
            Evidence(Grade.MEASURED, "no gain for loading a model by itself"),
        ),
        "Low.",
        ("/sys/block/*/queue/scheduler",),
        "Documentation/block/switching-sched.rst",
        "a device (nvme0n1), a pattern (nvme*) or a name below /dev/disk (by-id/...); left out: all of them",
        "the name of a scheduler that the device offers",
        Example("io-scheduler@nvme*=none", "every NVMe drive, those plugged later too"),
    ),
    Explanation(
        "read-ahead",
        "How many KiB of a file that is read in order are read before they are asked for.",
        "Loaders that map the file (safetensors, llama.cpp): 2048 to 4096 on the drive with the models. Loaders that "
        "use O_DIRECT are not reached.",
        (
            Evidence(
                Grade.MEASURED,
                "from 2048 on ext4 keeps the file in pages of 2 MiB and maps them whole: 0 before, about 1000 of 1024 "
                "MiB after",
            ),
        ),
        "Wastes page cache on random reads; 4096 does less than 1024 for who reads tensor by tensor.",
        ("/sys/block/*/queue/read_ahead_kb",),
        "Documentation/ABI/stable/sysfs-block",
        "a device (nvme0n1), a pattern (nvme*) or a name below /dev/disk (by-id/...); left out: all of them",
        "KiB, a whole number; the kernel keeps whole pages of it",
        Example("read-ahead@nvme*=2048", "mapped models are read in pages of 2 MiB"),
    ),
)
