"""The Debian package: it builds, lintian has nothing to say, and it holds what the checkout has for users."""

from __future__ import annotations

import re
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

import kerntune
from tests.harness import CHECKOUT

DEBIAN = CHECKOUT / "packaging/deb/debian"
NOT_ROOT = 3  # exit status of the build: tools are missing, and only root can install them

# Some seconds, and a minute or two more the first time: the tools are installed.
pytestmark = pytest.mark.timeout(900)


def run(*command: str | Path, timeout: float = 60) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=timeout, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def package() -> Path:
    done = subprocess.run(
        [CHECKOUT / "packaging/deb/build.sh"], capture_output=True, timeout=800, text=True, check=False
    )
    if done.returncode == NOT_ROOT:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = (CHECKOUT / "build/deb").glob("kerntune_*.deb")
    return found


@pytest.fixture(scope="module")
def files(package: Path) -> dict[str, tarfile.TarInfo]:
    """Return what the package installs, by path."""
    packed = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, timeout=60, check=True)
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
        return {member.name.removeprefix("."): member for member in archive if not member.isdir()}


def relations(package: Path, field: str) -> set[str]:
    return set(re.split(r", ", run("dpkg-deb", "--field", package, field).strip()))


def below(files: dict[str, tarfile.TarInfo], folder: str) -> set[str]:
    return {path.removeprefix(f"{folder}/") for path in files if path.startswith(f"{folder}/")}


def names(pattern: str) -> set[str]:
    return {path.name for path in CHECKOUT.glob(pattern)}


def test_lintian_finds_nothing(package: Path) -> None:
    assert run("lintian", "--no-cfg", "--allow-root", "--fail-on=error,warning", package) == ""


def test_version_is_that_of_the_code() -> None:
    for file, pattern in ((DEBIAN / "changelog", r"^kerntune \((\S+)\)"), (CHECKOUT / "NEWS.md", r"^## (\S+)")):
        assert re.findall(pattern, file.read_text(), re.MULTILINE)[0] == kerntune.__version__, file


def test_it_needs_debian_packages_only(package: Path) -> None:
    needed = {"python3-dbus-next", "python3-psutil", "python3-pyudev", "python3-systemd", "python3 (>= 3.11)"}
    needed |= {"default-dbus-system-bus | dbus-system-bus", "polkitd", "systemd"}
    assert relations(package, "Depends") >= needed
    assert relations(package, "Recommends") == {""}


def test_every_file_for_users_is_there(files: dict[str, tarfile.TarInfo]) -> None:
    dbus = "/usr/share/dbus-1"
    assert below(files, f"{dbus}/interfaces") == names("dbus/interfaces/*.xml")
    assert below(files, f"{dbus}/system.d") == names("dbus/*.conf")
    assert below(files, f"{dbus}/system-services") == names("dbus/*.service")
    assert below(files, "/usr/share/polkit-1/actions") == names("dbus/*.policy")
    assert below(files, "/usr/share/polkit-1/rules.d") == names("dbus/*.rules")
    units = names("systemd/*.service") | names("systemd/*.target") | names("systemd/*.timer")
    assert below(files, "/usr/lib/systemd/system") == units
    assert below(files, "/usr/lib/sysusers.d") == {"kerntune.conf"}
    assert below(files, "/usr/lib/kerntune/profiles") == names("packaging/profiles/*.toml")
    assert below(files, "/usr/share/bash-completion/completions") == {"kerntune"}
    assert below(files, "/usr/share/zsh/vendor-completions") == {"_kerntune"}
    assert below(files, "/usr/bin") == {"kerntune", "kerntuned"}
    pages = {Path(path).name for path in below(files, "/usr/share/man")}
    assert pages == {f"{page}.gz" for page in names("docs/man/*")}
    # The manual pages and README.md send their readers there.
    assert {"overcommit.md.gz", "holds.md.gz"} <= below(files, "/usr/share/doc/kerntune")


def test_every_module_is_there_and_nothing_else(files: dict[str, tarfile.TarInfo]) -> None:
    source = CHECKOUT / "src/kerntune"
    modules = {str(path.relative_to(source)) for path in source.rglob("*.py")}
    # PEP 561: programs that use kerntune.hold are checked against its types.
    data = {"py.typed", "tunables/explanations.toml"}
    assert below(files, "/usr/lib/python3/dist-packages/kerntune") == modules | data


def test_no_generator_is_in_it(files: dict[str, tarfile.TarInfo]) -> None:
    """The headers of generated files name their generators, whatever folder these are in."""
    pages = [*CHECKOUT.glob("docs/man/*"), *CHECKOUT.glob("packaging/completions/*")]
    headers = "".join(page.read_text() for page in pages)
    generators = {name.replace(".", "/") for name in re.findall(r"[Ww]ritten by python -m (\S+?);?\s", headers)}
    assert generators == {f"tools/{name}" for name in ("completions", "config_reference", "dbus_manual")}
    last = {Path(name).name for name in generators}
    assert not [path for path in files if Path(path).stem in last or Path(path).parent.name == "tools"]


def test_the_configuration_belongs_to_the_administrator(package: Path, files: dict[str, tarfile.TarInfo]) -> None:
    kept = run("dpkg-deb", "--info", package, "conffiles").split()
    assert kept == ["/etc/kerntune/kerntune.toml"]
    assert below(files, "/etc") == {"kerntune/kerntune.toml"}


def test_root_owns_everything_and_nothing_is_writable(files: dict[str, tarfile.TarInfo]) -> None:
    assert {(file.uname, file.gname) for file in files.values()} == {("root", "root")}
    programs = {path for path, file in files.items() if file.mode & 0o111}
    assert programs == {"/usr/bin/kerntune", "/usr/bin/kerntuned"}
    assert not [path for path, file in files.items() if file.mode & 0o022]


def test_values_and_what_is_saved_outlive_everything_but_a_purge(package: Path) -> None:
    control = {script: run("dpkg-deb", "--info", package, script) for script in ("postinst", "prerm", "postrm")}
    assert "deb-systemd-invoke $_dh_action 'kerntuned.service'" in control["postinst"]
    assert re.search(r'"\$1" = remove \].*\n\s*deb-systemd-invoke stop', control["prerm"])
    saved = "/var/lib/kerntune /run/kerntune"
    assert re.findall(r"rm -rf (.*)", "".join(control.values())) == [saved]
    assert re.search(rf'if \[ "\$1" = purge \]; then\n\s*rm -rf {saved}\nfi\n', control["postrm"])
    # The timer is for whoever wants it: it is cleaned up after, and enabled again only where it had been.
    # deb-systemd-invoke starts nothing that is neither enabled nor running.
    assert "deb-systemd-helper purge 'kerntune-metrics.timer'" in control["postrm"]
    assert "deb-systemd-helper debian-installed 'kerntune-metrics.timer'" in control["postinst"]
    assert "deb-systemd-invoke $_dh_action 'kerntune-metrics.timer'" in control["postinst"]
    assert "deb-systemd-invoke stop 'kerntune-metrics.timer'" in control["prerm"]
    # A target that is stopped takes along what requires it; so does a hold.
    assert "kerntune.target" not in "".join(control.values())
    assert "kerntune-hold" not in "".join(control.values())
