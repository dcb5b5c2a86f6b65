"""`python -m iiot db …`: the schema's life."""

import click


@click.group()
def db() -> None:
    """Upgrade, downgrade and check the database schema."""


@db.command()
@click.argument("revision", default="head")
def upgrade(revision: str) -> None:
    """Bring roles and tables to REVISION (default: the newest)."""
    from iiot import config, schema

    schema.upgrade(config.load(), revision)
    click.echo(f"The schema is at {schema.revisions(config.load())[0]}.")


@db.command()
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Do not ask.")
def downgrade(revision: str, yes: bool) -> None:
    """Go back to REVISION; what newer revisions hold is lost. `base` removes everything."""
    from iiot import config, schema

    if not yes:
        click.confirm("Data of the newer revisions will be lost. Go on?", abort=True)
    schema.downgrade(config.load(), revision)
    click.echo(f"The schema is at {schema.revisions(config.load())[0]}.")


@db.command()
def current() -> None:
    """Print the database's revision; exit status 1 when it is not the newest."""
    from iiot import config, schema

    here, newest = schema.revisions(config.load())
    click.echo(f"database: {here}\nnewest:   {newest}")
    if here != newest:
        raise click.ClickException("Run `python -m iiot db upgrade`.")


@db.command()
def check() -> None:
    """Compare the models with the database; exit status 1 when they differ."""
    from iiot import config, schema

    schema.check(config.load())


@db.command()
def roles() -> None:
    """Make the PostgreSQL roles and set their passwords anew, after a change of IIOT_SECRET_KEY."""
    from iiot import config, schema

    here, _ = schema.revisions(config.load())
    if here is None:
        raise click.ClickException("The database is empty. Run `python -m iiot db upgrade`.")
    # Every run of the migrations makes the roles first; going to where the schema is already changes nothing else.
    schema.upgrade(config.load(), here)
    click.echo("The roles are up to date.")
