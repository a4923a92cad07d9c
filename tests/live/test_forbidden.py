"""No test puts this host into mode never: the watch over all of them sees it, undoes it and tells of it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from kerntune.errors import KernelRejected
from tests.harness.daemon import Daemon
from tests.harness.host import kept_from
from tests.live.users import User

MODE: Final = Path("/proc/sys/vm/overcommit_memory")


def test_a_forbidden_value_is_told_and_undone(tmp_path: Path) -> None:
    file = tmp_path / "overcommit_memory"
    file.write_text("0\n")
    with kept_from(file, "2") as seen:
        file.write_text("1\n")
        assert seen == []
        file.write_text("2\n")
    assert (seen, file.read_text()) == (["2"], "0\n")


def test_the_kernel_tells_of_what_a_daemon_writes(daemon: Daemon, root: User, kernel_as_found: dict[str, str]) -> None:
    """Here `always` is the mode that is forbidden, for it does no harm; the daemon may find out that it is undone."""
    with kept_from(MODE, "1") as seen, suppress(KernelRejected):
        root.set_overcommit("always")
    assert set(seen) == {"1"}
    assert MODE.read_text().strip() == kernel_as_found["proc/sys/vm/overcommit_memory"]


def test_the_host_s_own_value_is_not_forbidden(tmp_path: Path) -> None:
    file = tmp_path / "overcommit_memory"
    file.write_text("2\n")
    with kept_from(file, "2") as seen:
        file.write_text("0\n")
        file.write_text("2\n")
    assert (seen, file.read_text()) == ([], "2\n")
