"""Certificates of devices at a real Mosquitto: who gets in with one, what it may do there, and how it ends."""

import json
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from iiot import broker, clock, config, tenancy
from iiot.config import Settings
from iiot.embedded import mqtt
from iiot.errors import Invalid
from iiot.services import authority, certificates, credentials, devices, provisioning, revocations
from tests import factories, services
from tests.integration.mqtt_devices import Device, adapter, connection, online
from tests.services import MosquittoServer, eventually


@dataclass(frozen=True)
class Proof:
    """A certificate with its key, as files."""

    device: Device
    uid: str
    certificate: Path
    key: Path
    ca: Path


@pytest.fixture(scope="module")
def mosquitto(module_settings: Settings, workspace: Path) -> Iterator[MosquittoServer]:
    """One broker for all tests here, which make devices of their own."""
    server = MosquittoServer(workspace / "broker for certificates")
    server.start()
    try:
        with services.active(module_settings.model_copy(update=server.fields)):
            yield server
    finally:
        server.stop()


@pytest.fixture
def settings(mosquitto: MosquittoServer) -> Settings:
    return config.load()


@pytest.fixture
def pump(settings: Settings) -> Device:
    return Device(factories.make_tenant())


def issue(device: Device, folder: Path, **wanted: object) -> Proof:
    with tenancy.work(tenancy.of(device.tenant)) as db:
        issued = certificates.issue(db, devices.locked(db, device.uid), certificates.Wanted(**wanted))  # type: ignore[arg-type]
        uid, pem = issued.certificate.uid, issued.certificate.pem
    files = {".crt": pem, ".key": issued.private_key or "", "-ca.crt": issued.broker_ca or ""}
    for ending, text in files.items():
        (folder / f"{uid}{ending}").write_text(text)
    return Proof(device, uid, *(folder / f"{uid}{ending}" for ending in files))


def revoke(proof: Proof) -> None:
    with tenancy.work(tenancy.of(proof.device.tenant)) as db:
        certificates.revoke(db, devices.locked(db, proof.device.uid), proof.uid)


class Secured:
    """A paho client that logs in with a certificate and says what came of it."""

    def __init__(
        self, server: MosquittoServer, proof: Proof, client_id: str = "", version: int = 5, expiry: int | None = None
    ) -> None:
        """`expiry`: how many seconds its session lasts after it; None: it starts with a clean one, which ends with it."""
        self.had_session = False
        self.codes: list[str] = []
        self.granted: list[bool] = []
        self.sent: list[bool] = []
        self.messages: list[str] = []
        self.gone = False
        protocol = MQTTProtocolVersion.MQTTv5 if version == 5 else MQTTProtocolVersion.MQTTv311
        self.client = client = Client(
            CallbackAPIVersion.VERSION2, client_id or "x", protocol=protocol, reconnect_on_failure=False
        )
        client.tls_set(str(proof.ca), str(proof.certificate), str(proof.key))
        client.on_connect = self._on_connect
        client.on_publish = lambda _c, _u, _m, code, _p: self.sent.append(not code.is_failure)
        client.on_subscribe = lambda _c, _u, _m, codes, _p: self.granted.append(not codes[0].is_failure)
        client.on_message = lambda _c, _u, message: self.messages.append(message.topic)
        client.on_disconnect = lambda *_: setattr(self, "gone", True)
        kept: dict[str, Any] = {}
        if expiry is not None:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = expiry
            kept = {"clean_start": False, "properties": properties}
        try:
            client.connect(server.host, server.ports["mqtt_cert_bind"], **kept)
        except (ssl.SSLError, ConnectionError):
            self.gone = True
            return
        client.loop_start()
        eventually(lambda: self.codes or self.gone, 30)

    def _on_connect(self, _client: Client, _userdata: Any, flags: Any, code: Any, _properties: Any) -> None:
        self.had_session = flags.session_present
        self.codes.append(str(code))

    @property
    def admitted(self) -> bool:
        """Whether the broker took the login."""
        return self.codes == ["Success"]

    def publish(self, topic: str) -> bool:
        """Whether the broker let it (MQTT 5 says so)."""
        before = len(self.sent)
        self.client.publish(topic, b'{"a": 1}', qos=1)
        eventually(lambda: len(self.sent) > before)
        return self.sent[-1]

    def subscribe(self, topic: str) -> bool:
        """Whether it was granted."""
        before = len(self.granted)
        self.client.subscribe(topic, qos=1)
        eventually(lambda: len(self.granted) > before)
        return self.granted[-1]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def admitted(server: MosquittoServer, proof: Proof) -> bool:
    """Whether the broker lets it in now."""
    found = Secured(server, proof)
    found.close()
    return found.admitted


