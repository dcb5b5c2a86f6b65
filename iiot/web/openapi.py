"""The OpenAPI 3.1 document, and a page of documentation made of it, without scripts and foreign files."""

import json
import re
from functools import cache
from importlib import resources
from typing import Any

from flask import Flask, Response, render_template_string
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from iiot import __version__
from iiot.web import problems
from iiot.web.routes import PREFIX, Api, Operation

_PATH_PARAMETER = re.compile(r"<(?:(\w+):)?(\w+)>")
_SECURITY: dict[str, list[dict[str, list[str]]]] = {
    "user": [{"bearer": []}, {"cookie": [], "csrf": []}],
    "device": [{"device": []}],
    "user_or_device": [{"bearer": []}, {"cookie": [], "csrf": []}, {"device": []}],
    "none": [],
}
_SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "The access token of POST /api/v1/auth/login, or an API key.",
    },
    "cookie": {"type": "apiKey", "in": "cookie", "name": "iiot", "description": "The session of the portal's pages."},
    "csrf": {
        "type": "apiKey",
        "in": "header",
        "name": "X-CSRF-Token",
        "description": "Goes with the cookie on unsafe methods.",
    },
    "device": {"type": "http", "scheme": "basic", "description": "A device's uid and token."},
}
_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "request_id"],
    "properties": {
        "type": {"type": "string", "description": "A stable reference; its last part is the code."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong and what to do."},
        "request_id": {"type": "string"},
        "limit": {"description": "The name of the limit that was passed; where `quota` names it, its value."},
        "allowed": {"description": "What that limit allows."},
        "retry_after": {"type": "integer", "description": "Seconds, as in Retry-After."},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["loc", "msg"],
                "properties": {"loc": {"type": "array", "items": {}}, "msg": {"type": "string"}},
            },
        },
    },
}
_TEXTS = {
    400: "Not understood",
    401: "Not signed in",
    403: "Not allowed",
    404: "Not there, or not yours",
    409: "Contradicts what is stored",
    412: "Changed meanwhile",
    413: "Too large",
    415: "Wrong media type",
    422: "Not valid",
    429: "Too many requests",
    503: "A part is down",
}


def document(operations: list[Operation]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these operations."""
    models: dict[type[BaseModel], Any] = {}
    for operation in operations:
        for kind in ("query", "body", "out"):
            model = operation.options.get(kind)
            if isinstance(model, type):
                models[model] = "serialization" if kind == "out" else "validation"
        models |= dict.fromkeys(operation.options.get("others", {}).values(), "serialization")
    names, definitions = models_json_schema(
        [(model, mode) for model, mode in sorted(models.items(), key=lambda pair: pair[0].__name__)],
        ref_template="#/components/schemas/{model}",
    )
    schemas = definitions.get("$defs", {})
    references = {model: names[(model, mode)] for model, mode in models.items()}
    paths: dict[str, Any] = {}
    for operation in operations:
        path, entry = _operation(operation, references, schemas)
        paths.setdefault(path, {})[operation.method.lower()] = entry
    for model, mode in models.items():
        if mode == "validation" and any(operation.options.get("query") is model for operation in operations):
            schemas.pop(references[model]["$ref"].rpartition("/")[2], None)
    schemas["Problem"] = _PROBLEM
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "IIoT Portal",
            "version": __version__,
            "description": "Times are RFC 3339 in UTC. Errors are RFC 9457 problem documents. Lists are read page by page with `cursor`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in sorted({operation.tag for operation in operations})],
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": dict(sorted(schemas.items())), "securitySchemes": _SCHEMES},
    }


def _operation(
    operation: Operation, references: dict[type[BaseModel], Any], schemas: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    options = operation.options
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "integer" if kind == "int" else "string"}}
        for kind, name in _PATH_PARAMETER.findall(operation.rule)
    ]
    path = _PATH_PARAMETER.sub(r"{\2}", operation.rule)
    if "query" in options:
        parameters += _query_parameters(references[options["query"]], schemas)
    entry: dict[str, Any] = {
        "operationId": operation.endpoint.replace(".", "_"),
        "summary": operation.summary,
        "tags": [operation.tag],
        "security": _SECURITY[operation.auth],
        "responses": _responses(operation, references, bool(parameters)),
    }
    if operation.description:
        entry["description"] = operation.description
    if parameters:
        entry["parameters"] = parameters
    if "body" in options or options.get("raw"):
        schema = references[options["body"]] if "body" in options else {}
        entry["requestBody"] = {
            "required": not options.get("optional_body", False),
            "content": {kind: {"schema": schema} for kind in options.get("consumes", ("application/json",))},
        }
    if "permission" in options:
        entry["x-permission"] = options["permission"]
    return path, entry


def _query_parameters(reference: dict[str, Any], schemas: dict[str, Any]) -> list[dict[str, Any]]:
    schema = schemas[reference["$ref"].rpartition("/")[2]]
    return [
        {"name": name, "in": "query", "required": name in schema.get("required", []), "schema": part}
        for name, part in schema.get("properties", {}).items()
    ]


def _responses(operation: Operation, references: dict[type[BaseModel], Any], has_parameters: bool) -> dict[str, Any]:
    options = operation.options
    out, has_body = options.get("out"), "body" in options or options.get("raw", False)
    codes = {429, *options.get("problems", ())}
    codes |= {400, 401, 403} if operation.auth != "none" else set()
    codes |= {400, 413, 415, 422} if has_body else set()
    codes |= {422} if "query" in options else set()
    codes |= {404} if "<" in operation.rule else set()
    good: dict[str, Any] = {"description": "Done"}
    if out is not None:
        good["content"] = {"application/json": {"schema": references[out]}}
    for kind in options.get("produces", ()):
        media_type = kind.partition(";")[0]
        schema = {} if media_type == "application/json" else {"type": "string"}
        good.setdefault("content", {})[media_type] = {"schema": schema}
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    answers = {str(options.get("status", 200 if "content" in good else 204)): good}
    answers |= {str(code): {"description": _TEXTS.get(code, "Refused"), "content": problem} for code in sorted(codes)}
    for code, model in options.get("others", {}).items():
        content = {"application/json": {"schema": references[model]}}
        answers[str(code)] = {"description": _TEXTS.get(code, "Accepted"), "content": content}
    return answers


@cache
def _file(name: str) -> str:
    return resources.files("iiot.web").joinpath(name).read_text(encoding="utf-8")


def init_app(app: Flask) -> None:
    """Add the document and the page; call it after all other routes are known."""
    made: dict[str, Any] = {}

    def spec() -> dict[str, Any]:
        if not made:
            made.update(document(app.extensions["iiot.operations"]))
        return made

    docs = Api("docs")

    @docs.route("GET", "/openapi.json", auth="none", produces=("application/json",))
    def openapi_json(_ctx: Any) -> Response:
        """This document, OpenAPI 3.1."""
        return Response(json.dumps(spec(), ensure_ascii=False), content_type="application/json; charset=utf-8")

    @docs.route("GET", "/docs", auth="none", produces=("text/html",))
    def docs_page(_ctx: Any) -> Response:
        """The documentation as a page."""
        page = render_template_string(_file("docs.html"), spec=spec(), codes=problems.CODES, prefix=PREFIX)
        return Response(page, content_type="text/html; charset=utf-8")

    @docs.route("GET", "/docs.css", auth="none", produces=("text/css",))
    def docs_style(_ctx: Any) -> Response:
        """The style sheet of the page."""
        return Response(
            _file("docs.css"), content_type="text/css; charset=utf-8", headers={"Cache-Control": "public, max-age=3600"}
        )

    docs.init_app(app)
