"""From files to the kernel: at start, on request, on a signal. Each file is read once; requests share a reading."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from kerntune import notify
from kerntune.config.active import CONFIG_INVALID
from kerntune.errors import Failed, InvalidValue
from kerntune.journal import CONFIG_PROBLEM
from kerntune.store import STATE_SET_ASIDE
from tests.harness import CHECKOUT
from tests.unit.daemon.lab import Slow, booted
from tests.unit.lab import BOUND, FULL, large_host, running

SWAPPINESS = "proc/sys/vm/swappiness"
THP_ENABLED = "sys/kernel/mm/transparent_hugepage/enabled"
BFQ, NONE = ('[io-scheduler]\n"nvme*" = "bfq"\n', '[io-scheduler]\n"nvme*" = "none"\n')


async def test_the_start_reads_and_a_reload_reads_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with booted(folder, monkeypatch, BFQ) as bench:
        assert (bench.drive, bench.told) == ("bfq", [])
        bench.file.write_text("[limits]\nclaims = 5\n" + NONE)
        await bench.config.reload()
        assert (bench.drive, bench.lab.engine.limits.claims) == ("none", 5)
        begun, ended = bench.told
        assert begun.startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert begun.rpartition("=")[2].isdigit()
        assert ended == "READY=1"


async def test_a_file_that_is_not_in_order_is_an_error_and_what_is_good_is_in_force(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with booted(folder, monkeypatch, BFQ) as bench:
        (folder / "kerntune.d").mkdir()
        (folder / "kerntune.d/10.toml").write_text('[overcommit]\n"*" = "always"\n')
        bench.file.write_text(
            "[limits]\nclaims = 0\n[io-scheduler]\n" + "".join(f"sd{name} = 1.5\n" for name in "abcde")
        )
        with pytest.raises(InvalidValue) as refusal:
            await bench.config.reload()
        assert f"{bench.file}:4: io-scheduler: 1.5 is no value" in refusal.value.what
        assert refusal.value.what.endswith("; and 3 more")
        assert refusal.value.hint == (
            "The last good claims of these files stay in force. Bad options have their defaults. "
            "`kerntune config check` lists everything"
        )
        assert (bench.drive, bench.lab.kernel.overcommit["memory"]) == ("bfq", 1)
        assert bench.troubles == {CONFIG_INVALID}
        assert bench.told[-1] == "READY=1"
        said = [(record.levelno, record.message.partition(": ")[0]) for record in caplog.records]
        said = [row for row in said if row[1].startswith(str(bench.file))]
        assert said == [
            (logging.ERROR, f"{bench.file}:2"),
            *((logging.ERROR, f"{bench.file}:{n}") for n in range(4, 9)),
        ]
        assert {vars(record).get("MESSAGE_ID") for record in caplog.records if record.name == "kerntune"} == {
            CONFIG_PROBLEM
        }
        bench.file.write_text(NONE)
        await bench.config.reload()
        assert (bench.drive, bench.troubles) == ("none", set())


async def test_damaged_copies_are_told_from_the_start_on_and_no_question_changes_that(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for the profiles first, in whichever thread, changes nothing."""
    (folder / "run").mkdir(exist_ok=True)
    (folder / "run/profile.json").write_text("{")
    async with booted(folder, monkeypatch) as bench:
        assert bench.troubles == {STATE_SET_ASIDE}
        bench.troubles.clear()
        listings = await asyncio.gather(*(bench.config.listing() for _ in range(8)))
        assert all(listing == listings[0] for listing in listings)
        assert bench.troubles == set()
        assert [path.name for path in (folder / "run").glob("*.bad")] == ["profile.json.bad"]


async def test_a_broken_file_at_start_is_told_and_stops_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with booted(folder, monkeypatch, BFQ + "sda = [1]\n") as bench:
        assert (bench.drive, bench.troubles) == ("bfq", {CONFIG_INVALID})


