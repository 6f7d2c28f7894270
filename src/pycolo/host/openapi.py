"""The OpenAPI document, made from the table of routes and the models of their bodies."""

from __future__ import annotations

import re
from typing import Any

from pydantic.json_schema import models_json_schema

from pycolo import __version__
from pycolo.host.models import Body, Failure
from pycolo.host.routes import JSON, ROUTES, Route
from pycolo.host.security import Scope


def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    models = {model for route in ROUTES for model in (route.body, route.answer) if model is not None} | {Failure}
    ordered = [(model, "validation") for model in sorted(models, key=lambda model: model.__name__)]
    _, schemas = models_json_schema(ordered, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "pycolo host API", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "host": {"type": "mutualTLS", "description": "the certificate of another host"},
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    needs = "read" if route.needs is Scope.READ else "admin"
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "description": f"On the network: a token with scope {needs}{', or another host' if route.peers_too else ''}.",
        "security": [{"token": []}, *([{"host": []}] if route.peers_too else [])],
        "responses": {
            "200": {"description": route.summary, "content": {route.content_type: {"schema": _answer(route)}}},
            "default": {"description": "It is not done, and why", "content": {JSON: {"schema": _reference(Failure)}}},
        },
    }
    parameters = [_path_parameter(name) for name in re.findall("{([a-z]+)}", route.path)]
    parameters += [
        {"name": one.name, "in": "query", "schema": {"type": one.kind}, "description": one.meaning}
        for one in route.query
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": _reference(route.body)}}}
    return operation


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _answer(route: Route) -> dict[str, Any]:
    if route.answer is not None:
        return _reference(route.answer)
    return {"type": "object"} if route.content_type == JSON else {"type": "string"}


def _reference(model: type[Body]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
