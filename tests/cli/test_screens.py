"""`kerntune status` on four hosts, on a terminal of 80 columns and 24 lines: each is one screen, as tests/cli/screens
has it, and says in one word whether all is well. A real kerntuned tunes the trees.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import needs_root
from tests.harness import CHECKOUT
from tests.harness.command import COMMAND, kerntune, on_terminal
from tests.harness.daemon import READY, Daemon
from tests.harness.host import make_tree
from tests.harness.privatebus import package_bus

SCREENS: Final = Path(__file__).parent / "screens"
LINES, WIDTH = 24, 80
CPUS, DRIVES = 192, 24
GIB_IN_KB: Final = 1 << 20

pytestmark = needs_root


def write(root: Path, files: dict[str, object]) -> None:
    """Write files of a tree."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def workstation(root: Path) -> None:
    """Make a host of 8 CPUs and one NVMe drive beside three disks."""
    make_tree(root)
    add_memory(root)
    add_cpus(root, 8)
    add_drives(root, 1)


def server(root: Path) -> None:
    """Make a host of 192 CPUs, 24 NVMe drives and a disk."""
    make_tree(root)
    add_memory(root)
    add_cpus(root, CPUS)
    add_drives(root, DRIVES)


def add_memory(root: Path) -> None:
    thp = "sys/kernel/mm/transparent_hugepage"
    write(root, {
        f"{thp}/enabled": "[always] madvise never",
        f"{thp}/defrag": "always defer defer+madvise [madvise] never",
        "proc/sys/vm/swappiness": 60,
        "proc/sys/vm/zone_reclaim_mode": 0,
    })  # fmt: skip


def add_cpus(root: Path, number: int) -> None:
    for cpu in range(number):
        policy = f"sys/devices/system/cpu/cpufreq/policy{cpu}"
        write(root, {
            f"{policy}/scaling_governor": "schedutil",
            f"{policy}/scaling_available_governors": "performance schedutil",
            f"{policy}/related_cpus": cpu,
            f"{policy}/affected_cpus": cpu,
            f"{policy}/energy_performance_preference": "balance_performance",
            f"{policy}/energy_performance_available_preferences":
                "default performance balance_performance balance_power power",
        })  # fmt: skip
    write(root, {"sys/devices/system/cpu/online": f"0-{number - 1}"})


def add_drives(root: Path, number: int) -> None:
    for drive in range(number):
        queue = f"sys/block/nvme{drive}n1/queue"
        write(root, {
            f"{queue}/scheduler": "[none] mq-deadline kyber bfq",
            f"{queue}/read_ahead_kb": 128,
            f"sys/block/nvme{drive}n1/diskseq": 100 + drive,
        })  # fmt: skip


@contextmanager
def tuned(root: Path, config: str = "") -> Iterator[Daemon]:
    """Give a kerntuned that tunes a tree by this configuration."""
    with package_bus() as bus:
        daemon = Daemon(bus, "--root", str(root), wait=False)
        (daemon.config / "kerntune.toml").write_text(config)
        (daemon.config / "profiles").symlink_to(CHECKOUT / "packaging/profiles")
        with daemon:
            daemon.wait_for(READY)
            yield daemon


def screen(daemon: Daemon, root: Path) -> tuple[int, str]:
    """Return the exit status of `kerntune status`, and what a terminal of 80 columns shows."""
    address = daemon.env["DBUS_SYSTEM_BUS_ADDRESS"]
    with on_terminal(
        *COMMAND, "status", address=address, NO_COLOR="1", COLUMNS=str(WIDTH), LINES=str(LINES)
    ) as terminal:
        status, text = terminal.end()
    text = re.sub(r"generation [0-9]+", "generation N", text.replace("\r", ""))
    # Who has most memory is another on every machine.
    return status, re.sub(r"most to do with it: .*?(?=\nNot well)", "most to do with it: NAME", text, flags=re.DOTALL)


def quiet_workstation(root: Path, daemon: Daemon) -> None:
    """Nobody has asked for much."""
    done = kerntune("set", "hugepages=1G", "cpu-governor=performance", env=daemon.env)
    assert done.returncode == 0, done.stderr


def with_a_profile(root: Path, daemon: Daemon) -> None:
    done = kerntune("profile", "set", "ai-inference", env=daemon.env)
    assert done.returncode in (0, 6), done.stderr


def with_a_guard_that_caps(root: Path, daemon: Daemon) -> None:
    """Take memory until the guard caps."""
    assert kerntune("set", "overcommit=always:95", "hugepages=1G", env=daemon.env).returncode == 0
    meminfo = root / "proc/meminfo"
    meminfo.write_text(re.sub(r"MemAvailable: *[0-9]+", f"MemAvailable: {2 * GIB_IN_KB}", meminfo.read_text()))
    wait_for_words(daemon, "exhausted", "never:", "guard-capping")


def with_a_contested_value(root: Path, daemon: Daemon) -> None:
    """Change overcommit by other hands."""
    assert kerntune("set", "overcommit=always:95", "io-scheduler=none", env=daemon.env).returncode == 0
    write(root, {"proc/sys/vm/overcommit_memory": 0})
    wait_for_words(daemon, "contested", "guard-observing")


def wait_for_words(daemon: Daemon, *words: str) -> None:
    """Wait until status has all of these words."""
    deadline = time.monotonic() + 20
    while not all(word in (text := kerntune("status", env=daemon.env).stdout) for word in words):
        assert time.monotonic() < deadline, text
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("name", "make", "happens", "code"),
    [
        ("quiet-workstation", workstation, quiet_workstation, 0),
        ("server-with-a-profile", server, with_a_profile, 0),
        ("guard-caps", workstation, with_a_guard_that_caps, 1),
        ("contested", workstation, with_a_contested_value, 1),
    ],
)
def test_a_host_is_one_screen(
    name: str,
    make: Callable[[Path], None],
    happens: Callable[[Path, Daemon], None],
    code: int,
    tmp_path: Path,
) -> None:
    make(tmp_path)
    with tuned(tmp_path, "[drift]\ninterval = 1\n") as daemon:
        happens(tmp_path, daemon)
        status, text = screen(daemon, tmp_path)
        verify = kerntune("verify", env=daemon.env)
    lines = text.splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= WIDTH
    assert (status, verify.returncode) == (code, code), "status exits as verify"
    assert ("All well" in text, "Not well" in text) == (code == 0, code != 0)
    expected = SCREENS / f"{name}.txt"
    assert text == expected.read_text()
