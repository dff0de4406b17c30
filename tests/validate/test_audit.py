"""The shortcut audit at another hospital, on scans whose evidence was put in a known place."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support import toy_artefact, toy_locator
from thyroid.data import surroundings, tables
from thyroid.data.filenames import SCORE
from thyroid.data.version import DataVersion
from thyroid.evaluate.audits import names, shortcut, subject
from thyroid.evaluate.audits.shortcut import ShortcutAudit
from thyroid.imaging import images
from thyroid.model.artefact import Artefact
from thyroid.records.model import ArtefactRecord
from thyroid.validate import audit
from thyroid.validate.endpoint import Endpoint

SIZE = 32
BOX = ["x", "y", "width", "height"]


class Brightness:
    """A model that calls bright images malignant."""

    def __init__(self) -> None:
        self.asked = 0

    def answer(self, pixels: np.ndarray) -> np.ndarray:
        self.asked += len(pixels)
        malignant = pixels.reshape(len(pixels), -1).mean(axis=1) / 255
        return np.column_stack([1 - malignant, malignant])


def artefact(domain: str, **changes: Any) -> Artefact:
    described = toy_artefact.description(serving_domain=domain, **changes).to_dict()
    return Artefact(Path(), ArtefactRecord.parse(described | {"code_version": "1", "files": {}}, "model.json"))


def predictions(data: DataVersion, domain: str) -> pd.DataFrame:
    """What `Brightness` says of every frame, or of the crop of every given region."""
    images_of = surroundings.context(data, domain).set_index("name")
    pixels = images.rgb(data.pixels(images_of, SIZE))
    table = images_of[["path", "class", "label", "patient", "group"]].assign(
        **{SCORE: Brightness().answer(pixels)[:, 1]}
    )
    boxes = data.regions.set_index("crop_path")[BOX]
    return table.join(boxes).reset_index(drop=True)


def painted(cropped: Path, folder: Path, paint) -> DataVersion:
    """A copy of a data version whose images are painted by label: `paint` gets image, box of the nodule and label."""
    shutil.copytree(cropped, folder)
    scans, regions, facts = tables.read(folder)
    for row in scans.itertuples():
        region = regions[regions["path"] == row.path].iloc[0]
        for file, box, table, place in (
            (row.normal_path, (region.x - row.area_x, region.y - row.area_y), scans, (row.Index, "normal_sha256")),
            (region.crop_path, None, regions, (region.name, "crop_sha256")),
        ):
            image = np.array(images.decode((folder / file).read_bytes(), min_side=1))
            if box is None:
                margin = facts.margin / (1 + 2 * facts.margin)
                box = (round(margin * image.shape[1]), round(margin * image.shape[0]))
                size = (image.shape[1] - 2 * box[0], image.shape[0] - 2 * box[1])
            else:
                size = (region.width, region.height)
            paint(image, (*box, *size), row.label)
            data = images.encode(image)
            (folder / file).write_bytes(data)
            table.loc[place] = hashlib.sha256(data).hexdigest()
    tables.write(folder, scans, regions, facts)
    return DataVersion.read(folder)


def in_nodule(image, box, label):
    x, y, width, height = box
    grey = image.copy()
    image[:] = 0
    image[y : y + height, x : x + width] = grey[y : y + height, x : x + width] // 8 + (220 if label == "M" else 0)


def around_nodule(image, box, label):
    x, y, width, height = box
    grey = image.copy()
    image[:] = 220 if label == "M" else 30
    image[y : y + height, x : x + width] = grey[y : y + height, x : x + width] // 4


def run(data: DataVersion, domain: str, table: pd.DataFrame | None = None, **changes: Any):
    table = predictions(data, domain) if table is None else table
    return audit.run(Brightness(), data, table, artefact(domain, **changes), 0)


@pytest.mark.parametrize("domain", tables.DOMAINS)
def test_evidence_in_the_nodule_passes(cropped, tmp_path, domain):
    found, reason = run(painted(cropped, tmp_path / "data", in_nodule), domain)
    assert reason is None
    assert found.domain == domain
    assert found.shortcut["model"].value > 0.95
    assert found.kept["model_on_blanked_nodule"] < shortcut.KEPT
    assert found.findings == {}
    restored = ShortcutAudit.from_record(found, None)
    assert restored.ran
    assert "no shortcut found" in restored.outcome


@pytest.mark.parametrize("domain", tables.DOMAINS)
def test_evidence_around_the_nodule_is_found(cropped, tmp_path, domain):
    found, reason = run(painted(cropped, tmp_path / "data", around_nodule), domain)
    assert reason is None
    assert found.kept["model_on_blanked_nodule"] > 0.9
    assert "without the nodule the model reaches AUROC" in found.findings["shortcut"]
    assert found.shortcut["grey_levels"].value > 0.95, "what needs no network is measured on the site's patients"


def test_what_needs_no_network_is_measured_and_nothing_else(cropped):
    data = DataVersion.read(cropped)
    found, _ = run(data, "cropped")
    numbers = {"scan_area_geometry", "patient_number", "acquisition_order", "box_size", "grey_levels"}
    assert set(found.shortcut) == {"model", "model_on_blanked_nodule", *numbers}
    assert set(found.shortcut) <= {*names.SHORTCUTS, *names.REFERENCES}
    assert not {"blanked_nodule", "whole_image"} & set(found.not_measured)
    assert found.leakage == {}
    assert found.further == {"shortcut": {"margin": data.margin}}
    for auroc in found.shortcut.values():
        assert auroc.low < auroc.high


def test_the_numbers_are_those_of_all_patients_of_the_site(cropped, tmp_path):
    """A number that gives the class away in what was training and validation data elsewhere is found, too."""
    folder = shutil.copytree(cropped, tmp_path / "data")
    scans, regions, facts = tables.read(folder)
    scans["image"] = scans["image"] + scans["label"].map({"B": 0, "M": 50})
    tables.write(folder, scans.assign(split="test"), regions, facts)
    found, _ = run(DataVersion.read(folder), "normal")
    assert found.shortcut["acquisition_order"].value > 0.95
    assert any("image number" in text for text in ShortcutAudit.from_record(found, None).warnings)


def test_only_what_was_judged_is_audited(cropped, tmp_path):
    data = painted(cropped, tmp_path / "data", in_nodule)
    table = predictions(data, "cropped")
    half = table[table["patient"] % 3 > 0]
    endpoint = Brightness()
    audit.run(endpoint, data, half, artefact("cropped"), 0)
    assert endpoint.asked == len(half) < len(table)


def test_a_seeded_draw_of_many_images_is_audited(cropped, monkeypatch):
    monkeypatch.setattr(subject, "IMAGES", 16)
    data, endpoint = DataVersion.read(cropped), Brightness()
    audit.run(endpoint, data, predictions(data, "cropped"), artefact("cropped"), 0)
    assert 14 <= endpoint.asked <= 16


def test_one_class_cannot_be_audited(cropped):
    data = DataVersion.read(cropped)
    table = predictions(data, "cropped")
    assert run(data, "cropped", table[table["label"] == "B"]) == (None, audit.ONE_CLASS)


@pytest.mark.parametrize("domain", tables.DOMAINS)
def test_without_regions_only_the_numbers_are_known(cropped, domain):
    data = DataVersion.read(cropped)
    table = predictions(data, domain).assign(x=1, y=1, width=9, height=9)  # automatic boxes
    data = replace(data, regions=data.regions.iloc[:0])
    found, reason = run(data, domain, table)
    assert "rois.csv" in reason
    assert found.kept == {}
    assert found.domain == "normal"
    assert set(found.shortcut) == {"scan_area_geometry", "patient_number", "acquisition_order", "grey_levels"}
    assert not ShortcutAudit.from_record(found, None).ran


def test_too_few_patients_are_told(cropped):
    data = DataVersion.read(cropped)
    table = predictions(data, "cropped")
    first = table.groupby("label")["patient"].first()
    few = table[table["patient"].isin(first)]
    assert few["patient"].nunique() == 2
    found, reason = run(data, "cropped", few)
    assert reason is not None
    assert found.kept == {}
    assert found.not_measured["grey_levels"] == subject.TOO_FEW
    nothing, why = run(replace(data, regions=data.regions.iloc[:0]), "cropped", few)
    assert nothing is None
    assert why


def test_a_model_at_chance_is_not_judged(cropped):
    data = DataVersion.read(cropped)
    table = predictions(data, "cropped")
    found, reason = run(data, "cropped", table.assign(**{SCORE: np.arange(len(table)) % 7 / 7}))
    assert found.kept == {}
    assert "not above chance" in reason


def test_a_model_with_clinical_columns_is_judged_by_its_images(cropped, tmp_path):
    data = painted(cropped, tmp_path / "data", in_nodule)
    table = predictions(data, "cropped")
    plain, _ = run(data, "cropped", table)
    model = artefact("cropped")
    with_columns = replace(model, record=model.record.model_copy(update={"clinical": object()}))
    fused = table.assign(**{SCORE: 0.5})
    found, _ = audit.run(Brightness(), data, fused, with_columns, 0)
    assert found.shortcut["model"] == plain.shortcut["model"]


def test_a_registered_model_is_audited_as_it_answers(cropped, tmp_path):
    """The real endpoint judges the regions and answers the blanked images."""
    data = DataVersion.read(cropped)
    with Endpoint(toy_locator.build(tmp_path / "model", margin=data.margin), released=True) as endpoint:
        table = endpoint.predict(data, "given")
        found, _ = audit.run(endpoint, data, table, endpoint.artefact, 0)
    positive = (table["label"] == "M").to_numpy()
    scores = table[SCORE].to_numpy()
    pairs = scores[positive][:, None] - scores[~positive][None]
    assert found.shortcut["model"].value == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2)
    assert "model_on_blanked_nodule" in found.shortcut
