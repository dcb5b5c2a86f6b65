"""Settings: environment variables `IIOT_*`, `.env`, secret files `IIOT_<NAME>_FILE`, and what an embedded stack left in its data dir.

Nothing is read at import. `load()` reads once; every mistake is reported at once as `SettingsError`.
"""

import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from iiot.once import Once

PREFIX = "IIOT_"
ROLES = ("owner", "app", "limited", "ingest", "stream", "auth", "backup")
MIN_SECRET = 32
LOOPBACK = ("127.", "localhost:", "[::1]:", "unix:")


class SettingsError(Exception):
    """The settings are unusable; the text lists every mistake and how to mend it."""


def split_bind(bind: str) -> tuple[str, int]:
    """`"127.0.0.1:5002"` → `("127.0.0.1", 5002)`; raises ValueError on anything else."""
    host, _, port = bind.rpartition(":")
    if not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(f"{bind!r} is not host:port")
    return host.strip("[]"), int(port)


class _EmbeddedSource(PydanticBaseSettingsSource):
    """`<data dir>/embedded.json`, written by `iiot up`: defaults beneath the environment."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        state = self.current_state
        if str(state.get("env", "development")) == "production":
            return {}
        path = Path(str(state.get("data_dir", "var"))) / "embedded.json"
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"{path} cannot be read ({error}). Stop the portal, delete the file and start it again."
            ) from error
        return content if isinstance(content, dict) else {}


class _SecretFiles(PydanticBaseSettingsSource):
    """`IIOT_<NAME>_FILE` names a file that holds the value of `IIOT_<NAME>`."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name in self.settings_cls.model_fields:
            path = os.environ.get(f"{PREFIX}{name.upper()}_FILE")
            if path:
                try:
                    values[name] = Path(path).read_text().strip()
                except OSError as error:
                    raise SettingsError(
                        f"{PREFIX}{name.upper()}_FILE: {path} cannot be read ({error.strerror})."
                    ) from error
        return values


