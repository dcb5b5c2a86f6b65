"""The home page."""

from flask import render_template

from iiot import tenancy, web
from iiot.services.overview import overview

pages = web.pages("home")


@pages.route("GET", "/", permission="device:read")
def home(ctx: web.Context) -> str:
    """Counts, the ingest rate and what happened last."""
    with tenancy.work(ctx.scope) as db:
        found = overview(db)
    return render_template("home.html", home=found)
