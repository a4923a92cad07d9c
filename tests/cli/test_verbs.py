"""What the verbs ask of the daemon, what they answer, and the exit codes; the daemon is a script."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from kerntune import errors
from kerntune.api.document import Outcome
from kerntune.errors import InvalidValue, OverLimit
from tests.cli.scripted import DRIVES, Captured, Script, claim, document, outcome, run, target, tunable
from tests.harness import CHECKOUT

HANGING = target(
    "io-scheduler@sdb", "none", reason="device-hangs", detail="sdb hangs: the kernel has not returned from a read"
)


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
    @pytest.mark.parametrize("member", ["Set", "Plan"])
    def test_options(self, member: str, words: list[str], options: dict[str, bool]) -> None:
        script = Script()
        run(script, member.lower(), *words, "overcommit=always")
        assert script.calls == [(member, [("overcommit", "*", "always")], options)]

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
                    "condition": "partial",
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

    def test_several_drives_get_the_general_advice(self, capsys: Captured) -> None:
        script = Script(outcomes=[outcome("io-scheduler@nvme0n1")])
        assert run(script, "set", "io-scheduler@nvme0n1-nvme3n1=none", "--persist") == 0
        assert "nvme0n1-nvme3n1 may be other drives after a reboot" in capsys.readouterr().err

    def test_a_path_below_dev_gets_the_drive_s_stable_name(self, capsys: Captured) -> None:
        script = Script(outcomes=[outcome("io-scheduler@nvme0n1")])
        assert run(script, "set", "io-scheduler@/dev/nvme0n1=none", "--persist") == 0
        assert "kerntune set io-scheduler@by-id/nvme-Fast_1=none --persist" in capsys.readouterr().err

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
        assert json.loads(capsys.readouterr().out) == {"targets": [{**DRIVES[2], "condition": "unmanaged"}]}

    @pytest.mark.parametrize(
        ("word", "code", "text"),
        [
            ("io-scheduler@vda", 3, "There are nvme0n1-nvme1n1, sda"),
            ("cpu-governor", 3, "no cpufreq driver is loaded"),
            ("governor", 3, "There are cpu-governor, hugepages, io-scheduler, overcommit"),
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

    @pytest.mark.parametrize("word", ["io-scheduler@sdb", "io-scheduler@sd*"])
    def test_the_last_value_of_what_hangs_is_told_as_such(self, word: str, capsys: Captured) -> None:
        assert run(Script(document([*DRIVES, HANGING])), "get", word) == 6
        said = capsys.readouterr()
        assert "none\n" in said.out
        assert said.err == f"kerntune: io-scheduler@sdb: the last value that is known\n  {HANGING['detail']}\n"

    def test_values_that_may_be_old_are_told_as_such(self, capsys: Captured) -> None:
        slow = [tunable("overcommit"), tunable("io-scheduler", detail="the kernel takes long")]
        assert run(Script(document(DRIVES, tunables=slow)), "get", "io-scheduler@sda") == 0
        said = capsys.readouterr()
        assert (said.out, said.err) == (
            "bfq\n",
            "kerntune: io-scheduler: these values may be old\n  the kernel takes long\n",
        )
        assert run(Script(document(DRIVES, tunables=slow)), "list") == 0
        assert "io-scheduler: these values may be old: the kernel takes long\n" in capsys.readouterr().out

    def test_what_the_host_lacks_is_not_told_as_old(self, capsys: Captured) -> None:
        lacking = tunable("io-scheduler", supported=False, detail="there is none")
        assert run(Script(document(DRIVES, tunables=[lacking])), "get", "io-scheduler@sda") == 0
        assert capsys.readouterr().err == ""


class TestList:
    def test_what_hangs(self, capsys: Captured) -> None:
        assert run(Script(document([*DRIVES, HANGING])), "list", "io-scheduler") == 0
        assert HANGING["detail"] in " ".join(capsys.readouterr().out.split())

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
        assert run(Script(), "list", "governor") == 3
        assert "There are cpu-governor" in capsys.readouterr().err

    def test_several_and_patterns(self, capsys: Captured) -> None:
        assert run(Script(), "list", "hugepages@2M", "io-sched*@nvme*", "cpu-*") == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines[1:]] == [
            "cpu-governor", "hugepages@2M", "io-scheduler@nvme0n1", "io-scheduler@nvme1n1",
        ]  # fmt: skip
        assert run(Script(), "list", "hugepages@4M") == 3
        assert "hugepages has no '4M'" in capsys.readouterr().err

    def test_what_is_left_out_is_counted(self, capsys: Captured) -> None:
        host = document([*DRIVES, *(target(f"io-scheduler@loop{number}", "none") for number in range(8))])
        assert run(Script(host), "list") == 0
        *rows, last = capsys.readouterr().out.splitlines()
        assert not any("loop" in row for row in rows)
        assert last == "8 loop, ram or zram devices are left out: kerntune list 'io-scheduler@loop*'"
        assert run(Script(host), "list", "io-scheduler@loop*") == 0
        assert capsys.readouterr().out.splitlines()[1].split()[0] == "io-scheduler@loop0-loop7"
        assert run(Script(host), "list", "overcommit") == 0
        assert "left out" not in capsys.readouterr().out
        assert run(Script(host), "get", "io-scheduler") == 0
        assert "loop" not in capsys.readouterr().out
        assert run(Script(host), "list", "--json") == 0
        said = json.loads(capsys.readouterr().out)
        assert said["left_out"] == [f"loop{number}" for number in range(8)]
        assert said["targets"] == [{**row, "condition": "unmanaged"} for row in DRIVES]

    def test_json(self, capsys: Captured) -> None:
        assert run(Script(), "list", "io-scheduler", "--json") == 0
        answer = json.loads(capsys.readouterr().out)
        assert [row["name"] for row in answer["tunables"]] == ["io-scheduler"]
        assert answer["targets"] == [{**row, "condition": "unmanaged"} for row in DRIVES]


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


class TestPlan:
    def test_it_asks_for_a_plan_and_shows_what_is_there(self, capsys: Captured) -> None:
        script = Script(outcomes=[outcome("hugepages@2M", "planned", requested="4096", actual="0")])
        assert run(script, "set", "hugepages=8G", "--dry-run") == 0
        assert script.calls == [("Plan", [("hugepages", "", "8G")], {})]
        said = capsys.readouterr()
        assert "hugepages@2M  8G         0       planned" in said.out
        assert said.err == ""

    def test_unset(self) -> None:
        script = Script(outcomes=[outcome("overcommit", "planned", requested="")])
        words = "overcommit", "cpu-governor", "hugepages@2048K", "--persist", "--dry-run"
        assert run(script, "unset", *words) == 0
        named = [("overcommit", "*", ""), ("cpu-governor", "*", ""), ("hugepages", "2048K", "")]
        assert script.calls == [("Plan", named, {"unset": True, "persist": True})]

    @pytest.mark.parametrize(
        ("words", "hint"),
        [
            (["set", "overcommit"], "overcommit has no value"),
            (["unset", "overcommit=always"], "only a name is expected"),
        ],
    )
    def test_names_and_values_are_told_apart(self, words: list[str], hint: str, capsys: Captured) -> None:
        script = Script()
        assert run(script, *words, "--dry-run") == 2
        assert script.calls == []
        assert hint in capsys.readouterr().err

    def test_nothing_to_withdraw(self, capsys: Captured) -> None:
        assert run(Script(changed=False), "unset", "overcommit", "--dry-run") == 0
        said = capsys.readouterr()
        assert said.out == "Nothing would change.\n"
        assert "there is no runtime claim overcommit to withdraw" in said.err

    @pytest.mark.parametrize(
        "words", [["unset", "overcommit"], ["reset", "--baseline"], ["profile", "clear"], ["reload"]], ids=" ".join
    )
    def test_what_would_come_back_is_shown_as_the_daemon_says_it(self, words: list[str], capsys: Captured) -> None:
        back = "the host's own value comes back"
        rows = [
            outcome("overcommit", "planned", requested="heuristic", actual="always", detail=back),
            outcome("io-scheduler@sda", "unmanaged", requested="", actual="bfq"),
        ]
        script = Script(outcomes=rows)
        assert run(script, *words, "--dry-run") == 0
        assert [call[0] for call in script.calls] == ["Plan"]
        _, first, other = capsys.readouterr().out.splitlines()
        assert first.split(maxsplit=4) == ["overcommit", "heuristic", "always", "planned", back]
        assert other.split() == ["io-scheduler@sda", "-", "bfq", "unmanaged"]
        run(Script(outcomes=rows), *words, "--dry-run", "--json")
        assert json.loads(capsys.readouterr().out)["outcomes"] == [
            {**row._asdict(), "condition": row.state} for row in rows
        ]

    def test_plan_is_another_word_for_it_that_no_text_has(self, capsys: Captured) -> None:
        script = Script(outcomes=[outcome("overcommit", "planned")])
        assert run(script, "plan", "overcommit=always", "--persist") == 0
        assert script.calls == [("Plan", [("overcommit", "*", "always")], {"persist": True})]
        for words in (["--help"], ["set", "--help"]):
            assert run(script, *words) == 0
            assert not re.search(r"\bplan\b", capsys.readouterr().out)
        page = (CHECKOUT / "docs/man/kerntune.1").read_text()
        assert not re.search(r"Cm plan|kerntune plan", page)
        assert "plan" not in (CHECKOUT / "packaging/completions/kerntune").read_text().split()

    def test_a_reload_that_would_go_well_ends_with_0_whatever_its_outcomes(self) -> None:
        row = outcome("io-scheduler@sda", "unsupported", reason="value-not-offered")
        script = Script(outcomes=[row])
        assert run(script, "reload", "--dry-run") == 0
        assert script.calls == [("Plan", [], {"reload": True})]
        assert run(Script(error=InvalidValue("taken in part only")), "reload", "--dry-run") == 2

    def test_one_refusal_refuses_the_whole_call(self, capsys: Captured) -> None:
        rows = [
            outcome("hugepages@2M", "refused", reason="over-limit", detail="900 possible"),
            outcome("overcommit", "planned"),
        ]
        # As it comes over the bus: both parts in one.
        refusal = OverLimit("900 possible. Ask for less")
        script = Script(outcomes=rows, strict=refusal)
        assert run(script, "set", "hugepages@2M=2000", "overcommit=always", "--dry-run") == refusal.exit_code == 1
        assert [call[2] for call in script.calls] == [{}, {"strict": True}]
        said = capsys.readouterr()
        assert "over-limit: 900 possible" in said.out
        assert said.err == "kerntune: set would fail: 900 possible\n  Ask for less\n"

    def test_a_name_that_a_reboot_may_change_is_advised_against(self, capsys: Captured) -> None:
        planned = Script(outcomes=[outcome("io-scheduler@sda", "planned")])
        run(planned, "set", "io-scheduler@sda=none", "--persist", "--dry-run")
        assert "sda may be another drive" in capsys.readouterr().err

    def test_json(self, capsys: Captured) -> None:
        run(Script(outcomes=[outcome("overcommit", "planned")]), "set", "overcommit=always", "--dry-run", "--json")
        answer = json.loads(capsys.readouterr().out)
        assert answer["changed"]
        assert [row["state"] for row in answer["outcomes"]] == ["planned"]


class TestVerify:
    HOST = document(
        [
            *DRIVES[1:],
            target("overcommit", "always", state="satisfied", claim="runtime:overcommit"),
            target("io-scheduler@nvme0n1", "bfq", state="satisfied", claim="runtime:io-scheduler@nvme0n1"),
        ],
        [
            claim("runtime:overcommit", "always", matches=[""]),
            claim("runtime:io-scheduler@nvme0n1", "none"),
            claim("persistent:io-scheduler@vd*", "none", matches=[]),
        ],
    )
    DRIVE = outcome("io-scheduler@nvme0n1", "failed", actual="bfq", reason="changed-by-others", detail="it reads bfq")
    WAITING = outcome("io-scheduler@vd*", "unsupported", actual="", reason="no-such-target")
    OVERCOMMIT = outcome("overcommit", "failed", requested="always", actual="heuristic", reason="changed-by-others")

    def test_all_in_the_desired_state(self, capsys: Captured) -> None:
        script = Script(self.HOST)
        assert run(script, "verify") == 0
        assert capsys.readouterr().out == "All well: 3 of 3 in the desired state\n"
        assert script.calls == [("Verify",), ("Describe",)]

    def test_part_of_it(self, capsys: Captured) -> None:
        assert run(Script(self.HOST, outcomes=[self.DRIVE]), "verify") == 1
        assert capsys.readouterr().out.splitlines() == [
            "Not well: 2 of 3 in the desired state; 1 failed",
            "TARGET                REQUESTED  ACTUAL  STATE",
            "io-scheduler@nvme0n1  none       bfq     failed  changed-by-others: it reads bfq",
        ]

    def test_what_is_not_here_is_no_failure(self, capsys: Captured) -> None:
        assert run(Script(self.HOST, outcomes=[self.WAITING]), "verify") == 0
        head, _, row = capsys.readouterr().out.splitlines()
        assert head == "All well: 2 of 3 in the desired state; 1 waiting for a device"
        assert row.split() == ["io-scheduler@vd*=none", "-", "-", "waiting"]

    def test_it_says_how_the_daemon_is(self, capsys: Captured) -> None:
        assert run(Script(self.HOST | {"degraded": ["config-invalid"]}), "verify") == 1
        said = capsys.readouterr().out
        assert said.startswith("Not well: 3 of 3 in the desired state; config-invalid\n")
        assert "! config-invalid: a configuration file" in said
        assert run(Script(document(degraded=["config-suspended"])), "verify") == 0
        first, *_, last = capsys.readouterr().out.splitlines()
        assert first == "All well"
        assert last.startswith("Nothing is managed now: the configuration and the profile are")

    def test_none_of_it(self, capsys: Captured) -> None:
        assert run(Script(self.HOST, outcomes=[self.DRIVE, self.WAITING, self.OVERCOMMIT]), "verify") == 1
        assert capsys.readouterr().out.startswith(
            "Not well: 0 of 3 in the desired state; 2 failed; 1 waiting for a device\n"
        )

    def test_nothing_managed(self, capsys: Captured) -> None:
        assert run(Script(), "verify") == 0
        assert capsys.readouterr().out.startswith("All well\nNothing is managed: ")

    def test_of_named_targets_it_tells_nothing_of_the_others(self, capsys: Captured) -> None:
        script = Script(self.HOST | {"degraded": ["changed-by-others"]}, outcomes=[self.OVERCOMMIT])
        assert run(script, "verify", "io-scheduler@nvme0n1") == 0
        assert capsys.readouterr().out == "All well: 1 of 1 in the desired state\n"
        assert run(script, "verify", "io-scheduler@sda") == 0
        first, *others = capsys.readouterr().out.splitlines()
        assert (first, [line.partition(":")[0] for line in others]) == ("All well", ["None of these is managed"])

    def test_json(self, capsys: Captured) -> None:
        assert run(Script(self.HOST, outcomes=[self.WAITING]), "verify", "--json") == 0
        answer = json.loads(capsys.readouterr().out)
        assert (answer["managed"], answer["satisfied"], answer["lacking"], answer["degraded"]) == (3, 2, 1, [])
        assert [row["instance"] for row in answer["outcomes"]] == ["vd*"]

    @pytest.mark.parametrize(
        ("left", "code", "head"),
        [
            ((), 0, "All well: 3 of 3 in the desired state"),
            ((OVERCOMMIT,), 1, "Not well: 2 of 3 in the desired state; 1 failed"),
        ],
    )
    def test_a_repair_tells_what_was_put_back_and_then_what_verify_would(
        self, left: tuple[Outcome, ...], code: int, head: str, capsys: Captured
    ) -> None:
        back = outcome("io-scheduler@nvme0n1", detail="put back, it was bfq")
        script = Script(self.HOST, outcomes=[back, *left])
        assert run(script, "verify", "--repair") == code
        assert script.calls == [("Repair",), ("Describe",)]
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "1 value put back:"
        assert lines[2].split(maxsplit=4) == [
            "io-scheduler@nvme0n1", "none", "none", "satisfied", "put back, it was bfq"
        ]  # fmt: skip
        assert lines[3] == head
        assert run(script, "verify", "--repair", "--json") == code
        answer = json.loads(capsys.readouterr().out)
        assert [row["instance"] for row in answer["repaired"]] == ["nvme0n1"]
        assert [row["tunable"] for row in answer["outcomes"]] == [row.tunable for row in left]

    def test_a_repair_of_nothing(self, capsys: Captured) -> None:
        assert run(Script(self.HOST), "verify", "--repair") == 0
        assert capsys.readouterr().out.splitlines() == [
            "Nothing was put back.", "All well: 3 of 3 in the desired state",
        ]  # fmt: skip
        assert run(Script(self.HOST), "verify", "overcommit", "--repair") == 2


class TestCpus:
    """A governor is asked for by CPU, and the kernel has it by policy."""

    POLICIES = tuple(
        target(f"cpu-governor@policy{first}", "schedutil", aliases=[f"cpu{cpu}" for cpu in range(first, first + 4)])
        for first in range(0, 128, 4)
    )
    HOST = document(POLICIES, tunables=[tunable("cpu-governor")])

    @pytest.mark.parametrize(
        ("cpus", "policies"),
        [
            ("2", [0]),
            ("0-3", [0]),
            ("policy4", [4]),
            ("cpu6", [4]),
            ("policy5-8", [8]),
            ("policy?", [0, 4, 8]),
            ("policy12[0-4]", [120, 124]),
            ("3-4,9", [0, 4, 8]),
        ],
    )
    def test_get(self, cpus: str, policies: list[int], capsys: Captured) -> None:
        assert run(Script(self.HOST), "get", f"cpu-governor@{cpus}") == 0
        lines = [f"cpu-governor@policy{number} schedutil" for number in policies]
        assert capsys.readouterr().out.splitlines() == (lines if len(lines) > 1 else ["schedutil"])

    def test_set_and_unset_without_instances_mean_all(self) -> None:
        script = Script()
        run(script, "set", "cpu-governor=performance", "cpu-governor@0-3,8=powersave")
        run(script, "unset", "cpu-governor", "cpu-governor@0-3")
        assert [call[1] for call in script.calls] == [
            [("cpu-governor", "*", "performance"), ("cpu-governor", "0-3,8", "powersave")],
            [("cpu-governor", "*"), ("cpu-governor", "0-3")],
        ]

    def test_a_cpu_that_is_not_there(self, capsys: Captured) -> None:
        assert run(Script(self.HOST), "get", "cpu-governor@500") == 3
        assert "cpu-governor has no CPU 500\n  There are CPUs 0-127\n" in capsys.readouterr().err

    def test_backwards(self, capsys: Captured) -> None:
        assert run(Script(self.HOST), "get", "cpu-governor@0,7-4") == 2
        assert "'7-4' runs backwards\n  Give the lower number first: 4-7" in capsys.readouterr().err


@pytest.mark.parametrize("cls", [*errors.by_name().values(), errors.Usage])
def test_an_error_of_the_daemon_decides_the_exit_code(cls: type[errors.KerntuneError], capsys: Captured) -> None:
    assert run(Script(error=cls("it did not work", "Try again")), "set", "overcommit=always", "--json") == cls.exit_code
    said = capsys.readouterr()
    assert said.err == "kerntune: it did not work\n  Try again\n"
    assert json.loads(said.out) == {"error": {"name": cls.dbus_name, "message": "it did not work. Try again"}}
