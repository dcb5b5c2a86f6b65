"""Reading the messages that were refused, for the people who mend them."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from iiot.models import RejectedMessage
from iiot.services.listing import Found


def list_rejected(db: Session, device_id: int, *, before: int | None = None, limit: int = 20) -> Found[RejectedMessage]:
    """Refused messages of a device, newest first; `before` is the position a page before gave. `total` is not counted: it is the page's size."""
    statement = select(RejectedMessage).where(RejectedMessage.device_id == device_id)
    if before is not None:
        statement = statement.where(RejectedMessage.id < before)
    rows = list(db.scalars(statement.order_by(RejectedMessage.id.desc()).limit(limit + 1)))
    position = [rows[limit - 1].id] if len(rows) > limit else None
    return Found(rows[:limit], position, len(rows[:limit]))
