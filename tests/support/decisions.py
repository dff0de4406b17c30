"""Lines of the decision log, made up for tests that need no endpoint."""

import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from thyroid.records.watch import SHADOW_FOLDER, Decision, Shadowed


def decision(**changes: Any) -> dict[str, Any]:
    """A decision with an id of its own, as a line of the log has it."""
    content = {
        "id": uuid.uuid4().hex,
        "request": uuid.uuid4().hex,
        "number": 0,
        "time": "2025-07-14T09:30:00.125Z",
        "image": "0123abcd:" + "1" * 32,
        "version": 3,
        "form": "openvino-f32",
        "source": "auto",
        "probability": 0.25,
        "decision": "benign",
        "reasons": [],
        "novelty": 40.5,
        "distance": 0.5,
        "box_probability": 0.9,
        "width": 800,
        "height": 600,
        "box": [10, 20, 30, 40],
    }
    return Decision.parse(content | changes, "log").to_dict()


def write(folder: Path, rows: Iterable[dict[str, Any]], name: str = "decisions-2025-07-14-host-0a.jsonl") -> Path:
    """Append lines to a file of the log, as an endpoint does."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with path.open("a") as opened:
        opened.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def shadowed(behind: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What a candidate makes of the image of a decision, as a line of its own log has it."""
    own = ("id", "time", "image", "probability", "decision", "reasons", "novelty", "distance")
    content = {name: behind[name] for name in (*own, "patient") if name in behind}
    return Shadowed.parse(content | {"version": 4, "form": "openvino-f32"} | changes, "log").to_dict()


def write_shadowed(
    folder: Path, rows: Iterable[dict[str, Any]], name: str = "decisions-2025-07-14-host-0b.jsonl"
) -> Path:
    """Append lines of a candidate to a file of the log, as an endpoint does."""
    return write(folder / SHADOW_FOLDER, rows, name)
