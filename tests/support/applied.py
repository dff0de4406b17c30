"""Whether a real API server keeps what it is given: nothing is dropped or changed, and a second time nothing changes.

A server before 1.25 does not refuse unknown fields. It drops them, which shows here.
"""

import json
from typing import Any

import yaml

from tests.support.kubernetes import Namespace

Object = dict[str, Any]


def check(namespace: Namespace, objects: list[Object]) -> None:
    """Apply objects twice on the server's side, and compare what is there after each."""
    kept = _apply(namespace, objects)
    assert [found for one, other in zip(objects, kept, strict=True) for found in lost(one, other, one["kind"])] == []
    again = _apply(namespace, objects)
    if namespace.server.ours:  # elsewhere controllers write, too
        assert [_content(one) for one in again] == [_content(one) for one in kept]


def lost(given: Any, kept: Any, where: str) -> list[str]:
    """Return what of an object the server did not keep, or keeps otherwise. What it adds is its own."""
    if isinstance(given, dict) and isinstance(kept, dict):
        return [found for name in given for found in lost(given[name], kept.get(name), f"{where}.{name}")]
    if isinstance(given, list) and isinstance(kept, list) and len(given) <= len(kept):
        pairs = enumerate(zip(given, kept, strict=False))
        return [found for number, (one, other) in pairs for found in lost(one, other, f"{where}[{number}]")]
    return [] if given == kept else [f"{where}: {given} became {kept}"]


def _apply(namespace: Namespace, objects: list[Object]) -> list[Object]:
    text = yaml.safe_dump_all(objects)
    namespace.apply(text)
    return items(namespace.kubectl("get", "--output=json", "--filename=-", text=text))


def items(answer: str) -> list[Object]:
    """Return the objects in an answer of kubectl, which wraps them unless there is just one."""
    found = json.loads(answer)
    return list(found["items"]) if found["kind"] == "List" else [found]


def _content(one: Object) -> Object:
    """Return an object without its version, which Kubernetes 1.20 raises for some though nothing in them changes."""
    return one | {"metadata": {name: value for name, value in one["metadata"].items() if name != "resourceVersion"}}
