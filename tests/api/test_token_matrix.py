"""Access tokens that are almost right: every one of them is refused, and none with a 500."""

import base64
import hashlib
import hmac
import json
import time
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from flask import Flask
from flask.testing import FlaskClient

from iiot import tenancy
from iiot.errors import Unauthorized
from iiot.services import sessions, users
from iiot.web import identity
from tests import factories
from tests.api.conftest import Make, Person, check_problem

DROP = object()


def key_of(app: Flask) -> str:
    return str(app.config["JWT_SECRET_KEY"])


def claims_of(token: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def signed(app: Flask, claims: dict[str, Any], header: dict[str, Any] | None = None, way: str = "sha256") -> str:
    """A token signed with the portal's own key, whatever its header says: the attacker here is a defect, not a stranger."""
    text = f"{part({'typ': 'at+jwt', 'alg': 'HS256'} | (header or {}))}.{part(claims)}"
    digest = hmac.new(key_of(app).encode(), text.encode(), way).digest()
    return f"{text}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def status(client: FlaskClient, token: str) -> int:
    answer = client.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {token}"})
    if answer.status_code != 200:
        check_problem(answer, 401, "unauthorized")
    return answer.status_code


@pytest.fixture
def claims(admin: Person) -> dict[str, Any]:
    return claims_of(admin.token)


def test_the_way_of_this_test_makes_good_tokens(app: Flask, client: FlaskClient, claims: dict[str, Any]) -> None:
    assert status(client, signed(app, claims)) == 200


def test_no_signature(client: FlaskClient, claims: dict[str, Any]) -> None:
    for name in ("none", "None", "NONE", "nOnE"):
        text = f"{part({'typ': 'at+jwt', 'alg': name})}.{part(claims)}"
        for token in (text + ".", text, f"{text}.{part('x')}"):
            assert status(client, token) == 401
    assert status(client, jwt.encode(claims, "", algorithm="none", headers={"typ": "at+jwt"})) == 401


@pytest.mark.parametrize(("name", "way"), [("HS384", "sha384"), ("HS512", "sha512"), ("hs256", "sha256")])
def test_another_hash_with_the_right_key(
    app: Flask, client: FlaskClient, claims: dict[str, Any], name: str, way: str
) -> None:
    assert status(client, signed(app, claims, {"alg": name}, way)) == 401


def test_asymmetric_algorithms(app: Flask, client: FlaskClient, claims: dict[str, Any]) -> None:
    headers = {"typ": "at+jwt"}
    curve, number = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)
    assert status(client, jwt.encode(claims, curve, algorithm="ES256", headers=headers)) == 401
    assert status(client, jwt.encode(claims, number, algorithm="RS256", headers=headers)) == 401
    # The confusion of CVE-2022-29217: a public key, which everybody knows, taken for the secret of HS256.
    public = number.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    text = f"{part({'typ': 'at+jwt', 'alg': 'HS256'})}.{part(claims)}"
    digest = hmac.new(public, text.encode(), hashlib.sha256).digest()
    assert status(client, f"{text}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}") == 401
    # And ours, said to be a public one.
    for name in ("RS256", "ES256", "EdDSA", "PS256"):
        assert status(client, signed(app, claims, {"alg": name})) == 401


def test_keys_and_addresses_of_keys_in_the_header_change_nothing(
    app: Flask, client: FlaskClient, claims: dict[str, Any]
) -> None:
    stranger = "k" * 64
    own = {"kty": "oct", "k": base64.urlsafe_b64encode(stranger.encode()).decode()}
    for header in (
        {"kid": "../../../../dev/null"},
        {"kid": "0' OR '1'='1"},
        {"jku": "https://evil.example/keys.json"},
        {"x5u": "https://evil.example/cert.pem"},
        {"jwk": own},
    ):
        forged = jwt.encode(claims, stranger, algorithm="HS256", headers={"typ": "at+jwt"} | header)
        assert status(client, forged) == 401, header


def test_what_must_be_understood_and_is_not(app: Flask, client: FlaskClient, claims: dict[str, Any]) -> None:
    # RFC 7515 section 4.1.11: extensions listed in `crit` must be understood, or the token is refused.
    for critical in (["b64"], ["unknown"], [], "exp"):
        assert status(client, signed(app, claims, {"crit": critical, "b64": True, "unknown": 1})) == 401, critical


@pytest.mark.parametrize("kind", ["JWT", "jwt", "rt+jwt", "", None, 1])
def test_another_type(app: Flask, client: FlaskClient, claims: dict[str, Any], kind: Any) -> None:
    assert status(client, signed(app, claims, {"typ": kind})) == 401


def test_no_type(app: Flask, client: FlaskClient, claims: dict[str, Any]) -> None:
    text = f"{part({'alg': 'HS256'})}.{part(claims)}"
    digest = hmac.new(key_of(app).encode(), text.encode(), hashlib.sha256).digest()
    assert status(client, f"{text}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}") == 401


