"""Settings: where they come from, and that what is out of range is refused by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nagaya.errors import SettingsInvalid
from nagaya.settings import Settings, check_settings, export, load_settings, plain_environment
from nagaya.wiring import Nagaya


def test_file_environment_and_flags_come_over_one_another(tmp_path: Path):
    file = tmp_path / "nagaya.toml"
    file.write_text('port = 1\nhost = "a"\nworkers = 2\nallowed_hosts = ["x.example"]\n')
    environment = {"NAGAYA_CONFIG": str(file), "NAGAYA_HOST": "b", "NAGAYA_WORKERS": "3", "OTHER": "9"}
    settings = load_settings(flags={"workers": 4, "port": None}, environment=environment)
    assert (settings.port, settings.host, settings.workers, settings.allowed_hosts) == (1, "b", 4, ("x.example",))
    assert load_settings(environment={}) == Settings()
    listed = load_settings(environment={"NAGAYA_CORS_ORIGINS": " https://a.example, ,https://b.example:8080 "})
    assert listed.cors_origins == ("https://a.example", "https://b.example:8080")


def test_what_is_handed_to_a_worker_is_what_it_reads(monkeypatch: pytest.MonkeyPatch):
    settings = Settings(port=0, drain_s=0.5, allowed_hosts=("a.example", "10.0.0.9:80"), cors_origins=("*",))
    for name in Settings.__struct_fields__:
        monkeypatch.delenv(f"NAGAYA_{name.upper()}", raising=False)
    export(settings)
    assert load_settings() == settings


WRONG: list[tuple[str, Any]] = [
    *(("port", value) for value in (-1, 65_536, 10**400, 1.5, "http", "", True)),
    *(("workers", value) for value in (0, -1, 65, "two")),
    *(("key_cache_s", value) for value in (0, -1, 30.5, float("nan"), float("inf"))),
    *(("open_stores", value) for value in (0, -5, 10**7)),
    *(
        (name, value)
        for name in ("store_deadline_s", "body_deadline_s", "model_deadline_s")
        for value in (0, -1, float("nan"), float("inf"), 10**6, "soon")
    ),
    *(("drain_s", value) for value in (-1, float("nan"), float("inf"), 3601)),
    *(("clock_skew_s", value) for value in (-1, 601, 0.5)),
    *(("jwks_ttl_s", value) for value in (0, -1, 86_401)),
    *(("body_limit_bytes", value) for value in (0, -1, 1023, 2**40)),
    *(("body_depth_limit", value) for value in (0, -1, 257)),
    *(("metrics_tenants", value) for value in (-1, 10**6)),
    *((name, value) for name in ("data", "host") for value in ("", "a\0b", "x" * 5000)),
    *(("log_level", value) for value in ("loud", "", "INFO")),
    *(("log_format", value) for value in ("xml", "")),
    *(("language", value) for value in ("fr", "")),
    *(("public_url", value) for value in ("", "chat.example", "ftp://chat.example", "https://u:p@chat.example")),
    *(("local_issuer", value) for value in ("", "nagaya", "https://a b", "https://" + "x" * 400, "https://a\0")),
    *(("cors_origins", (value,)) for value in ("app.example", "https://app.example/", "https://*/x", "null ")),
    *(("allowed_hosts", (value,)) for value in ("10.0.0.0/8", "http://a.example", "a b", "?")),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda each: ascii(each)[:40])
def test_a_setting_out_of_range_is_refused_by_its_name(name: str, value: Any):
    with pytest.raises(SettingsInvalid, match=f"'{name}'") as refused:
        load_settings(flags={name: value}, environment={})
    assert refused.value.facts["problem"]
    assert f"'{name}'" in refused.value.message("ja")


def test_settings_made_in_python_are_checked_too():
    check_settings(Settings())
    for settings in (Settings(open_stores=0), Settings(store_deadline_s=float("nan")), Settings(local_issuer="x")):
        with pytest.raises(SettingsInvalid):
            Nagaya.open(settings=settings)


@pytest.mark.parametrize(("text", "name"), [("port = nan", "port"), ("drain_s = -inf", "drain_s"), ("porto = 1", "porto"),
    ("[server]\nport = 1", "server"), ("port = [1]", "port"), ("port =", "config"), ("allowed_hosts = 'a'", "allowed_hosts")])  # fmt: skip
def test_a_file_that_says_nonsense_is_refused_by_the_name_of_what_is_wrong(tmp_path: Path, text: str, name: str):
    file = tmp_path / "nagaya.toml"
    file.write_text(text)
    with pytest.raises(SettingsInvalid, match=f"'{name}'"):
        load_settings(config=str(file), environment={})


def test_a_file_that_cannot_be_read_is_said_to_be_so(tmp_path: Path):
    for config in (tmp_path / "absent.toml", tmp_path, "a\0b"):
        with pytest.raises(SettingsInvalid, match="'config'"):
            load_settings(config=str(config), environment={})
    (tmp_path / "latin.toml").write_bytes(b'host = "\xff"')
    with pytest.raises(SettingsInvalid, match="TOML"):
        load_settings(config=str(tmp_path / "latin.toml"), environment={})


def test_a_process_that_reads_what_strangers_send_gets_no_setting_and_no_secret():
    environment = {
        "PATH": "/bin",
        "LANG": "ja_JP.UTF-8",
        "NAGAYA_ROOT_KEY": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "DB": "z",
    }
    assert plain_environment(environment=environment) == {"PATH": "/bin", "LANG": "ja_JP.UTF-8"}
