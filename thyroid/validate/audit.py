"""The shortcut audit at another hospital: is the evidence of the model in the nodule there, too?

The model has never seen these patients, so its own answers are measured on all of them, and what needs no network is
cross-validated on them. Names, rule and implementation are those of the evaluation (`evaluate.audits.shortcut`).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid.data import surroundings
from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, SCORE
from thyroid.data.version import DataVersion
from thyroid.evaluate.audits.shortcut import ShortcutAudit
from thyroid.evaluate.audits.subject import Audited, drawn
from thyroid.imaging import images
from thyroid.model.artefact import Artefact
from thyroid.records.gate import AuditRecord
from thyroid.records.model import ArtefactRecord

if TYPE_CHECKING:  # the audit needs nothing of it but `answer`
    from thyroid.validate.endpoint import Endpoint

ONE_CLASS = "the scans are all benign or all malignant, and a shortcut is what tells one from the other"

_BOX = ["x", "y", "width", "height"]


def run(
    endpoint: "Endpoint", data: DataVersion, table: pd.DataFrame, artefact: Artefact, seed: int
) -> tuple[AuditRecord | None, str | None]:
    """Audit a model for shortcuts on the scans of a site.

    Measured are the model's answers to the images as they are and with the nodule blanked, and by cross-validation on
    the site's patients what needs no network: geometry of the scan area, patient number, order of acquisition, size of
    the box, grey levels. If there are more images than `evaluate.audits.subject.IMAGES`, a seeded draw of whole groups
    is audited. Crops of another margin and frozen features are not measured.

    Args:
        endpoint: The model; only its `answer` is used.
        data: Data version of `crop` with the site's scans, which were cropped with the model's margin.
        table: Predictions of one kind of boxes. Of predictions with automatic boxes, only those are audited whose box
            is a given one.
        artefact: The model's artefact.
        seed: Seed of draw, folds and bootstrap.

    Returns:
        What was measured, None if nothing could be; and why it is not known whether the evidence is in the nodule, None
        if it is known. Both are given where something was measured, but the model could not be judged: without given
        boxes, and where it is not above chance.

    Raises:
        InputError: An image of the data version is missing or changed.
    """
    if table["label"].nunique() < len(CLASSES):
        return None, ONE_CLASS
    site = _Site.of(endpoint, data, table, artefact.record, seed)
    audit = ShortcutAudit.of_answers(site)
    if not audit.shortcut:
        return None, audit.why_not_judged or next(iter(audit.not_measured.values()))
    measured = audit.fields()
    record = AuditRecord(
        domain=audit.domain,
        shortcut=measured.pop("shortcut"),
        kept=measured.pop("kept"),
        leakage={},
        findings={} if audit.finding is None else {audit.name: audit.finding},
        not_measured=audit.not_measured,
        **({"further": {audit.name: measured}} if measured else {}),
    )
    return record, None if audit.ran else audit.why_not_judged


@dataclass(frozen=True, eq=False)
class _Site(Audited):
    """The images of a site, with a model's answers to them.

    Attributes:
        data: Data version with the site's scans.
        domain: Domain of the audited images: that which the model serves, or "normal" where it judged frames whose
            regions are not known.
        judged: Rows of `surroundings.context` for the images that the model judged.
        test: The model's answers to them: file (the name), label, patient and `SCORE`.
        record: Content of model.json.
        endpoint: The model.
        seed: Seed of draw, folds and bootstrap.
        boxes: None: no proposals are audited.
    """

    data: DataVersion
    domain: str
    judged: pd.DataFrame
    test: pd.DataFrame
    record: ArtefactRecord
    endpoint: "Endpoint"
    seed: int
    boxes: pd.DataFrame | None = None

    @classmethod
    def of(
        cls, endpoint: "Endpoint", data: DataVersion, table: pd.DataFrame, record: ArtefactRecord, seed: int
    ) -> "_Site":
        """Find the images of the predictions of `run`."""
        domain = record.serving_domain
        judged = surroundings.context(data, domain)
        if domain == "cropped":
            boxes = data.regions.drop_duplicates("crop_path").set_index("crop_path")[_BOX]
            judged = judged.join(boxes, on="name").merge(table[["path", *_BOX, SCORE]], on=["path", *_BOX])
            if judged.empty:  # automatic boxes only
                domain, judged = "normal", surroundings.context(data, "normal")
                judged["boxes"] = pd.Series([()] * len(judged), judged.index)
        if domain == "normal":
            judged = judged.merge(table[["path", SCORE]].drop_duplicates("path"), on="path")
        judged = drawn(judged.drop_duplicates("name"), seed)
        test = judged[["name", "label", "patient", SCORE]].rename(columns={"name": "file"})
        site = cls(data, domain, judged, test, record, endpoint, seed)
        if record.clinical is not None and domain == record.serving_domain:  # images alone are judged
            test[SCORE] = site.malignant(images.rgb(site.pixels), "whole images")
        return site

    @cached_property
    def images(self) -> pd.DataFrame:
        """Every audited image."""
        return self.judged

    @cached_property
    def development(self) -> pd.DataFrame:
        """The same images: the model was trained on none of them."""
        return self.judged

    @property
    def size(self) -> int:
        """Side of the model's images in pixels."""
        return self.record.image_size

    @property
    def other_margins(self) -> list[float]:
        """None: each would take two more answers to every image, and decides nothing."""
        return []

    def malignant(self, pixels: NDArray[np.uint8], doing: str) -> NDArray[np.float64]:
        """Return the endpoint's unscaled probability of malignant, float64 [n]."""
        return Classes.from_record(self.record).malignant(self.endpoint.answer(pixels))
