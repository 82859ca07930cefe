"""What commands say: exit codes, one line for an error, one JSON document, Japanese, and mistakes of every kind."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from acceptance.processes import furnish
from nagaya.cli.main import run
from nagaya.cli.output import Output, cell
from nagaya.settings import environment_key, environment_language


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def error(self) -> dict[str, Any]:
        shape: dict[str, Any] = json.loads(self.out)["error"]
        return shape


Say = Callable[..., Said]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("said") / "data"
    furnish(data, "acme")
    return data


@pytest.fixture
def say(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG", "NAGAYA_KEY", "NAGAYA_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def command(*arguments: str, data: Path | None = folder) -> Said:
        place = [] if data is None else ["--data", str(data)]
        code = run([*arguments, *place])
        return Said(code, *capsys.readouterr())

    return command


def test_done_is_0_refused_is_1_and_usage_is_2(say: Say) -> None:
    assert say("tenant", "list").code == 0
    assert say("tenant", "show", "nobody").code == 1
    assert say("tenant", "shwo", "acme").code == 2
    assert say("nonsense").code == 2
    assert say("tenant", "show", "acme", "--nonsense").code == 2
    assert say(data=None).code == 2


def test_an_error_is_one_line_and_names_what_to_do(say: Say) -> None:
    said = say("tenant", "create", "Acme", "--name", "A")
    assert (said.code, said.out) == (1, "")
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("nagaya: Tenant id 'Acme' is refused: ")


def test_under_json_an_error_is_the_one_document_and_the_message_goes_beside_it(say: Say) -> None:
    said = say("--json", "tenant", "create", "acme", "--name", "A")
    assert said.error == {
        "message": "Tenant id 'acme' is taken; choose another.",
        "type": "invalid_request_error",
        "param": None,
        "code": "tenant_exists",
    }
    assert said.err.strip() == "nagaya: Tenant id 'acme' is taken; choose another."


def test_a_usage_error_under_json_is_a_document_too(say: Say) -> None:
    said = say("tenant", "create", "--json")
    assert said.code == 2
    assert said.error["code"] == "usage"


@pytest.mark.parametrize("locale", ["LANG", "LC_ALL", "--lang"])
def test_messages_are_japanese_where_the_caller_is(say: Say, monkeypatch: pytest.MonkeyPatch, locale: str) -> None:
    lang = []
    if locale == "--lang":
        lang = ["--lang", "ja"]
    else:
        monkeypatch.setenv(locale, "ja_JP.UTF-8")
    said = say("tenant", "show", "nobody", *lang)
    assert said.err.strip() == "nagaya: そのテナントは見つかりません。存在しないか、あなたのものではありません。"


def test_the_flag_wins_over_the_locale(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "ja_JP.UTF-8")
    assert "No such tenant" in say("--lang", "en", "tenant", "show", "nobody").err


def test_options_stand_before_or_after_the_command_and_the_nearer_wins(say: Say, folder: Path, tmp_path: Path) -> None:
    wrong = str(tmp_path / "nowhere")
    assert say("--data", str(folder), "tenant", "show", "acme", data=None).code == 0
    assert say("tenant", "--data", str(folder), "show", "acme", data=None).code == 0
    assert say("--data", wrong, "tenant", "show", "acme", "--data", str(folder), data=None).code == 0
    assert say("--data", str(folder), "tenant", "show", "acme", "--data", wrong, data=None).code == 1
    assert json.loads(say("tenant", "--json", "show", "acme").out)["id"] == "acme"


def test_a_mistyped_folder_is_neither_made_nor_found_empty(say: Say, tmp_path: Path) -> None:
    absent = tmp_path / "nowhere"
    for command in (("tenant", "list"), ("audit", "verify"), ("key", "status", "acme")):
        said = say(*command, data=absent)
        assert said.code == 1
        assert str(absent) in said.err
    assert not absent.exists()


def test_what_is_shown_to_people_is_plain_where_nobody_watches(say: Say) -> None:
    lines = say("tenant", "list").out.splitlines()
    assert lines[0].split() == ["id", "name", "state", "tier", "isolation", "models", "created_at"]
    assert lines[1].split()[:4] == ["acme", "Acme", "active", "free"]
    assert "\x1b" not in "".join(lines)
    shown = say("tenant", "show", "acme").out
    assert "expires_at_us         -" in shown


def test_a_token_alone_is_printed_so_that_a_shell_can_take_it(say: Say) -> None:
    said = say("token", "mint", "--tenant", "acme", "--user", "mia")
    assert said.out.count(".") == 2
    assert said.err == ""


@pytest.mark.parametrize(
    ("arguments", "code", "names"),
    [
        (("tenant", "create", "new", "--name", ""), 1, "name"),
        (("tenant", "create", "new", "--name", "N", "--tier", "gold"), 1, "tier"),
        (("tenant", "create", "new", "--name", "N", "--isolation", "none"), 1, "isolation"),
        (("tenant", "create", "new", "--name", "N", "--model", "http://169.254.169.254"), 1, "model"),
        (("tenant", "create", "new", "--name", "N", "--model", "openai+http://127.0.0.1/v1#m"), 1, "inside"),
        (("tenant", "create", "new", "--name", "N", "--store", "postgresql://x"), 1, "name of a database"),
        (("tenant", "create", "new", "--name", "N", "--blobs", "s3://x"), 1, "s3://bucket"),
        (("tenant", "create", "new", "--name", "N\x00"), 1, "name"),
        (("tenant", "create", "new", "--name", "\udcff"), 1, "name"),
        (("tenant", "create", "n\udcffw", "--name", "N"), 1, "Tenant id"),
        (("tenant", "create", "../acme", "--name", "N"), 1, "Tenant id"),
        (("tenant", "show", "../acme"), 1, "tenant"),
        (("tenant", "show", "\udcff"), 1, "tenant"),
        (("tenant", "set", "acme", "tier"), 2, "KEY=VALUE"),
        (("tenant", "set", "acme", "=x"), 2, "KEY=VALUE"),
        (("tenant", "set", "acme", "tier=free", "tier=standard"), 2, "twice"),
        (("tenant", "set", "acme", "model_key="), 2, "model_key"),
        (("tenant", "set", "acme", "colour=red"), 1, "colour"),
        (("tenant", "set", "acme", "state=active"), 1, "state"),
        (("tenant", "set", "acme", "mfa_required=perhaps"), 1, "mfa_required"),
        (("tenant", "set", "acme", "expires_at=tomorrow"), 1, "expires_at"),
        (("tenant", "set", "acme", "requests_per_minute=many"), 1, "requests_per_minute"),
        (("tenant", "usage", "acme", "--month", "2026-13"), 2, "YYYY-MM"),
        (("tenant", "usage", "acme", "--month", "２０２６-01"), 2, "YYYY-MM"),
        (("tenant", "resume", "acme"), 1, "active"),
        (("token", "mint", "--tenant", "acme", "--user", "mia", "--role", "operator"), 1, ""),
        (("token", "mint", "--tenant", "acme", "--user", "mia", "--lifetime-s", "-1"), 1, ""),
        (("token", "revoke", "--tenant", "acme"), 2, "--all"),
        (("token", "revoke", "--tenant", "acme", "--all", "--user", "mia"), 2, "--all"),
        (("api-key", "create"), 2, "--operator"),
        (("api-key", "create", "--tenant", "acme", "--operator"), 2, "--operator"),
        (("api-key", "create", "--tenant", "acme", "--role", "king"), 1, "role"),
        (("api-key", "create", "--tenant", "acme", "--scope", "all"), 1, "scopes"),
        (("api-key", "revoke", "nope", "--tenant", "acme"), 1, "api key"),
        (
            ("issuer", "bind", "acme", "--issuer", "i", "--provider", "saml", "--audience", "a", "--jwks-url", "u"),
            1,
            "",
        ),
        (("issuer", "list", "nobody"), 1, "tenant"),
        (("tenant", "list", "--url", "http://127.0.0.1:9"), 2, "--data"),
        (("demo", "--port", "70000"), 2, "--port"),
        (("serve", "--workers", "0"), 2, "--workers"),
        (("serve", "--log-level", "loud"), 2, "--log-level"),
    ],
)
def test_a_mistake_is_refused_by_name(say: Say, arguments: tuple[str, ...], code: int, names: str) -> None:
    said = say(*arguments)
    assert said.code == code, said
    assert names in said.err
    assert "Traceback" not in said.err
    assert "did not expect" not in said.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("tenant", "list", "--url", "127.0.0.1:8700", "--key", "k"),
        ("tenant", "list", "--url", "http://127.0.0.1:9"),
        ("serve", "--url", "http://127.0.0.1:9"),
        ("demo", "--url", "http://127.0.0.1:9"),
        ("bench", "--url", "http://127.0.0.1:9"),
    ],
)
def test_a_url_that_cannot_be_meant_is_a_usage_error(say: Say, arguments: tuple[str, ...]) -> None:
    said = say(*arguments, data=None)
    assert said.code == 2
    assert "--url" in said.err


def test_a_setting_that_is_wrong_is_named(say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "nagaya.toml"
    config.write_text("colour = 'red'\n")
    assert "colour" in say("tenant", "list", "--config", str(config)).err
    monkeypatch.setenv("NAGAYA_WORKERS", "many")
    said = say("serve")
    assert (said.code, "workers" in said.err) == (1, True)


def test_an_unexpected_failure_is_one_line_and_no_stack(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, *, may_create: bool = False) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("nagaya.cli.place.Place.office", broken)
    said = say("tenant", "list", "--json")
    assert said.code == 1
    assert said.error["code"] == "command_failed"
    assert "secret detail" not in said.out + said.err
    assert len(said.err.splitlines()) == 1


def test_on_a_terminal_a_deletion_is_confirmed_by_the_id(
    say: Say, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    furnish(folder, "doomed")
    monkeypatch.setattr("sys.stdin", Terminal("no\n"))
    assert say("tenant", "delete", "doomed").code == 1
    assert say("tenant", "show", "doomed").code == 0
    monkeypatch.setattr("sys.stdin", Terminal("doomed\n"))
    assert say("tenant", "delete", "doomed").code == 0
    assert say("tenant", "show", "doomed").code == 1


def test_a_damaged_log_does_not_verify(say: Say, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nagaya.audit.log import AuditLog
    from nagaya.errors import AuditBroken

    async def broken(self: object, chain: str) -> None:
        raise AuditBroken(entry=3, problem="its link does not fit")

    monkeypatch.setattr(AuditLog, "verify", broken)
    said = say("audit", "verify", "--tenant", "acme", "--json")
    assert (said.code, said.error["code"]) == (1, "audit_broken")


def test_outside_a_checkout_there_is_nothing_to_bench(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nagaya.cli.bench.__file__", str(tmp_path / "a" / "b" / "c" / "bench.py"))
    said = say("bench")
    assert (said.code, "checkout" in said.err) == (1, True)


@pytest.mark.parametrize(("status", "code"), [(0, 0), (1, 1), (2, 2), (-9, 1)])
def test_bench_runs_the_checkouts_own_measurements_and_ends_as_they_do(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: int
) -> None:
    benchmarks = tmp_path / "tests" / "benchmarks"
    benchmarks.mkdir(parents=True)
    (benchmarks / "run.py").write_text(
        "import os, sys; print(sys.argv[1:], flush=True); "
        + (f"sys.exit({status})" if status >= 0 else "os.kill(os.getpid(), 9)")
    )
    monkeypatch.setattr("nagaya.cli.bench.__file__", str(tmp_path / "src" / "nagaya" / "cli" / "bench.py"))
    assert run(["bench", "--json", "--quick", "--only", "start"]) == code
    out, err = capfd.readouterr()
    assert json.loads(out) == {"all_targets_met": status == 0}
    assert "['--quick', '--only=start']" in err


def test_the_version_is_told(say: Say) -> None:
    assert say("--version", data=None).out.startswith("nagaya ")


def test_values_are_shown_as_people_read_them() -> None:
    assert cell("created_at_us", 1_000_000) == "1970-01-01 00:00:01Z"
    assert cell("tokens_valid_from_us", 0) == "-"
    assert cell("x", None) == cell("x", []) == cell("x", {}) == "-"
    assert (cell("x", True), cell("x", False), cell("x", 7)) == ("yes", "no", "7")
    assert cell("x", ["a", "b"]) == "a, b"
    assert cell("x", {"a": "b"}) == "a=b"


def test_a_table_on_a_terminal_shows_every_value(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Output(as_json=False, language="en")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    out.table(("id", "name"), [{"id": "acme", "name": "[bold]アクメ[/bold]"}], rest={})
    out.fields({"id": "acme"})
    assert "[bold]アクメ[/bold]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, "en"),
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "en_GB.UTF-8", "LC_MESSAGES": "ja"}, "ja"),
        ({"LC_ALL": "", "LANG": "ja"}, "ja"),
    ],
)
def test_the_locale_tells_the_language(environment: dict[str, str], language: str) -> None:
    assert environment_language(environment=environment) == language


def test_an_empty_key_in_the_environment_is_no_key() -> None:
    assert environment_key(environment={"NAGAYA_KEY": ""}) is None
    assert environment_key(environment={"NAGAYA_KEY": "nk_x"}) == "nk_x"
