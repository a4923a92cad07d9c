"""The failures people meet: what the command line says when the engine finds them, with its cause and what to try.

The engine's own errors and outcomes are what the scripted daemon answers.
"""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from kerntune.api.calls import outcome_rows
from kerntune.api.document import Outcome
from kerntune.api.names import ACTION_SET
from kerntune.errors import KerntuneError
from kerntune.kernel.files import KernelView
from kerntune.kernel.simulated import Node, SimulatedKernel
from kerntune.model import DesiredState, Origin, Target
from kerntune.tunables.hugepages import HugePages
from kerntune.tunables.knobs import CPU_GOVERNOR
from tests.api.test_polkit import CHALLENGE, NO, authorise, authority, somebody
from tests.cli.scripted import Captured, Script, document, run, tunable
from tests.dbus import lab as buses
from tests.harness.privatebus import PrivateBus
from tests.hosts import lay_out, plant
from tests.unit.lab import GIB, PAGE, POOL, claim, have_pages, running, small_host

FIXED_FREQUENCY = "proc/sys/kernel/osrelease\t6.1.0\nboot/config-6.1.0\tCONFIG_CPU_FREQ=y"


def answered(kernel: SimulatedKernel, tunable_: str, instances: str, value: str, *, partial: bool = False) -> Script:
    """Return a daemon that answers as the engine on this kernel does."""

    async def ask() -> Script:
        async with running(kernel) as lab:
            try:
                answer = await lab.set((tunable_, instances, value), partial=partial)
            except KerntuneError as error:
                return Script(error=error)
            return Script(outcomes=[Outcome(*row) for row in outcome_rows(answer.outcomes)])

    return asyncio.run(ask())


def said(script: Script, capsys: Captured, *words: str) -> tuple[int, str]:
    """Run the command; return the exit code, and all that was written."""
    code = run(script, *words)
    written = capsys.readouterr()
    return code, written.out + written.err


class TestCannotAllocateMemory:
    def test_the_pages_are_in_use_and_by_whom(self, tmp_path: Path, capsys: Captured) -> None:
        server = lay_out("two-sockets", tmp_path)
        pool = Target("hugepages", "2M")
        (tmp_path / POOL).with_name("surplus_hugepages").write_text("422\n")
        desired = DesiredState(pool, "100", claim(Origin.RUNTIME, "hugepages", "2M", 100))
        verdict = HugePages().assess(desired, HugePages().read_all(server, [pool])[pool], {})
        row = Outcome("hugepages", "2M", "100", "522", "522", *verdict)
        code, text = said(Script(outcomes=[row]), capsys, "set", "hugepages@2M=100")
        assert code == 6
        assert "pages-in-use: 522 pages stay until they are given back, and the kernel frees them then" in text
        assert "held by " in text
        assert "(pid " in text

    def test_memory_is_fragmented(self, capsys: Captured) -> None:
        script = answered(small_host(whole=96 * PAGE), "hugepages", "2M", "128")
        code, text = said(script, capsys, "set", "hugepages@2M=128")
        assert code == 6
        assert text == (
            "kerntune: 128 pages (256 MiB) asked for 2M, 96 (192 MiB) had: memory is too "
            "fragmented for the rest; ask again when programs "
            "have ended, or reserve them at boot, with hugepagesz=2M hugepages=128 on the kernel command line\n"
            "  The old count was put back; ask for fewer, or keep what can be had "
            "(--allow-partial, option allow-partial)\n"
        )

    def test_what_can_be_had_is_kept_when_that_is_allowed(self, capsys: Captured) -> None:
        script = answered(small_host(whole=96 * PAGE), "hugepages", "2M", "128", partial=True)
        code, text = said(script, capsys, "set", "hugepages@2M=128", "--allow-partial")
        assert code == 6
        assert (
            "hugepages@2M  256M       192M (96 x 2M)  partial  partially-allocated: 128 pages (256 MiB) asked for "
            "2M, 96 (192 MiB) had" in text
        )

    def test_it_is_over_the_limit(self, capsys: Captured) -> None:
        script = answered(small_host(), "hugepages", "2M", "99999999")
        code, text = said(script, capsys, "set", "hugepages@2M=99999999")
        assert code == 1
        assert (
            "99999999 pages (195312.4 GiB) asked for 2M, 6144 (12 GiB) possible, 0 there now: "
            "huge pages may have 12 GiB in all" in text
        )
        assert "Nothing was written; ask for less, or stop programs that hold memory" in text

    def test_the_host_needs_the_memory(self, capsys: Captured) -> None:
        script = answered(small_host(programs=15 * GIB), "hugepages", "2M", "512")
        code, text = said(script, capsys, "set", "hugepages@2M=512")
        assert code == 1
        assert "1024 MiB are available and 819 MiB stay for the host" in text
        assert "stop programs that hold memory" in text

    def test_the_kernel_has_no_huge_pages(self, tmp_path: Path, capsys: Captured) -> None:
        why = HugePages().missing(lay_out("no-hugetlb", tmp_path))
        script = answered(SimulatedKernel([Node(16 * GIB)], sizes=()), "hugepages", "2M", "1")
        assert said(script, capsys, "set", "hugepages@2M=1")[0] == 3
        host = document(tunables=[tunable("hugepages", supported=False, detail=why)])
        code, text = said(Script(host), capsys, "get", "hugepages")
        assert code == 3
        assert "does not support hugepages" in text
        assert "does not set CONFIG_HUGETLBFS: this kernel was built without it" in text

    def test_the_kernel_has_no_pages_of_that_size(self, capsys: Captured) -> None:
        script = answered(small_host(), "hugepages", "16G", "1")
        code, text = said(script, capsys, "set", "hugepages@16G=1")
        assert code == 3
        assert "hugepages has no '16G'" in text
        assert "There are 1G, 1G/node0, 2M, 2M/node0" in text

    @pytest.mark.parametrize(
        ("number", "exit_code", "what", "remedy"),
        [
            (errno.ENOMEM, 1, "Cannot allocate memory (ENOMEM)", "stop programs that hold memory, and ask again"),
            (errno.EINVAL, 3, "Invalid argument (EINVAL)", "reserve them at boot, with hugepagesz=2M hugepages=64"),
        ],
    )
    def test_the_kernel_refuses(self, number: int, exit_code: int, what: str, remedy: str, capsys: Captured) -> None:
        kernel = small_host()
        have_pages(kernel, 0)
        kernel.refuse = {POOL: number}
        code, text = said(answered(kernel, "hugepages", "2M", "64"), capsys, "set", "hugepages@2M=64")
        assert code == exit_code
        assert f"the kernel refused 64 pages for 2M: {what}: " in text
        assert remedy in text


