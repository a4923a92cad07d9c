"""Mode never: what many hosts are set to by hand and what comes of it, and what it is with a limit that will do."""

from __future__ import annotations

import json
import sys
from typing import Final

from tests.system.host import Host
from tests.system.machine import Machine
from tests.system.pressure import MODE

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
    """Once more is promised than that."""
    vm.check(f"echo 1 > {MODE}")
    said = json.loads(vm.check(["python3", "-c", LOCKED_OUT]))
    sys.stdout.write(f"{said}\n")
    assert said == {
        "before": True,
        "never, ratio 95": "Cannot allocate memory",
        "never, what is committed and 300 MiB": True,
    }


def test_never_with_a_generous_ratio_is_set(host: Host) -> None:
    """With a limit far above all that is promised here; what would come near it is refused, and leaves all as it is."""
    assert not host.set(("overcommit", "", "never:95"), user="bob").refusal
    assert host.overcommit() == (2, 95)
    assert not host.set(("hugepages", "2M", "16"), user="bob").refusal
    assert "16 there now" in host.set(("hugepages", "2M", "99999999"), user="bob").refusal
    assert "commit limit" in host.set(("overcommit", "", "never:1"), user="bob").refusal
    assert (host.overcommit(), host.pages()) == ((2, 95), 16)