async def test_a_misspelt_table_is_an_error_and_what_is_known_is_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swappiness = '[sysctl]\n"vm.swappiness" = 10\n'
    async with booted(folder, monkeypatch, swappiness + NONE) as bench:
        bench.file.write_text(swappiness.replace("[sysctl]", "[sysctls]") + BFQ)
        with pytest.raises(InvalidValue) as refusal:
            await bench.config.reload()
        assert refusal.value.what.startswith(
            f"the configuration was taken in part only: {bench.file}:1: nothing here is called 'sysctls'; the claims "
            "of sysctl that this file had stay in force. Did you mean 'sysctl'? There are cpu-epp"
        )
        assert refusal.value.hint == "`kerntune config check` lists everything"
        assert (bench.drive, bench.lab.kernel.plain[SWAPPINESS].value) == ("bfq", "10")
        assert bench.troubles == {CONFIG_INVALID}
        bench.file.write_text(BFQ)
        await bench.config.reload()
        assert (bench.lab.kernel.plain[SWAPPINESS].value, bench.troubles) == ("60", set())


async def test_a_table_nobody_knows_is_told_also_where_it_is_empty(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with booted(folder, monkeypatch, "[hugepage]\n") as bench:
        assert bench.troubles == {CONFIG_INVALID}


async def test_a_value_that_no_kernel_takes_is_an_error_and_the_last_good_one_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '[thp]\nenabled = "madvise"\n[sysctl]\n"vm.swappiness" = {}\n'
    async with booted(folder, monkeypatch, text.format(10)) as bench:
        bench.file.write_text(text.format(300).replace("madvise", "never"))
        with pytest.raises(InvalidValue, match=r"kerntune.toml:4: sysctl: vm.swappiness is a .* to 200, not 300"):
            await bench.config.reload()
        assert (bench.lab.kernel.plain[SWAPPINESS].value, bench.lab.kernel.plain[THP_ENABLED].value) == (
            "10",
            "madvise",
        )
        assert bench.troubles == {CONFIG_INVALID}


async def test_who_asks_while_one_waits_shares_it_and_who_asks_while_one_reads_gets_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with booted(folder, monkeypatch, BFQ) as bench:
        bench.config.go_on.clear()
        first = [asyncio.create_task(bench.config.reload()) for _ in range(3)]
        assert await asyncio.to_thread(bench.config.begun.wait, BOUND)
        second = [asyncio.create_task(bench.config.reload()) for _ in range(3)]
        bench.config.request_reload()
        await asyncio.sleep(0)
        assert bench.config.readings == 1
        bench.config.go_on.set()
        await asyncio.gather(*first, *second)
        assert bench.config.readings == 2
        assert [line.partition("\n")[0] for line in bench.told] == ["RELOADING=1", "READY=1"] * 2


async def test_a_long_one_asks_for_more_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = f"EXTEND_TIMEOUT_USEC={notify.EXTEND_BY}"
    monkeypatch.setattr(notify, "EXTEND_EVERY", 0.01)
    async with booted(folder, monkeypatch) as bench:
        bench.config.go_on.clear()
        heard = asyncio.Event()

        def tell(text: str) -> None:
            bench.told.append(text)
            if bench.told.count(asked) == 2:
                heard.set()

        monkeypatch.setattr(notify, "send", tell)
        call = asyncio.create_task(bench.config.reload())
        await asyncio.wait_for(heard.wait(), BOUND)
        bench.config.go_on.set()
        await call
        assert bench.told[-1] == "READY=1"
        assert set(bench.told[1:-1]) == {asked}


async def test_when_the_daemon_stops_one_that_runs_says_no_more_and_none_begins(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with booted(folder, monkeypatch) as bench:
        bench.config.go_on.clear()
        call = asyncio.create_task(bench.config.reload())
        assert await asyncio.to_thread(bench.config.begun.wait, BOUND)
        (reloading,) = bench.told
        bench.config.stop()
        bench.config.go_on.set()
        for asked in (call, bench.config.reload()):
            with pytest.raises(Failed, match="is stopping"):
                await asked
        assert bench.told == [reloading]
        assert bench.config.readings == 1


async def test_a_caller_who_goes_takes_nobody_along(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with booted(folder, monkeypatch) as bench:
        bench.config.go_on.clear()
        one, other = (asyncio.create_task(bench.config.reload()) for _ in range(2))
        assert await asyncio.to_thread(bench.config.begun.wait, BOUND)
        one.cancel()
        bench.file.write_text(BFQ)
        bench.config.go_on.set()
        await other
        assert bench.drive == "bfq"


async def test_nothing_is_read_again_before_the_boot_pass_is_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "send", lambda text: None)
    (folder / "kerntune.toml").write_text(BFQ)
    async with running(large_host()) as lab:
        config = Slow(folder, lab.engine, set())
        early = config.request_reload()
        config.start()
        await lab.engine.reconcile("boot", enforce=True)
        assert config.readings == 1
        assert not early.done()
        config.booted()
        await early
        assert config.readings == 2


@pytest.mark.parametrize("signalled", [True, False], ids=["signal", "call"])
async def test_a_pass_that_fails_fails_the_reload_and_not_the_daemon(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, signalled: bool
) -> None:
    async with booted(folder, monkeypatch) as bench:
        bench.file.write_text(BFQ)
        bench.lab.store.full = FULL
        if signalled:
            await asyncio.wait([bench.config.request_reload()])
        else:
            with pytest.raises(Failed, match="cannot be saved"):
                await bench.config.reload()
        assert bench.told[-1] == "READY=1"
        bench.lab.store.full = None
        await bench.config.reload()
        assert bench.drive == "bfq"


# Each file of the configuration and of the profile is read once in a reload, also in the first one


# In a process of its own: an audit hook cannot be removed again.
SCRIPT: Final = """
import asyncio, json, sys
from collections import Counter
from pathlib import Path

from kerntune.config.active import ActiveConfig
from tests.unit.lab import large_host, running

FOLDER = Path(sys.argv[1])
opened = Counter()


def count(event, arguments):
    if event == "open" and str(arguments[0]).startswith(str(FOLDER / "etc")):
        opened[str(Path(arguments[0]).relative_to(FOLDER / "etc"))] += 1


async def main():
    sys.addaudithook(count)
    async with running(large_host()) as lab:
        config = ActiveConfig(FOLDER / "etc", FOLDER / "run", lab.engine, set())
        config.start()
        config.booted()
        counts = [dict(opened)]
        for text in sys.argv[2:]:
            (FOLDER / "etc/kerntune.d/20.toml").write_text(text)
            opened.clear()
            await config.reload()
            counts.append(dict(opened))
        print(json.dumps(counts))


asyncio.run(main())
"""
FILES: Final = {
    "kerntune.toml": "# nothing\n[limits]\n",
    "kerntune.d/10.toml": "",
    "kerntune.d/20.toml": "",
    "profiles/base.toml": '[io-scheduler]\n"sd*" = "none"\n',
    "profiles/one.toml": 'include = ["base"]\n',
    "profiles/mine.toml": 'include = ["base", "one"]\n',
}
CONFIG: Final = sorted(name for name in FILES if name.startswith("kerntune"))


@pytest.mark.parametrize("text", ['profile = "mine"\n', 'profile = "mine"\n[limits]\nclaims = 5\n'])
def test_each_file_is_opened_once(folder: Path, text: str) -> None:
    for name, content in FILES.items():
        (folder / "etc" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "etc" / name).write_text(content)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), "", text, text],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    silent, again, first, second = json.loads(done.stdout)
    assert silent == dict.fromkeys(CONFIG, 1)
    assert again == silent
    assert first == second == dict.fromkeys(FILES, 1)
