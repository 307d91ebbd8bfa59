"""The description of the gateway's interface that `/openapi.json` gives, in OpenAPI 3.1."""

from __future__ import annotations

from typing import Any

from mpc_train.base.release import version
from mpc_train.gateway.refusals import OURS, REFUSED
from mpc_train.serving.offered import MOST_ROWS, REFUSALS

_WORDS = {
    400: "The JSON, a column or a cell does not fit; the error names instance and column",
    401: "The token is missing or wrong",
    403: REFUSALS["not-allowed"],
    404: REFUSALS["unknown-model"],
    408: "The request did not arrive in time",
    413: f"More than {MOST_ROWS} instances, or too long; nothing was asked",
    415: "The content is not application/json",
    429: f"{REFUSALS['quota']}; Retry-After says when the next day begins",
    502: "The evaluators' answer is not one, or they run another release",
    503: "Busy, or the service is away; Retry-After says when to ask again",
}
_ERROR = {"$ref": "#/components/schemas/Error"}
_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
_VERSION = {
    "name": "version",
    "in": "path",
    "required": True,
    "schema": {"type": "integer", "minimum": 1},
}


def document() -> dict[str, Any]:
    """Names no model: who may see the models has a token."""
    asks = {
        "requestBody": {"required": True, "content": _json("Request")},
        "responses": {"200": _content("The predictions, in order", "Predictions")}
        | _errors(400, 401, 403, 404, 408, 413, 415, 429, 502, 503),
    }
    shows = {"responses": {"200": _content("The model", "Model")} | _errors(401, 404)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mpc-train gateway",
            "version": version(),
            "description": "Predictions by models in shares, by the KServe v1 protocol. Rows leave "
            "this machine only as shares.",
        },
        "security": [{"token": []}],
        "paths": {
            "/": {"get": _open("Alive", "The gateway runs")},
            "/healthz": {"get": _open("Healthy", "The gateway answers requests")},
            "/metrics": {
                "get": {
                    "summary": "Metrics for Prometheus",
                    "responses": {"200": {"description": "Text"}} | _errors(401),
                }
            },
            "/v1/models": {
                "get": {
                    "summary": "The models that may be asked",
                    "responses": {"200": _content("Their names", "Models")} | _errors(401),
                }
            },
            "/v1/models/{name}": {
                "get": {"summary": "A model: its newest version", "parameters": [_NAME], **shows}
            },
            "/v1/models/{name}/versions/{version}": {
                "get": {"summary": "A version", "parameters": [_NAME, _VERSION], **shows}
            },
            "/v1/models/{name}:predict": {
                "post": {"summary": "Ask the newest version", "parameters": [_NAME], **asks}
            },
            "/v1/models/{name}/versions/{version}:predict": {
                "post": {"summary": "Ask a version", "parameters": [_NAME, _VERSION], **asks}
            },
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(),
        },
    }


def _schemas() -> dict[str, Any]:
    text = {"type": "string"}
    cell = {"type": ["number", "string", "boolean", "null", "array"]}
    return {
        "Request": {
            "type": "object",
            "required": ["instances"],
            "additionalProperties": False,
            "properties": {
                "instances": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MOST_ROWS,
                    "items": {"type": "object", "additionalProperties": cell},
                }
            },
            "example": {"instances": [{"age": 61, "smoker": True, "region": None}]},
        },
        "Predictions": {
            "type": "object",
            "required": ["predictions"],
            "properties": {
                "predictions": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["prediction"],
                        "properties": {"prediction": {"type": ["number", "string"]}},
                        "additionalProperties": {"type": "number"},
                    },
                }
            },
            "example": {
                "predictions": [{"prediction": "ill", "p(healthy)": 0.1, "p(ill)": 0.9}],
            },
        },
        "Models": {
            "type": "object",
            "properties": {"models": {"type": "array", "items": text}},
        },
        "Model": {
            "type": "object",
            "required": ["name", "ready", "versions", "version", "columns"],
            "properties": {
                "name": text,
                "ready": {"type": "boolean"},
                "versions": {"type": "array", "items": text},
                "version": {"type": "integer"},
                "digest": text,
                "columns": {"type": "array", "items": {"type": "object"}},
            },
        },
        "Error": {
            "type": "object",
            "required": ["error", "code"],
            "properties": {"error": text, "code": {"enum": sorted({*REFUSED, *OURS})}},
        },
    }


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _content(what: str, schema: str) -> dict[str, Any]:
    return {"description": what, "content": _json(schema)}


def _errors(*statuses: int) -> dict[str, Any]:
    return {str(status): _content(_WORDS[status], "Error") for status in statuses}


def _open(summary: str, what: str) -> dict[str, Any]:
    """An answer that needs no token."""
    return {"summary": summary, "security": [], "responses": {"200": {"description": what}}}
