"""Who sends this request: a bearer token or an API key, the cookie of a page, or a device's uid and token.

Access tokens are made and read by flask-jwt-extended (HS256 with a derived key, issuer, audience, ten minutes). What a token stands for, the
session, the user and the membership, is asked of the database every second and a half at most, and at once after any revocation on this machine.
"""

import base64
import binascii
import math
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import urlsplit

import jwt
from flask import Flask, Request, Response, request
from flask_jwt_extended import JWTManager, create_access_token, decode_token
from flask_jwt_extended.exceptions import JWTExtendedException

from iiot import auth, cache, clock, ids, metrics, tenancy
from iiot.config import Settings
from iiot.errors import Forbidden, Problem, Unauthorized, WrongDevice
from iiot.services import api_keys, credentials, refused_logins, sessions
from iiot.web import limits

ISSUER = "iiot-portal"
AUDIENCE = "iiot-api"
LEEWAY_SECONDS = 30
REMEMBER_SECONDS = 1.5
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
CSRF_HEADER = "X-CSRF-Token"
FORMS = frozenset(("application/x-www-form-urlencoded", "multipart/form-data"))
REQUIRED_CLAIMS = frozenset(("exp", "iat", "nbf", "sub", "jti", "iss", "aud", "sid", "epoch", "use"))

Use = Literal["api", "page"]

_people: cache.Memory[tuple[Use, str], tuple[auth.Principal, float]] = cache.Memory(REMEMBER_SECONDS)
_things: cache.Memory[tuple[str, str], tuple[auth.Principal, float]] = cache.Memory(REMEMBER_SECONDS)


def init_app(app: Flask, settings: Settings) -> None:
    """Set flask-jwt-extended up: one algorithm, one key, one issuer, one audience."""
    app.config.update(
        JWT_SECRET_KEY=settings.derived_key("access-token").hex(),
        JWT_ALGORITHM="HS256",
        JWT_DECODE_ALGORITHMS=["HS256"],
        JWT_ENCODE_ISSUER=ISSUER,
        JWT_DECODE_ISSUER=ISSUER,
        JWT_ENCODE_AUDIENCE=AUDIENCE,
        JWT_DECODE_AUDIENCE=AUDIENCE,
        JWT_DECODE_LEEWAY=LEEWAY_SECONDS,
        JWT_ACCESS_TOKEN_EXPIRES=timedelta(seconds=settings.access_token_seconds),
        JWT_TOKEN_LOCATION=["headers"],
        JWT_ENCODE_NBF=True,
        # Pages have a token of their session instead of one in each cookie.
        JWT_COOKIE_CSRF_PROTECT=False,
        IIOT_COOKIE="__Host-iiot" if settings.cookies_secure else "iiot",
        IIOT_COOKIE_SECURE=settings.cookies_secure,
    )
    JWTManager(app)


def access_token(opened: sessions.Opened, use: Use = "api") -> str:
    """A signed token for a session just opened or refreshed; `page` tokens live as long as the session and work as a cookie only."""
    expires = None if use == "api" else opened.expires_at - clock.now()
    principal = opened.principal
    claims = {"sid": principal.session_uid, "epoch": opened.epoch, "tid": principal.tenant_uid, "use": use}
    return str(
        create_access_token(
            principal.user_uid, expires_delta=expires, additional_claims=claims, additional_headers={"typ": "at+jwt"}
        )
    )


def principal_of_token(token: str, use: Use = "api") -> auth.Principal:
    """Whom a token or an API key stands for; raises Unauthorized when it is forged, expired, of another use, or was revoked."""
    remembered = _people.get((use, token))
    if remembered is not None and remembered[1] > time.time():
        return remembered[0]
    mark = _people.mark()
    if use == "api" and api_keys.looks_like_one(token):
        proof = _proof_of_key(token)
        _people.put((use, token), (proof.principal, _end(proof)), mark)
        return proof.principal
    claims = _claims(token, use)
    principal = sessions.principal_of(claims["sid"], claims["sub"], claims["epoch"])
    if claims.get("tid") != principal.tenant_uid:
        # The session went on to another of the person's tenants.
        raise Unauthorized(sessions.ENDED, 'Bearer error="invalid_token"')
    _people.put((use, token), (principal, claims["exp"] + LEEWAY_SECONDS), mark)
    return principal


def _proof_of_key(key: str) -> auth.Proof:
    address = request.remote_addr or ""
    with (
        limits.failures("api-key-address", address) as failed_here,
        limits.failures("api-key", api_keys.visible_part(key), address) as failed,
    ):
        proof = api_keys.authenticate(key, address)
        if proof is None:
            failed()
            failed_here()
            raise Unauthorized(api_keys.WRONG, 'Bearer error="invalid_token"')
    return proof


def _end(proof: auth.Proof) -> float:
    """When what was proved ends by itself, in seconds since the epoch."""
    return math.inf if proof.until is None else proof.until.timestamp()


def _claims(token: str, use: Use) -> dict[str, Any]:
    try:
        header = jwt.get_unverified_header(token)
        claims: dict[str, Any] = decode_token(token)
    except jwt.ExpiredSignatureError:
        raise Unauthorized(
            "The access token has expired. Get a new one with POST /api/v1/auth/refresh.",
            'Bearer error="invalid_token"',
        ) from None
    except (jwt.PyJWTError, JWTExtendedException, ValueError):
        raise Unauthorized("The access token is not valid. Sign in again.", 'Bearer error="invalid_token"') from None
    fits = (
        header.get("typ") == "at+jwt"
        and "crit" not in header
        and claims.get("type") == "access"
        and claims.get("use") == use
        and all(claims.get(name) is not None for name in REQUIRED_CLAIMS)
    )
    # A bool is an int to Python, and not to us.
    if not fits or not ids.is_uid(str(claims["sid"])) or type(claims["epoch"]) is not int:
        raise Unauthorized("This token is not for this use. Sign in again.", 'Bearer error="invalid_token"')
    return claims


