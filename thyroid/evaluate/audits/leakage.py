"""The audit of leakage: patients, near-duplicates and scans that are on both sides of a split."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd

from thyroid import metrics
from thyroid.data import duplicates, overlap
from thyroid.data.filenames import CLASSES, POSITIVE
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.evaluate.audits import head
from thyroid.evaluate.audits.audit import Picture
from thyroid.evaluate.audits.subject import ONE_CLASS, TOO_FEW, TRAINED_WHOLE, Subject
from thyroid.metrics import Interval
from thyroid.model.artefact import CARD, SCANS, Artefact
from thyroid.records.clinical import ClinicalRecord
from thyroid.records.gate import AuditRecord
from thyroid.records.train import TrainRecord
from thyroid.registry import changes
from thyroid.registry.registry import Registry
from thyroid.storage import Location
from thyroid.train import record

_ROWS = {
    "leaky_split": "AUROC that a split by image would have reported (same features and head, development images)",
    "by_patient": "... by patient, as here",
    "difference": "... difference, paired",
}
"""AUROCs under two splits, in the order of the table."""


@dataclass
class LeakageAudit:
    """What leaked between the splits, and into the training from the test set.

    Attributes:
        leakage: Counts across splits, and AUROCs under a split by patient and under a split by image.
        finding: What is wrong, in words; None if nothing is.
        not_measured: Reason why the AUROCs were not measured, by name.
    """

    leakage: dict[str, Interval | int] = field(default_factory=dict)
    finding: str | None = None
    not_measured: dict[str, str] = field(default_factory=dict)

    name: ClassVar[str] = "leakage"
    title: ClassVar[str] = "Did anything leak?"
    explanation: ClassVar[str] = (
        "Patients and near-duplicate images on two sides of the split, and test images or patients that the model was "
        "trained on. They are searched again in this evaluation, from the hashes of the images."
    )
    criterion: ClassVar[str] = "leakage audit"
    asked: ClassVar[str] = "nothing found"
    waivable: ClassVar[bool] = True

    @classmethod
    def run(cls, subject: Subject) -> "LeakageAudit":
        """Measure what a careless split would report, and count what leaked."""
        audit = cls()
        audit.compare_splits(subject)
        audit.count(subject.data, subject.training.train_domain, subject.parts)
        audit.count_inherited(subject.data, subject.training, subject.registry)
        audit.judge()
        return audit

    @classmethod
    def from_record(cls, audits: AuditRecord, clinical: ClinicalRecord | None) -> "LeakageAudit":
        """Restore the outcome from the field `audits` of evaluation.json."""
        return cls(audits.leakage, audits.findings.get(cls.name))

    @property
    def ran(self) -> bool:
        """Whether the splits were searched."""
        return "patients_across_splits" in self.leakage

    @property
    def outcome(self) -> str:
        """What was found if there is no finding."""
        return "nothing found" if self.ran else "could not be run"

    @property
    def table(self) -> list[tuple[str, str]]:
        """The counts, then the AUROCs under both splits."""
        counts = {name: count for name, count in self.leakage.items() if name not in _ROWS}
        rows = [(name.replace("_", " ").capitalize(), str(count)) for name, count in counts.items()]
        return rows + [(text, str(self.leakage[name])) for name, text in _ROWS.items() if name in self.leakage]

    @property
    def picture(self) -> Picture | None:
        """There is none."""
        return None

    @property
    def warnings(self) -> list[str]:
        """The finding."""
        return [] if self.finding is None else [f"{self.finding[0].upper()}{self.finding[1:]}."]

    def fields(self) -> dict[str, Any]:
        """Return the counts and AUROCs."""
        return {"leakage": self.leakage}

    def compare_splits(self, subject: Subject) -> None:
        """Score the same features and head under a split by image instead of by patient.

        This is what a careless split would report.
        """
        if subject.fold is None:
            self.not_measured["leaky_split"] = TOO_FEW
            return
        if not subject.has_frozen_features:
            self.not_measured["leaky_split"] = TRAINED_WHOLE
            return
        label = subject.development["label"].to_numpy()
        by_image = head.folds_by_image(label, len(set(subject.fold)), subject.seed)
        positive, patient = label == CLASSES[POSITIVE], subject.development["patient"].astype(int).to_numpy()
        draws = metrics.Draws(patient, seed=subject.seed)
        drawn = {}
        for name, fold in (("by_patient", subject.fold), ("leaky_split", by_image)):
            score = head.out_of_fold(subject.features, label, fold, splines=False)
            if score is None:
                self.not_measured["leaky_split"] = ONE_CLASS
                return
            drawn[name] = metrics.auroc_draws(draws, positive, score, patient, fold)
        self.leakage |= {name: metrics.interval(area) for name, area in drawn.items()}
        self.leakage["difference"] = metrics.interval(drawn["leaky_split"] - drawn["by_patient"])

    def count(self, data: DataVersion, train_domain: str, parts: pd.Series) -> None:
        """Count patients and near-duplicates that are in several splits, and test scans that were trained on.

        Args:
            data: Data version.
            train_domain: Domain that the model was trained on and that the images of `parts` belong to.
            parts: What the training used each image for, by name of `DataVersion.examples`.
        """
        scans = data.used
        patients = scans.groupby("patient")["split"].nunique()
        pairs = duplicates.near_duplicates(scans["phash"])
        split = scans["split"].tolist()
        crossing = [pair for pair in pairs if split[pair[0]] != split[pair[1]]]
        table = data.examples(train_domain)
        learnt = table[table["name"].isin(parts.index)]
        if learnt.empty:
            self.finding = "the images that the model was trained on are unknown"
        tested = scans[scans["split"] == "test"]
        self.leakage |= {
            "patients_across_splits": int((patients > 1).sum()),
            "near_duplicates_across_splits": len(crossing),
            "test_images_trained_on": len(set(tested["path"]) & set(learnt["path"])),
            "test_patients_trained_on": len(set(tested["patient"]) & set(learnt["patient"])),
        }

    def count_inherited(self, data: DataVersion, training: TrainRecord, root: Location | None) -> None:
        """Count test scans that the champion from which the model started was trained on.

        A model that did not start from a champion has no such scans, and nothing is added. If the scans of the champion
        are not known, that is a finding.

        Args:
            data: Data version.
            training: Record of the training (train.json).
            root: Root of the registry; None for no registry.
        """
        if training.recipe != "warm" or not training.weights.startswith(record.STARTED):
            return
        try:
            if root is None:
                raise InputError("no registry was given")
            version = training.weights.removeprefix(record.STARTED)
            folder = Registry(root).find(version, only=(*CARD, SCANS))
            if Artefact.read(folder).model_sha256 != training.champion:
                raise InputError(f"{root}: version {version} is a different model")
            seen = overlap.find(root, changes.scans_of(folder).query("split == 'train'"), data.test_scans)
            if seen.problem:
                self.finding = f"the model started from {training.weights}: {seen.problem}"
        except InputError as error:
            self.finding = f"the model started from {training.weights}, whose training scans are unknown: {error}"
            return
        self.leakage |= {
            "test_images_its_start_learnt_from": seen.pictures,
            "test_images_of_patients_its_start_learnt_from": seen.patients,
        }

    def judge(self) -> None:
        """Make a finding of counts above 0."""
        counts = {name: count for name, count in self.leakage.items() if isinstance(count, int) and count}
        if counts:
            what = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
            self.finding = f"{what}: the model may have been trained on test data, so test metrics are optimistic"
