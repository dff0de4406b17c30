"""The OpenAPI document of the HTTP routes, served at /openapi.json.

KServe's own document describes neither bodies nor answers.
"""

from typing import Any

from thyroid import RESEARCH_USE_ONLY
from thyroid.registry import registry
from thyroid.serve.limits import MAX_INSTANCES

IMAGES = ("image/jpeg", "image/png", "application/dicom")
"""Content types of a body that is one file."""

_NUMBER = {"type": "number"}
_TEXT = {"type": "string"}

_INSTANCE = {
    "type": "object",
    "required": ["image"],
    "properties": {
        "image": {
            "type": "object",
            "required": ["b64"],
            "properties": {
                "b64": {"type": "string", "format": "byte", "description": "base64 of a JPEG, PNG or DICOM file"}
            },
        },
        "roi": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 1_000_000},
            "minItems": 4,
            "maxItems": 4,
            "description": "the nodule: x, y, width, height in pixels of the image",
        },
        "patient": {"type": "string", "maxLength": 128, "description": "views of one patient are aggregated"},
        "frame": {"type": "integer", "minimum": 1, "maximum": 1_000_000, "description": "of a DICOM file"},
        "clinical": {
            "type": "object",
            "description": "values of clinical columns, where the model uses any (facts: clinical.fields); "
            "all may be left out",
        },
    },
}
_DECIDED = {
    "probability": {"type": "object", "additionalProperties": _NUMBER, "description": "of each class, calibrated"},
    "malignant": {"type": "number", "description": "probability of the malignant classes together"},
    "class": {"type": "string", "description": "the most probable one of the side that the threshold decides"},
    "above_threshold": {"type": "array", "items": _TEXT, "description": "classes above their own thresholds"},
    "threshold": _NUMBER,
    "decision": {"type": "string", "enum": ["benign", "malignant", "abstain"]},
    "reason": {"type": "string", "enum": ["abstention_band"]},
}
_PREDICTION = {
    "type": "object",
    "required": [
        "probability",
        "malignant",
        "class",
        "above_threshold",
        "threshold",
        "decision",
        "crop",
        "model_version",
        "data_digest",
        "form",
        "notice",
    ],
    "properties": _DECIDED
    | {
        "crop": {"type": "object", "description": "what was done to the image before the network saw it"},
        "model": _TEXT,
        "model_version": {"type": "integer"},
        "data_digest": _TEXT,
        "form": _TEXT,
        "milliseconds": {"type": "object", "additionalProperties": _NUMBER},
        "clinical": {"type": "object", "description": "columns used and missing, and notes on values"},
        "notice": _TEXT,
        "not_released": {"type": "array", "items": _TEXT, "description": "why the model may not be relied on"},
    },
}
_PNG: dict[str, Any] = {"type": "object", "properties": {"b64": {"type": "string", "format": "byte"}}}
_HEAT_MAP = {
    "type": "object",
    "properties": {
        "method": _TEXT,
        "map": {
            "type": "array",
            "items": {"type": "array", "items": _NUMBER},
            "description": "0 to 1, rows of the last map",
        },
        "size": {"type": "integer", "description": "side of the network's input, of the overlay and of roi"},
        "overlay_png": _PNG,
        "layer_png": _PNG | {"description": "the map alone, transparent where it is cold"},
        "roi": {"type": "array", "items": {"type": "integer"}, "nullable": True},
        "share_inside_roi": {"type": "number", "nullable": True},
    },
}
_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"type": "string", "enum": ["image", "roi", "patient", "frame", "clinical"]},
        "shape": {
            "type": "array",
            "items": {"type": "integer", "minimum": 1, "maximum": 100_000},
            "minItems": 1,
            "maxItems": 4,
        },
        "datatype": {"type": "string", "enum": ["BYTES", "UINT8", "INT32", "INT64"]},
        "data": {"type": "array", "items": {}},
    },
}
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


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _answers(schema: dict[str, Any], *errors: str) -> dict[str, Any]:
    told = {code: {"description": _ERRORS[code], "content": _json({"type": "object"})} for code in errors}
    return {"200": {"description": "The answer", "content": _json(schema)}} | told


