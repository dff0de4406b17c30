"""The audit of shortcuts: how well the classes can be distinguished without looking at the nodule.

Shortcuts are measured on development patients by cross-validation. A logistic regression is fitted on features that
never saw a label: the part of the network that training leaves frozen, or splines of a few numbers. It is fitted
without the patients that it scores. Only the model's own answers are measured on the test set, which chooses nothing
here. At another hospital (`of_answers`) all of it is measured on the hospital's own patients, but for the frozen
features, which the endpoint does not give.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from thyroid import metrics
from thyroid.data import tables
from thyroid.data.filenames import CLASSES, POSITIVE, SCORE
from thyroid.evaluate.audits import head, numbers
from thyroid.evaluate.audits.audit import Picture
from thyroid.evaluate.audits.names import (
    AUTOMATIC_BOX,
    BLANKED,
    MARGINS,
    REFERENCES,
    SHORTCUTS,
    WHOLE,
    at_margin,
    at_margins,
    describe,
)
from thyroid.evaluate.audits.subject import NO_REGION, ONE_CLASS, TOO_FEW, TRAINED_WHOLE, Audited, Subject
from thyroid.records.clinical import ClinicalRecord
from thyroid.records.gate import AuditRecord

KEPT = 0.5
"""A shortcut is a finding if it keeps more than this share of its reference's distance from an AUROC of .5."""

_WITHOUT_PIXELS = ("scan_area_geometry", "patient_number", "acquisition_order")
"""Shortcuts that look at no pixel. One that is better than chance is a warning."""

_NOT_KNOWN = {
    "scan_area_geometry": "images came in cropped: their frames are not known",
    "box_size": NO_REGION,
}
"""Why numbers are not known, by shortcut."""

