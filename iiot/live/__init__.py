"""Live events to people: Socket.IO over WebSocket, at /socket.io.

A client connects with the session cookie or `auth: {token}` (an access token or an API key), subscribes to devices or to its whole tenant, and
after a reconnect resumes from the newest `cursor` it has seen: give `resume` the cursor noted before subscribing again. Events and resumed readings
may overlap, so readings are told apart by (device, key, timestamp); nothing is left out. Every event is answered by `{"ok": true, …}` or
`{"ok": false, "error", "detail"}`.
"""

from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

import flask
import structlog
from flask import Flask, request
from flask_jwt_extended import decode_token
from flask_socketio import ConnectionRefusedError as Refused
from flask_socketio import SocketIO

from iiot import config, metrics, web
from iiot.errors import Problem
from iiot.live import guard, subscriptions
from iiot.live.clients import Client
from iiot.live.frames import BoundedFrames
from iiot.live.hub import Hub
from iiot.live.packets import JsonPacket, Msgspec
from iiot.live.replay import resume

log = structlog.get_logger(__name__)

MAX_FRAME = 65_536


def init_app(app: Flask) -> None:
    """Serve Socket.IO beside the application's pages. Starts nothing: the hub begins with the first client, after any fork."""
    socketio = SocketIO(
        app,
        async_mode="gevent",
        transports=["websocket"],
        allow_upgrades=False,
        path="/socket.io",
        cors_allowed_origins=_origins(app.extensions["iiot.settings"]),
        manage_session=False,
        max_http_buffer_size=MAX_FRAME,
        ping_interval=20,
        ping_timeout=20,
        serializer=JsonPacket,
        json=Msgspec,
    )
    app.wsgi_app = BoundedFrames(app.wsgi_app, MAX_FRAME)  # type: ignore[method-assign]
    hub = Hub(socketio.server)
    app.extensions["iiot.live"] = hub
    socketio.on("connect")(lambda *arguments: _connect(app, hub, *arguments))
    socketio.on("disconnect")(lambda *_: hub.remove(_sid()))
    for name, handler in {"subscribe": _subscribe, "unsubscribe": _unsubscribe, "resume": _resume}.items():
        socketio.on(name)(_answering(hub, handler))
    socketio.on("*")(_answering(hub, _unknown))
    socketio.on_error_default(_failed)


def _origins(settings: config.Settings) -> list[str] | None:
    """None means: the page's own host. An empty list would switch the check off."""
    if settings.public_url:
        parts = urlsplit(settings.public_url)
        return [f"{parts.scheme}://{parts.netloc}"]
    return None


def _sid() -> str:
    return cast(str, request.sid)  # type: ignore[attr-defined]


def _connect(app: Flask, hub: Hub, auth: object = None) -> None:
    try:
        token, use = _token(app, auth)
        principal = web.principal_of_token(token, cast(Any, use))
        # An API key has no epoch: whether it still stands is asked by its id.
        epoch = 0 if principal.api_key_uid is not None else int(decode_token(token)["epoch"])
        guard.check(principal)
        client = Client(_sid(), principal, epoch)
        guard.admit(hub.clients, client)
    except Problem as problem:
        metrics.live_refused.labels(problem.code).inc()
        raise Refused(problem.code, {"detail": problem.detail}) from None
    except Exception as error:
        log.error("connection failed", exc_info=error)
        raise Refused("unavailable", {"detail": "The portal cannot check who you are. Try again."}) from None
    hub.add(client)


def _token(app: Flask, auth: object) -> tuple[str, str]:
    """The token and its use: what `auth` holds, else the cookie; the empty token is refused by who reads it."""
    if isinstance(auth, dict) and "token" in auth:
        token = auth["token"]
        return (token if isinstance(token, str) and len(token) <= 4096 else ""), "api"
    return request.cookies.get(app.config["IIOT_COOKIE"], ""), "page"


Handler = Callable[[Hub, Client, Any], dict[str, Any]]


def _answering(hub: Hub, handler: Handler) -> Callable[..., dict[str, Any] | None]:
    """An event handler: one argument, rate limited, problems become answers."""

    def answer(*arguments: object) -> dict[str, Any] | None:
        client = hub.clients.get(_sid())
        if client is None:
            return {"ok": False, "error": "disconnected", "detail": "This connection has ended. Connect again."}
        try:
            guard.spend(client)
            return {"ok": True, **handler(hub, client, arguments[-1] if arguments else None)}
        except Problem as problem:
            metrics.live_refused.labels(problem.code).inc()
            if client.abusive:
                hub.drop(client, "too many events")
            return {"ok": False, "error": problem.code, "detail": problem.detail, **problem.extra}

    return answer


def _subscribe(hub: Hub, client: Client, data: Any) -> dict[str, Any]:
    return {"cursor": subscriptions.subscribe(hub, client, data)}


def _unsubscribe(hub: Hub, client: Client, data: Any) -> dict[str, Any]:
    subscriptions.unsubscribe(hub, client, data)
    return {}


def _resume(hub: Hub, client: Client, data: Any) -> dict[str, Any]:
    return {"cursor": resume(hub, client, data)}


def _unknown(_hub: Hub, _client: Client, _data: Any) -> dict[str, Any]:
    raise Problem(400, "unknown-event", "There are subscribe, unsubscribe and resume.")


def _failed(error: Exception) -> dict[str, Any]:
    """The answer when something went wrong on our side; the reason is in the log, not in the answer."""
    log.error("event failed", event_name=str(getattr(flask.request, "event", {}).get("message"))[:64], exc_info=error)
    return {"ok": False, "error": "unavailable", "detail": "The portal could not do this. Try again."}