def from_now(value: Any) -> Any:
    """A timedelta as the claim of a moment that far from now; everything else as it is. Names of tests must not tell the time."""
    return int(time.time() + value.total_seconds()) if isinstance(value, timedelta) else value


@pytest.mark.parametrize(
    "change",
    [
        {"exp": timedelta(minutes=-1)},
        {"exp": 0},
        {"exp": "never"},
        {"nbf": timedelta(hours=1)},
        {"iat": timedelta(hours=1)},
        {"aud": "iiot-second-factor"},
        {"aud": ["another"]},
        {"iss": "another-portal"},
        {"type": "refresh"},
        {"use": "page"},
        {"use": "refresh"},
        {"use": None},
        {"epoch": True},
        {"epoch": "0"},
        {"epoch": 0.0},
        {"epoch": None},
        {"epoch": 1},
        {"epoch": -1},
        {"epoch": 10**30},
        {"sid": None},
        {"sid": 1},
        {"sid": "a" * 26},
        {"sid": ["a"]},
        {"sid": "x\x00"},
        {"sub": 1},
        {"sub": "a" * 26},
        {"tid": "a" * 26},
        {"tid": None},
        {"tid": ["a"]},
    ],
    ids=str,
)
def test_a_wrong_claim(app: Flask, client: FlaskClient, claims: dict[str, Any], change: dict[str, Any]) -> None:
    wrong = {name: from_now(value) for name, value in change.items()}
    assert status(client, signed(app, claims | wrong)) == 401


@pytest.mark.parametrize("name", sorted(identity.REQUIRED_CLAIMS | {"tid"}))
def test_a_missing_claim(app: Flask, client: FlaskClient, claims: dict[str, Any], name: str) -> None:
    assert status(client, signed(app, {key: value for key, value in claims.items() if key != name})) == 401


def test_half_a_minute_of_differing_clocks_is_forgiven(app: Flask, client: FlaskClient, claims: dict[str, Any]) -> None:
    assert status(client, signed(app, claims | {"exp": int(time.time()) - 20})) == 200
    assert status(client, signed(app, claims | {"exp": int(time.time()) - 40})) == 401


def test_a_claim_of_another_tenant_of_the_same_person(app: Flask, client: FlaskClient, admin: Person) -> None:
    second = factories.make_tenant()
    with tenancy.work(tenancy.system("sign-in")) as db:
        users.add_member(db, second.tenant_id, admin.user.user_id, "viewer")
    assert status(client, signed(app, claims_of(admin.token) | {"tid": second.uid})) == 401


def test_a_session_of_somebody_else(app: Flask, client: FlaskClient, person: Make) -> None:
    one, other = person(), person()
    stolen = claims_of(one.token) | {"sid": other.opened.principal.session_uid}
    assert status(client, signed(app, stolen)) == 401
    assert status(client, signed(app, claims_of(one.token) | {"sub": other.user.uid})) == 401


def test_tokens_of_another_kind(app: Flask, client: FlaskClient, admin: Person) -> None:
    with app.app_context():
        page = identity.access_token(admin.opened, "page")
    assert status(client, page) == 401, "a page's token is no bearer token"
    assert status(client, admin.opened.refresh_token) == 401
    browser = app.test_client()
    browser.set_cookie(app.config["IIOT_COOKIE"], admin.token)
    assert browser.get("/api/v1/auth/me").status_code == 401, "a bearer token is no cookie"
    browser.set_cookie(app.config["IIOT_COOKIE"], page)
    assert browser.get("/api/v1/auth/me").status_code == 200
    answer = client.post("/api/v1/auth/refresh", json={"refresh_token": admin.token})
    check_problem(answer, 401, "unauthorized")


def test_texts_that_are_no_tokens(client: FlaskClient, admin: Person) -> None:
    head, body, tail = admin.token.split(".")
    for text in ("x", "a.b", "a.b.c", "....", f"{head}.{body}", f"{head}.{body}.", f".{body}.{tail}", f"{head}..{tail}",
                 f"{head}.{body}.{tail}.{tail}", f"{head}.{body}.{tail[:-2]}", f"{part([])}.{body}.{tail}",
                 f"{head}.{part([])}.{tail}", f"{head}.{body}.{tail}é", "é", "a" * 20_000):  # fmt: skip
        assert status(client, text) == 401, text[:60]
    assert client.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {admin.token} "}).status_code == 200
    for words in ("Bearer", "Bearer ", "Token x", admin.token, f"Basic {admin.token}"):
        assert client.get("/api/v1/auth/me", headers={"Authorization": words}).status_code == 401, words


def test_what_was_never_a_session(client: FlaskClient) -> None:
    with pytest.raises(Unauthorized):
        sessions.principal_of("a" * 26, "b" * 26, 0)
    assert client.get("/api/v1/auth/me").status_code == 401
