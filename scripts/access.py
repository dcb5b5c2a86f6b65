"""Who may call which route, by what the routes declare: for docs/reference/access.md."""

import tempfile
from pathlib import Path
from typing import Any

from pydantic import SecretStr

# Who may call a route. A platform administrator stands for one who is no member of the tenant; members have their role besides.
CALLERS = ("nobody", "device", "viewer", "operator", "engineer", "admin", "platform admin")


def application() -> Any:
    """The web application, which opens no connection until it is asked something."""
    from app_advanced import create_app
    from iiot.config import Settings

    with tempfile.TemporaryDirectory() as folder:
        return create_app(Settings(secret_key=SecretStr("x" * 40), data_dir=Path(folder)))


def routes(app: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """(method, rule, options) of everything that is served; `auth` is "none" for files."""
    operations = {each.endpoint: dict(each.options) for each in app.extensions["iiot.operations"]}
    pages = {name: {"auth": "page", **options} for name, options in app.extensions["iiot.pages"].items()}
    known = operations | pages
    return sorted(
        (method, rule.rule, known.get(rule.endpoint, {"auth": "none"}))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    )


def may_call(options: dict[str, Any], caller: str) -> bool:
    """Whether a route lets a caller in; what it then does with objects that are not theirs is another matter."""
    from iiot import auth

    kind, permission = options.get("auth", "user"), options.get("permission")
    if kind == "none":
        return True
    if caller in ("nobody", "device"):
        return caller == "device" and kind in ("device", "user_or_device")
    if kind == "device":
        return False
    if caller == "platform admin":
        return permission is None or bool(options.get("of_tenant") and permission in auth.PLATFORM_PERMISSIONS)
    return not options.get("platform") and (permission is None or permission in auth.PERMISSIONS[caller])


def needs(options: dict[str, Any]) -> str:
    """What it takes to be let in, as the table says it."""
    if options.get("auth") == "none":
        return "nothing"
    if options.get("platform"):
        return "platform administrator"
    if options.get("auth") == "device":
        return "device credentials"
    permission = options.get("permission")
    return f"`{permission}`" if permission else "a session"
