"""The audit of shortcuts: how well the classes can be distinguished without looking at the nodule.

Shortcuts are measured on development patients by cross-validation. A logistic regression is fitted on features that
never saw a label: the part of the network that training leaves frozen, or splines of a few numbers. It is fitted
without the patients that it scores. Only the model's own answers are measured on the test set, which chooses nothing
here.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid import metrics
from thyroid.data import tables
from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, POSITIVE, SCORE
from thyroid.evaluate.audits import head
from thyroid.evaluate.audits.audit import Picture
from thyroid.evaluate.audits.subject import NO_REGION, ONE_CLASS, TOO_FEW, TRAINED_WHOLE, Subject
from thyroid.records.clinical import ClinicalRecord
from thyroid.records.gate import AuditRecord

KEPT = 0.5
"""A shortcut is a finding if it keeps more than this share of its reference's distance from an AUROC of .5."""

SHORTCUTS = {
    "model_on_blanked_nodule": "the model on test images with the nodule blanked",
    "blanked_nodule": "frozen features of images with the nodule blanked",
    "scan_area_geometry": "size of frame and scan area alone",
    "patient_number": "patient number alone",
    "acquisition_order": "image number, version and number of views alone",
    "box_size": "width and height of the nodule's box alone",
    "grey_levels": "grey-level statistics alone",
}

REFERENCES = {
    "model": "the model itself, test images",
    "whole_image": "frozen features of the whole image",
}
"""References that the shortcuts are compared with."""

_WITHOUT_PIXELS = ("scan_area_geometry", "patient_number", "acquisition_order")
"""Shortcuts that look at no pixel. One that is better than chance is a warning."""

_JUDGED = {
    "model_on_blanked_nodule": ("the model", ("model",)),
    "blanked_nodule": ("a head on its frozen features", ("whole_image", "model")),
}
"""Shortcuts that are judged: who answers, in words, and the names of the references.

The best reference that is above chance counts.
"""


def describe(name: str) -> str:
    """Return what a shortcut or reference of this name is, in words."""
    return (SHORTCUTS | REFERENCES)[name]


