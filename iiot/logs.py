"""JSON log lines: to stdout, and with a log directory to rotating files that several processes may share."""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from logging import Handler
from pathlib import Path
from typing import Any, TextIO

import structlog
from concurrent_log_handler import ConcurrentRotatingFileHandler

from iiot import config

# Libraries whose every request would be a line.
CHATTY = ("werkzeug", "asyncua", "geventwebsocket.handler", "urllib3", "flask-limiter", "engineio", "socketio")
FILE_BYTES = 10 * 1024 * 1024
FILE_COUNT = 5
MAX_TEXT = 2000

# What is known of the request being served, its id and tenant: read only when a line is really written.
request: ContextVar[Mapping[str, Any] | None] = ContextVar("request", default=None)

_SECRET_KEY = re.compile(r"authori[sz]ation|password|passwd|token|secret|cookie|credential|api[_-]?key", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}|\biip_[\w-]{20,}|\beyJ[\w-]+\.[\w-]+\.[\w-]+|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"
)
_SECRET_PAIR = re.compile(r"""(?i)((?:password|passwd|token|secret|api[_-]?key)["']?\s*[=:]\s*["']?)[^\s"',;&}]+""")
_HIDDEN = "[hidden]"


def scrub(value: Any, depth: int = 0) -> Any:
    """`value` without secrets: values under telling keys are hidden, so are tokens and passwords inside texts; texts are cut."""
    if isinstance(value, str):
        text = value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + "…"
        return _SECRET_PAIR.sub(rf"\1{_HIDDEN}", _SECRET_TEXT.sub(_HIDDEN, text))
    if depth > 4:
        return "…"
    if isinstance(value, Mapping):
        return {str(k): _HIDDEN if _SECRET_KEY.search(str(k)) else scrub(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [scrub(item, depth + 1) for item in list(value)[:100]]
    if value is None or isinstance(value, bool | int | float):
        return value
    return scrub(str(value), depth + 1)


def _scrub_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in list(event.items()):
        if key == "exception":
            event[key] = scrub(str(value)[-8000:]) if len(str(value)) <= MAX_TEXT else _scrub_long(str(value))
        else:
            event[key] = _HIDDEN if _SECRET_KEY.search(key) else scrub(value)
    return event


def _scrub_long(text: str) -> str:
    """A traceback is worth more than MAX_TEXT characters; its end says most."""
    return _SECRET_PAIR.sub(rf"\1{_HIDDEN}", _SECRET_TEXT.sub(_HIDDEN, text[-8000:]))


def _add_request(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    notes = request.get()
    if notes is not None:
        event.setdefault("request_id", notes.get("request_id"))
        tenant = notes.get("tenant")
        if tenant:
            event.setdefault("tenant", tenant)
    return event


class _AddProcess:
    """Names the process in every line."""

    def __init__(self, process: str) -> None:
        self._process = process

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["process"] = self._process
        return event


def _file_handler(path: Path, level: int) -> Handler:
    handler = ConcurrentRotatingFileHandler(str(path), maxBytes=FILE_BYTES, backupCount=FILE_COUNT, encoding="utf-8")
    handler.setLevel(level)
    return handler


def setup(process: str, settings: config.Settings | None = None, stream: TextIO | None = None) -> None:
    """Send all logging, structlog's and the standard library's, through one JSON formatter.

    `process` names the process in every line and its files `<process>.log` and `<process>-error.log` (10 MB, five old ones each).
    Control characters are escaped by JSON, so a line is always one line.
    """
    settings = settings or config.load()
    shared: list[Any] = [
        _add_request,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _AddProcess(process),
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.format_exc_info,
        _scrub_event,
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(ensure_ascii=True),
        ],
    )
    level = getattr(logging, settings.log_level.upper())
    handlers: list[Handler] = [logging.StreamHandler(stream or sys.stdout)]
    if settings.log_dir is not None:
        settings.log_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
        handlers.append(_file_handler(settings.log_dir / f"{process}.log", level))
        handlers.append(_file_handler(settings.log_dir / f"{process}-error.log", logging.ERROR))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(True)
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(max(level, logging.WARNING))
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
