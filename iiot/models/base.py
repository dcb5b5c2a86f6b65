"""The declarative base and the columns that many tables share."""

from datetime import datetime
from typing import Annotated

from sqlalchemy import BigInteger, DateTime, Identity, Integer, MetaData, SmallInteger, Text, func
from sqlalchemy.orm import DeclarativeBase, mapped_column

SCHEMA = "iiot"
NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

Moment = Annotated[datetime, mapped_column(DateTime(timezone=True))]
Created = Annotated[datetime, mapped_column(DateTime(timezone=True), server_default=func.now())]
Big = Annotated[int, mapped_column(BigInteger)]
Small = Annotated[int, mapped_column(SmallInteger)]
LongText = Annotated[str, mapped_column(Text)]
RowId = Annotated[int, mapped_column(Integer, Identity(always=True))]
BigRowId = Annotated[int, mapped_column(BigInteger, Identity(always=True))]


class Base(DeclarativeBase):
    """All tables live in the schema `iiot`."""

    metadata = MetaData(schema=SCHEMA, naming_convention=NAMES)
    type_annotation_map = {str: Text()}