@dataclass
class ShortcutAudit:
    """How much of a model's evidence is outside the nodule.

    Attributes:
        domain: Domain of the audited images, "normal" or "cropped".
        shortcut: AUROC by name. `whole_image` and `model` are the references that the shortcuts are compared with.
        kept: Share of the reference's distance from an AUROC of .5 that a shortcut keeps, by shortcut. A shortcut is
            listed only if its reference is above chance.
        finding: What is wrong, in words; None if nothing is.
        not_measured: Reason why something was not measured, by name.
    """

    domain: str
    shortcut: dict[str, metrics.Interval] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    finding: str | None = None
    not_measured: dict[str, str] = field(default_factory=dict)

    name: ClassVar[str] = "shortcut"
    title: ClassVar[str] = "Is the evidence in the nodule?"
    explanation: ClassVar[str] = (
        f"Warning rule: blanking the nodule keeps more than {KEPT:.0%} of the distance of the AUROC from .5. "
        '"Blanked" images are the surroundings of the nodule: the smallest square around it is black, so that its '
        "shape does not show. The model's own answers are to test images, where clinical columns are left out: the "
        "model is judged by its image alone. The other rows are cross-validated on development patients: a linear head "
        "on the part of the network that training left frozen, or on a few numbers that need no look at the image."
    )
    criterion: ClassVar[str] = "shortcut audit"
    asked: ClassVar[str] = "nothing found"
    waivable: ClassVar[bool] = True

    @classmethod
    def run(cls, subject: Subject) -> "ShortcutAudit":
        """Measure every shortcut and its references, and judge them."""
        audit = cls(subject.domain)
        audit._measure_numbers(subject)
        audit._measure_features(subject)
        audit._measure_model(subject)
        audit.judge()
        return audit

    @classmethod
    def from_record(cls, audits: AuditRecord, clinical: ClinicalRecord | None) -> "ShortcutAudit":
        """Restore the outcome from the field `audits` of evaluation.json."""
        return cls(audits.domain, audits.shortcut, audits.kept, audits.findings.get(cls.name), audits.not_measured)

    @property
    def ran(self) -> bool:
        """Whether a shortcut could be judged."""
        return bool(self.kept)

    @property
    def outcome(self) -> str:
        """What was found if there is no finding, or why nothing could be judged."""
        if self.ran:
            kept = " and ".join(f"{max(0.0, share):.0%}" for share in self.kept.values())
            return f"no shortcut found; without the nodule {kept} of the distance from chance is kept"
        return "could not be run" + (f": {reason}" if (reason := self.why_not_judged) else "")

    @property
    def why_not_judged(self) -> str | None:
        """Why no shortcut could be judged; None if one was, or no reason is known."""
        judged = ("blanked_nodule", "model_on_blanked_nodule")
        names = [*(f"{name}, judged" for name in judged), *judged, "whole_image"]
        return None if self.ran else next((self.not_measured[n] for n in names if n in self.not_measured), None)

    @property
    def table(self) -> list[tuple[str, str]]:
        """AUROC of every shortcut and reference."""
        return [(describe(name), str(auroc)) for name, auroc in self._ordered().items()]

    @property
    def picture(self) -> Picture | None:
        """AUROC of every shortcut next to those of the references."""
        rows = [(describe(name), auroc, name in REFERENCES) for name, auroc in self._ordered().items()]
        title = f"AUROC of every shortcut next to the model, {self.domain} images"
        return Picture(f"shortcuts-{self.domain}", title, rows) if rows else None

    @property
    def warnings(self) -> list[str]:
        """The finding, or that nothing could be judged, and what distinguishes the classes without any pixel."""
        where = f"On {tables.DOMAIN_NAMES[self.domain]}"
        texts = []
        if self.finding is not None:
            texts.append(f"{where} {self.finding}.")
        elif not self.ran:
            why = self.why_not_judged or "no reference could be measured"
            texts.append(f"{where} it is not known whether the evidence is in the nodule: {why}.")
        above = [
            f"{describe(name)} (AUROC {self.shortcut[name]})"
            for name in _WITHOUT_PIXELS
            if name in self.shortcut and _above_chance(self.shortcut[name])
        ]
        if above:
            texts.append(
                f"{where} the classes can be distinguished without a look at the nodule by {' and by '.join(above)}."
            )
        return texts

    def fields(self) -> dict[str, Any]:
        """Return the AUROCs in the order of the report's table, and what was kept of their references."""
        return {"shortcut": self._ordered(), "kept": self.kept}

    def _ordered(self) -> dict[str, metrics.Interval]:
        """Return the AUROCs, the judged ones and their references first."""
        order = ["model", "model_on_blanked_nodule", "whole_image", *SHORTCUTS]
        return {name: self.shortcut[name] for name in dict.fromkeys(order) if name in self.shortcut}

    def _measure_numbers(self, subject: Subject) -> None:
        """Measure what the file name, the layout of the frame, the box and the grey levels reveal."""
        if subject.fold is None:
            self.not_measured |= dict.fromkeys([*SHORTCUTS, "whole_image"], TOO_FEW)
            return
        development = subject.development
        self._measure(subject, "patient_number", development[["patient"]].to_numpy(float))
        version = pd.to_numeric(development["version"].str.split(".").str[0])
        order = development.assign(version=version)[["image", "version", "views"]]
        self._measure(subject, "acquisition_order", order.to_numpy(float))
        columns = ["frame_width", "frame_height", "area_x", "area_y", "area_width", "area_height"]
        if development["frame"].notna().all():
            self._measure(subject, "scan_area_geometry", development[columns].to_numpy(float))
        else:
            self.not_measured["scan_area_geometry"] = "images came in cropped: their frames are not known"
        marked = _marked(development)
        if marked is None:
            self.not_measured["box_size"] = NO_REGION
        else:
            sides = development[["box_width", "box_height"]].astype(float).fillna(1).to_numpy()
            box = np.column_stack([sides, sides.prod(axis=1), sides[:, 1] / sides[:, 0]])
            self._measure(subject, "box_size", box, marked)
        self._measure(subject, "grey_levels", _grey_levels(subject.pixels))

    def _measure_features(self, subject: Subject) -> None:
        """Measure the same frozen features and head on whole images and on surroundings alone."""
        if subject.fold is None:
            return
        if not subject.has_frozen_features:
            self.not_measured |= dict.fromkeys(("whole_image", "blanked_nodule"), TRAINED_WHOLE)
            return
        marked = _marked(subject.development)
        self._measure(subject, "whole_image", subject.features, marked, splines=False)
        if marked is None:
            self.not_measured["blanked_nodule"] = NO_REGION
            return
        surroundings = np.zeros_like(subject.features)
        without_nodule = subject.blanked(subject.development[marked])
        surroundings[marked] = subject.network.features(without_nodule, "frozen features, nodule blanked")
        self._measure(subject, "blanked_nodule", surroundings, marked, splines=False)

    def _measure_model(self, subject: Subject) -> None:
        """Measure the model's own answers to test images, as they are and with the nodule blanked."""
        table, test = subject.images, subject.test
        shown = table["name"].isin(test["file"]) & (table["boxes"].map(len) > 0)
        tested = table[shown].reset_index(drop=True)
        if tested["label"].nunique() < len(CLASSES):
            self.not_measured["model_on_blanked_nodule"] = NO_REGION
            return
        probability = subject.network.probabilities(subject.blanked(tested), "test images, nodule blanked")
        score = Classes.from_record(subject.training).malignant(probability)
        answered = test.set_index("file").loc[tested["name"], SCORE]
        positive, patient = tested["label"] == CLASSES[POSITIVE], tested["patient"].astype(int)
        self.shortcut["model"] = metrics.auroc(positive, answered, patient, seed=subject.seed)
        self.shortcut["model_on_blanked_nodule"] = metrics.auroc(positive, score, patient, seed=subject.seed)

    def _measure(
        self,
        subject: Subject,
        name: str,
        features: NDArray[np.float64],
        rows: NDArray[np.bool_] | None = None,
        *,
        splines: bool = True,
    ) -> None:
        """Measure the out-of-fold AUROC of a head on features [n, k] of the development images, or of those at `rows`.

        The head sees splines of the features if `splines` is set; see `head.out_of_fold`.
        """
        assert subject.fold is not None
        rows = np.ones(len(subject.development), bool) if rows is None else rows
        table, fold = subject.development[rows], subject.fold[rows]
        score = head.out_of_fold(features[rows], table["label"].to_numpy(), fold, splines=splines)
        if score is None:
            self.not_measured[name] = ONE_CLASS
            return
        positive, patient = table["label"] == CLASSES[POSITIVE], table["patient"].astype(int)
        self.shortcut[name] = metrics.auroc(positive, score, patient, seed=subject.seed, fold=fold)

    def judge(self) -> None:
        """Make a finding of shortcuts that keep more than `KEPT` of their reference."""
        broken: list[str] = []
        for name, (who, references) in _JUDGED.items():
            known = [self.shortcut[reference] for reference in references if reference in self.shortcut]
            if name not in self.shortcut or not known:
                continue
            above = [auroc for auroc in known if _above_chance(auroc)]
            if not above:
                why = f"its reference ({', '.join(map(str, known))}) is not above chance"
                self.not_measured[f"{name}, judged"] = why
                continue
            whole = max(above, key=lambda auroc: auroc.value)
            self.kept[name] = (self.shortcut[name].value - 0.5) / (whole.value - 0.5)
            if self.kept[name] > KEPT:
                broken.append(
                    f"without the nodule {who} reaches AUROC {self.shortcut[name]}, {self.kept[name]:.0%} of the "
                    f"distance from chance of {whole} with it"
                )
        if broken:
            self.finding = f"most of the evidence is not in the nodule: {'; '.join(broken)}"


def _above_chance(auroc: metrics.Interval) -> bool:
    return auroc.low is not None and auroc.low > 0.5


def _marked(development: pd.DataFrame) -> NDArray[np.bool_] | None:
    """Return which images have a box of a nodule; None unless more than half of them have one."""
    marked = development["boxes"].map(len).to_numpy() > 0
    return marked if marked.mean() > 0.5 else None


def _grey_levels(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Compute mean, standard deviation, share of black (below 8) and five percentiles of every image: [n, 8]."""
    flat = pixels.mean(axis=-1).reshape(len(pixels), -1)
    percentiles = np.percentile(flat, [5, 25, 50, 75, 95], axis=1).T
    return np.column_stack([flat.mean(axis=1), flat.std(axis=1), (flat < 8).mean(axis=1), percentiles])
