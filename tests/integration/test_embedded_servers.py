"""The launchers: secure, crash-safe servers from wheels and the distribution."""

import socket

import psycopg2
import pytest
import redis
from sqlalchemy.engine import make_url

from iiot.config import Settings
from tests import services


def test_postgres_refuses_a_wrong_password_and_other_interfaces(postgres: services.PostgresServer) -> None:
    url = make_url(postgres.postgres.url("postgres"))
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(host=url.host, port=url.port, user=url.username, password="wrong", dbname="postgres")


def test_postgres_keeps_committed_rows_over_kill(folder: object, postgres: services.PostgresServer) -> None:
    database = postgres.empty_database()
    postgres.execute("CREATE TABLE kept (n int)", database)
    postgres.execute("INSERT INTO kept SELECT generate_series(1, 500)", database)
    postgres.kill()
    postgres.start()
    connection = psycopg2.connect(postgres.postgres.url(database))
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM kept")
        assert cursor.fetchone() == (500,)
    connection.close()


def test_settings_name_a_migrated_database_and_an_empty_valkey(settings: Settings) -> None:
    connection = psycopg2.connect(
        make_url(settings.database_url_for("app")).set(drivername="postgresql").render_as_string(hide_password=False)
    )
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user, count(*) FROM iiot.device")
        assert cursor.fetchone() == ("iiot_app", 0)
    connection.close()
    client = redis.Redis.from_url(str(settings.redis_url))
    assert client.dbsize() == 0
    client.close()


def test_mosquitto_listens_on_the_given_address_alone(mosquitto: services.MosquittoServer) -> None:
    names = [name for name in mosquitto.mosquitto.binds if name.startswith("mqtt_")]
    assert len(names) == 4
    for name in names:
        host, port = mosquitto.mosquitto.binds[name]
        assert host == "127.0.0.1"
        socket.create_connection((host, port), 5).close()
        for elsewhere in ("127.0.0.2", "::1"):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((elsewhere, port), 5)


def test_valkey_refuses_without_the_password(valkey: services.ValkeyServer) -> None:
    client = redis.Redis(host=valkey.valkey.host, port=valkey.valkey.port)
    with pytest.raises(redis.AuthenticationError):
        client.ping()
    client.close()


def test_valkey_keeps_what_it_confirmed_over_kill(valkey: services.ValkeyServer) -> None:
    client = redis.Redis.from_url(valkey.url(3))
    client.set("kept", "yes")
    services.eventually(lambda: client.info("persistence")["aof_pending_bio_fsync"] == 0)
    client.close()
    valkey.kill()
    valkey.start()
    again = redis.Redis.from_url(valkey.url(3))
    assert again.get("kept") == b"yes"
    again.close()