def opens(server: MosquittoServer, proof: Proof) -> bool:
    """Whether a new connection with it may send or hear anything; it may not do one of both alone."""
    found = Secured(server, proof)
    if not found.admitted:
        return False
    sends, hears = (
        found.publish(f"iiot/{proof.device.uid}/up/telemetry"),
        found.subscribe(f"iiot/{proof.device.uid}/down/#"),
    )
    found.close()
    assert sends is hears
    return sends


def test_mosquitto_pub_sends_with_a_certificate_and_with_a_token_over_tls(
    mosquitto: MosquittoServer, pump: Device, settings: Settings, folder: Path
) -> None:
    program = shutil.which("mosquitto_pub") or services.missing("mosquitto_pub (apt-get install mosquitto-clients)")
    proof = issue(pump, folder)
    topic = ["-q", "1", "-t", f"iiot/{pump.uid}/up/telemetry", "-i", pump.uid, "-h", "localhost"]
    tls = ["--cafile", str(proof.ca)]
    with adapter(settings):
        own = ["--cert", str(proof.certificate), "--key", str(proof.key)]
        port = str(mosquitto.ports["mqtt_cert_bind"])
        subprocess.run([program, *topic, "-p", port, *tls, *own, "-m", '{"a": 1}'], check=True, timeout=30)
        eventually(lambda: pump.values == {1.0}, 30)
        port = str(mosquitto.ports["mqtt_tls_bind"])
        login = ["-u", pump.uid, "-P", pump.token]
        subprocess.run([program, *topic, "-p", port, *tls, *login, "-m", '{"a": 2}'], check=True, timeout=30)
        eventually(lambda: pump.values == {1.0, 2.0}, 30)
        # Without a certificate nobody comes in where certificates are asked for, whatever token they have.
        port = str(mosquitto.ports["mqtt_cert_bind"])
        refused = subprocess.run([program, *topic, "-p", port, *tls, *login, "-m", "{}"], check=False, timeout=30)
        assert refused.returncode != 0


@pytest.mark.parametrize("version", [4, 5])
def test_a_certificate_opens_the_devices_own_topics_and_no_other(
    mosquitto: MosquittoServer, pump: Device, folder: Path, version: int
) -> None:
    other = Device(pump.tenant)
    with online(mosquitto, other) as victim:
        device = Secured(mosquitto, issue(pump, folder), client_id=other.uid, version=version)
        assert device.admitted
        assert device.subscribe(f"iiot/{pump.uid}/down/#")
        foreign = ["#", f"iiot/{other.uid}/down/#", "iiot/+/down/#", "$SYS/#", f"$share/g/iiot/{other.uid}/down/#"]
        assert not any(device.subscribe(topic) for topic in foreign)
        # The client id of another device takes nothing from it: the broker puts the certificate's own name in its place.
        victim.publish(f"iiot/{other.uid}/up/telemetry", b"{}")
        assert not victim.gone
        device.close()


def test_nobody_logs_in_under_the_name_of_a_certificate_with_a_password(
    mosquitto: MosquittoServer, pump: Device, folder: Path
) -> None:
    proof = issue(pump, folder)
    user = broker.certificate_user(pump.uid, proof.uid)
    for password in ("", pump.token):
        for client_id in (user, pump.uid):
            with connection(mosquitto, user, password, client_id) as device:
                assert device.codes == ["Not authorized"]


def test_a_certificate_of_another_authority_is_refused(mosquitto: MosquittoServer, pump: Device, folder: Path) -> None:
    proof = issue(pump, folder)
    stranger = authority.Pki(folder / "stranger", b"key")
    key = authority.new_key()
    signed = stranger.issue(pump.uid, proof.uid, key.public_key(), clock.now().replace(year=2099))
    proof.certificate.write_text(authority.pem(signed))
    proof.key.write_text(authority.key_pem(key))
    assert not admitted(mosquitto, proof)
    # The certificate of the broker itself is of another authority, too.
    for name in ("crt", "key"):
        (proof.certificate if name == "crt" else proof.key).write_text(
            (mosquitto.pki.folder / f"server.{name}").read_text()
        )
    assert not admitted(mosquitto, proof)


