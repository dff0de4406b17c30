"""Edits of an InferenceService by hand: a deployment keeps them, unless they decide which model answers."""

import copy
from typing import Any

from thyroid.deploy.kserve_client import Object

APPLIED = "thyroid/applied"
"""Annotation with the last deployment's request, which distinguishes edits by hand from ours."""

_ESSENTIAL = (
    "spec.predictor.model.modelFormat.",
    "spec.predictor.model.runtime",
    "spec.predictor.model.storage",
    "spec.predictor.model.image",
    "spec.predictor.model.command",
    "spec.predictor.model.args",
    "spec.predictor.storageUris",
    "spec.predictor.canaryTrafficPercent",
    "annotations.thyroid/",
    "labels.thyroid/",
)
"""Fields that decide which model answers. They are never left to an edit by hand, not even to an addition."""


def deployed_parts(body: Object) -> Object:
    """Return the parts of an object that a deployment sets."""
    metadata = body["metadata"]
    return {
        "spec": body["spec"],
        "annotations": {k: v for k, v in (metadata.get("annotations") or {}).items() if k != APPLIED},
        "labels": metadata.get("labels") or {},
    }


def merged(live: Object, applied: Object, wanted: Object) -> tuple[Object, list[str]]:
    """Change `live` to `wanted`, except for what somebody has edited by hand since `applied`.

    Such an edit is kept and noted. Fields that decide which model answers are always set.

    Args:
        live: Spec, annotations and labels as the cluster has them.
        applied: The same as the last deployment requested them.
        wanted: The same as this deployment requests them.

    Returns:
        The merged object, and a note for each edit by hand.
    """
    result, notes = copy.deepcopy(live), []
    before, after, found = _leaves(applied), _leaves(wanted), _leaves(live)
    settable_paths = before.keys() | after.keys() | {p for p in found if ".".join(p).startswith(_ESSENTIAL)}
    for path in sorted(settable_paths):
        text = ".".join(path)
        old, new, now = before.get(path), after.get(path), found.get(path)
        if now == new:
            continue
        # If no deployment has written the object yet, a missing field was not removed by anybody.
        by_hand = now != old and (path in found or bool(before))
        if by_hand and not text.startswith(_ESSENTIAL):
            notes.append(f"{text} was {_edited(now)} by hand: kept (a deployment would set {new!r})")
            continue
        if by_hand and before:
            notes.append(f"{text} was {_edited(now)} by hand: {'removed' if new is None else f'set to {new!r}'}")
        _set(result, path, new)
    return result, notes


def _edited(value: Any) -> str:
    return "removed" if value is None else f"set to {value!r}"


def _leaves(content: Object, above: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Map each path to its value. A list counts as one value."""
    result: dict[tuple[str, ...], Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            result |= _leaves(value, (*above, key))
        else:
            result[*above, key] = value
    return result


def _set(content: Object, path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        content = content.setdefault(key, {})
    if value is None:
        content.pop(path[-1], None)
    else:
        content[path[-1]] = value
