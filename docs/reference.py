"""Write the reference: a page and a JSON Schema for every JSON that leaves a step.

python docs/reference.py            writes docs/reference/
python docs/reference.py --check    fails if docs/reference/ is not what it would write
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from pydantic import BaseModel

from thyroid.notify.notification import Notification, ToldRecord
from thyroid.records.data import DataRecord
from thyroid.records.evaluation import EvaluationRecord, SummaryRecord
from thyroid.records.gate import ShadowRecord
from thyroid.records.locate import LocateRecord
from thyroid.records.model import ArtefactRecord
from thyroid.records.settings import Settings
from thyroid.records.share import PoolRecord, SiteRecord
from thyroid.records.train import DiagnosisRecord, TrainRecord
from thyroid.records.validation import ValidationRecord, ValidationsRecord
from thyroid.records.watch import Decision, Shadowed, WatchRecord
from thyroid.serve.schemas import ExplainAnswer, InferAnswer, InferRequest, LocateAnswer, PredictAnswer, PredictRequest

FOLDER = Path(__file__).parent / "reference"
RECORDS: dict[str, tuple[type[BaseModel], str]] = {
    "data.json": (DataRecord, "`ingest` writes it into the folder of a data version, and `crop` adds to it."),
    "train.json": (TrainRecord, "`train` writes it into the folder of a training."),
    "locate.json": (LocateRecord, "`locate` writes it into its folder."),
    "evaluation.json": (EvaluationRecord, "`evaluate` writes it into its folder."),
    "summary.json": (SummaryRecord, "`register` writes it: the result of a run, and `OUTPUT/summary.json`."),
    "model.json": (ArtefactRecord, "`evaluate` writes it into the artefact, and the registry adds to it."),
    "settings.json": (Settings, "A search writes it; `make run SETTINGS=settings.json` trains with it."),
    "diagnosis.json": (DiagnosisRecord, "`train` writes it into the folder of a training."),
    "validation.json": (ValidationRecord, "`python -m thyroid.validate` writes it into its folder."),
    "validations.json": (ValidationsRecord, "The registry keeps it beside a version that was validated."),
    "site.json": (SiteRecord, "`python -m thyroid.validate --share` writes it, for the pooling of sites."),
    "pool.json": (PoolRecord, "`python -m thyroid.pool` writes it into its folder."),
    "watch.json": (WatchRecord, "`python -m thyroid.watch` writes it into its folder."),
    "shadow.json": (ShadowRecord, "The registry keeps it beside a candidate that answered behind the champion."),
    "notification": (Notification, "The address in THYROID_NOTIFY_URL gets it by POST."),
    "told.json": (ToldRecord, "Written at the root of a registry when somebody was told something."),
    "decision": (Decision, "`python -m thyroid.serve --log` writes it, a line of the log."),
    "shadowed": (Shadowed, "`python -m thyroid.serve --log --shadow` writes it, a line of the candidate's log."),
    "predict-request": (PredictRequest, "POST /v1/models/thyroid:predict, `:explain` and `:locate`."),
    "predict-answer": (PredictAnswer, "POST /v1/models/thyroid:predict."),
    "explain-answer": (ExplainAnswer, "POST /v1/models/thyroid:explain."),
    "locate-answer": (LocateAnswer, "POST /v1/models/thyroid:locate."),
    "infer-request": (InferRequest, "POST /v2/models/thyroid/infer."),
    "infer-answer": (InferAnswer, "POST /v2/models/thyroid/infer."),
}
"""The model of every JSON file and HTTP body, and where it comes from."""
_NOTICE = "Written by `python docs/reference.py` from `{module}`. Do not edit it: change the record instead."


def pages() -> dict[str, str]:
    """Return the content of every file of the reference, by name."""
    result = {"README.md": _index()}
    for name, (record, origin) in RECORDS.items():
        schema = record.model_json_schema()
        result[f"{name.removesuffix('.json')}.schema.json"] = json.dumps(schema, indent=2) + "\n"
        result[f"{name.removesuffix('.json')}.md"] = _page(name, record, origin, schema)
    return result


def _index() -> str:
    lines = ["# Reference", "", "A page and a JSON Schema for every JSON that leaves a step or the endpoint.", ""]
    lines += ["| JSON | page | schema | origin |", "| --- | --- | --- | --- |"]
    for name, (_, origin) in RECORDS.items():
        stem = name.removesuffix(".json")
        lines.append(f"| `{name}` | [{stem}.md]({stem}.md) | [{stem}.schema.json]({stem}.schema.json) | {origin} |")
    return "\n".join([*lines, "", "Every interval has the fields `value`, `low` and `high`.", ""])


def _page(name: str, record: type[BaseModel], origin: str, schema: dict[str, Any]) -> str:
    lines = [f"# {name}", "", f"{_summary(schema)} {origin}", "", _NOTICE.format(module=record.__module__), ""]
    parts = schema.get("$defs", {})
    lines += _table(schema, parts)
    for title, part in parts.items():
        lines += ["", f"## {title}", "", _summary(part), "", *_table(part, parts)]
    return "\n".join([*lines, ""])


def _summary(schema: dict[str, Any]) -> str:
    return " ".join(schema.get("description", "").split("\n\n")[0].split())


def _table(schema: dict[str, Any], parts: dict[str, Any]) -> Iterator[str]:
    needed = set(schema.get("required", ()))
    yield "| field | type | meaning |"
    yield "| --- | --- | --- |"
    for name, field in schema["properties"].items():
        described = field if "description" in field else parts.get(field.get("$ref", "").rsplit("/", 1)[-1], {})
        meaning = " ".join(described.get("description", "").split()).replace("|", "\\|")
        yield f"| `{name}`{'' if name in needed else ' (optional)'} | {_kind(field)} | {meaning} |"


def _kind(field: dict[str, Any]) -> str:
    """Return the type of a field in words."""
    if "$ref" in field:
        title = field["$ref"].rsplit("/", 1)[1]
        return f"[{title}](#{title.lower()})"
    if "anyOf" in field:
        return " or ".join(_kind(one) for one in field["anyOf"])
    if field.get("type") == "array":
        return f"list of {_kind(field['items'])}"
    if isinstance(inner := field.get("additionalProperties"), dict):
        return f"object of {_kind(inner)}"
    return str(field.get("type", "any"))


def main() -> None:
    """Write the reference, or check that it is current."""
    wanted = pages()
    if "--check" not in sys.argv[1:]:
        FOLDER.mkdir(exist_ok=True)
        for name, text in wanted.items():
            (FOLDER / name).write_text(text)
        return
    there = {path.name: path.read_text() for path in FOLDER.glob("*")}
    if stale := sorted(name for name in {*wanted, *there} if wanted.get(name) != there.get(name)):
        sys.exit(f"error: docs/reference/{stale[0]} is not what the records say; run `make docs`")


if __name__ == "__main__":
    main()
