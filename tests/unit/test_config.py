"""Settings: where they come from, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from iiot import config
from iiot.config import Settings, SettingsError, read, split_bind

SECRET = "S3cret-of-the-tests-0123456789abcdefghij"
PRODUCTION: dict[str, str] = {
    "ENV": "production",
    "DATABASE_URL": "postgresql://portal:pw@db.example.com/iiot",
    "REDIS_URL": "redis://:pw@cache.example.com/0",
    "MQTT_URL": "mqtt://adapter:pw@127.0.0.1:1883",
    "SECRET_KEY": SECRET,
    "ALLOWED_HOSTS": '["portal.example.com"]',
}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable, no .env, no data dir of the machine may reach into these tests."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"IIOT_{name.upper()}", raising=False)
        monkeypatch.delenv(f"IIOT_{name.upper()}_FILE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_all(values: dict[str, str]) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"IIOT_{name}", value)

    return set_all


def refusal(**overrides: Any) -> str:
    with pytest.raises(SettingsError) as error:
        read(**overrides)
    return str(error.value)


# --- defaults and sources --------------------------------------------------------------------------------------------------------------


def test_nothing_set_means_embedded_on_loopback() -> None:
    settings = read()
    assert (settings.env, settings.http_bind, settings.mqtt_bind) == ("development", "127.0.0.1:5002", "127.0.0.1:1883")
    assert (settings.coap_bind, settings.opcua_bind, settings.data_dir) == (
        "127.0.0.1:5683",
        "127.0.0.1:4840",
        Path("var"),
    )
    assert settings.database_url is settings.redis_url is settings.mqtt_url is settings.amqp_url is None
    assert not settings.debug
    assert not settings.cookies_secure


def test_there_is_no_default_secret() -> None:
    settings = read()
    assert settings.secret_key.get_secret_value() == ""
    with pytest.raises(SettingsError, match="No secret key"):
        settings.derived_key("anything")
    with pytest.raises(SettingsError, match="No database"):
        settings.database_url_for("app")


def test_the_environment_stands_above_secret_files_dotenv_and_what_the_embedded_stack_left(
    env: Any, tmp_path: Path
) -> None:
    (tmp_path / "embedded.json").write_text(
        json.dumps({"http_bind": "127.0.0.1:1", "redis_url": "redis://embedded", "web_workers": 3})
    )
    (tmp_path / ".env").write_text("IIOT_HTTP_BIND=127.0.0.1:2\nIIOT_WEB_WORKERS=4\nIIOT_LOG_LEVEL=error\n")
    (tmp_path / "workers").write_text("5\n")
    env({"DATA_DIR": str(tmp_path), "WEB_WORKERS_FILE": str(tmp_path / "workers")})
    settings = read()
    assert settings.redis_url == "redis://embedded"
    assert settings.http_bind == "127.0.0.1:2"
    assert settings.log_level == "error"
    assert settings.web_workers == 5
    env({"WEB_WORKERS": "6"})
    assert read().web_workers == 6
    assert read(web_workers=7).web_workers == 7


def test_the_embedded_stack_is_found_in_a_data_dir_named_by_dotenv(tmp_path: Path) -> None:
    data = tmp_path / "with a space"
    data.mkdir()
    (data / "embedded.json").write_text('{"redis_url": "redis://embedded"}')
    (tmp_path / ".env").write_text(f'IIOT_DATA_DIR="{data}"\n')
    assert read().redis_url == "redis://embedded"


def test_a_broken_embedded_json_says_what_to_do(env: Any, tmp_path: Path) -> None:
    (tmp_path / "embedded.json").write_text("{")
    env({"DATA_DIR": str(tmp_path)})
    assert "delete the file and start it again" in refusal()


def test_production_never_reads_what_an_embedded_stack_left(env: Any, tmp_path: Path) -> None:
    (tmp_path / "embedded.json").write_text(json.dumps({"database_url": "postgresql://embedded/x", "debug": True}))
    env(PRODUCTION | {"DATA_DIR": str(tmp_path)})
    assert "db.example.com" in str(read().database_url)
    assert not read().debug


def test_a_secret_may_stand_in_a_file(env: Any, tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text(f"  {SECRET}\n")
    env({name: value for name, value in PRODUCTION.items() if name != "SECRET_KEY"} | {"SECRET_KEY_FILE": str(secret)})
    assert read().secret_key.get_secret_value() == SECRET


def test_a_secret_file_that_cannot_be_read_is_named(env: Any, tmp_path: Path) -> None:
    env({"SECRET_KEY_FILE": str(tmp_path / "missing")})
    assert "IIOT_SECRET_KEY_FILE" in refusal()


def test_settings_never_show_the_secret(env: Any) -> None:
    env(PRODUCTION)
    assert SECRET not in repr(read())
    assert SECRET not in str(read().model_dump())


def test_load_reads_once(env: Any) -> None:
    with config.load.changing():
        pass
    first = config.load()
    env({"WEB_WORKERS": "9"})
    assert config.load() is first
    with config.load.changing():
        pass
    assert config.load().web_workers == 9
    with config.load.changing():
        pass


# --- refusals --------------------------------------------------------------------------------------------------------------------------


def test_all_mistakes_are_reported_at_once(env: Any) -> None:
    env(
        {
            "HTTP_BIND": "nowhere",
            "MQTT_BIND": "host:99999",
            "LOG_LEVEL": "loud",
            "WEB_WORKERS": "0",
            "DATABASE_URL": "mysql://x/y",
            "REGISTRATION_ENABLED": "perhaps",
            "ALLOWED_HOSTS": '"one"',
        }
    )
    text = refusal()
    for name in (
        "HTTP_BIND",
        "MQTT_BIND",
        "LOG_LEVEL",
        "WEB_WORKERS",
        "DATABASE_URL",
        "REGISTRATION_ENABLED",
        "ALLOWED_HOSTS",
    ):
        assert f"IIOT_{name}" in text, name
    assert "'nowhere' is not host:port" in text
    assert "postgresql://user:password@host:5432/database" in text


def test_an_empty_production_names_everything_that_is_missing(env: Any) -> None:
    env({"ENV": "production", "DEBUG": "true", "HTTP_BIND": "0.0.0.0:5002"})
    text = refusal()
    for name in ("DATABASE_URL", "REDIS_URL", "MQTT_URL", "SECRET_KEY", "ALLOWED_HOSTS", "DEBUG", "HTTP_BIND"):
        assert f"IIOT_{name}" in text, name


def test_a_whole_production_is_accepted(env: Any) -> None:
    env(PRODUCTION)
    settings = read()
    assert settings.cookies_secure
    assert settings.allowed_hosts == ["portal.example.com"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"DATABASE_URL": ""}, "IIOT_DATABASE_URL is not set; embedded services are refused"),
        ({"REDIS_URL": ""}, "IIOT_REDIS_URL is not set; embedded services are refused"),
        ({"MQTT_URL": ""}, "IIOT_MQTT_URL is not set; embedded services are refused"),
        ({"SECRET_KEY": ""}, "IIOT_SECRET_KEY is not set"),
        ({"SECRET_KEY": "short"}, "shorter than 32"),
        ({"SECRET_KEY": "a" * 64}, "too simple"),
        ({"SECRET_KEY": "changeme" * 8}, "too simple"),
        ({"DEBUG": "1"}, "IIOT_DEBUG must be off"),
        ({"ALLOWED_HOSTS": "[]"}, "IIOT_ALLOWED_HOSTS is empty"),
        ({"HTTP_BIND": "0.0.0.0:5002"}, "IIOT_HTTP_BIND listens in plain text off loopback"),
        ({"HTTP_BIND": "[::]:5002"}, "IIOT_HTTP_BIND listens in plain text off loopback"),
        ({"MQTT_BIND": "192.168.1.1:1883"}, "IIOT_MQTT_BIND listens in plain text off loopback"),
        ({"MQTT_WS_BIND": "0.0.0.0:9001"}, "IIOT_MQTT_WS_BIND listens in plain text off loopback"),
        ({"METRICS_BIND": "0.0.0.0:9464"}, "IIOT_METRICS_BIND listens in plain text off loopback"),
    ],
)
def test_each_weakness_alone_refuses_production(env: Any, change: dict[str, str], said: str) -> None:
    env(PRODUCTION | change)
    assert said in refusal()


@pytest.mark.parametrize("bind", ["127.0.0.1:80", "127.0.1.1:80", "localhost:80", "[::1]:80"])
def test_loopback_may_be_plain_in_production(env: Any, bind: str) -> None:
    env(PRODUCTION | {"HTTP_BIND": bind})
    assert read().http_bind == bind


def test_a_short_secret_is_refused_in_development_too(env: Any) -> None:
    env({"SECRET_KEY": "x" * 31})
    assert "shorter than 32" in refusal()


def test_a_refusal_never_repeats_a_secret(env: Any) -> None:
    env({"SECRET_KEY": "do-not-show-me", "DATABASE_URL": "mysql://user:hidden-password@host/db"})
    text = refusal()
    assert "do-not-show-me" not in text
    assert "hidden-password" not in text


# --- what is derived -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_spelling_of_postgresql_means_psycopg2(scheme: str) -> None:
    assert read(database_url=f"{scheme}://u:p@h:1/d").database_url == "postgresql+psycopg2://u:p@h:1/d"


def test_an_empty_address_counts_as_unset() -> None:
    assert read(database_url="").database_url is None


def test_each_role_has_its_own_login_on_the_same_database() -> None:
    settings = read(database_url="postgresql://owner:p%40ss@h:1/d?sslmode=require", secret_key=SECRET)
    urls = {role: settings.database_url_for(role) for role in config.ROLES}
    assert urls["owner"] == "postgresql+psycopg2://owner:p%40ss@h:1/d?sslmode=require"
    assert len(set(urls.values())) == len(config.ROLES)
    for role in config.ROLES[1:]:
        assert f"iiot_{role}:{settings.database_password(role)}@h:1/d?sslmode=require" in urls[role]
    with pytest.raises(ValueError, match="unknown database role"):
        settings.database_url_for("superuser")


def test_a_role_may_have_an_address_of_its_own() -> None:
    settings = read(
        database_url="postgresql://o@h/d", database_app_url="postgres://me:pw@pool:6432/d", secret_key=SECRET
    )
    assert settings.database_url_for("app") == "postgresql+psycopg2://me:pw@pool:6432/d"
    assert "@h/d" in settings.database_url_for("ingest")


def test_derived_keys_differ_by_purpose_and_secret_and_last() -> None:
    one, other = read(secret_key=SECRET), read(secret_key=SECRET + "x")
    assert one.derived_key("a") == read(secret_key=SECRET).derived_key("a")
    assert len({one.derived_key("a"), one.derived_key("b"), other.derived_key("a")}) == 3
    assert len(one.derived_key("a")) == 32


@pytest.mark.parametrize(
    ("bind", "parts"),
    [("127.0.0.1:5002", ("127.0.0.1", 5002)), ("[::1]:80", ("::1", 80)), ("localhost:0", ("localhost", 0))],
)
def test_binds_are_host_and_port(bind: str, parts: tuple[str, int]) -> None:
    assert split_bind(bind) == parts


@pytest.mark.parametrize(
    "bind", ["", "5002", ":5002", "host", "host:", "host:-1", "host:65536", "host:port", "host:1.5"]
)
def test_anything_else_is_not_a_bind(bind: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        split_bind(bind)


@pytest.mark.parametrize(
    ("given", "production", "secure"),
    [(None, False, False), (None, True, True), (True, False, True), (False, True, False)],
)
def test_cookies_are_secure_in_production_unless_told_otherwise(
    env: Any, given: bool | None, production: bool, secure: bool
) -> None:
    env(PRODUCTION if production else {})
    assert read(secure_cookies=given).cookies_secure is secure
