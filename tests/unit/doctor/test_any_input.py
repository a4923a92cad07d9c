"""Whatever stands in the files, the doctor has something to say and does not fail."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kerntune.doctor.examine import examine, look
from tests.harness.often import often
from tests.hosts import lay_out
from tests.unit.doctor.lab import HANDMADE

FILES = (
    "etc/rc.local",
    "etc/sysctl.conf",
    "etc/sysctl.d/a.conf",
    "usr/lib/sysctl.d/a.conf",
    "etc/udev/rules.d/a.rules",
    "proc/cmdline",
    "etc/default/cpufrequtils",
    "etc/init.d/cpufrequtils",
    "proc/self/cgroup",
    "proc/self/limits",
    "etc/tuned/active_profile",
    "proc/1/comm",
)
PIECES = st.sampled_from(
    [
        *"=.-/*?[]{}()<>|&;$`'\"\\# \n\t,:!~@%^+0",
        *("echo", "128", "for", "in", "do", "done", "if", "then", "fi", "tee", "sudo", "sh -c", "exit", "<<EOF"),
        *("sysctl", "-w", "vm.nr_hugepages", "vm.overcommit_memory=1", "cpupower frequency-set -g", "blockdev --setra"),
        *("/proc/sys/vm/nr_hugepages", "/sys/block/nvme*/queue/scheduler", "/sys/block/sda/queue/scheduler", "{0..9}"),
        *("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "$f", "${f}", "f=", "9" * 5000, "..", "none"),
        *('KERNEL=="nvme*"', 'ATTR{queue/scheduler}="none"', 'RUN+="/bin/sh -c ', 'GOTO="', 'LABEL="', "ACTION"),
        *("hugepages=", "hugepagesz=1G", "0:1,", "transparent_hugepage=", "--", "GOVERNOR=", "0::/", "memory", "\0"),
    ]
)
TEXTS = st.one_of(
    st.lists(PIECES, max_size=40).map("".join),
    st.lists(PIECES, max_size=40).map(" ".join),
    st.text(max_size=200),
    st.sampled_from(list(HANDMADE.values())),
)


@settings(max_examples=often(150), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(texts={"proc/self/cgroup": "0::/\0"})
@given(texts=st.dictionaries(st.sampled_from(FILES), TEXTS, min_size=1))
def test_no_text_makes_it_fail(texts: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        lay_out("two-sockets", root)
        for path, text in texts.items():
            place = root / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(text.encode(errors="surrogatepass"))
            place.chmod(0o755)
        found = examine(root)
        assert all(finding.what and finding.topic for finding in found)
        for proposal in look(root).proposals:
            assert proposal.places
            assert proposal.setting.value
