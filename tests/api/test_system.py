"""Health, readiness and metrics."""

import socket
import time
import urllib.error
import urllib.request

import pytest
from flask.testing import FlaskClient

import app_advanced
from iiot import config, metrics
from iiot.commands import doctor
from iiot.embedded.ports import free_port
from iiot.services import adapters, health
from tests.api.conftest import Person
from tests.services import MosquittoServer, ValkeyServer, active, eventually


def test_health_asks_nobody(client: FlaskClient) -> None:
    gone = config.load().model_copy(update={"database_url": "postgresql+psycopg2://nobody:x@127.0.0.1:9/none"})
    with active(gone):
        answer = client.get("/health")
    assert answer.status_code == 200
    assert answer.get_json()["status"] == "ok"


def test_ready_names_each_part_and_what_is_down(
    settings: config.Settings, mosquitto: MosquittoServer, valkey: ValkeyServer
) -> None:
    client = app_advanced.create_app(settings).test_client()

    def checks() -> tuple[int, dict[str, str]]:
        answer = client.get("/ready")
        return answer.status_code, answer.get_json()["checks"]

    eventually(lambda: checks() == (200, {"database": "ok", "redis": "ok", "mqtt": "ok"}))
    mosquitto.stop()
    eventually(lambda: checks()[0] == 503)
    _, found = checks()
    assert found["database"] == found["redis"] == "ok"
    assert "cannot be reached" in found["mqtt"]
    mosquitto.start()
    eventually(lambda: checks()[0] == 200)


def test_ready_and_doctor_tell_which_adapters_are_connected(settings: config.Settings, valkey: ValkeyServer) -> None:
    client = app_advanced.create_app(settings).test_client()

    def said() -> tuple[str, str]:
        optional = client.get("/ready").get_json()["optional"]
        return optional["coap"], optional["mqtt-adapter"]

    adapters.beat("coap", True)
    adapters.beat("mqtt", False)
    eventually(lambda: said() == ("ok", "off: the adapter is not connected (ConnectionError)"))
    assert doctor.check_adapter("coap") == "connected"
    with pytest.raises(doctor.Sick, match="the adapter is not connected"):
        doctor.check_adapter("mqtt")
    assert doctor.check_adapter("amqp", "amqp_url") == "off"
    valkey.stop()
    with pytest.raises(doctor.Sick, match="Redis does not answer"):
        doctor.check_adapter("coap")
    valkey.start()
    eventually(lambda: adapters.running() is not None)


def test_ready_answers_in_time_when_a_part_hangs(settings: config.Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        hanging = settings.model_copy(
            update={"mqtt_url": f"mqtt://u:p@127.0.0.1:{port}", "redis_url": f"redis://127.0.0.1:{port}"}
        )
        with active(hanging):
            watch = health._Watch()
            started = time.monotonic()
            report = watch.report()
            assert time.monotonic() - started < 1.6
    assert not report.is_ready
    assert report.checks["database"] == "ok"
    assert report.checks["mqtt"] != "ok"
    assert report.checks["redis"] != "ok"


def test_a_refused_portal_user_is_told(settings: config.Settings, mosquitto: MosquittoServer) -> None:
    wrong = settings.model_copy(update={"mqtt_url": f"mqtt://nobody:wrong@{mosquitto.host}:{mosquitto.port}"})
    with active(wrong), pytest.raises(ConnectionError, match="refused the portal's user"):
        health.check_mqtt()


def test_metrics_are_served_on_their_own_port_alone(admin: Person) -> None:
    assert admin.get("/devices").status_code == 200
    assert admin.client.get("/metrics").status_code == 404
    server = metrics.serve(f"127.0.0.1:{free_port()}")
    try:
        host, port = server.server_address[:2]
        with urllib.request.urlopen(f"http://{host!s}:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://{host!s}:{port}/metrics/x", timeout=5)
        refused.value.close()
    finally:
        server.shutdown()
        server.server_close()
    assert 'iiot_http_requests_total{method="GET",route="/api/v1/devices",status="200"}' in text
    assert "iiot_http_request_seconds_bucket" in text
