"""The limit of the REST bench: a Flask route that runs the same query and nothing else. Served by the same gunicorn."""

from typing import Any

from flask import Flask, jsonify
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from iiot import config
from iiot.models import Device

app = Flask(__name__)
_engines: list[Any] = []


@app.get("/devices/<uid>")
def read(uid: str) -> Any:
    """The device as JSON; no token, no tenant, no validation."""
    if not _engines:
        _engines.append(create_engine(config.load().database_url_for("owner"), pool_size=10))
    with Session(_engines[0]) as db:
        device = db.scalars(select(Device).where(Device.uid == uid)).one()
        return jsonify(
            id=device.uid,
            name=device.name,
            type=device.type,
            status=device.status,
            is_gateway=device.is_gateway,
            tags=device.tags,
            created_at=device.created_at.isoformat(),
            last_seen_at=device.last_seen_at and device.last_seen_at.isoformat(),
        )
