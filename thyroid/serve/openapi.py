"""The OpenAPI document of the HTTP routes, served at /openapi.json.

KServe's own document describes neither bodies nor answers.
"""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from thyroid import RESEARCH_USE_ONLY
from thyroid.registry.registry import MODEL_NAME
from thyroid.serve import schemas

IMAGES = ("image/jpeg", "image/png", "application/dicom")
"""Content types of a body that is one file."""

_MODELS = (
    *(schemas.PredictRequest, schemas.PredictAnswer, schemas.ExplainAnswer, schemas.LocateAnswer),
    *(schemas.InferRequest, schemas.InferAnswer, schemas.Error),
)
_ERRORS = {
    "400": "The request is wrong; the message names the field",
    "401": "A bearer token is needed",
    "404": "No such model or version",
    "408": "The body did not arrive in time",
    "413": "The body is too large",
    "415": "Another content type is needed",
    "422": "A body that is not of the V2 protocol",
    "503": "Not ready, or too much is waiting: try again after Retry-After seconds",
    "504": "Not answered within the deadline",
}
_FAILED = ("400", "401", "404", "408", "413", "415", "503", "504")
_GET_FAILED = ("401", "404", "503")
_ANYTHING = {"type": "object"}
_NAME = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": [MODEL_NAME]}}


def document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document as a dictionary."""
    _, definitions = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Thyroid nodules: benign or malignant from ultrasound",
            "version": "1",
            "description": f"{RESEARCH_USE_ONLY} KServe V1 and V2 (Open Inference Protocol).",
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": definitions["$defs"],
        },
        "paths": _v1_paths() | _v2_paths(),
    }


def _v1_paths() -> dict[str, Any]:
    image = {"schema": {"type": "string", "format": "binary"}}
    body = _json(_reference(schemas.PredictRequest)) | dict.fromkeys(IMAGES, image)
    page = {"description": "A page", "content": {"text/html": {"schema": {"type": "string"}}}}
    report = _get("The report of its evaluation", *_GET_FAILED, named=True)
    report["get"]["responses"]["200"] = page
    return {
        "/v1/models/{model}:predict": _post("Probability and decision of images", body, schemas.PredictAnswer),
        "/v1/models/{model}:explain": _post("The same with a heat map", body, schemas.ExplainAnswer),
        "/v1/models/{model}:locate": _post("Boxes that may hold the nodule", body, schemas.LocateAnswer),
        "/v1/models": _get("Names of the models", "401"),
        "/v1/models/{model}": _get("Whether a model is ready", *_GET_FAILED, named=True),
        "/v1/models/{model}/facts": _get(
            "Who answers: model.json of the version, and its external validations", *_GET_FAILED, named=True
        ),
        "/v1/models/{model}/report": report,
    }


def _v2_paths() -> dict[str, Any]:
    body = _json(_reference(schemas.InferRequest))
    infer = _post("Probability and decision of images", body, schemas.InferAnswer, "422")
    return {
        "/v2": _get("The server", "401"),
        "/v2/health/live": _get("Whether the server runs"),
        "/v2/health/ready": _get("Whether requests should come here", "503"),
        "/v2/models": _get("Names of the models", "401"),
        "/v2/models/{model}": _get("Inputs and outputs of a model", *_GET_FAILED, named=True),
        "/v2/models/{model}/ready": _get("Whether a model is ready", *_GET_FAILED, named=True),
        "/v2/models/{model}/infer": infer,
    }


def _get(summary: str, *errors: str, named: bool = False) -> dict[str, Any]:
    """Describe a GET; `named` if its path holds the name of a model."""
    return {
        "get": {
            "summary": summary,
            "parameters": [_NAME] if named else [],
            "responses": _answers(_ANYTHING, *errors),
        }
    }


def _post(summary: str, content: dict[str, Any], answer: type[BaseModel], *errors: str) -> dict[str, Any]:
    return {
        "post": {
            "summary": summary,
            "parameters": [_NAME],
            "requestBody": {"required": True, "content": content},
            "responses": _answers(_reference(answer), *_FAILED, *errors),
        }
    }


def _answers(schema: dict[str, Any], *errors: str) -> dict[str, Any]:
    error = _json(_reference(schemas.Error))
    failed = {code: {"description": _ERRORS[code], "content": error} for code in errors}
    return {"200": {"description": "The answer", "content": _json(schema)}} | failed


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _reference(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
