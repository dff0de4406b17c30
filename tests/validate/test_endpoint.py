"""What a validation predicts is what the endpoint answers, and what cannot be read is told."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.conftest import write_rois
from tests.support import toy_locator
from tests.support.serving import PREDICT, Server, encoded
from thyroid import cores
from thyroid.clinical import fusion
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.ingest import ingest
from thyroid.ingest.options import IngestOptions
from thyroid.model import engine
from thyroid.records.clinical import FusionRecord
from thyroid.serve import limits
from thyroid.serve.payload import Instance
from thyroid.serve.preprocessing import Preprocessing
from thyroid.validate import endpoint
from thyroid.validate.endpoint import AUTOMATIC, FRAME, GIVEN, Endpoint

POINT = {"temperature": 1.7, "bias": [0.0, 0.3], "threshold": 0.464, "band": [0.462, 0.464], "thresholds": [0.4, 0.5]}
COLUMNS = [
    *("path", "scan", "class", "label", "patient", "group", "sha256", "x", "y", "width", "height"),
    *(
        "probability_B",
        "probability_M",
        "raw_B",
        "raw_M",
        "decision",
        "called",
        "undecided",
        "box_probability",
        "novelty",
        "distance",
    ),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataVersion:
    """Twelve patients with two frames each: a bright nodule in half of them, and sometimes a second region."""
    folder = tmp_path_factory.mktemp("site")
    rows: list[tuple[Any, ...]] = []
    (folder / "scans").mkdir()
    for patient in range(1, 13):
        for image in (1, 2):
            name = f"{'B' if patient % 2 else 'M'}_{patient:03d}-{image:04d}-1.0.jpg"
            box = (40 + 12 * patient, 50 + 30 * image, 60, 50)
            pixels = toy_locator.frame((box,) if image == 1 else (), seed=patient * 10 + image)
            (folder / "scans" / name).write_bytes(images.encode(pixels))
            rows += [(name, *box), *([(name, 10, 60, 30, 40)] if patient < 3 else [])]
    ingest.ingest(IngestOptions(folder / "scans", rois=write_rois(folder / "rois.csv", rows)), folder / "data")
    return DataVersion.read(folder / "data")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return toy_locator.build(tmp_path_factory.mktemp("artefact"), locator=toy_locator.record(), **POINT)


@pytest.fixture(scope="module")
def tried(model) -> Iterator[Endpoint]:
    with Endpoint(model, released=True) as one:
        yield one


def with_head(folder: Path) -> Path:
    """A model whose head takes the age, which a request may leave out, and the kind."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 30)
    p = np.stack([1 - (0.3 + 0.4 * y), 0.3 + 0.4 * y], axis=1)
    kind = np.where(y == (rng.random(60) < 0.9), "solid", "cystic").astype(object)
    rows = pd.DataFrame({"age": 40 + 15 * y + rng.normal(0, 8, 60), "kind": kind})
    rows.loc[::9, "age"] = np.nan
    head = fusion.fit(p, rows, y, np.arange(60))
    described = FusionRecord.parse(
        json.loads(json.dumps(head.to_dict() | {"fields": head.encoder.fields()})), "model.json"
    )
    with Endpoint(toy_locator.build(folder, **POINT), released=True) as plain:
        record, reference = plain.artefact.record, Instance("reference.jpg", (folder / "reference.jpg").read_bytes())
        pixels = Preprocessing("cropped", toy_locator.SIZE).prepare(reference).pixels
        fused, _ = head.predict(plain.answer(pixels[None]), [{}])
        (answer,) = plain.point.scale(fused).tolist()
    changes = {"clinical": described, "reference": dict(zip(record.classes, answer, strict=True))}
    record.model_copy(update=changes).write(folder / "model.json")
    return folder


