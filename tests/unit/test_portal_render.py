"""What templates show of numbers, payloads and moments, and the commands people paste."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from iiot import config
from iiot.errors import Invalid
from iiot.portal import connect, forms, render, session
from iiot.portal.devices import ListQuery


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (21.5, "21.5"),
        (21.456789, "21.4568"),
        (1234567, "1,234,567"),
        (1234567.891, "1,234,568"),
        (0.000012345, "1.234e-05"),
        (5e20, "5.000e+20"),
        (0.0, "0"),
        (-0.5, "-0.5"),
        (True, "true"),
        ("idle", "idle"),
        ({"a": "é"}, '{"a": "é"}'),
        ("x" * 200, "x" * 119 + "…"),
    ],
)
def test_a_reading_is_short_and_true(value: Any, text: str) -> None:
    assert render.reading(value) == text


def test_a_refused_payload_shows_what_cannot_be_printed() -> None:
    assert render.payload(b'{"a": 1}\n') == '{"a": 1}\n'
    assert render.payload(b"\xff\x00a\x1b[31m") == "\\xff\\x00a\\x1b[31m"
    assert render.payload(b"x" * 9000).endswith("\n…")


def test_the_token_is_marked_and_all_else_escaped() -> None:
    assert str(render.mark_part("<a> TOKEN </a>", "TOKEN")) == "&lt;a&gt; <mark>TOKEN</mark> &lt;/a&gt;"
    assert str(render.mark_part("<a>", None)) == "&lt;a&gt;"


def test_a_moment_is_written_in_utc() -> None:
    assert render.utc(datetime(2026, 1, 31, 12, 0, 5, tzinfo=UTC)) == "2026-01-31 12:00:05 UTC"


def test_every_static_file_has_an_address_that_carries_the_version() -> None:
    assert render.asset("css/app.css") == f"/assets/{render.assets_version()}/css/app.css"


def _entries(
    token: str = connect.PLACEHOLDER,
    base: str = "http://portal.example:8080/",
    running: frozenset[str] | None = None,
    **fields: Any,
) -> dict[str, connect.Entry]:
    uid = "u" * 26
    # A data dir of nobody: in that of this folder are the addresses of a portal which somebody has started here.
    settings = config.read(_env_file=None, data_dir=Path("of nobody"), **fields)
    place = connect.Place(settings, base, uid, token, uid, running)
    return {entry.name: entry for entry in connect.entries(place)}


ALL = frozenset({"mqtt", "coap", "amqp", "opcua"})


def test_commands_carry_the_real_addresses_and_the_token() -> None:
    found = _entries("secret-token", mqtt_bind="127.0.0.1:1884")
    mqtt, python = found["mqtt"].snippets
    assert "mosquitto_pub -h 127.0.0.1 -p 1884 -q 1" in mqtt.text
    assert f"-i {'u' * 26} -u {'u' * 26} -P 'secret-token'" in mqtt.text
    assert "http://portal.example:8080/api/v1/telemetry" in found["http"].snippets[0].text
    assert 'client.connect("127.0.0.1", 1884)' in python.text
    compile(python.text, "example", "exec")


def test_without_a_token_the_place_for_it_is_shown() -> None:
    found = _entries(running=ALL, coap_bind="127.0.0.1:5699", amqp_url="amqp://a:b@rabbit:5673/")
    for name in ("mqtt", "http", "coap", "amqp"):
        assert found[name].snippets
        assert all(connect.PLACEHOLDER in each.text for each in found[name].snippets), name


def test_a_broker_that_listens_everywhere_is_reached_by_the_portals_name() -> None:
    assert "-h portal.example -p 1883" in _entries(mqtt_bind="0.0.0.0:1883")["mqtt"].snippets[0].text
    public = _entries(base="https://inside/", public_url="https://portal.example", mqtt_public="mqtt.example:8883")
    assert "-h mqtt.example -p 8883" in public["mqtt"].snippets[0].text
    assert "https://portal.example/api/v1/telemetry" in public["http"].snippets[0].text


def test_coap_is_shown_when_its_address_is_known() -> None:
    assert "protocols run coap" in _entries()["coap"].off
    coap = _entries("secret-token", coap_bind="127.0.0.1:5699")["coap"].snippets[0]
    assert f"'coap://127.0.0.1:5699/telemetry?uid={'u' * 26}&token=secret-token'" in coap.text
    everywhere = _entries(coap_bind="[::]:5683", base="http://[2001:db8::1]:8080/")["coap"]
    assert "coap://[2001:db8::1]:5683/telemetry" in everywhere.snippets[0].text
    public = _entries(coap_public="coap.example:5683")["coap"]
    assert public.where == "coap.example:5683"
    sealed = _entries(coap_bind="127.0.0.1:5699", coap_plain=False)["coap"]
    assert (sealed.snippets, "IIOT_COAP_PLAIN" in sealed.note) == ((), True)


def test_a_protocol_that_does_not_run_says_how_to_turn_it_on() -> None:
    found = _entries(running=frozenset({"mqtt"}), coap_bind="127.0.0.1:5699", amqp_url="amqp://a:b@rabbit/")
    assert list(found) == ["mqtt", "http", "coap", "amqp", "opcua"]
    for name in ("coap", "amqp", "opcua"):
        assert f"python -m protocols run {name}" in found[name].off
        assert not found[name].snippets
    assert not found["mqtt"].off
    assert not found["http"].off


def test_amqp_and_opc_ua_are_shown_while_their_adapters_run() -> None:
    found = _entries("secret-token", running=ALL, amqp_url="amqp://adapter:hidden@rabbit.example:5673/")
    text = found["amqp"].snippets[0].text
    assert f"-u 'amqp://{'u' * 26}:secret-token@rabbit.example:5673'" in text
    assert f"-e iiot -r telemetry.{'u' * 26}" in text
    assert "hidden" not in text
    assert found["opcua"].where == "opc.tcp://127.0.0.1:4840/iiot"


def test_errors_belong_to_the_field_they_speak_of() -> None:
    errors = [{"loc": ["body", "tags", 0], "msg": "at most 64 characters"}, {"loc": ["body"], "msg": "wrong"}]
    assert forms.by_field(Invalid("No.", errors)) == {"tags": "At most 64 characters", "": "Wrong"}


def test_tags_are_split_at_commas() -> None:
    assert forms.tags(" hall-b,, pumps ,") == ["hall-b", "pumps"]


@pytest.mark.parametrize(
    "target",
    ["//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)", "", None, "evil", "/a\nb//"],
)
def test_only_paths_of_this_portal_are_returned_to(target: str | None) -> None:
    assert session.inside(target) == "/"


def test_a_path_of_this_portal_is_returned_to_with_its_query() -> None:
    assert session.inside("/devices?q=a%20b&sort=name") == "/devices?q=a%20b&sort=name"


def test_the_address_of_a_list_keeps_what_is_not_changed() -> None:
    query = ListQuery(q="a b", enabled=True, cursor="x")
    assert query.url(cursor=None) == "/devices?q=a+b&enabled=true"
    assert query.url(cursor=None, sort="name") == "/devices?q=a+b&enabled=true&sort=name"
    assert ListQuery().url() == "/devices"
    assert query.is_narrowed
    assert not ListQuery().is_narrowed