_JUDGED = {
    "model_on_blanked_nodule": ("the model", ("model",)),
    "blanked_nodule": ("a head on its frozen features", ("whole_image", "model")),
}
"""Shortcuts that are judged: who answers, in words, and the names of the references.

The best reference that is above chance counts.
"""


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
        margin: Margin of the audited crops, which alone decides; None for full frames.
    """

    domain: str
    shortcut: dict[str, metrics.Interval] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    finding: str | None = None
    not_measured: dict[str, str] = field(default_factory=dict)
    margin: float | None = None

    name: ClassVar[str] = "shortcut"
    title: ClassVar[str] = "Is the evidence in the nodule?"
    explanation: ClassVar[str] = (
        f"Warning rule: blanking the nodule keeps more than {KEPT:.0%} of the distance of the AUROC from .5. "
        '"Blanked" images are the surroundings of the nodule: the smallest square around it is black, so that its '
        "shape does not show. The model's own answers are to test images, where clinical columns are left out: the "
        "model is judged by its image alone. The other rows are cross-validated on development patients: a linear head "
        "on the part of the network that training left frozen, or on a few numbers that need no look at the image. "
        "A wider margin shows more of the surroundings and can show more of a shortcut. Crops are therefore made with "
        "another margin, too, and shown to the same network; only the run's own margin decides."
    )
    criterion: ClassVar[str] = "shortcut audit"
    asked: ClassVar[str] = "nothing found"
    waivable: ClassVar[bool] = True

    @classmethod
    def run(cls, subject: Subject) -> "ShortcutAudit":
        """Measure every shortcut and its references, and judge them."""
        audit = cls(subject.domain, margin=subject.margin)
        audit._measure_numbers(subject)
        audit._measure_features(subject)
        audit._measure_model(subject)
        audit.judge()
        return audit

    @classmethod
    def of_answers(cls, audited: Audited) -> "ShortcutAudit":
        """Measure and judge what needs the model's answers alone, and not its frozen features."""
        audit = cls(audited.domain, margin=audited.margin)
        audit._measure_numbers(audited)
        audit._measure_model(audited)
        audit.judge()
        return audit

    @classmethod
    def from_record(cls, audits: AuditRecord, clinical: ClinicalRecord | None) -> "ShortcutAudit":
        """Restore the outcome from the field `audits` of evaluation.json."""
        margin = (audits.further or {}).get(cls.name, {}).get("margin")
        finding = audits.findings.get(cls.name)
        return cls(audits.domain, audits.shortcut, audits.kept, finding, audits.not_measured, margin)

    @property
    def ran(self) -> bool:
        """Whether a shortcut could be judged."""
        return bool(self.kept)

    @property
    def outcome(self) -> str:
        """What was found if there is no finding, or why nothing could be judged."""
        if self.ran:
            kept = " and ".join(f"{max(0.0, share):.0%}" for share in self.kept.values())
            found = f"no shortcut found; without the nodule {kept} of the distance from chance is kept"
            return "; ".join([found, *self._by_margin()])
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
        return [(self._describe(name), str(auroc)) for name, auroc in self._ordered().items()]

    @property
    def picture(self) -> Picture | None:
        """AUROC of every shortcut next to those of the references."""
        rows = [(self._describe(name), auroc, name in REFERENCES) for name, auroc in self._ordered().items()]
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
        margin = {} if self.margin is None else {"margin": self.margin}
        return {"shortcut": self._ordered(), "kept": self.kept, **margin}

    def kept_at(self, name: str, margin: float | None = None) -> float | None:
        """Return the share of the distance from chance that is kept without the nodule.

        Args:
            name: "blanked_nodule" or "model_on_blanked_nodule".
            margin: One of `MARGINS` for crops of another margin than the run's own; None for the images as they are.

        Returns:
            The share, 1 for all of it; None if it was not measured or its reference is not above chance.
        """
        blanked, *references = (one if margin is None else at_margin(one, margin) for one in (name, *_JUDGED[name][1]))
        whole = self._best(references)
        if blanked not in self.shortcut or whole is None:
            return None
        return (self.shortcut[blanked].value - 0.5) / (whole.value - 0.5)

    def _best(self, references: Sequence[str]) -> metrics.Interval | None:
        """Return the best of the references that are above chance; None if none is."""
        known = [self.shortcut[name] for name in references if name in self.shortcut]
        return max((one for one in known if _above_chance(one)), key=lambda auroc: auroc.value, default=None)

    def _by_margin(self) -> list[str]:
        """Say in words what is kept at which margin; nothing if it is known at the run's own margin only."""
        texts = []
        for name, (who, _) in _JUDGED.items():
            others = {margin: kept for margin in MARGINS if (kept := self.kept_at(name, margin)) is not None}
            own = self.kept_at(name)
            if self.margin is None or own is None or not others:
                continue
            rows = sorted((others | {self.margin: own}).items())
            texts.append(f"{who} keeps " + " and ".join(f"{max(0.0, kept):.0%} at margin {at:g}" for at, kept in rows))
        if not texts:
            return []
        return [
            f"a wider margin shows more of the surroundings and can show more of a shortcut: {', '.join(texts)} (the "
            f"run's own margin of {self.margin:g} decides)"
        ]

    def _describe(self, name: str) -> str:
        """Return what a row is, in words, with the margin of the crops where other margins are shown, too."""
        own = self.margin is not None and name in BLANKED | WHOLE
        return f"{describe(name)}, margin {self.margin:g}" if own else describe(name)

    def _ordered(self) -> dict[str, metrics.Interval]:
        """Return the AUROCs, the judged ones and their references first."""
        pairs = ["model", "model_on_blanked_nodule", "whole_image", "blanked_nodule"]
        order = [*pairs, *(at_margin(name, margin) for margin in MARGINS for name in pairs), *SHORTCUTS]
        return {name: self.shortcut[name] for name in dict.fromkeys(order) if name in self.shortcut}

    def _measure_numbers(self, subject: Audited) -> None:
        """Measure what the file name, the layout of the frame, the box and the grey levels reveal."""
        if subject.fold is None:
            others = {*BLANKED, *at_margins(BLANKED), *([] if subject.boxes is not None else AUTOMATIC_BOX)}
            self.not_measured |= {name: TOO_FEW for name in SHORTCUTS if name not in others}
            return
        found = numbers.of_images(subject.development, subject.pixels)
        for name, why in _NOT_KNOWN.items():
            if name not in found:
                self.not_measured[name] = why
        for name, features in found.items():
            self._measure(subject, name, features, np.isfinite(features.sum(axis=1)))
        self._measure_boxes(subject)

    def _measure_boxes(self, subject: Audited) -> None:
        """Measure what the locator's best boxes reveal, which no model of the class is given."""
        best = subject.best_boxes
        if best is None:
            return
        boxed = best["heat"].notna().to_numpy()
        if not boxed.any():
            self.not_measured |= dict.fromkeys(AUTOMATIC_BOX, "no development frame has an automatic box")
            return
        size = numbers.sizes(best[["width", "height"]])
        self._measure(subject, "automatic_box_size", size, boxed)
        with_score = np.column_stack([size, best["heat"]])
        self._measure(subject, "automatic_box_size_and_score", with_score, boxed)

    def _measure_features(self, subject: Subject) -> None:
        """Measure the same frozen features and head on whole images and on surroundings alone."""
        if subject.fold is None:
            self.not_measured |= dict.fromkeys(("whole_image", "blanked_nodule"), TOO_FEW)
            return
        if not subject.has_frozen_features:
            self.not_measured |= dict.fromkeys(("whole_image", "blanked_nodule"), TRAINED_WHOLE)
            return
        marked = numbers.marked(subject.development)
        self._measure(subject, "whole_image", subject.features, marked, splines=False)
        if marked is None:
            self.not_measured["blanked_nodule"] = NO_REGION
            return
        surroundings = np.zeros_like(subject.features)
        without_nodule = subject.blanked(subject.development[marked])
        surroundings[marked] = subject.network.features(without_nodule, "frozen features, nodule blanked")
        self._measure(subject, "blanked_nodule", surroundings, marked, splines=False)
        for margin in subject.other_margins:
            shown = subject.development[marked]
            for name, pixels in (
                ("whole_image", subject.recropped(shown, margin)),
                ("blanked_nodule", subject.blanked(shown, margin)),
            ):
                features = np.zeros_like(subject.features)
                features[marked] = subject.network.features(pixels, f"frozen features, margin {margin:g}")
                self._measure(subject, at_margin(name, margin), features, marked, splines=False)

    def _measure_model(self, subject: Audited) -> None:
        """Measure the model's own answers to test images, as they are and with the nodule blanked."""
        table, test = subject.images, subject.test
        shown = table["name"].isin(test["file"]) & (table["boxes"].map(len) > 0)
        tested = table[shown].reset_index(drop=True)
        if tested["label"].nunique() < len(CLASSES):
            self.not_measured["model_on_blanked_nodule"] = NO_REGION
            return
        positive, patient = tested["label"] == CLASSES[POSITIVE], tested["patient"].astype(int)
        scores = {
            "model": test.set_index("file").loc[tested["name"], SCORE].to_numpy(float),
            "model_on_blanked_nodule": subject.malignant(subject.blanked(tested), "test images, nodule blanked"),
        }
        for margin in subject.other_margins:
            doing = f"test images, margin {margin:g}"
            scores[at_margin("model", margin)] = subject.malignant(subject.recropped(tested, margin), doing)
            blanked = subject.blanked(tested, margin)
            scores[at_margin("model_on_blanked_nodule", margin)] = subject.malignant(
                blanked, f"{doing}, nodule blanked"
            )
        for name, score in scores.items():
            self.shortcut[name] = metrics.auroc(positive, score, patient, seed=subject.seed)

    def _measure(
        self,
        subject: Audited,
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
            whole, kept = self._best(references), self.kept_at(name)
            if whole is None or kept is None:
                why = f"its reference ({', '.join(map(str, known))}) is not above chance"
                self.not_measured[f"{name}, judged"] = why
                continue
            self.kept[name] = kept
            if kept > KEPT:
                broken.append(
                    f"without the nodule {who} reaches AUROC {self.shortcut[name]}, {kept:.0%} of the distance from "
                    f"chance of {whole} with it"
                )
        if broken:
            self.finding = f"most of the evidence is not in the nodule: {'; '.join([*broken, *self._by_margin()])}"


def _above_chance(auroc: metrics.Interval) -> bool:
    return auroc.low is not None and auroc.low > 0.5
