"""Runs tests with the Python and the packages of another Debian, in a folder that has it; nothing is booted.

`python -m tests.system.image.chroot SUITE TESTS...` runs what pytest takes; $DEBIAN are the packages that tests need.
"""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.system.image import base
from tests.system.image.base import CHECKOUT, LIMIT, bootstrap
from tests.system.image.cache import folder, kept, key_of

PROJECT: Final = CHECKOUT / "pyproject.toml"
CONTROL: Final = CHECKOUT / "packaging/deb/debian/control"
RUN: Final = 1200  # seconds for the tests
VENV: Final = "/opt/tests"
# What is written, to the system or to the checkout, is gone afterwards.
ENTER: Final = """
set -e
mount -t tmpfs -o mode=755 tmpfs "$1" && cd "$1"
mkdir root system system.work checkout checkout.work
mount -t overlay -o lowerdir="$2",upperdir=system,workdir=system.work overlay root
mkdir root/checkout
mount -t overlay -o lowerdir="$3",upperdir=checkout,workdir=checkout.work overlay root/checkout
mount -t proc proc root/proc
mount --rbind /sys root/sys
mount --rbind /dev root/dev
mount -t tmpfs tmpfs root/run
shift 3
exec chroot root env -i -C /checkout PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 PYTHONPATH=src "$@"
"""


def extras() -> list[str]:
    """Return what the tests need of Python's packages."""
    wanted: list[str] = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]["test"]
    return wanted


def builds() -> str:
    """Return what builds the package, and looks at it, as apt-get satisfy takes it."""
    _, _, rest = CONTROL.read_text().partition("Build-Depends:\n")
    needed = itertools.takewhile(lambda line: line.startswith(" "), rest.splitlines())
    return " ".join(["dpkg-dev, lintian,", *(line.strip() for line in needed)])


def make(suite: str, packages: Sequence[str], into: Path) -> None:
    """Make a Debian in `into`, with its packages and an environment of its Python for the tests."""
    tree = into / "tree"
    satisfy = f"apt-get satisfy -qq --yes --no-install-recommends {shlex.quote(builds())} >/dev/null"
    bootstrap(suite, tree, packages, f'--customize-hook=chroot "$1" {satisfy}')
    ask = ["chroot", str(tree), "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    version = subprocess.run(ask, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
    # Fetched from here, for the new system knows nothing of where this one has its packages from.
    fetch = [sys.executable, "-m", "pip", "download", "-qq", "--only-binary=:all:", "--python-version", version]
    subprocess.run([*fetch, "--dest", str(tree / "wheels"), *extras()], check=True, timeout=LIMIT)
    for command in (
        ["python3", "-m", "venv", "--system-site-packages", VENV],
        [f"{VENV}/bin/pip", "install", "--quiet", "--no-index", "--find-links=/wheels", *extras()],
    ):
        subprocess.run(["chroot", str(tree), "env", "-i", f"PATH={os.defpath}", *command], check=True, timeout=LIMIT)


def run(suite: str, tests: Sequence[str]) -> int:
    """Run the tests there; pytest's exit status."""
    packages = os.environ["DEBIAN"].split()
    key = key_of(suite, " ".join(packages), Path(__file__), Path(base.__file__), PROJECT, builds())
    with (
        kept(f"python-{suite}", key, lambda into: make(suite, packages, into)) as found,
        tempfile.TemporaryDirectory(prefix="kerntune-") as place,
    ):
        command = ["unshare", "--mount", "--propagation=private", "sh", "-c", ENTER, "enter"]
        where = [place, str(found / "tree"), str(CHECKOUT)]
        # What random input finds it finds with any Python; of the rest all is run.
        pytest = ["KERNTUNE_RANDOM=0.2", f"{VENV}/bin/python", "-m", "pytest", "-p", "no:cacheprovider", *tests]
        return subprocess.run([*command, *where, *pytest], check=False, timeout=RUN).returncode


if __name__ == "__main__":
    if os.geteuid() != 0:
        again = ["sudo", f"DEBIAN={os.environ['DEBIAN']}", f"XDG_CACHE_HOME={folder().parent}", sys.executable]
        module = ["-m", "tests.system.image.chroot", *sys.argv[1:]]
        sys.exit(subprocess.run([*again, *module], cwd=CHECKOUT, check=False, timeout=3 * LIMIT + RUN).returncode)
    sys.exit(run(sys.argv[1], sys.argv[2:]))