class Settings(BaseSettings):
    """Everything an operator can set. The table in docs/reference/settings.md is compared with these fields by a test."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=".env", extra="ignore", frozen=True)

    env: Literal["development", "production"] = Field(
        "development", description="`production` refuses embedded services, weak secrets, plain text off loopback."
    )
    data_dir: Path = Field(Path("var"), description="Embedded databases, keys, run.json.")
    http_bind: str = Field("127.0.0.1:5002", description="Portal and REST.")
    mqtt_bind: str = Field("127.0.0.1:1883", description="Embedded MQTT broker.")
    mqtt_tls_bind: str = Field("127.0.0.1:8883", description="Embedded MQTT broker over TLS, for devices with a token.")
    mqtt_cert_bind: str = Field(
        "127.0.0.1:8884", description="Embedded MQTT broker over TLS, for devices with a certificate of the portal."
    )
    mqtt_ws_bind: str = Field(
        "127.0.0.1:9001", description="Embedded MQTT broker over WebSocket, for browsers; without TLS."
    )
    coap_bind: str = Field("127.0.0.1:5683", description="CoAP server.")
    amqp_bind: str = Field("127.0.0.1:5672", description="Embedded RabbitMQ.")
    opcua_bind: str = Field("127.0.0.1:4840", description="OPC UA server.")
    metrics_bind: str = Field("127.0.0.1:9464", description="Prometheus metrics; keep it on loopback.")
    database_url: str | None = Field(None, description="PostgreSQL, as a user that may create roles. Unset: embedded.")
    database_app_url: str | None = Field(None, description="Overrides the derived login of the role iiot_app.")
    database_limited_url: str | None = Field(None, description="Overrides the derived login of the role iiot_limited.")
    database_ingest_url: str | None = Field(None, description="Overrides the derived login of the role iiot_ingest.")
    database_stream_url: str | None = Field(None, description="Overrides the derived login of the role iiot_stream.")
    database_auth_url: str | None = Field(None, description="Overrides the derived login of the role iiot_auth.")
    database_backup_url: str | None = Field(None, description="Overrides the derived login of the role iiot_backup.")
    redis_url: str | None = Field(None, description="Redis or Valkey. Unset: embedded.")
    mqtt_url: str | None = Field(None, description="MQTT broker, as the adapter's user. Unset: embedded.")
    mqtt_admin_url: str | None = Field(
        None,
        description="MQTT broker, as the dynamic-security administrator. Unset: devices are not provisioned there.",
    )
    mqtt_ca_path: Path | None = Field(
        None, description="PEM: who signed the broker's certificate. Unset: as the machine."
    )
    mqtt_broker: Literal["mosquitto", "amqtt"] = Field(
        "mosquitto",
        description="Kind of the broker of IIOT_MQTT_URL; without that, of the embedded one: where Mosquitto is missing it is amqtt anyway.",
    )
    mqtt_public: str | None = Field(None, description="host:port of the broker for devices, shown on the Connect page.")
    mqtt_cert_public: str | None = Field(
        None, description="host:port where devices with a certificate reach the broker, shown with a new certificate."
    )
    pki_dir: Path | None = Field(
        None, description="Keys and certificates of the portal's own authorities. Unset: `pki` in the data dir."
    )
    certificate_days: int = Field(
        397, ge=1, le=3650, description="Longest life of a device's certificate, and its life unless less is asked for."
    )
    mqtt_crl_path: Path | None = Field(
        None,
        description="Where the list of revoked certificates is written, which the broker reads at its start. Unset: `devices.crl` in IIOT_PKI_DIR.",
    )
    coap_public: str | None = Field(
        None, description="host:port of the CoAP server as devices reach it, shown on the Connect page."
    )
    coap_plain: bool | None = Field(
        None,
        description="Whether devices may send their token over CoAP without encryption. Unset: on in development, off in production.",
    )
    opcua_public: str | None = Field(
        None,
        description="host:port of the OPC UA server as clients reach it, where that is another address than the one it binds.",
    )
    opcua_certificate: Path | None = Field(
        None, description="Certificate of the OPC UA server, DER or PEM. Unset: one is made in the data dir."
    )
    opcua_key: Path | None = Field(None, description="Private key to IIOT_OPCUA_CERTIFICATE, PEM.")
    opcua_trust_new: bool | None = Field(
        None,
        description="Whether an OPC UA client's certificate is trusted from its first login on. Unset: on in development, off in production.",
    )
    opcua_connections: int = Field(100, ge=1, le=1000, description="OPC UA: connections, and sessions, at once.")
    opcua_items: int = Field(20_000, ge=1, description="OPC UA: monitored items of one tenant.")
    amqp_url: str | None = Field(
        None,
        description="RabbitMQ, as the adapter's user, amqp://user:password@host:5672/vhost. Unset: embedded where it is installed, else off. `off`: off.",
    )
    amqp_management_url: str | None = Field(
        None,
        description="RabbitMQ's management API, as an administrator, http://user:password@host:15672. Unset: devices are not provisioned there.",
    )
    amqp_public: str | None = Field(
        None, description="host:port of RabbitMQ as devices reach it, shown on the Connect page."
    )
    secret_key: SecretStr = Field(
        SecretStr(""), description="Root of all derived keys; 32 characters or more. Generated when embedded."
    )
    public_url: str | None = Field(None, description="https://… address of the portal as people reach it.")
    smtp_url: SecretStr | None = Field(
        None,
        description="SMTP server, smtp://user:password@host:587 (STARTTLS) or smtps://. Unset: no mail; admins hand out one-time links.",
    )
    mail_from: str | None = Field(None, description="Sender of the portal's mails, e.g. portal@example.com.")
    allowed_hosts: list[str] = Field(
        default_factory=list, description="Host names served, as a JSON list. Required in production."
    )
    secure_cookies: bool | None = Field(None, description="Cookies over HTTPS only. Unset: on in production.")
    registration_enabled: bool = Field(
        True, description="Whether strangers may create a tenant by POST /auth/register."
    )
    access_token_seconds: int = Field(600, ge=60, le=3600, description="Life of an access token.")
    refresh_token_days: int = Field(30, ge=1, le=365, description="Absolute life of a session.")
    password_min_length: int = Field(12, ge=12, le=128, description="Shortest password accepted.")
    web_workers: int = Field(2, ge=1, le=64, description="Gunicorn workers.")
    log_dir: Path | None = Field(None, description="Rotating JSON log files per process. Unset: console only.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level logged.")
    debug: bool = Field(False, description="Refused in production.")
    telemetry_retention_days: int = Field(400, ge=1, le=36500, description="Days of raw readings kept.")
    log_retention_days: int = Field(
        3, ge=1, le=90, description="Days of the batch log kept; a live client may resume that far back."
    )
    rejected_retention_days: int = Field(30, ge=1, le=3650, description="Days of rejected messages kept.")
    rejected_megabytes: int = Field(
        1024, ge=1, description="Megabytes of rejected messages kept per tenant; beyond it the oldest are removed."
    )
    tenant_requests_per_minute: int = Field(
        600_000, ge=1, description="API requests of one tenant a minute, over all processes; more are answered 429."
    )
    device_rate: int = Field(
        100, ge=1, description="HTTP telemetry: messages a second of one device in the long run; more are answered 429."
    )
    device_burst: int = Field(6000, ge=1, description="HTTP telemetry: messages one device may send at once.")
    late_after: int = Field(
        600,
        ge=60,
        le=86400,
        description="Seconds after which a reading counts as late: it is stored beside live data and not told live.",
    )
    device_offline_after: int = Field(
        300, ge=10, le=86400, description="Seconds of silence after which a device counts as offline."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _SecretFiles(settings_cls), dotenv_settings, _EmbeddedSource(settings_cls)

    @field_validator(
        "http_bind",
        "mqtt_bind",
        "mqtt_tls_bind",
        "mqtt_cert_bind",
        "mqtt_ws_bind",
        "coap_bind",
        "amqp_bind",
        "opcua_bind",
        "metrics_bind",
    )
    @classmethod
    def _bind(cls, value: str) -> str:
        split_bind(value)
        return value

    @field_validator(
        "database_url",
        "database_app_url",
        "database_limited_url",
        "database_ingest_url",
        "database_stream_url",
        "database_auth_url",
        "database_backup_url",
    )
    @classmethod
    def _driver(cls, value: str | None) -> str | None:
        """SQLAlchemy 2.1 takes `postgresql://` for psycopg 3; the portal uses psycopg2."""
        if not value:
            return None
        scheme, separator, rest = value.partition("://")
        if not separator or scheme not in ("postgres", "postgresql", "postgresql+psycopg2"):
            raise ValueError("write it as postgresql://user:password@host:5432/database")
        return f"postgresql+psycopg2://{rest}"

    @field_validator("smtp_url", "mail_from", "amqp_url", "amqp_management_url", mode="before")
    @classmethod
    def _nothing(cls, value: Any) -> Any:
        """An empty variable means: not there."""
        return value or None

    @field_validator("smtp_url")
    @classmethod
    def _smtp(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parts = urlsplit(value.get_secret_value())
            # Reading the port raises ValueError for one that is no number.
            if parts.scheme not in ("smtp", "smtps") or not parts.hostname or parts.port == 0:
                raise ValueError("write it as smtp://user:password@host:587 or smtps://user:password@host:465")
        return value

    @model_validator(mode="after")
    def _whole(self) -> "Settings":
        mistakes = self._production_mistakes() if self.env == "production" else []
        if self.smtp_url is not None and not self.mail_from:
            mistakes.append("IIOT_MAIL_FROM is not set; mails need a sender, e.g. portal@example.com")
        secret = self.secret_key.get_secret_value()
        if secret and len(secret) < MIN_SECRET:
            mistakes.append(
                f"IIOT_SECRET_KEY is shorter than {MIN_SECRET} characters; make one with `openssl rand -base64 48`"
            )
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self

    def _production_mistakes(self) -> list[str]:
        mistakes = [
            f"{PREFIX}{name.upper()} is not set; embedded services are refused in production"
            for name in ("database_url", "redis_url", "mqtt_url")
            if not getattr(self, name)
        ]
        secret = self.secret_key.get_secret_value()
        if not secret:
            mistakes.append("IIOT_SECRET_KEY is not set; make one with `openssl rand -base64 48`")
        elif len(set(secret)) < 12:
            mistakes.append("IIOT_SECRET_KEY is too simple; make one with `openssl rand -base64 48`")
        if self.debug:
            mistakes.append("IIOT_DEBUG must be off in production")
        if self.smtp_url is not None and not self.public_url:
            mistakes.append("IIOT_PUBLIC_URL is not set; the links in mails are made of it")
        if not self.allowed_hosts:
            mistakes.append('IIOT_ALLOWED_HOSTS is empty; set it to the names you serve, e.g. ["portal.example.com"]')
        mistakes += [
            f"{PREFIX}{name.upper()} listens in plain text off loopback; bind it to 127.0.0.1 and put nginx in front"
            for name in ("http_bind", "mqtt_bind", "mqtt_ws_bind", "amqp_bind", "metrics_bind")
            if not getattr(self, name).startswith(LOOPBACK)
        ]
        return mistakes

    def database_url_for(self, role: str) -> str:
        """The SQLAlchemy URL of a PostgreSQL role in `ROLES`; passwords are derived from the secret key unless overridden."""
        if role not in ROLES:
            raise ValueError(f"unknown database role {role!r}")
        if not self.database_url:
            raise SettingsError(
                "No database is configured. Start the embedded one with `make run`, or set IIOT_DATABASE_URL."
            )
        if role == "owner":
            return self.database_url
        override = getattr(self, f"database_{role}_url")
        if override:
            return str(override)
        from sqlalchemy.engine import make_url

        url = make_url(self.database_url).set(username=f"iiot_{role}", password=self.database_password(role))
        return url.render_as_string(hide_password=False)

    def database_password(self, role: str) -> str:
        """The derived password of a PostgreSQL role."""
        return self.derived_key(f"postgresql:{role}").hex()

    def derived_key(self, purpose: str) -> bytes:
        """32 bytes that serve `purpose` alone: HMAC-SHA256 of the secret key, the expand step of HKDF (RFC 5869, one block)."""
        secret = self.secret_key.get_secret_value()
        if not secret:
            raise SettingsError("No secret key. Start the embedded stack with `make run`, or set IIOT_SECRET_KEY.")
        return hmac.new(secret.encode(), f"iiot:{purpose}".encode() + b"\x01", hashlib.sha256).digest()

    @property
    def pki_folder(self) -> Path:
        """Where the portal's authorities keep their keys."""
        return self.pki_dir or self.data_dir / "pki"

    @property
    def crl_path(self) -> Path:
        """The list of revoked certificates."""
        return self.mqtt_crl_path or self.pki_folder / "devices.crl"

    @property
    def coap_is_on(self) -> bool:
        """Whether the CoAP adapter may run: it takes tokens in plain text."""
        return self.env != "production" if self.coap_plain is None else self.coap_plain

    @property
    def opcua_trusts_new(self) -> bool:
        """Whether unknown OPC UA clients are trusted once they have logged in."""
        return self.env != "production" if self.opcua_trust_new is None else self.opcua_trust_new

    @property
    def opcua_folder(self) -> Path:
        """Certificates of the OPC UA server, and of its clients."""
        return self.data_dir / "opcua"

    @property
    def amqp_is_on(self) -> bool:
        """Whether there is a RabbitMQ for the AMQP adapter."""
        return bool(self.amqp_url) and self.amqp_url != "off"

    @property
    def cookies_secure(self) -> bool:
        """Whether cookies carry the Secure flag."""
        return self.env == "production" if self.secure_cookies is None else self.secure_cookies


def read(**overrides: Any) -> Settings:
    """Read the settings now; raises SettingsError with every mistake in one text."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None


# The settings of this process.
load = Once(read)


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors(include_url=False):
        where = f"{PREFIX}{str(item['loc'][0]).upper()}: " if item["loc"] else ""
        text = str(item["msg"]).removeprefix("Value error, ")
        lines += [f"  - {where}{line}" for line in text.split("\n")]
    return "The settings are not usable:\n" + "\n".join(lines)
