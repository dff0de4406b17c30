"""Usual answers are those that the endpoint would log for the same images."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from thyroid.data.filenames import SCORE
from thyroid.data.version import DataVersion
from thyroid.evaluate import evaluate
from thyroid.evaluate.novelty import usual
from thyroid.model.artefact import Artefact
from thyroid.records.model import PROPERTIES
from thyroid.registry.registry import Registry
from thyroid.serve import model as serving
from thyroid.serve.model import ThyroidModel
from thyroid.serve.payload import Instance
from thyroid.train import train
from thyroid.train.options import TrainOptions


@pytest.fixture(scope="module")
def answers(judged):
    return Artefact.read(judged / "out" / "artefact").record.usual_answers


@pytest.fixture(scope="module")
def data(judged):
    return DataVersion.read(judged / "data")


@pytest.fixture
def without_locator(monkeypatch):
    """The hand-made locator of the artefact cannot be loaded, and no request here needs it."""
    stand_in = SimpleNamespace(locator=None, close=lambda: None)
    monkeypatch.setattr(serving, "LocatorEngine", lambda *_: stand_in)


def box_of(row) -> tuple[int, int, int, int]:
    return tuple(int(row[name]) for name in ("x", "y", "width", "height"))


def ask(folder: Path, instances: list[Instance]) -> pd.DataFrame:
    """What the endpoint logs of images, in the form that was evaluated."""
    model = ThyroidModel("thyroid", folder, form="keras")
    model.load()

    async def all_of_them():
        return [await model.score(one) for one in instances]

    rows = []
    for one in asyncio.run(all_of_them()):
        (width, height), box = one.prepared.size, one.prepared.done["box"]
        shares = {"aspect": width / height, "box_share": box[2] * box[3] / (width * height)}
        rows.append({"probability": one.decision["malignant"], "distance": one.distance, **shares})
        rows[-1] |= {"width": width, "height": height, "decision": one.decision["decision"]}
    model.retire()
    return pd.DataFrame(rows)


def instances_of(data: DataVersion, boxes: pd.DataFrame) -> list[Instance]:
    """A request for every row of a table with path and box."""
    files = data.used.set_index("path")["local_path"]
    return [
        Instance(row["path"], (data.folder / files[row["path"]]).read_bytes(), roi=box_of(row))
        for row in boxes.to_dict("records")
    ]


def check(found, expected: pd.DataFrame, patients: list[int]) -> None:
    """Compare usual answers, which are of one image per patient, with those of the endpoint to all images."""
    answered = expected.drop(columns="decision")
    assert set(found.values) - {"box_probability"} == set(answered)
    alone = ~pd.Series(patients).duplicated(keep=False).to_numpy()
    for name, column in answered.items():
        values = np.array(found.values[name])
        assert len(values) == len(set(patients))
        assert (np.diff(values) >= 0).all()
        for some, all_of_them in ((values, column.to_numpy()), (column.to_numpy()[alone], values)):
            assert all(np.isclose(all_of_them, one, rtol=1e-4, atol=1e-5).any() for one in some), name
    assert {k: v for k, v in found.decisions.items() if v} == expected["decision"].value_counts().to_dict()


def test_given_boxes_are_answered_as_by_the_endpoint(judged, answers, data, without_locator):
    held_out = data.regions[data.regions["path"].map(data.used.set_index("path")["split"]) != "train"]
    patients = held_out["path"].map(data.used.set_index("path")["patient"]).astype(int).tolist()
    version = Registry(judged / "registry").find("1")
    expected = ask(version, instances_of(data, held_out))
    check(answers["given"], expected, patients)
    assert answers["given"].images == len(held_out)
    assert answers["given"].patients == len(set(patients))
    undecided = (expected["decision"] == "abstain").groupby(patients)
    assert undecided.min().mean() - 1e-5 <= answers["given"].shares["abstain"] <= undecided.max().mean() + 1e-5


def test_automatic_boxes_are_answered_as_given_ones_but_for_their_doubts(judged, answers, data, without_locator):
    """The crop of an automatic box is that of a request with the same box."""
    boxes = pd.read_parquet(judged / "located" / "boxes.parquet")
    boxes = boxes[(boxes["rank"] == 0) & (boxes["split"] == "test")].reset_index(drop=True)
    expected = ask(Registry(judged / "registry").find("1"), instances_of(data, boxes))
    released = Artefact.read(judged / "out" / "artefact").record.automatic_boxes.released
    expected.loc[boxes["unsure"] | (not released), "decision"] = "abstain"
    check(answers["auto"], expected, boxes["patient"].astype(int).tolist())
    assert set(answers["auto"].values["box_probability"]) <= set(boxes["probability"].round(6))


def test_full_frames_are_answered_as_by_the_endpoint(judged, data, toy, tmp_path):
    from thyroid.registry import register

    options = TrainOptions(weights="none", image_size=32, epochs=0)
    train.train(data.folder, tmp_path / "model", toy, "normal", options)
    evaluate.evaluate(data.folder, [tmp_path / "model"], tmp_path / "out")
    register.register(tmp_path / "out", tmp_path / "registry", tmp_path / "summary.json")
    version = Registry(tmp_path / "registry").find("1")
    held_out = data.used[data.used["split"] != "train"]
    files = [(data.folder / name).read_bytes() for name in held_out["local_path"]]
    expected = ask(version, [Instance("frame", file) for file in files])
    found = Artefact.read(version).record.usual_answers
    assert set(found) == {"frame"}
    check(found["frame"], expected, held_out["patient"].astype(int).tolist())


def rows(patients: list[int], **columns) -> pd.DataFrame:
    empty = dict.fromkeys(PROPERTIES, np.nan)
    return pd.DataFrame({"patient": patients, "decision": "benign", **empty} | columns)


def test_a_patient_counts_once_with_one_image():
    found = usual._summary(
        rows([7, 7, 3], probability=[0.2, 0.4, 0.1], decision=["abstain", "malignant", "malignant"]), 0
    )
    assert (found.patients, found.images) == (2, 3)
    drawn = found.values["probability"][1]
    assert found.values == {"probability": [0.1, drawn]}
    assert drawn in (0.2, 0.4)
    assert found.decisions == {"benign": 0, "malignant": 2, "abstain": 1}
    assert found.shares == {"abstain": 0.5 * (drawn == 0.2), "malignant": 1 - 0.5 * (drawn == 0.2)}


def test_values_are_those_of_a_thousand_patients_at_most_and_each_sorted_by_itself():
    count = usual.MOST_PATIENTS + 50
    value = np.arange(count) / count
    found = usual._summary(rows(list(range(count)), probability=value, distance=value[::-1]), 0)
    assert found.patients == count
    assert {len(values) for values in found.values.values()} == {usual.MOST_PATIENTS}
    assert all(values == sorted(values) for values in found.values.values())


def test_files_that_came_in_cropped_are_whole(data):
    """Their box is the whole picture, and not a region that somebody marked."""
    scored = (
        data.examples("cropped", "test").drop(columns="file").rename(columns={"name": "file"}).assign(**{SCORE: 0.5})
    )
    path = scored["path"][0]
    scans = data.scans.assign(domain=data.scans["domain"].where(data.scans["path"] != path, "cropped"))
    changed = DataVersion(data.folder, scans, data.regions, data.facts)
    assert usual._given(changed, scored, "cropped")["source"].tolist()[:2] == ["whole", "given"]
