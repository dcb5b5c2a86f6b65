"""The OpenAPI document is valid, and the portal keeps it: generated requests under both tenants, every answer compared with the document."""

import os
from collections.abc import Iterator
from typing import Any

import hypothesis
import openapi_spec_validator
import pytest
import schemathesis
from flask import Flask
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api.route_examples import NOWHERE, OBJECTS
from tests.api.sides import Side, make_plan, make_side

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    ignored_auth,
]
# Per operation and tenant; `make nightly` asks for more.
EXAMPLES = int(os.environ.get("IIOT_OPENAPI_EXAMPLES", "4"))
# Afterwards there is nobody who could ask the rest.
ENDS_THE_CALLER = ("/api/v1/auth/logout", "/api/v1/auth/sessions/end-others", "/api/v1/auth/switch")
HASHES = ("/api/v1/auth/login", "/api/v1/auth/password/change", "/api/v1/auth/register", "/api/v1/auth/password/reset")


@pytest.fixture(scope="module")
def sides(app: Flask) -> tuple[Side, Side]:
    plan = make_plan()
    return make_side(app, "a", plan), make_side(app, "b", plan)


def test_the_document_is_valid(app: Flask) -> None:
    openapi_spec_validator.validate(app.test_client().get("/api/v1/openapi.json").get_json())


def _operations(app: Flask) -> Iterator[Any]:
    schema = schemathesis.openapi.from_wsgi("/api/v1/openapi.json", app)
    for result in schema.get_all_operations():
        yield result.ok()


@pytest.mark.parametrize("whose", ["own", "foreign"])
def test_generated_requests_are_answered_as_documented(app: Flask, sides: tuple[Side, Side], whose: str) -> None:
    """Under A's admin with A's own objects, and under B's with A's; ids that do not exist are among both."""
    owner, other = sides
    caller = (owner if whose == "own" else other).admin
    failures: list[str] = []
    asked = 0

    def check(operation: Any) -> None:
        slow = operation.path in HASHES
        # There is no broker here, so /ready says so with its documented 503.
        checks = CHECKS[1:] if operation.path == "/ready" else CHECKS

        @hypothesis.settings(
            max_examples=1 if slow else EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy(), exists=hypothesis.strategies.integers(0, 3))
        def run(case: Any, exists: int) -> None:
            nonlocal asked
            asked += 1
            for name in case.path_parameters or {}:
                if name in OBJECTS and exists and case.method != "DELETE":
                    case.path_parameters[name] = owner.ids[OBJECTS[name]] if exists < 3 else NOWHERE
            headers = dict(caller.token) if operation.definition.raw.get("security") else {}
            case.call_and_validate(
                headers=headers, checks=checks, environ_overrides={"REMOTE_ADDR": f"203.0.{asked >> 8}.{asked & 255}"}
            )

        run()

    for operation in _operations(app):
        if operation.path in ENDS_THE_CALLER:
            continue
        try:
            check(operation)
        except BaseExceptionGroup as group:
            failures.append(f"{operation.label}: " + "; ".join(str(each)[:600] for each in group.exceptions))
        except (AssertionError, Exception) as error:
            failures.append(f"{operation.label}: {type(error).__name__} {str(error)[:600]}")
    assert not failures, "\n\n".join(failures)
    assert asked > 100
