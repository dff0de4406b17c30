"""Validates Kubernetes objects: built-in kinds with kubernetes-validate, custom kinds with their definitions."""

import copy
import functools
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.support import SHARED

CRDS = SHARED / "schemas" / "crds"
KUBERNETES = "1.31"
CUSTOM = ("gateway.networking.k8s.io",)
"""Groups that are named like Kubernetes' own groups but are not built in."""


@functools.cache
def definitions() -> dict[tuple[str, str], dict[str, Any]]:
    """Map (apiVersion, kind) to the schema of a custom kind; empty if the definitions are not on this machine."""
    found = {}
    for file in sorted(CRDS.glob("*.yaml")):
        crd = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
        versions = crd.get("versions") or [{"name": crd["version"], "schema": crd.get("validation", {})}]
        for version in versions:
            schema = version.get("schema", {}).get("openAPIV3Schema")
            if schema:
                found[f"{crd['group']}/{version['name']}", crd["names"]["kind"]] = _strict(copy.deepcopy(schema))
    return found


def _strict(schema: Any) -> Any:
    """Return a schema as an API server applies it: unknown fields are errors, and quantities may be numbers."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {
        key: {name: _strict(one) for name, one in value.items()} if key == "properties" else _strict(value)
        for key, value in schema.items()
        if key not in ("format", "default", "description")
    }
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_ended:
        result["additionalProperties"] = False
    return result


def problems(body: dict[str, Any], schemas: dict[tuple[str, str], dict[str, Any]]) -> list[str] | None:
    """Return the errors for which an API server would refuse an object, or None if its kind has no schema.

    The `metadata` of custom kinds is checked like that of built-in ones.
    """
    key = body["apiVersion"], body["kind"]
    group = key[0].split("/")[0]
    if "." not in group or (group.endswith(".k8s.io") and group not in CUSTOM):
        try:
            kubernetes_validate.validate(body, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            return [f"{'.'.join(map(str, error.path))}: {error.message}"]
        return []
    if key not in schemas:
        return None
    rest = {name: value for name, value in body.items() if name != "metadata"}
    found = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in jsonschema.Draft202012Validator(schemas[key]).iter_errors(rest)
    ]
    stand_in = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": body["metadata"]}
    return found + (problems(stand_in, schemas) or [])
