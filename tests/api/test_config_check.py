"""`kerntune config check` judges files as the daemon's Reload does: good ones, and one mistake of each kind."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from kerntune import errors
from kerntune.api.names import BUS_NAME, MANAGER, ROOT
from kerntune.cli.__main__ import main
from kerntune.dbus.client import connect
from tests.harness.daemon import Daemon
from tests.harness.polkitd import CHECKOUT
from tests.harness.run import private_bus

SHIPPED: Final = (CHECKOUT / "packaging/kerntune.toml").read_text()
PROFILES: Final = sorted((CHECKOUT / "packaging/profiles").glob("*.toml"))
MAIN: Final = "kerntune.toml"
MORE: Final = "kerntune.d/10.toml"
MINE: Final = "profiles/mine.toml"
IN_FORCE: Final = {MAIN: 'profile = "mine"\n'}
Files = dict[str, str | bytes]

GOOD: Final[dict[str, Files]] = {
    "nothing": {},
    "an empty file": {MAIN: ""},
    "the shipped file": {MAIN: SHIPPED},
    "the shipped file without its marks": {MAIN: re.sub(r"^#(?=\S)", "", SHIPPED, flags=re.M)},
    **{f"profile {file.stem}": {MAIN: f'profile = "{file.stem}"\n'} for file in PROFILES},
    **{f"a copy of {file.stem}": {**IN_FORCE, MINE: file.read_text()} for file in PROFILES},
    "values with reasons": {MAIN: '[io-scheduler]\n"nvme*" = { value = "none", why = "its own queue" }\n'},
    "a drive that is not plugged": {MAIN: '[io-scheduler]\n"sdzz" = "none"\n'},
    "a governor that is not offered": {MAIN: '[cpu-governor]\n"*" = "interactive"\n'},
    "a preference that is not offered": {MAIN: '[cpu-epp]\n"*" = "fast"\n'},
    "a page size that is not here": {MAIN: '[hugepages]\n"4M" = 1\n'},
    "more pages than memory": {MAIN: '[hugepages]\n"2M" = "900000G"\n'},
    "the largest sysctls": {
        MAIN: '[sysctl]\n"vm.swappiness" = 200\n"vm.zone_reclaim_mode" = 7\n"kernel.numa_balancing" = 3\n'
    },
    "the words of defrag": {MAIN: '[thp]\ndefrag = "defer+madvise"\nenabled = "never"\n'},
    "the largest read-ahead": {MAIN: '[read-ahead]\n"*" = "64M"\n'},
    "the extremes of the guard": {MAIN: "[guard]\nenabled = false\nband = 16777216\ncalm = 0\n"},
    "limits that meet": {MAIN: "[limits]\nclaims = 20\nholds = 20\n", MORE: "[limits]\nholds-per-user = 20\n"},
    "a file that no profile is found in": {"profiles/bad name.toml": "[", MAIN: ""},
    "a file that an editor left": {"kerntune.d/.10.toml": "[", MAIN: ""},
}
BAD: Final[dict[str, Files]] = {
    "no TOML": {MAIN: "["},
    "no TOML beside": {MAIN: "", MORE: "[io-scheduler]\nnvme* = none\n"},
    "no UTF-8": {MAIN: b"# caf\xe9\n[limits]\n"},
    "a table twice": {MAIN: "[limits]\n[limits]\n"},
    "a misspelt profile": {MAIN: 'profil = "balanced"\n'},
    "a misspelt table": {MAIN: '[cpu_governor]\n"*" = "performance"\n'},
    "a misspelt empty table": {MAIN: "[hugepage]\n"},
    "a misspelt table beside": {MORE: "[hugepage]\n"},
    "a misspelt setting": {MAIN: "[guard]\ncalmm = 3\n"},
    "a setting of a former version": {MAIN: "[guard]\ncap = 30\n"},
    "a setting without its table": {MAIN: "claims = 5\n"},
    "an option out of range": {MAIN: "[limits]\nhugepages-percent = 96\n"},
    "an option of another type": {MAIN: "[guard]\nenabled = 1\n"},
    "a table that is none": {MAIN: "limits = 5\n"},
    "a tunable that is no table": {MAIN: "hugepages = 5\n"},
    "limits that contradict": {MAIN: "[limits]\nholds-per-user = 65\n"},
    "limits that contradict in two files": {MAIN: "[limits]\nholds = 50\n", MORE: "[limits]\nclaims = 49\n"},
    "a pattern that is none": {MAIN: '[io-scheduler]\n"../sda" = "none"\n'},
    "no sysctl of ours": {MAIN: '[sysctl]\n"vm.dirty_ratio" = 5\n'},
    "a page size that none has": {MAIN: '[hugepages]\n"3M" = 1\n'},
    "no whole number of pages": {MAIN: '[hugepages]\n"2M" = "3M"\n'},
    "swappiness out of range": {MAIN: '[sysctl]\n"vm.swappiness" = 201\n'},
    "zone_reclaim_mode out of range": {MAIN: '[sysctl]\n"vm.zone_reclaim_mode" = 8\n'},
    "numa_balancing out of range": {MAIN: '[sysctl]\n"kernel.numa_balancing" = 4\n'},
    "no word of enabled": {MAIN: '[thp]\nenabled = "sometimes"\n'},
    "a word of the other file": {MAIN: '[thp]\nenabled = "defer"\n'},
    "a ratio out of range": {MAIN: '[overcommit]\n"*" = "always:100"\n'},
    "a read-ahead out of range": {MAIN: '[read-ahead]\n"*" = 65537\n'},
    "CPUs backwards": {MAIN: '[cpu-governor]\n"3-0" = "performance"\n'},
    "a value that is none": {MAIN: '[io-scheduler]\n"*" = 1.5\n'},
    "no value": {MAIN: '[io-scheduler]\n"*" = { why = "x" }\n'},
    "a misspelt value": {MAIN: '[io-scheduler]\n"*" = { val = "none" }\n'},
    "a name with a dot": {MAIN: "[io-scheduler]\na.b = 'none'\n"},
    "a profile that is not there": {MAIN: 'profile = "nosuch"\n'},
    "a profile that is no name": {MAIN: "profile = 5\n"},
    "a profile that includes itself": {**IN_FORCE, MINE: 'include = ["mine"]\n'},
    "a profile that includes none": {**IN_FORCE, MINE: 'include = ["nosuch"]\n'},
    "a profile with a misspelt table": {**IN_FORCE, MINE: "[hugepage]\n"},
    "a profile with a table that only the configuration has": {**IN_FORCE, MINE: "[limits]\nclaims = 5\n"},
    "a profile with a misspelt include": {**IN_FORCE, MINE: 'includes = ["balanced"]\n'},
    "a profile with a value out of range": {**IN_FORCE, MINE: '[sysctl]\n"vm.swappiness" = 300\n'},
}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with ExitStack() as stack:
        yield stack.enter_context(Daemon(private_bus(stack), "--demo"))


@pytest.fixture
def etc(daemon: Daemon) -> Iterator[Path]:
    """The folder that it reads, empty again afterwards."""
    yield daemon.config
    for path in sorted(daemon.config.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


async def takes_all(daemon: Daemon) -> bool:
    """Return whether a Reload takes all that the files say."""
    async with connect(BUS_NAME, daemon.env["DBUS_SYSTEM_BUS_ADDRESS"]) as client:
        try:
            await client.call(ROOT, MANAGER, "Reload", "a{sv}", {})
        except errors.InvalidValue:
            taken = False
        else:
            taken = True
        assert ("config-invalid" not in await client.get(ROOT, MANAGER, "Degraded")) is taken
        return taken


@pytest.mark.parametrize(
    ("files", "good"),
    [*((files, True) for files in GOOD.values()), *((files, False) for files in BAD.values())],
    ids=[*GOOD, *BAD],
)
async def test_both_judge_alike(
    daemon: Daemon, etc: Path, files: Files, good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (etc / name).parent.mkdir(exist_ok=True)
        (etc / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", str(etc))
    checked = await asyncio.to_thread(main, ["config", "check"])
    assert (checked, await takes_all(daemon)) == (0 if good else 1, good)
