"""What people read when they are refused, beside a daemon on the simulated host: short, and in their own words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import needs_root
from tests.harness.command import Shell, demo

pytestmark = needs_root


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with demo(tmp_path_factory.mktemp("programs")) as beside:
        yield beside


def refused(shell: Shell, words: str, code: int) -> str:
    """Return what a command that is refused with this exit code says."""
    done = shell.run(f"kerntune {words}")
    assert (done.returncode, done.stdout) == (code, ""), done
    return done.stderr


def described(shell: Shell) -> Any:
    return json.loads(shell.check("kerntune list --json"))


class TestNotThere:
    """One text, whichever verb is asked; it lists a handful, however much there is."""

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("cpu-governor@500", "performance"),
            ("cpu-governor@policy500", "performance"),
            ("hugepages@64K", "1"),
            ("hugepages@2M/node9", "1"),
            ("io-scheduler@sdzz", "none"),
            ("sysctl@vm.dirty_ratio", "5"),
            ("thp@shmem_enabled", "always"),
        ],
    )
    def test_get_and_set_say_the_same(self, name: str, value: str, shell: Shell) -> None:
        said = refused(shell, f"get {name}", 3)
        assert refused(shell, f"set {name}={value}", 3) == said
        assert len(said.splitlines()) == 2

    def test_a_cpu(self, shell: Shell) -> None:
        said = "kerntune: cpu-governor has no CPU 500\n  There are CPUs 0-7\n"
        assert refused(shell, "set cpu-governor@500=performance", 3) == said


LIMIT = "limits.hugepages-percent in /etc/kerntune/kerntune.toml"


class TestUnits:
    """All numbers of a message in the unit that was asked, and the setting to change where one is the reason."""

    @pytest.mark.parametrize(
        ("setting", "said"),
        [
            (
                "hugepages=100G",
                f"100 GiB asked for 2M, 96 GiB possible, 1 GiB there now: huge pages may have 96 GiB in all (75 % of "
                f"RAM, {LIMIT}) and have 1 GiB",
            ),
            (
                "hugepages=102400M",
                f"102400 MiB asked for 2M, 98304 MiB possible, 1024 MiB there now: huge pages may have 98304 MiB in "
                f"all (75 % of RAM, {LIMIT}) and have 1024 MiB",
            ),
            (
                "hugepages=51200",
                f"51200 pages (100 GiB) asked for 2M, 49152 (96 GiB) possible, 512 (1 GiB) there now: huge pages may "
                f"have 96 GiB in all (75 % of RAM, {LIMIT}) and have 1 GiB",
            ),
            (
                "hugepages@1G=100G",
                f"100 GiB asked for 1G, 95 GiB possible, 0 GiB there now: huge pages may have 96 GiB in all (75 % of "
                f"RAM, {LIMIT}) and have 1 GiB",
            ),
            (
                "hugepages-overcommit=100G",
                f"100 GiB to borrow asked for 2M, 95 GiB possible, 0 GiB there now: those kept and those borrowed may "
                f"have 96 GiB together (75 % of RAM, {LIMIT})",
            ),
        ],
    )
    def test_over_the_limit(self, setting: str, said: str, shell: Shell) -> None:
        shell.check("kerntune set hugepages=512")
        assert refused(shell, f"set {setting}", 1).startswith(f"kerntune: {said}\n  Nothing was written;")

    def test_a_hold(self, shell: Shell) -> None:
        shell.check("kerntune set hugepages=512")
        said = refused(shell, "hold hugepages=100G", 1)
        assert "+100 GiB asked for hugepages@2M, +95 GiB possible, 1 GiB there now: " in said
        assert LIMIT in said

    @pytest.mark.parametrize(
        ("setting", "said"),
        [
            ("read-ahead=1G", "1G is too large for a read-ahead\n  Give 65536 KiB (64M) at most"),
            ("read-ahead=1048576", "1048576 KiB is too large for a read-ahead\n  Give 65536 KiB (64M) at most"),
            ("read-ahead=1K", "a read-ahead of 1K would be none: the kernel rounds down to whole pages of 4 KiB\n"),
            (f"hugepages={'9' * 23}", f"{'9' * 23} is too large for huge pages\n  Give a number of pages, or a size"),
            (f"hugepages={'9' * 23}G", f"{'9' * 23}G is too large for huge pages\n"),
            (f"hugepages={'9' * 18}T", f"{'9' * 18}T is too large for huge pages\n"),
            (f"hugepages-overcommit={'9' * 18}T", f"{'9' * 18}T is too large for huge pages\n"),
            (f"hugepages={'9' * 300}", f"{'9' * 40} is too large for huge pages\n"),
            (f"read-ahead={'9' * 23}", f"{'9' * 23} KiB is too large for a read-ahead\n"),
            (f"sysctl@vm.swappiness={'9' * 23}", f"{'9' * 23} is too large for a value of a sysctl\n"),
            ("sysctl@vm.swappiness=999", "vm.swappiness is a whole number from 0 to 200, not 999\n"),
            ("hugepages@1G=100M", "100M is not a whole number of 1G pages\n"),
            ("overcommit=3", "'3' is not an overcommit setting\n  Give heuristic, always, always:RATIO or never:RATIO"),
        ],
    )
    def test_a_number_that_nothing_takes(self, setting: str, said: str, shell: Shell) -> None:
        assert refused(shell, f"set {setting}", 2).startswith(f"kerntune: {said}")


class TestChoices:
    """What `list` shows can be chosen, and what can be chosen is shown."""

    @pytest.mark.parametrize("tunable", ["io-scheduler", "cpu-governor", "thp", "sysctl", "read-ahead", "overcommit"])
    def test_each_can_be_set(self, tunable: str, shell: Shell) -> None:
        rows = json.loads(shell.check(f"kerntune list {tunable} --json"))["targets"]
        row = rows[0]
        name = f"{tunable}@{row['instance']}" if row["instance"] else tunable
        for choice in row["choices"]:
            before, dots, most = choice.rpartition("..")
            mode, colon, least = before.rpartition(":")
            for value in [f"{mode}{colon}{least}", f"{mode}{colon}{most}"] if dots else [choice]:
                # With a ratio that leaves nobody memory, overcommit is refused for that.
                code = shell.run(f"kerntune set {name}={value}").returncode
                assert code == 0 or (tunable == "overcommit" and code == 1), value
        shell.check(f"kerntune unset {name}")

    @pytest.mark.parametrize(("name", "value"), [("io-scheduler@nvme1n1", "bfq"), ("cpu-governor@policy7", "ondemand")])
    def test_what_a_module_has_is_among_them_before_it_is_loaded(self, name: str, value: str, shell: Shell) -> None:
        tunable, _, instance = name.partition("@")
        rows = {(row["tunable"], row["instance"]): row for row in described(shell)["targets"]}
        row = rows[tunable, instance]
        assert value in row["choices"]
        shell.check(f"kerntune set {name}={value}")
        assert shell.check(f"kerntune get {name}") == value

    def test_what_is_not_shown_is_refused(self, shell: Shell) -> None:
        said = refused(shell, "set cpu-governor@7=nonesuch", 2)
        assert "kernel loads the module of another of its own governors" in " ".join(said.split())

    def test_units(self, shell: Shell) -> None:
        units = {row["name"]: row["unit"] for row in described(shell)["tunables"] if row["unit"]}
        assert units == {"hugepages": "pages", "hugepages-overcommit": "pages", "read-ahead": "KiB"}


class TestWhoCan:
    def test_a_sysctl_that_is_only_compared(self, shell: Shell) -> None:
        said = " ".join(refused(shell, "set sysctl@kernel.numa_balancing=0", 1).split())
        assert "kerntuned has no capability" in said
        assert said.endswith("in /etc/sysctl.d sets it at boot, and sudo sysctl -w kernel.numa_balancing=0 now")

    @pytest.mark.parametrize("name", ["io-scheduler@sda", "read-ahead@nvme0n1"])
    def test_a_name_that_may_mean_another_drive(self, name: str, shell: Shell) -> None:
        value = "none" if name.startswith("io") else "256"
        done = shell.run(f"kerntune set {name}={value} --persist")
        assert "may be another drive after a reboot\n  To follow the drive: kerntune set " in done.stderr
        shell.check(f"kerntune unset {name} --persist")