def test_a_revoked_certificate_is_thrown_out_within_a_second_and_never_comes_back(
    mosquitto: MosquittoServer, pump: Device, folder: Path
) -> None:
    first, second = issue(pump, folder), issue(pump, folder)
    device, other = Secured(mosquitto, first), Secured(mosquitto, second)
    with online(mosquitto, pump) as with_token:
        assert device.admitted
        assert other.admitted, "two are valid at once"
        revoke(first)
        revoked = time.monotonic()
        eventually(lambda: device.gone, 5)
        assert time.monotonic() - revoked < 1
        assert not opens(mosquitto, first)
        assert [other.gone, with_token.gone] == [False, False], "the others go on"
        assert opens(mosquitto, second)
        mosquitto.restart()
        assert not admitted(mosquitto, first)
        assert opens(mosquitto, second)
    for each in (device, other):
        each.close()


def test_a_revoked_certificate_does_not_get_what_waits_in_its_session(
    mosquitto: MosquittoServer, pump: Device, folder: Path
) -> None:
    proof = issue(pump, folder)
    topic = f"iiot/{pump.uid}/down/command"
    device = Secured(mosquitto, proof, expiry=3600)
    assert device.subscribe(topic)
    device.close()
    service = mosquitto.users.password(mqtt.ADAPTER)
    with connection(mosquitto, mqtt.ADAPTER, service, "before") as sender:
        sender.publish(topic, b"{}")
        revoke(proof)
        sender.publish(topic, b"{}")
        again = Secured(mosquitto, proof, expiry=3600)
        assert again.had_session
        sender.publish(topic, b"{}")
        assert not again.publish(f"iiot/{pump.uid}/up/telemetry"), "answered after all that waits for it"
    assert again.messages == []
    again.close()


def test_the_broker_survives_revocations_while_others_sessions_wait_and_end(
    mosquitto: MosquittoServer, pump: Device, folder: Path
) -> None:
    """Reading the list anew while it ran, Mosquitto 2.0.11 crashed in the first or second round (upstream issue 3418)."""
    lasting = issue(pump, folder)
    neighbour = Device(factories.make_tenant())
    pid = mosquitto.pid
    for _ in range(3):
        device = Secured(mosquitto, lasting, expiry=2)
        assert not device.had_session, "the last one has ended"
        assert device.subscribe(f"iiot/{pump.uid}/down/#")
        device.close()
        revoked = issue(neighbour, folder)
        revoke(revoked)
        assert not opens(mosquitto, revoked)
        Secured(mosquitto, lasting, expiry=2).close()
        left = time.monotonic()
        # The broker looks once a second for sessions that have ended.
        eventually(lambda since=left: time.monotonic() - since > 4, 6)  # type: ignore[misc]
        assert not opens(mosquitto, revoked)
    assert mosquitto.pid == pid
    assert opens(mosquitto, lasting)


def test_a_certificate_that_the_list_does_not_know_opens_nothing(
    mosquitto: MosquittoServer, pump: Device, folder: Path
) -> None:
    """The first wall, while the broker has not read the list."""
    proof = issue(pump, folder)
    broker.remove_login(broker.certificate_user(pump.uid, proof.uid))
    device = Secured(mosquitto, proof)
    assert device.admitted, "Mosquitto does not ask the plugin about certificates"
    assert not device.subscribe(f"iiot/{pump.uid}/down/#")
    device.close()
    revoke(proof)


def test_a_disabled_or_removed_device_does_not_get_in(mosquitto: MosquittoServer, pump: Device, folder: Path) -> None:
    proof = issue(pump, folder)
    device = Secured(mosquitto, proof)
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        devices.set_enabled(db, pump.uid, False)
    eventually(lambda: device.gone, 5)
    device.close()
    assert not opens(mosquitto, proof)
    late = issue(pump, folder)
    assert not opens(mosquitto, late)
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        devices.set_enabled(db, pump.uid, True)
    assert opens(mosquitto, proof)
    assert opens(mosquitto, late)
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        devices.remove(db, pump.uid)
    assert pump.uid not in {broker.owner(login.user) for login in broker.list_logins()}
    assert not opens(mosquitto, proof)
    with tenancy.work(tenancy.system("provision")) as db:
        assert not revocations.reconcile(db), "the numbers of devices that are gone stay on the list"


