"""Certificates by which devices log in at the MQTT broker over TLS, without a token."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from iiot import broker, tenancy, web
from iiot.models import Device, DeviceCertificate
from iiot.services import certificates, devices
from iiot.services.authority import LONGEST_REQUEST
from iiot.services.names import LONGEST

api = web.Api("certificates")


class CertificateIn(web.Body):
    """A new certificate. Its subject is the portal's choice, whatever the request says."""

    csr: Annotated[
        str | None,
        Field(
            max_length=LONGEST_REQUEST,
            description="A request in PEM (PKCS #10) with a key of P-256, Ed25519 or RSA. Left out: the portal makes the key and shows it here, once.",
        ),
    ] = None
    name: Annotated[str, Field(max_length=LONGEST, description="For people, as `gateway 2027`.")] = ""
    days: Annotated[
        int | None, Field(ge=1, description="How long it works; at most, and unless given, IIOT_CERTIFICATE_DAYS.")
    ] = None


class CertificateOut(web.Out):
    """A certificate of a device. `mqtt_username`: its name at the broker, which is the client id there, too."""

    id: str
    name: str
    serial: str
    mqtt_username: str
    created_at: datetime
    expires_at: datetime
    is_expired: bool
    certificate: str


class IssuedCertificate(CertificateOut):
    """A new certificate. `private_key` is shown here and never again; null when the device has its own.

    `ca`: what signed it; `broker_ca`: what the embedded broker's certificate is checked with, null where the broker is another one.
    """

    private_key: str | None
    ca: str
    broker_ca: str | None


class CertificateList(web.Page[CertificateOut]):
    """The certificates of a device that were not revoked, on one page."""


def _shown(device: Device, row: DeviceCertificate) -> CertificateOut:
    return CertificateOut(
        id=row.uid,
        name=row.name,
        serial=row.serial,
        mqtt_username=broker.certificate_user(device.uid, row.uid),
        created_at=row.created_at,
        expires_at=row.expires_at,
        is_expired=certificates.has_ended(row),
        certificate=row.pem,
    )


@api.route("GET", "/devices/<device_id>/certificates", out=CertificateList, permission="device:read")
def list_certificates(ctx: web.Context, device_id: str) -> CertificateList:
    """The certificates of a device."""
    with tenancy.work(ctx.scope) as db:
        device = devices.get(db, device_id)
        items = [_shown(device, row) for row in certificates.list_all(db, device)]
    return CertificateList(items=items, next_cursor=None, total=len(items))


@api.route(
    "POST",
    "/devices/<device_id>/certificates",
    body=CertificateIn,
    optional_body=True,
    out=IssuedCertificate,
    status=201,
    permission="device:write",
    problems=(409,),
)
def issue_certificate(ctx: web.Context, device_id: str, body: CertificateIn) -> IssuedCertificate:
    """Sign a certificate for a device, beside those that it has; five at most are valid at once. The body may be left out."""
    with tenancy.work(ctx.scope) as db:
        device = devices.locked(db, device_id)
        issued = certificates.issue(db, device, certificates.Wanted(body.name, body.csr, body.days))
        shown = dict(_shown(device, issued.certificate))
    return IssuedCertificate(**shown, private_key=issued.private_key, ca=issued.device_ca, broker_ca=issued.broker_ca)


@api.route("DELETE", "/devices/<device_id>/certificates/<certificate_id>", permission="device:write")
def revoke_certificate(ctx: web.Context, device_id: str, certificate_id: str) -> None:
    """Revoke one certificate: it opens nothing any more, and an open connection with it ends."""
    with tenancy.work(ctx.scope) as db:
        certificates.revoke(db, devices.locked(db, device_id), certificate_id)