def served(model: Path, log: Path, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ask a real endpoint for every image."""
    server = Server(log, "--model-dir", str(model)).wait()
    try:
        answers = [server.ask(PREDICT, {"instances": [one]}) for one in asked]
    finally:
        server.stop()
    assert {status for status, _ in answers} == {200}
    return [answer["predictions"][0] for _, answer in answers]


def check(table: pd.DataFrame, answers: list[dict[str, Any]]) -> None:
    """A table of predictions says what the endpoint answered."""
    assert len(table) == len(answers)
    for row, answer in zip(table.to_dict("records"), answers, strict=True):
        for name, probability in answer["probability"].items():
            assert row[f"probability_{name}"] == pytest.approx(probability, abs=1e-6)
        assert row["called"] == answer["class"]
        assert row["undecided"] == ",".join(answer.get("reasons", []))
        assert answer["decision"] == ("abstain" if row["undecided"] else row["decision"])


def test_given_and_automatic_boxes_are_judged_as_over_http(tried, model, data, tmp_path):
    assert tried.kinds == (GIVEN, AUTOMATIC)
    given, automatic = (tried.predict(data, kind) for kind in tried.kinds)
    assert not tried.lost
    assert (len(given), len(automatic)) == (len(data.regions), len(data.used))
    assert len(given) == len(automatic) + 4
    with_roi = [
        {"image": encoded(row.path), "roi": [int(row.x), int(row.y), int(row.width), int(row.height)]}
        for row in given.itertuples()
    ]
    without = [{"image": encoded(path), "domain": "frame"} for path in automatic["path"]]
    answers = served(model, tmp_path / "log", with_roi + without)
    check(given, answers[: len(given)])
    check(automatic, answers[len(given) :])
    boxes = [answer["crop"]["box"] for answer in answers]
    assert pd.concat([given, automatic])[endpoint.BOX].to_numpy(int).tolist() == boxes
    assert given["box_probability"].isna().all()
    sure = [answer["crop"]["probability"] for answer in answers[len(given) :]]
    assert automatic["box_probability"].tolist() == pytest.approx(sure, abs=1e-6)
    assert {"", "box_unsure"} <= set(automatic["undecided"])
    assert {"", "abstention_band"} == set(given["undecided"])


def test_the_columns_are_those_of_every_table_of_predictions(tried, data):
    for kind in tried.kinds:
        table = tried.predict(data, kind)
        assert sorted(table) == sorted(COLUMNS)
        raw = table[["raw_B", "raw_M"]].to_numpy()
        np.testing.assert_array_equal(tried.point.scale(raw), table[["probability_B", "probability_M"]])
        assert np.abs(raw - table[["probability_B", "probability_M"]].to_numpy()).max() > 0.01
        scans = data.used.set_index("path").loc[table["path"]]
        for column in ("class", "label", "patient", "group", "sha256"):
            assert table[column].tolist() == scans[column].tolist()
        assert table["scan"].tolist() == [Path(path).name for path in table["path"]]
    assert tried.form == engine.F32
    assert tried.artefact.record.version == 1


def test_full_frames_are_judged_as_over_http(data, tmp_path):
    model = toy_locator.build(tmp_path / "model", serving_domain="normal", **POINT)
    with Endpoint(model, released=False) as one:
        assert one.kinds == (FRAME,)
        table = one.predict(data, FRAME)
    assert table[endpoint.BOX].isna().all(axis=None)
    assert len(table) == len(data.used)
    check(table, served(model, tmp_path / "log", [{"image": encoded(path)} for path in table["path"]]))


def test_clinical_columns_are_used_as_over_http(data, tmp_path):
    model = with_head(tmp_path / "model")
    paths = data.used["path"]
    clinical = pd.DataFrame({"age": 30.0 + np.arange(len(paths)), "kind": "solid", "other": "x"}, paths)
    clinical.loc[paths.iloc[::3], "age"] = np.nan
    clinical.loc[paths.iloc[1::3], "kind"] = None
    with Endpoint(model, released=True) as one:
        table = one.predict(data, GIVEN, clinical.drop(paths.iloc[5]))
        without = one.predict(data, GIVEN)
    asked = []
    for row in table.itertuples():
        known = clinical.loc[row.path, ["age", "kind"]].dropna().to_dict() if row.path != paths.iloc[5] else {}
        roi = [int(row.x), int(row.y), int(row.width), int(row.height)]
        asked.append({"image": encoded(row.path), "roi": roi, "clinical": known})
    check(table, served(model, tmp_path / "log", asked))
    raw = table[["raw_B", "raw_M"]].to_numpy()
    np.testing.assert_array_equal(one.point.scale(raw)[:, 1], table["probability_M"])
    assert np.abs(raw - without[["raw_B", "raw_M"]].to_numpy()).max() > 0.05


def test_texts_where_the_model_takes_numbers_are_refused_before_anything_is_judged(data, tmp_path):
    model = with_head(tmp_path / "model")
    clinical = pd.DataFrame({"age": "about 40"}, data.used["path"])
    with (
        Endpoint(model, released=True) as one,
        pytest.raises(InputError, match=r"^clinical\.csv: column age holds texts"),
    ):
        one.predict(data, GIVEN, clinical)


def test_a_small_frame_is_no_crop(tried, data, tmp_path):
    """The data version says that it is a frame, so that the locator's rule for crops is not asked."""
    small = tmp_path / "small.jpg"
    small.write_bytes(images.encode(toy_locator.frame(((20, 20, 30, 30),), (90, 80))))
    table = tried.predict(moved(data, {0: small}), AUTOMATIC)
    assert table["box_probability"].notna().all()
    assert tuple(table.loc[0, endpoint.BOX]) != (0, 0, 90, 80)


def moved(data: DataVersion, files: dict[int, Path]) -> DataVersion:
    """The data version with other files for some of its scans."""
    scans = data.used.reset_index(drop=True)
    for number, file in files.items():
        scans.loc[number, "local_path"] = str(file)
    return replace(data, scans=scans)


def test_scans_that_vanished_or_broke_are_told_and_end_nothing(model, data, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(Path(data.used["path"].iloc[1]).read_bytes()[:500])
    (tmp_path / "empty.jpg").touch()
    images_of = {0: tmp_path / "gone.jpg", 1: tmp_path / "broken.jpg", 2: tmp_path / "empty.jpg"}
    small = tmp_path / "small.jpg"
    small.write_bytes(images.encode(np.full((30, 30, 3), 90, np.uint8)))
    other = moved(data, images_of | {3: small})
    with Endpoint(model, released=True) as one:
        table = one.predict(other, GIVEN)
        paths = other.used["path"].tolist()
        assert set(one.lost) == set(paths[:4])
        assert one.lost[paths[0]] == "No such file or directory"
        assert one.lost[paths[1]].startswith("image: ")
        assert one.lost[paths[2]] == "empty file (0 bytes)"
        assert "reaches outside the image of 30x30 pixels" in one.lost[paths[3]]
        assert set(table["path"]) == set(paths[4:])
        cases = one.cases(other, tried_before := one.predict(data, GIVEN).head(3))
        assert len(cases) == 0
        assert len(tried_before) == 3


def test_a_site_without_a_readable_scan_has_an_empty_table(model, data, tmp_path):
    with Endpoint(model, released=True) as one:
        table = one.predict(moved(data, dict.fromkeys(range(len(data.used)), tmp_path / "gone.jpg")), AUTOMATIC)
        assert len(one.lost) == len(data.used)
    assert len(table) == 0
    assert sorted(table) == sorted(COLUMNS)


def test_only_kinds_that_the_model_has_are_tried(tried, data):
    with pytest.raises(InputError, match=r"^boxes 'frame': this model can be tried with given and automatic only"):
        tried.predict(data, FRAME)


def test_the_network_alone_answers_the_pictures_of_the_cases(tried, data):
    table = tried.predict(data, AUTOMATIC)
    rows = pd.concat([table.iloc[::-1], table])
    cases = tried.cases(data, rows)
    assert [(scan, score) for scan, score, _, _ in cases] == list(zip(rows["scan"], rows["probability_M"], strict=True))
    pixels = np.stack([picture for _, _, picture, _ in cases])
    assert len(pixels) > endpoint._BATCH
    np.testing.assert_allclose(tried.answer(pixels), rows[["raw_B", "raw_M"]], atol=1e-6)
    overlays = np.stack([overlay for _, _, _, overlay in cases])
    assert overlays.shape == pixels.shape
    assert overlays.dtype == np.uint8
    assert (overlays != pixels).any(axis=(1, 2, 3)).all()


def test_the_deadline_of_a_request_ends_no_validation(tried, data, monkeypatch):
    monkeypatch.setattr(limits, "DEADLINE", 0.0)
    assert len(tried.predict(data, AUTOMATIC)) == len(data.used)


def test_few_images_are_held_at_once(tried, data, monkeypatch):
    now, most, score = 0, 0, Endpoint._score

    async def counted(self, job):
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            return await score(self, job)
        finally:
            now -= 1

    monkeypatch.setattr(Endpoint, "_score", counted)
    monkeypatch.setattr(endpoint, "_IN_FLIGHT", 2)
    tried.predict(data, GIVEN)
    assert 1 < most <= 2 * cores.available()


def test_a_changed_artefact_is_refused(model, tmp_path):
    other = toy_locator.build(tmp_path / "model", locator=toy_locator.record())
    (other / "reference.jpg").write_bytes(images.encode(toy_locator.frame((), (80, 80))))
    with pytest.raises(InputError, match=r"reference\.jpg"):
        Endpoint(other, released=True)
