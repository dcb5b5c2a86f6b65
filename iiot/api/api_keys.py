"""API keys, one's own and those of the tenant's service accounts."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from iiot import auth, tenancy, web
from iiot.services import api_keys
from iiot.services.listing import Wanted
from iiot.services.names import LONGEST

api = web.Api("api-keys")

Scopes = Annotated[
    list[Annotated[str, Field(max_length=40)]],
    Field(min_length=1, max_length=100, description="Out of: " + ", ".join(sorted(auth.ALL_PERMISSIONS)) + "."),
]


class KeyIn(web.Body):
    """A new key. `scopes` null: whatever its owner may do. `service_account`: the id of one; without it the key is one's own."""

    name: Annotated[str, Field(min_length=1, max_length=LONGEST)]
    scopes: Scopes | None = None
    expires_at: Annotated[
        web.Moment | None, Field(description="It works until then, RFC 3339 with a zone; null: until it is revoked.")
    ] = None
    service_account: Annotated[str | None, Field(max_length=64)] = None


class KeyOut(web.Out):
    """A key without the key. `prefix` is its visible beginning; `last_used_at` is known to the minute. `owner`: e-mail address or name."""

    id: Annotated[str, Field(validation_alias="uid")]
    name: str
    prefix: str
    owner_kind: Literal["user", "service"]
    owner_id: Annotated[str, Field(validation_alias="owner_uid")]
    owner: str
    scopes: list[str] | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    last_used_address: str
    is_expired: bool


class NewKeyOut(KeyOut):
    """A key with its text, which is shown here and never again."""

    key: str


class KeyQuery(web.ListQuery):
    """Which keys, in which order."""

    mine: Annotated[bool, Field(description="One's own alone.")] = False
    sort: Annotated[str, Field(max_length=40, description="name or created_at; `-` in front for descending.")] = (
        "-created_at"
    )


class KeyPage(web.Page[KeyOut]):
    """API keys."""


@api.route("GET", "/api-keys", query=KeyQuery, out=KeyPage, keys=True)
def list_keys(ctx: web.Context, query: KeyQuery) -> KeyPage:
    """One's own keys; who holds api-key:write sees all of the tenant."""
    kind = f"api-keys {query.sort}"
    wanted = Wanted(query.sort, query.limit, web.decode_cursor(kind, query.cursor))
    with tenancy.work(ctx.scope) as db:
        found = api_keys.search(db, ctx.principal, wanted, mine=query.mine)
    return KeyPage(**web.page(kind, found, [KeyOut.model_validate(each) for each in found.items]))


@api.route("POST", "/api-keys", body=KeyIn, out=NewKeyOut, status=201, keys=True, problems=(404,))
def create_key(ctx: web.Context, body: KeyIn) -> NewKeyOut:
    """Make a key.

    The answer holds it, once. Send it as `Authorization: Bearer iip_…`. Nobody gives a key more than they hold; keys for service accounts need
    api-key:write.
    """
    scopes = None if body.scopes is None else tuple(body.scopes)
    wish = api_keys.Wish(body.name, scopes, body.expires_at, body.service_account)
    with tenancy.work(ctx.scope) as db:
        listed, key = api_keys.create(db, ctx.principal, wish)
    return NewKeyOut.model_construct(**dict(KeyOut.model_validate(listed)), key=key)


@api.route("DELETE", "/api-keys/<key_id>", keys=True)
def revoke_key(ctx: web.Context, key_id: str) -> None:
    """Revoke a key of one's own, or with api-key:write any of the tenant: it stops working at once."""
    with tenancy.work(ctx.scope) as db:
        api_keys.revoke(db, ctx.principal, key_id)