# --- pages: cookies and forged requests --------------------------------------------------------------------------------------------------------


def set_session_cookie(app: Flask, response: Response, opened: sessions.Opened) -> None:
    """Sign the browser in: an HttpOnly cookie that scripts cannot read."""
    seconds = int((opened.expires_at - clock.now()).total_seconds())
    response.set_cookie(
        app.config["IIOT_COOKIE"],
        access_token(opened, "page"),
        max_age=seconds,
        path="/",
        secure=app.config["IIOT_COOKIE_SECURE"],
        httponly=True,
        samesite="Lax",
    )


def clear_session_cookie(app: Flask, response: Response) -> None:
    """Sign the browser out."""
    response.delete_cookie(
        app.config["IIOT_COOKIE"], path="/", secure=app.config["IIOT_COOKIE_SECURE"], httponly=True, samesite="Lax"
    )


def is_same_origin(asked: Request) -> bool:
    """Whether a browser says that the request comes from our own pages; programs, which say nothing, pass."""
    site = asked.headers.get("Sec-Fetch-Site")
    if site is not None and site not in ("same-origin", "none"):
        return False
    origin = asked.headers.get("Origin")
    return origin is None or (origin != "null" and urlsplit(origin).netloc == asked.host)


def check_csrf(principal: auth.Principal, asked: Request) -> None:
    """Raise 403 unless an unsafe request that rests on a cookie comes from a page of the same session."""
    if asked.method in SAFE_METHODS:
        return
    offered = asked.headers.get(CSRF_HEADER) or (asked.form.get("csrf_token", "") if asked.mimetype in FORMS else "")
    expected = auth.csrf_token(principal.session_uid or "")
    if not is_same_origin(asked) or not auth.same_text(offered, expected):
        raise Forbidden(
            "The page is too old or the request came from elsewhere. Reload the page and try again.", "csrf"
        )


# --- the four kinds of guard -------------------------------------------------------------------------------------------------------------------


def person(app: Flask) -> auth.Principal:
    """The signed-in person, by bearer token or by cookie; or the holder of an API key."""
    header = request.headers.get("Authorization")
    cookie = request.cookies.get(app.config["IIOT_COOKIE"]) if "HTTP_COOKIE" in request.environ else None
    if header is not None:
        if cookie is not None:
            raise Problem(400, "ambiguous-credentials", "Send either a cookie or an Authorization header, not both.")
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthorized("Send `Authorization: Bearer <access token or API key>`.")
        return principal_of_token(token.strip(), "api")
    if cookie is None:
        raise Unauthorized("Sign in first: POST /api/v1/auth/login.")
    principal = principal_of_token(cookie, "page")
    check_csrf(principal, request)
    return principal


def thing(_app: Flask) -> auth.Principal:
    """The device that proved itself by HTTP Basic `uid:token`."""
    uid, token = _basic(request.headers.get("Authorization", ""))
    remembered = _things.get((uid, token))
    if remembered is not None and remembered[1] > time.time():
        return remembered[0]
    address = request.remote_addr or ""
    with (
        limits.failures("device-sign-in-address", address) as failed_here,
        limits.failures("device-sign-in", uid, address) as failed,
    ):
        mark = _things.mark()
        try:
            with tenancy.work(tenancy.system("device-sign-in")) as db:
                proof = credentials.authenticate(db, uid, token)
        except Forbidden as refused:
            if refused.code == "device-disabled":
                metrics.device_logins.labels("disabled").inc()
            refused_logins.note(uid, "http", refused.code, address)
            raise
        if proof is None:
            refused_logins.note(uid, "http", "unauthorized", address)
            failed()
            failed_here()
            metrics.device_logins.labels("wrong").inc()
            raise WrongDevice
    metrics.device_logins.labels("ok").inc()
    _things.put((uid, token), (proof.principal, _end(proof)), mark)
    return proof.principal


def _basic(header: str) -> tuple[str, str]:
    """User name and password of RFC 7617; raises Unauthorized for anything else."""
    scheme, _, encoded = header.partition(" ")
    try:
        if scheme.lower() != "basic":
            raise ValueError
        uid, colon, token = base64.b64decode(encoded.strip(), validate=True).decode("utf-8").partition(":")
        if not colon or "\x00" in uid or len(uid) > 64 or len(token) > 256:
            raise ValueError
    except (ValueError, binascii.Error):
        raise WrongDevice("Send `Authorization: Basic` with the device's uid and token.") from None
    return uid, token


def person_or_thing(app: Flask) -> auth.Principal:
    """A device by Basic, else a person."""
    if request.headers.get("Authorization", "")[:6].lower() == "basic ":
        return thing(app)
    return person(app)


def nobody(_app: Flask) -> None:
    """Lets everybody in."""


GUARDS: dict[str, Callable[[Flask], auth.Principal | None]] = {
    "user": person,
    "device": thing,
    "user_or_device": person_or_thing,
    "none": nobody,
}