def _list_of(name: str, items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "required": [name], "properties": {name: {"type": "array", "items": items} | more}}


def document() -> dict[str, Any]:
    """Return the OpenAPI 3.0 document as a dictionary."""
    request = _list_of("instances", _INSTANCE, minItems=1, maxItems=MAX_INSTANCES)
    image = {"schema": {"type": "string", "format": "binary"}}
    v1_body = {"required": True, "content": _json(request) | dict.fromkeys(IMAGES, image)}
    patients = {"type": "array", "items": {"type": "object", "properties": _DECIDED | {"patient": _TEXT}}}
    predictions = _list_of("predictions", _PREDICTION)
    predictions["properties"]["patients"] = patients
    explained = {**_PREDICTION, "properties": {**_PREDICTION["properties"], "heat_map": _HEAT_MAP}}  # type: ignore[dict-item]
    explanations = _list_of("explanations", explained)
    explanations["properties"]["patients"] = patients
    infer = {
        "type": "object",
        "required": ["inputs"],
        "properties": {"id": _TEXT, "inputs": {"type": "array", "items": _TENSOR, "minItems": 1, "maxItems": 5}},
    }
    outputs = _list_of("outputs", {"type": "object"})
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": [registry.NAME]}}
    failed = ("400", "401", "404", "408", "413", "415", "503", "504")

    def get(summary: str, schema: dict[str, Any], *errors: str, parameters: tuple[Any, ...] = ()) -> dict[str, Any]:
        return {"get": {"summary": summary, "parameters": list(parameters), "responses": _answers(schema, *errors)}}

    def post(summary: str, body: dict[str, Any], schema: dict[str, Any], *errors: str) -> dict[str, Any]:
        done = {"summary": summary, "parameters": [name], "requestBody": body, "responses": _answers(schema, *errors)}
        return {"post": done}

    anything = {"type": "object"}
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "Thyroid nodules: benign or malignant from ultrasound",
            "version": "1",
            "description": f"{RESEARCH_USE_ONLY} KServe V1 and V2 (Open Inference Protocol).",
        },
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "paths": {
            "/v1/models/{model}:predict": post("Probability and decision of images", v1_body, predictions, *failed),
            "/v1/models/{model}:explain": post("The same with a heat map", v1_body, explanations, *failed),
            "/v1/models": get("Names of the models", anything, "401"),
            "/v1/models/{model}": get("Whether a model is ready", anything, "401", "404", "503", parameters=(name,)),
            "/v1/models/{model}/facts": get(
                "Who answers: model.json of the version", anything, "401", "404", "503", parameters=(name,)
            ),
            "/v1/models/{model}/report": {
                "get": {
                    "summary": "The report of its evaluation",
                    "parameters": [name],
                    "responses": _answers(anything, "401", "404", "503")
                    | {"200": {"description": "A page", "content": {"text/html": {"schema": {"type": "string"}}}}},
                }
            },
            "/v2": get("The server", anything, "401"),
            "/v2/health/live": get("Whether the server runs", anything),
            "/v2/health/ready": get("Whether requests should come here", anything, "503"),
            "/v2/models": get("Names of the models", anything, "401"),
            "/v2/models/{model}": get(
                "Inputs and outputs of a model", anything, "401", "404", "503", parameters=(name,)
            ),
            "/v2/models/{model}/ready": get(
                "Whether a model is ready", anything, "401", "404", "503", parameters=(name,)
            ),
            "/v2/models/{model}/infer": post(
                "Probability and decision of images",
                {"required": True, "content": _json(infer)},
                outputs,
                *failed,
                "422",
            ),
        },
    }
