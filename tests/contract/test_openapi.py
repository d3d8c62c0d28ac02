"""Schemathesis: requests made from our description, fitting and not, against the real server."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from deepseek_serve.app import ROUTERS
from deepseek_serve.reference.document import document
from tests.serve.conftest import Server, running_server

EXAMPLES = int(os.environ.get("DEEPSEEK_API_EXAMPLES", "10"))  # per operation and mode
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
# Other paths of the same functions, which would be the same again.
AGAIN = re.compile(r"^/(chat|completions|models|anthropic|responses|embeddings)\b")


def _parts(operation: dict[str, Any]) -> set[str]:
    """What of a request can be wrong."""
    return operation.keys() | {parameter["in"] for parameter in operation["parameters"]}


DOCUMENT = document((router, bool(key)) for router, key in ROUTERS)
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = {
    operation.label: operation
    for operation in (result.ok() for result in SCHEMA.get_all_operations())
    if not AGAIN.match(operation.path)
}


CASES = [(label, schemathesis.GenerationMode.POSITIVE) for label in OPERATIONS]
CASES += [
    (label, schemathesis.GenerationMode.NEGATIVE)
    for label, operation in OPERATIONS.items()
    if {"requestBody", "query"} & _parts(DOCUMENT["paths"][operation.path][operation.method])
]


@pytest.fixture(scope="module")
def api() -> Iterator[Server]:
    with running_server(max_sequences=64) as running:
        yield running


@pytest.mark.parametrize(("label", "mode"), CASES)
def test_the_server_does_as_it_says(api: Server, label: str, mode: schemathesis.GenerationMode) -> None:
    operation = OPERATIONS[label]

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
        derandomize=EXAMPLES < 100,
        database=None,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        response = case.call(base_url=api.url, timeout=30)
        case.validate_response(response, checks=CHECKS)

    check()
