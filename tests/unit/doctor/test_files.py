"""Files below a root, whatever is odd about them and whatever stands in them: nothing fails, and no line is lost."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kerntune.doctor import boot_settings
from kerntune.doctor.examine import examine, look
from kerntune.doctor.files import Files, whole
from kerntune.doctor.shell_script import Script
from tests.harness import often
from tests.hosts import lay_out
from tests.unit.doctor.lab import HANDMADE, write

NOBODY = 65534


@pytest.mark.parametrize(
    ("link", "leads_to"),
    [("b", "etc/b"), ("../x", "x"), ("/etc/b", "etc/b"), ("../../../../x/y", "x/y"), ("/dev/null", "dev/null")],
)
def test_links_are_followed_as_below_the_root(tmp_path: Path, link: str, leads_to: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/a").symlink_to(link)
    assert Files(tmp_path).resolve("etc/a") == leads_to


def test_a_link_out_of_the_root_finds_nothing_outside(tmp_path: Path) -> None:
    write(tmp_path, {"secret": "outside", "root/etc/b": "inside"})
    (tmp_path / "root/etc/a").symlink_to(tmp_path / "secret")
    assert Files(tmp_path / "root").text("etc/a") is None


def test_a_loop_of_links_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    files = Files(tmp_path)
    assert files.text("a") is None
    assert files.leads_to("a") == ""
    assert "/a" in files.unreadable


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    files = Files(tmp_path)
    assert [files.text(name) for name in ("fifo", "folder", "nothing", "nothing/below")] == [None] * 4
    assert files.names("nothing") == []
    assert not files.runs("folder")


def test_a_folder_that_cannot_be_listed_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "crontabs").mkdir(mode=0o100)
    files, user = Files(tmp_path), os.geteuid()
    os.seteuid(user or NOBODY)  # root may list every folder
    try:
        assert files.names("crontabs") == []
    finally:
        os.seteuid(user)
    assert files.unreadable == {"/crontabs": "Permission denied"}


def test_lines_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\n\none\r\n\xfftwo\0")
    assert list(Files(tmp_path).lines("a"))[2:] == [
        (3, "one"),
        (4, "\N{REPLACEMENT CHARACTER}two\N{REPLACEMENT CHARACTER}"),
    ]


@pytest.mark.parametrize(("text", "number"), [("7", 7), (" 12 ", 12), ("", None), ("-1", None), ("9" * 99, None)])
def test_whole_numbers(text: str, number: int | None) -> None:
    assert whole(text) == number


# Whatever stands in the files, the doctor has something to say


FILES = (
    "etc/rc.local",
    "etc/sysctl.conf",
    "etc/sysctl.d/a.conf",
    "usr/lib/sysctl.d/a.conf",
    "etc/udev/rules.d/a.rules",
    "proc/cmdline",
    "etc/tmpfiles.d/a.conf",
    "usr/lib/tmpfiles.d/a.conf",
    "etc/systemd/system/a.service",
    "etc/systemd/system/a.service.d/b.conf",
    "etc/systemd/system/multi-user.target.wants/a.service",
    "etc/crontab",
    "etc/cron.d/a",
    "var/spool/cron/crontabs/root",
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
        *("\nExecStart=", "/bin/sh -c '", "[Service]\n", "[Unit]\n", "ConditionPathExists=", "User=", "%i", "$$f"),
        *("\n@reboot ", "root ", "\nw ", "w! ", " - - - - ", "\nF+ ", "/sys/kernel/mm/transparent_hugepage/enabled"),
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


# A line that writes a file which kerntune tunes, as a person sees it.
TUNED = "(/proc/sys/vm/nr_hugepages|/sys/block/sda/queue/scheduler|/sys/kernel/mm/transparent_hugepage/enabled)"
WRITING = re.compile(rf"(>[>|]?[ ]?|\btee( -a)? ){TUNED}(?=[\s;|&)]|$)")
WRITERS = (
    "echo 1 > /proc/sys/vm/nr_hugepages",
    "cat /x >| /proc/sys/vm/nr_hugepages",
    "echo none | sudo tee /sys/block/sda/queue/scheduler",
    "tee -a /sys/block/sda/queue/scheduler < /x",
    "printf never >>/sys/kernel/mm/transparent_hugepage/enabled",
)
BETWEEN = """
if true; then |; else |; fi |while read x; do |for f in a b; do |for f in $(ls); do |case $1 in a) |; done|; esac
{ |; }|( | )|fn() { |function g { |exit 0|return|break|[ -e /x ] && |! |$(|`|${|"|'|cat <<EOF|EOF|sh -c '|sudo |x=
f=/dev/null |$f|((|[[ | ]]|case|in|do|done|fi|then|<|>|2>|&> |<<|<<< |word| -c |\\|&&|;|&| ;; |}|)|\t|\0|\x0b
"""
AROUND = st.sampled_from([" | ", "||", "\n", "\\\n", *BETWEEN.strip().replace("\n", "|").split("|")])


@settings(max_examples=often(600), deadline=None)
@given(parts=st.lists(st.one_of(st.sampled_from(WRITERS), AROUND, AROUND, st.just("\n")), max_size=25))
def test_no_line_of_a_script_is_lost(parts: list[str]) -> None:
    """Each line that writes such a file is translated, or shown to people."""
    text = "".join(parts)
    shown = [" ".join(entry.place.text.split()) for entry in Script("/etc/rc.local").read(text)]
    for line in text.split("\n"):
        if WRITING.search(line):
            words = " ".join(line.removesuffix("\\").split())
            assert any(words in place for place in shown), (text, shown)


# Fields of a line of tmpfiles.d that systemd-tmpfiles takes as an order to write.
TYPES = st.sampled_from(["w", "w!", "w+", '"w"', "'w-!'", "f", "f+", "F", "F!", "w^", "w~"])
PATHS = st.sampled_from(
    ["/proc/sys/vm/nr_hugepages", "/sys/block/sda/queue/scheduler", "/sys/kernel/mm/transparent_hugepage/enabled"]
)
QUOTES = st.sampled_from(["{}", '"{}"', "'{}'", "/{}", "{}/"])
GAPS = st.sampled_from([" ", "\t", "  "])
FIELDS = st.sampled_from(["-", "0644", "root", "10d", ":-", '"-"', "~0:1"])
VALUES = st.sampled_from(["never", "8", "ne\\x76er", "%m", "%%", "a b", '"8"', "8\\n"])
ORDER = st.tuples(
    TYPES, GAPS, st.builds(str.format, QUOTES, PATHS), st.lists(st.tuples(GAPS, FIELDS), min_size=4, max_size=4),
    GAPS, VALUES,
)  # fmt: skip
OTHERS = st.sampled_from(["", "# w /proc/sys/vm/nr_hugepages - - - - 8", "d /run/x", "w", "\\", '"', "w /x - - - - y"])


@settings(max_examples=often(300), deadline=None)
@given(lines=st.lists(st.one_of(ORDER, OTHERS), max_size=12))
def test_no_line_of_tmpfiles_is_lost(lines: list[str | tuple[str, str, str, list[tuple[str, str]], str, str]]) -> None:
    texts = [
        line if isinstance(line, str) else "".join([*line[:3], *(part for pair in line[3] for part in pair), *line[4:]])
        for line in lines
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "etc/tmpfiles.d/a.conf"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(texts))
        shown = {entry.place.line for entry in boot_settings.read_tmpfiles(Files(Path(folder)))}
    assert {number for number, line in enumerate(lines, 1) if isinstance(line, tuple)} <= shown, texts
