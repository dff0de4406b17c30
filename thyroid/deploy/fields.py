"""Who has set which field of an InferenceService: a deployment leaves what others have set, except for the model.

The API server keeps the owner of every field in metadata.managedFields (Kubernetes, "Server-Side Apply").
"""

import copy
from collections.abc import Iterator
from typing import Any

from thyroid.deploy.cluster import MANAGER, Object

_OURS = (
    *("spec.predictor.model.storageUri", "spec.predictor.model.runtime", "spec.predictor.canaryTrafficPercent"),
    *("spec.canary", "metadata.labels.thyroid/", "metadata.annotations.thyroid/"),
)
"""Fields that decide which model answers, and where. A deployment takes them over from whoever has set them."""

_OLD_MANAGER, _OLD_ANNOTATION = "OpenAPI-Generator", "thyroid/applied"
"""Field manager and annotation of releases that merged edits by hand by themselves."""


def merged(live: Object, wanted: Object) -> tuple[Object, list[str]]:
    """Return what to apply so that the fields of others stay as they are, and a note about each of these fields.

    Args:
        live: The object as the cluster has it.
        wanted: The object as a deployment would make it.

    Returns:
        A copy of `wanted` without the fields that others have set, unless they decide which model answers.
    """
    body, notes = copy.deepcopy(wanted), []
    body["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
    for entry in live["metadata"].get("managedFields", []):
        for path in _leaves(entry.get("fieldsV1", {})) if entry["manager"] != MANAGER else ():
            text, now, new = ".".join(path), _at(live, path), _at(wanted, path)
            # An owner whose fields were all taken over still owns the map around them.
            if now == new or isinstance(new, dict) or (new is None and path[0] != "spec"):
                continue
            done = "left" if new is None else f"left (a deployment would set {new!r})"
            if new is not None and text.startswith(_OURS):
                done = f"set to {new!r}"
            else:
                (_at(body, path[:-1]) or {}).pop(path[-1], None)
            notes.append(f"{text} was set to {now!r} by {entry['manager']}: {done}")
    return body, notes


def taken_over(live: Object) -> list[Object]:
    """Return the JSON patch that makes `MANAGER` the owner of what an older release has sent; empty if that is nothing.

    The next deployment removes what it does not set, such as that release's annotation.
    """
    metadata = live["metadata"]
    entries = metadata.get("managedFields", [])
    old = [entry for entry in entries if entry["manager"] in (MANAGER, _OLD_MANAGER)]
    if _OLD_ANNOTATION not in metadata.get("annotations", {}) or all(entry["manager"] == MANAGER for entry in old):
        return []
    fields: Object = {}
    for entry in old:
        fields = _union(fields, entry["fieldsV1"])
    others = [entry for entry in entries if entry not in old]
    mine = {"manager": MANAGER, "operation": "Apply", "apiVersion": live["apiVersion"], "fieldsType": "FieldsV1"}
    return [
        {"op": "replace", "path": "/metadata/managedFields", "value": [mine | {"fieldsV1": fields}, *others]},
        {"op": "replace", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
    ]


def _leaves(fields: Object, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of the fields in a fieldsV1. A list counts as one field."""
    for key, value in fields.items():
        if any(inner.startswith("f:") for inner in value):
            yield from _leaves(value, (*above, key[2:]))
        elif key.startswith("f:") and above[:1] != ("status",):
            yield (*above, key[2:])


def _at(content: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _union(one: Object, other: Object) -> Object:
    return one | {key: _union(one.get(key, {}), value) for key, value in other.items()}
