"""The records: what is written is their whole truth, and the reference says the same."""

import json
import subprocess
import sys

import pytest

from tests.support import ROOT, toy_artefact
from thyroid.errors import InputError
from thyroid.records.gate import Criterion
from thyroid.records.model import ModelDescription
from thyroid.records.performance import AUROC

CRITERION = {"name": "AUROC", "asked": "above .5", "found": "0.6", "passed": True, "waived": False}


def test_the_reference_is_what_the_records_say():
    done = subprocess.run([sys.executable, "docs/reference.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_field_of_the_reference_says_what_it_means():
    schemas = sorted((ROOT / "docs" / "reference").glob("*.schema.json"))
    assert len(schemas) >= 5
    for path in schemas:
        schema = json.loads(path.read_text())
        for part in (schema, *schema["$defs"].values()) if "$defs" in schema else (schema,):
            for name, field in part["properties"].items():
                described = field if "$ref" not in field else field | schema["$defs"][field["$ref"].rsplit("/", 1)[1]]
                if part.get("title") != "Interval":
                    assert described.get("description"), f"{path.name}: {part.get('title')}.{name}"


@pytest.mark.parametrize(
    ("changed", "field"),
    [({"passed": "perhaps"}, "passed"), ({"extra": 1}, "extra"), ({"found": None}, "found")],
)
def test_a_wrong_field_is_named(changed, field, tmp_path):
    with pytest.raises(InputError, match=f"criterion.json: field {field}"):
        Criterion.parse(CRITERION | changed, "criterion.json")
    without = {name: value for name, value in CRITERION.items() if name != "asked"}
    with pytest.raises(InputError, match="field asked"):
        Criterion.parse(without, "criterion.json")


def test_a_record_comes_back_as_it_was_written(tmp_path):
    record = AUROC.parse({"auroc": {"value": 0.7, "low": None, "high": 0.8}}, "x")
    record.write(tmp_path / "x.json")
    assert AUROC.read(tmp_path / "x.json") == record
    assert json.loads((tmp_path / "x.json").read_text()) == {"auroc": {"value": 0.7, "low": None, "high": 0.8}}
    (tmp_path / "x.json").write_text(json.dumps(record.to_dict() | {"of_a_newer_release": 1}))
    assert AUROC.read(tmp_path / "x.json") == record
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match=r"x\.json: not JSON"):
        AUROC.read(tmp_path / "x.json")


def test_the_content_of_an_earlier_model_json_is_upgraded_on_reading():
    record = toy_artefact.description()
    old = record.to_dict()
    validation = old["forms"]["keras"]["validation"]
    validation |= {"auroc": 0.5, "low": 0.4, "high": 0.6}
    assert ModelDescription.parse(old, "model.json") == record
    assert ModelDescription.parse(record.to_dict(), "model.json") == record
    with pytest.raises(InputError, match=r"model\.json: field "):
        ModelDescription.parse(old | {"forms": []}, "model.json")
