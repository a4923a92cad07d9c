"""A host on which years of good advice have been pasted: what most tests of the doctor are told with."""

from __future__ import annotations

from pathlib import Path

from tests.hosts import lay_out

RC_LOCAL = """\
#!/bin/sh -e
# tuning for the model server
echo 512 > /proc/sys/vm/nr_hugepages
for f in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do echo performance > $f; done
echo none > /sys/block/nvme0n1/queue/scheduler
if test -f /sys/kernel/mm/transparent_hugepage/enabled; then
   echo never > /sys/kernel/mm/transparent_hugepage/enabled
fi
hugeadm --thp-always
exit 0
echo 64 > /proc/sys/vm/nr_hugepages
"""

HANDMADE = {
    "etc/rc.local": RC_LOCAL,
    "etc/sysctl.conf": (
        "vm.overcommit_memory = 1\nvm.overcommit_ratio=95\nnet.ipv4.ip_forward=1\nvm.max_map_count=262144\n"
    ),
    "etc/sysctl.d/10-llm.conf": "# from a forum\nvm.nr_hugepages = 64\nvm.swappiness=1\n",
    "etc/udev/rules.d/60-io.rules": (
        'ACTION=="add|change", KERNEL=="nvme[0-9]*", ATTR{queue/rotational}=="0", ATTR{queue/scheduler}="none"\n'
        'ACTION=="add|change", KERNEL=="sd[a-z]|mmcblk*", ATTR{queue/rotational}=="1", ATTR{queue/scheduler}="bfq"\n'
    ),
    "proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/sda1 hugepagesz=1G hugepages=24 elevator=noop quiet\n",
    "proc/self/cgroup": "0::/user.slice/session-1.scope\n",
    "proc/self/limits": "Max locked memory         8388608              8388608              bytes     \n",
    "sys/fs/cgroup/user.slice/memory.max": "17179869184\n",
    "sys/fs/cgroup/user.slice/session-1.scope/memory.max": "max\n",
    "proc/812/comm": "tuned\n",
    "etc/tuned/active_profile": "throughput-performance\n",
}


def write(root: Path, files: dict[str, str]) -> Path:
    """Files with their texts below a root."""
    for path, text in files.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return root


def handmade(root: Path) -> Path:
    """Two sockets and NVMe drives, and all of that."""
    lay_out("two-sockets", root)
    write(root, HANDMADE)
    (root / "etc/rc.local").chmod(0o755)
    (root / "etc/sysctl.d/99-sysctl.conf").symlink_to("../sysctl.conf")
    (root / "proc/sys/vm/overcommit_memory").write_text("1\n")
    return root
