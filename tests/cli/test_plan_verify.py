"""plan and verify: what would be done, and what is not as it should be; nothing is changed."""

from __future__ import annotations

import json

import pytest

from kerntune.cli.__main__ import main
from kerntune.errors import OverLimit
from tests.cli.scripted import DRIVES, Script, claim, document, outcome, target

Captured = pytest.CaptureFixture[str]


def run(script: Script, *words: str) -> int:
    return main(words, connect=script.connect)


class TestPlan:
    def test_it_asks_for_a_plan_and_shows_what_is_there(self, capsys: Captured) -> None:
        script = Script(outcomes=[outcome("hugepages@2M", "planned", requested="4096", actual="0")])
        assert run(script, "plan", "hugepages=8G") == 0
        assert script.calls == [("Plan", [("hugepages", "", "8G")], {})]
        said = capsys.readouterr()
        assert "hugepages@2M  4096       0       planned" in said.out
        assert said.err == ""

    @pytest.mark.parametrize(
        ("words", "options"),
        [
            (["--persist", "overcommit=always"], {"persist": True}),
            (["--allow-partial", "overcommit=always"], {"allow-partial": True}),
        ],
    )
    def test_options(self, words: list[str], options: dict[str, bool]) -> None:
        script = Script()
        run(script, "plan", *words)
        assert script.calls == [("Plan", [("overcommit", "*", "always")], options)]

    def test_unset(self) -> None:
        script = Script(outcomes=[outcome("overcommit", "planned", requested="")])
        assert run(script, "plan", "--unset", "overcommit", "cpu-governor", "hugepages@2048K", "--persist") == 0
        named = [("overcommit", "*", ""), ("cpu-governor", "*", ""), ("hugepages", "2048K", "")]
        assert script.calls == [("Plan", named, {"unset": True, "persist": True}), ("Describe",)]

    @pytest.mark.parametrize(
        ("words", "hint"),
        [(["overcommit"], "overcommit has no value"), (["--unset", "overcommit=always"], "only a name is expected")],
    )
    def test_names_and_values_are_told_apart(self, words: list[str], hint: str, capsys: Captured) -> None:
        script = Script()
        assert run(script, "plan", *words) == 2
        assert script.calls == []
        assert hint in capsys.readouterr().err

    def test_nothing_to_withdraw(self, capsys: Captured) -> None:
        assert run(Script(changed=False), "plan", "--unset", "overcommit") == 0
        said = capsys.readouterr()
        assert said.out == "Nothing would change.\n"
        assert "there is no runtime claim overcommit to withdraw" in said.err

    @pytest.mark.parametrize("words", [["--unset", "overcommit"], ["--reset", "--baseline"], ["--profile", "balanced"]])
    def test_what_would_come_back_is_shown(self, words: list[str], capsys: Captured) -> None:
        host = document([target("overcommit", "always", baseline="heuristic"), target("io-scheduler@sda", "bfq")])
        rows = [
            outcome("overcommit", "planned", requested="", actual="always"),
            outcome("io-scheduler@sda", "unmanaged", requested="", actual="bfq"),
        ]
        assert run(Script(host, outcomes=rows), "plan", *words) == 0
        _, back, other = capsys.readouterr().out.splitlines()
        assert back.split(maxsplit=4) == [
            "overcommit", "heuristic", "always", "planned", "the host's own value comes back"
        ]  # fmt: skip
        assert other.split() == ["io-scheduler@sda", "-", "bfq", "unmanaged"]
        run(Script(host, outcomes=rows), "plan", *words, "--json")
        assert json.loads(capsys.readouterr().out)["outcomes"] == [row._asdict() for row in rows]

    def test_one_refusal_refuses_the_whole_call(self, capsys: Captured) -> None:
        rows = [
            outcome("hugepages@2M", "refused", reason="over-limit", detail="900 possible"),
            outcome("overcommit", "planned"),
        ]
        # As it comes over the bus: both parts in one.
        refusal = OverLimit("900 possible. Ask for less")
        script = Script(outcomes=rows, strict=refusal)
        assert run(script, "plan", "hugepages@2M=2000", "overcommit=always") == refusal.exit_code == 1
        assert [call[2] for call in script.calls] == [{}, {"strict": True}]
        said = capsys.readouterr()
        assert "over-limit: 900 possible" in said.out
        assert said.err == "kerntune: set would fail: 900 possible\n  Ask for less\n"

    def test_a_name_that_a_reboot_may_change_is_advised_against(self, capsys: Captured) -> None:
        run(Script(outcomes=[outcome("io-scheduler@sda", "planned")]), "plan", "io-scheduler@sda=none", "--persist")
        assert "sda may be another drive" in capsys.readouterr().err

    def test_json(self, capsys: Captured) -> None:
        run(Script(outcomes=[outcome("overcommit", "planned")]), "plan", "overcommit=always", "--json")
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
        assert capsys.readouterr().out == "3 of 3 in the desired state.\n"
        assert script.calls == [("Verify",), ("Describe",)]

    def test_part_of_it(self, capsys: Captured) -> None:
        assert run(Script(self.HOST, outcomes=[self.DRIVE]), "verify") == 6
        assert capsys.readouterr().out.splitlines() == [
            "2 of 3 in the desired state; 1 is not",
            "TARGET                REQUESTED  ACTUAL  STATE",
            "io-scheduler@nvme0n1  none       bfq     failed  changed-by-others: it reads bfq",
        ]

    def test_what_is_not_here_is_no_failure(self, capsys: Captured) -> None:
        assert run(Script(self.HOST, outcomes=[self.WAITING]), "verify") == 0
        head, _, row = capsys.readouterr().out.splitlines()
        assert head == "2 of 3 in the desired state; 1 is not here now."
        assert row.split() == ["io-scheduler@vd*", "none", "-", "unsupported", "no-such-target"]

    def test_it_says_how_the_daemon_is(self, capsys: Captured) -> None:
        assert run(Script(self.HOST | {"degraded": ["config-invalid"]}), "verify") == 0
        assert "! config-invalid: a configuration file" in capsys.readouterr().out
        assert run(Script(document(degraded=["config-suspended"])), "verify") == 0
        assert capsys.readouterr().out.startswith("Nothing is managed now: the configuration and the profile are")

    def test_none_of_it(self, capsys: Captured) -> None:
        assert run(Script(self.HOST, outcomes=[self.DRIVE, self.WAITING, self.OVERCOMMIT]), "verify") == 1
        assert capsys.readouterr().out.startswith("0 of 3 in the desired state; 1 is not here now; 2 are not\n")

    def test_nothing_managed(self, capsys: Captured) -> None:
        assert run(Script(), "verify") == 0
        assert capsys.readouterr().out.startswith("Nothing is managed: ")

    def test_json(self, capsys: Captured) -> None:
        assert run(Script(self.HOST, outcomes=[self.WAITING]), "verify", "--json") == 0
        answer = json.loads(capsys.readouterr().out)
        assert (answer["managed"], answer["satisfied"], answer["lacking"], answer["degraded"]) == (3, 2, 1, [])
        assert [row["instance"] for row in answer["outcomes"]] == ["vd*"]
