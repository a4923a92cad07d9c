"""What the verbs ask of the daemon, what they answer, and the exit codes; the daemon is a script."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kerntune import errors
from kerntune.cli.__main__ import main
from tests.cli.scripted import DRIVES, Script, claim, document, outcome, target

Captured = pytest.CaptureFixture[str]


def run(script: Script, *words: str) -> int:
    return main(words, connect=script.connect)


class TestSet:
    def test_it_asks_once_and_shows_what_is_there_now(self, capsys: Captured) -> None:
        script = Script(outcomes=[outcome("io-scheduler@nvme0n1")])
        assert run(script, "set", "io-scheduler@nvme*=none", "hugepages@1G=8G") == 0
        assert script.calls == [("Set", [("io-scheduler", "nvme*", "none"), ("hugepages", "1G", "8G")], {})]
        said = capsys.readouterr()
        assert "io-scheduler@nvme0n1  none       none    satisfied" in said.out
        assert said.err == ""

    @pytest.mark.parametrize(
        ("words", "options"),
        [
            ([], {}),
            (["--persist"], {"persist": True}),
            (["--allow-partial"], {"allow-partial": True}),
            (["--allow-partial", "--persist"], {"persist": True, "allow-partial": True}),
        ],
    )
    def test_options(self, words: list[str], options: dict[str, bool]) -> None:
        script = Script()
        run(script, "set", *words, "overcommit=always")
        assert script.calls == [("Set", [("overcommit", "*", "always")], options)]

    def test_json(self, capsys: Captured) -> None:
        row = outcome("hugepages@2M", "partial", requested="128", actual="96", reason="partially-allocated", detail="x")
        assert run(Script(outcomes=[row]), "set", "hugepages@2M=128", "--json") == 6
        assert json.loads(capsys.readouterr().out) == {
            "changed": True,
            "outcomes": [
                {
                    "tunable": "hugepages",
                    "instance": "2M",
                    "requested": "128",
                    "before": "before",
                    "actual": "96",
                    "state": "partial",
                    "reason": "partially-allocated",
                    "detail": "x",
                }
            ],
        }

    @pytest.mark.parametrize("bad", ["hugepages", "hugepages@=1G", "=1"])
    def test_nothing_is_asked_when_one_setting_cannot_be_read(self, bad: str, capsys: Captured) -> None:
        script = Script()
        assert run(script, "set", "hugepages=5", "overcommit=always", bad) == 2
        assert script.calls == []
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("kerntune: ")

    def test_a_persistent_claim_on_a_drive_s_place_is_advised_against(self, capsys: Captured) -> None:
        script = Script(outcomes=[outcome("io-scheduler@nvme0n1")])
        assert run(script, "set", "io-scheduler@nvme0n1=none", "--persist", "--json") == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["changed"]
        assert said.err.splitlines() == [
            "kerntune: nvme0n1 may be another drive after a reboot",
            "  To follow the drive: kerntune set io-scheduler@by-id/nvme-Fast_1=none --persist",
        ]

    @pytest.mark.parametrize("name", ["sda", "vda", "nvme7n1"])
    def test_a_drive_without_a_stable_name_gets_the_general_advice(self, name: str, capsys: Captured) -> None:
        run(Script(), "set", f"io-scheduler@{name}=none", "--persist")
        said = capsys.readouterr().err
        assert f"{name} may be another drive" in said
        assert "/dev/disk/by-id" in said

    @pytest.mark.parametrize(
        "words",
        [
            ["io-scheduler@nvme0n1=none"],
            ["io-scheduler@nvme*=none", "--persist"],
            ["io-scheduler@by-id/nvme-Fast_1=none", "--persist"],
            ["overcommit=always", "--persist"],
        ],
    )
    def test_no_advice_where_none_is_due(self, words: list[str], capsys: Captured) -> None:
        script = Script()
        run(script, "set", *words)
        assert [call[0] for call in script.calls] == ["Set"]
        assert capsys.readouterr().err == ""


class TestUnset:
    def test_without_instances_it_means_all(self) -> None:
        script = Script(outcomes=[outcome("overcommit", "unmanaged")])
        words = ["overcommit", "hugepages", "io-scheduler", "hugepages@2048K", "io-scheduler@nvme*"]
        assert run(script, "unset", *words) == 0
        what = [
            ("overcommit", "*"),
            ("hugepages", "*"),
            ("io-scheduler", "*"),
            ("hugepages", "2048K"),
            ("io-scheduler", "nvme*"),
        ]
        assert script.calls == [("Unset", what, {})]

    def test_persist(self) -> None:
        script = Script()
        run(script, "unset", "overcommit", "--persist")
        assert script.calls == [("Unset", [("overcommit", "*")], {"persist": True})]

    @pytest.mark.parametrize(("words", "kind"), [([], "runtime"), (["--persist"], "persistent")])
    def test_nothing_to_withdraw_is_no_error(self, words: list[str], kind: str, capsys: Captured) -> None:
        assert run(Script(changed=False), "unset", "overcommit", *words) == 0
        said = capsys.readouterr()
        assert said.out == "Nothing changed.\n"
        assert f"there is no {kind} claim overcommit to withdraw\n  Nobody claims it" in said.err

    @pytest.mark.parametrize(
        ("claim_id", "more", "way"),
        [
            ("runtime:io-scheduler@nvme*", {}, "kerntune unset 'io-scheduler@nvme*'"),
            ("persistent:io-scheduler@nvme*", {}, "kerntune unset 'io-scheduler@nvme*' --persist"),
            ("profile:io-scheduler@nvme*", {}, "kerntune profile clear"),
            (
                "config:io-scheduler@nvme*",
                {"why": "a database", "place": "/etc/kerntune/kerntune.toml:3"},
                "out of /etc/kerntune/kerntune.toml:3",
            ),
            (
                "config:io-scheduler@nvme*",
                {"why": "a database"},
                "out of the files in /etc/kerntune, then kerntune reload",
            ),
            ("hold:io-scheduler@nvme*", {"hold": 3}, "kerntune release 3; it ends with its client too"),
            ("mood:io-scheduler@nvme*", {}, "kerntune status shows whose it is"),
        ],
    )
    def test_what_is_in_force_is_named(self, claim_id: str, more: dict[str, str], way: str, capsys: Captured) -> None:
        """Though the daemon says that the target is in the desired state: by somebody else."""
        host = document([DRIVES[0] | {"claim": claim_id}, *DRIVES[1:]], [claim(claim_id, "none", **more)])
        satisfied = outcome("io-scheduler@nvme0n1")
        assert run(Script(host, changed=False, outcomes=[satisfied]), "unset", "io-scheduler@nvme0n1") == 0
        said = capsys.readouterr().err
        assert "there is no runtime claim io-scheduler@nvme0n1 to withdraw\n" in said
        assert f"In force is {claim_id.replace(':', ' ')} = none (" in said
        assert way in said

    def test_what_waits_and_what_is_many(self, capsys: Captured) -> None:
        claims = [claim(f"persistent:io-scheduler@vd{name}*", "none", matches=[]) for name in "abcd"]
        run(Script(document(DRIVES, claims), changed=False), "unset", "io-scheduler@vdb*", "overcommit")
        assert "In force is persistent io-scheduler@vdb* = none (" in capsys.readouterr().err
        run(Script(document(DRIVES, claims), changed=False), "unset", "io-scheduler")
        assert "; 1 more (kerntune status)\n" in capsys.readouterr().err

    def test_json(self, capsys: Captured) -> None:
        run(Script(changed=False), "unset", "overcommit", "--json")
        assert json.loads(capsys.readouterr().out) == {"changed": False, "outcomes": []}


class TestGet:
    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (["overcommit"], "heuristic\n"),
            (["io-scheduler@nvme0n1"], "none\n"),
            (["io-scheduler@by-id/nvme-Fast_2"], "mq-deadline\n"),
            (["hugepages@2048K"], "128\n"),
            (["io-scheduler@nvme*"], "io-scheduler@nvme0n1 none\nio-scheduler@nvme1n1 mq-deadline\n"),
            (["overcommit", "hugepages@2M"], "overcommit heuristic\nhugepages@2M 128\n"),
            (["io-scheduler@sda", "io-scheduler@s*"], "bfq\n"),
        ],
    )
    def test_values(self, words: list[str], text: str, capsys: Captured) -> None:
        assert run(Script(), "get", *words) == 0
        assert capsys.readouterr().out == text

    def test_json(self, capsys: Captured) -> None:
        assert run(Script(), "get", "io-scheduler@sda", "--json") == 0
        assert json.loads(capsys.readouterr().out) == {"targets": [DRIVES[2]]}

    @pytest.mark.parametrize(
        ("word", "code", "text"),
        [
            ("io-scheduler@vda", 3, "There are nvme0n1, nvme1n1, sda"),
            ("cpu-governor", 3, "no cpufreq driver is loaded"),
            ("governor", 2, "There are cpu-governor, hugepages, io-scheduler, overcommit"),
            ("overcommit=always", 2, "To set it: kerntune set overcommit=always"),
        ],
    )
    def test_what_is_not_there(self, word: str, code: int, text: str, capsys: Captured) -> None:
        assert run(Script(), "get", word) == code
        said = capsys.readouterr()
        assert said.out == ""
        assert text in said.err

    def test_what_cannot_be_read(self, capsys: Captured) -> None:
        unreadable = target("io-scheduler@sdb", None, state="unsupported", detail="the device has gone")
        script = Script(document([*DRIVES, unreadable]))
        assert run(script, "get", "io-scheduler@sdb") == 3
        said = capsys.readouterr()
        assert said.out == ""
        assert "the device has gone" in said.err
        assert run(script, "get", "io-scheduler@sd*") == 6
        assert capsys.readouterr().out == "io-scheduler@sda bfq\nio-scheduler@sdb -\n"


class TestList:
    def test_everything(self, capsys: Captured) -> None:
        assert run(Script(), "list") == 0
        text = capsys.readouterr().out
        assert "io-scheduler@nvme1n1  mq-deadline" in text
        assert "no cpufreq driver is loaded" in text

    def test_one_tunable(self, capsys: Captured) -> None:
        assert run(Script(), "list", "hugepages") == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines[1:]] == ["hugepages@1G", "hugepages@2M", "hugepages@2M/node0"]

    def test_an_unknown_tunable(self, capsys: Captured) -> None:
        assert run(Script(), "list", "governor") == 2
        assert "There are cpu-governor" in capsys.readouterr().err

    def test_json(self, capsys: Captured) -> None:
        assert run(Script(), "list", "io-scheduler", "--json") == 0
        answer = json.loads(capsys.readouterr().out)
        assert [row["name"] for row in answer["tunables"]] == ["io-scheduler"]
        assert answer["targets"] == list(DRIVES)


class TestStatus:
    HOST = document(
        [*DRIVES, target("overcommit", "always", requested="always", state="satisfied", claim="runtime:overcommit")],
        [claim("runtime:overcommit", "always", who="alice")],
    )

    @pytest.mark.parametrize("words", [[], ["status"]])
    def test_only_what_is_managed(self, words: list[str], capsys: Captured) -> None:
        assert run(Script(self.HOST), *words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[3].split() == ["overcommit", "always", "always", "satisfied", "runtime,", "alice"]
        assert len(lines) == 4

    @pytest.mark.parametrize("words", [["--json"], ["status", "--json"], ["--json", "status"]])
    def test_json(self, words: list[str], capsys: Captured) -> None:
        assert run(Script(self.HOST), *words) == 0
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert [row["tunable"] for row in answer["targets"]] == ["overcommit"]
        assert answer["generation"] == 3
        assert answer["claims"][0]["who"] == "alice"


@pytest.mark.parametrize("cls", [*errors.by_name().values(), errors.Usage])
def test_an_error_of_the_daemon_decides_the_exit_code(cls: type[errors.KerntuneError], capsys: Captured) -> None:
    assert run(Script(error=cls("it did not work", "Try again")), "set", "overcommit=always", "--json") == cls.exit_code
    said = capsys.readouterr()
    assert said.err == "kerntune: it did not work\n  Try again\n"
    assert json.loads(said.out) == {"error": {"name": cls.dbus_name, "message": "it did not work. Try again"}}
