"""`python -m iiot openapi`."""

import json

import click


@click.command()
def openapi() -> None:
    """Print the OpenAPI document of the REST API."""
    from app_advanced import create_app
    from iiot import config
    from iiot.web import openapi as web_openapi

    app = create_app(config.load())
    with app.app_context():
        click.echo(json.dumps(web_openapi.document(app.extensions["iiot.operations"]), indent=1))