class TestPermissionDenied:
    @pytest.mark.parametrize("answer", [NO, CHALLENGE])
    def test_neither_root_nor_in_the_group(self, answer: list[object], bus: PrivateBus, capsys: Captured) -> None:
        async def refusal() -> KerntuneError:
            async with buses.serving(bus) as service, authority(bus, answer):
                with pytest.raises(KerntuneError) as caught:
                    await authorise(service, somebody(":1.7"), ACTION_SET)
                return caught.value

        code, text = said(Script(error=asyncio.run(refusal())), capsys, "set", "cpu-governor=performance")
        assert code == 4
        assert "org.kerntune.Tuner1.set" in text
        assert "Members of the group kerntune may: sudo usermod -aG kerntune $USER, then log in again" in text
        assert "or run it with sudo" in text
        assert ("permission denied" in text) == (answer is NO)

    def test_the_daemon_may_not_write_either(self, capsys: Captured) -> None:
        kernel = small_host()
        kernel.refuse = {POOL: errno.EACCES}
        code, text = said(answered(kernel, "hugepages", "2M", "64"), capsys, "set", "hugepages@2M=64")
        assert code == 1
        assert "hugepages@2M is read-only here: Permission denied (EACCES)\n" in text
        assert "In a container, run kerntuned on the host itself, as root" in text


class TestNoScalingGovernor:
    def test_set(self, capsys: Captured) -> None:
        script = answered(small_host(), "cpu-governor", "*", "performance")
        code, text = said(script, capsys, "set", "cpu-governor=performance")
        assert code == 3
        assert text.startswith("kerntune: this host has no CPU frequency governor: there is no scaling_governor, for ")
        assert "no frequency driver is loaded" in text
        assert "Try sudo modprobe acpi_cpufreq; if that fails, the firmware controls power" in text
        assert text.endswith("  It takes another kernel, other firmware settings or other hardware\n")

    @pytest.mark.parametrize("verb", ["get", "list"])
    def test_get_and_list(self, verb: str, tmp_path: Path, capsys: Captured) -> None:
        kernel: KernelView = plant(tmp_path, FIXED_FREQUENCY)
        why = CPU_GOVERNOR.missing(kernel)
        host = document(tunables=[tunable("cpu-governor", supported=False, detail=why)])
        code, text = said(Script(host), capsys, verb, "cpu-governor")
        assert code == (3 if verb == "get" else 0)
        assert "there is no scaling_governor" in text
        assert "no frequency driver is loaded (/boot/config-6.1.0 has CONFIG_CPU_FREQ=y)" in text