def test_a_certificate_lives_without_any_token(mosquitto: MosquittoServer, pump: Device, folder: Path) -> None:
    proof = issue(pump, folder)
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        device = devices.locked(db, pump.uid)
        for each in credentials.list_all(db, device):
            credentials.revoke(db, device, each.uid)
    device_ = Secured(mosquitto, proof)
    assert device_.subscribe(f"iiot/{pump.uid}/down/#")
    device_.close()


def test_what_the_broker_has_forgotten_is_mended(
    mosquitto: MosquittoServer, pump: Device, folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provisioning, "GRACE", -provisioning.GRACE)
    proof = issue(pump, folder)
    user = broker.certificate_user(pump.uid, proof.uid)
    assert not provisioning.reconcile()
    broker.remove_login(user)
    assert provisioning.reconcile().missing == (user,)
    assert not provisioning.reconcile()
    stranger = broker.certificate_user(pump.uid, "a" * 26)
    broker.add_certificate(pump.uid, "a" * 26)
    assert provisioning.reconcile().extra == (stranger,)
    settings.crl_path.unlink()
    factories.rows("UPDATE iiot.device_certificate SET revoked_at = now() WHERE uid = %s", proof.uid)
    with tenancy.work(tenancy.system("provision")) as db:
        assert revocations.reconcile(db)
        assert not revocations.reconcile(db)
    assert provisioning.reconcile().extra == (user,)
    assert not opens(mosquitto, proof)
    mosquitto.restart()
    assert not admitted(mosquitto, proof)


def test_the_file_made_from_the_database_lets_certificates_in(
    mosquitto: MosquittoServer, pump: Device, folder: Path
) -> None:

    proof = issue(pump, folder)
    with tenancy.work(tenancy.system("provision")) as db:
        stored, found = broker.stored_logins(db), broker.stored_certificates(db)
    mosquitto.stop()
    document = broker.dynsec_document(stored, mosquitto.users.passwords(), found)
    (mosquitto.mosquitto.folder / "dynamic-security.json").write_text(json.dumps(document))
    mosquitto.start()
    device = Secured(mosquitto, proof)
    assert device.subscribe(f"iiot/{pump.uid}/down/#")
    device.close()
    assert not provisioning.reconcile()


def request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "iiot-admin")])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    signed = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, algorithm)
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def test_a_request_keeps_its_key_and_gets_our_subject(mosquitto: MosquittoServer, pump: Device, folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    proof = issue(pump, folder, csr=request(key), days=7)
    signed = x509.load_pem_x509_certificate(proof.certificate.read_bytes())
    assert [each.value for each in signed.subject] == [proof.uid, pump.uid]
    assert signed.public_key() == key.public_key()
    assert proof.key.read_text() == ""
    form = serialization.PrivateFormat.PKCS8
    proof.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    assert admitted(mosquitto, proof)
    authority.read_request(request(ed25519.Ed25519PrivateKey.generate()))
    authority.read_request(request(rsa.generate_private_key(65537, 2048)))


def test_bad_requests_are_refused(pump: Device) -> None:
    good = request(authority.new_key())
    broken = good[:120] + ("A" if good[120] != "A" else "B") + good[121:]
    weak = request(rsa.generate_private_key(65537, 1024))
    small = request(ec.generate_private_key(ec.SECP224R1()))
    for text in ("", "hello", "é" * 20, broken, weak, small, good * 100):
        with pytest.raises(Invalid):
            authority.read_request(text)


def test_the_first_entry_of_the_list_makes_the_authority(settings: Settings, folder: Path) -> None:
    """As at the first start: there is neither an authority nor a list yet."""
    fresh = settings.model_copy(update={"pki_dir": folder / "pki", "mqtt_crl_path": folder / "broker" / "devices.crl"})
    with services.active(fresh):
        with tenancy.work(tenancy.system("provision")) as db:
            revocations.reconcile(db)
        revocations.amend([17])
        found = x509.load_pem_x509_crl(fresh.crl_path.read_bytes())
    assert 17 in {each.serial_number for each in found}
    ca = x509.load_pem_x509_certificate((folder / "pki" / "device-ca.crt").read_bytes())
    key = ca.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert found.is_signature_valid(key)
