"""A complete and plausible external validation, made from simulated predictions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import softmax

from thyroid import RESEARCH_USE_ONLY, metrics
from thyroid.data.classes import Classes, parse
from thyroid.data.filenames import SCORE
from thyroid.evaluate import performance, predictions
from thyroid.evaluate.performance import SUBGROUP
from thyroid.interval import Interval
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.gate import AuditRecord
from thyroid.records.performance import Performance
from thyroid.records.validation import (
    Beside,
    Calibration,
    CalibrationBin,
    FormResult,
    NetBenefit,
    PatientsNeeded,
    Recalibration,
    SiteScans,
    Unlike,
    Unlikeness,
    ValidatedModel,
    ValidateSettings,
    ValidationRecord,
)
from thyroid.validate.site import REASONS

PREVALENCE = 0.1
COMPARED = ("auroc", "sensitivity", "specificity", "ppv_at_prevalence", "npv_at_prevalence", "brier", "ece")


@dataclass(frozen=True, eq=False)
class Validation:
    """What `validate.report.write` takes."""

    record: ValidationRecord
    tables: dict[str, pd.DataFrame]
    taken_out: pd.DataFrame
    quarantine: pd.DataFrame
    cases: dict[str, list[tuple[str, float, Any, Any]]]

    def write(self, output: Path) -> str:
        """Write the report and return its HTML."""
        from thyroid.validate import report

        report.write(
            output, self.record, self.tables, taken_out=self.taken_out, quarantine=self.quarantine, cases=self.cases
        )
        return (output / "report.html").read_text(encoding="utf-8")


def validation(
    patients: int = 120,
    classes: str = "B|M",
    kinds: Sequence[str] = ("given", "automatic"),
    only: str = "",
    skill: float = 0.45,
    internal_skill: float = 0.9,
    sparse: bool = False,
    joined: bool = False,
    **changes: Any,
) -> Validation:
    """Simulate a validation.

    Args:
        patients: Number of patients of the site.
        classes: Classes of the model.
        kinds: Kinds of boxes, the leading one first.
        only: "B" or "M" for a site with one side only.
        skill: Distance of the two sides' scores at the site.
        internal_skill: The same on the internal test set, of 160 patients.
        sparse: Leave out everything that may be absent.
        joined: All scans are of one patient.
        **changes: Fields of the record instead of the simulated ones.
    """
    known = parse(classes)
    point = _point(known)
    tables, forms = {}, {}
    for number, kind in enumerate(kinds):
        table = simulate(known, point, patients, skill - 0.1 * number, only)
        if joined:
            table["patient"] = table["group"] = 0
        inner = simulate(known, point, 160, internal_skill, seed=1)
        internal = None if sparse else performance.of(inner, known, point, PREVALENCE)
        tables[kind], forms[kind] = table, _form(table, known, point, kind, internal)
    leading, main = tables[kinds[0]], forms[kinds[0]]
    wrong = (leading[SCORE] >= point.threshold) != (leading["label"] == "M")
    mistakes = {"false-negatives": leading[wrong & (leading["label"] == "M")]}
    mistakes["false-positives"] = leading[wrong & (leading["label"] == "B")]
    both = known.names if not only else [name for name in known.names if known.side(name) == only]
    malignant = leading.loc[leading["label"] == "M", "patient"].nunique()
    fields: dict[str, Any] = {
        **known.to_dict(),
        "notice": RESEARCH_USE_ONLY,
        "site": "Saint Elsewhere",
        "created": "2026-11-29T09:00:00+00:00",
        "by": "Dr Kim",
        "code_version": "0.1.0",
        "model": ValidatedModel(
            name="thyroid",
            version=3,
            asked="",
            released=not sparse,
            sha256="3f" * 32,
            backbone="VGG16",
            serving_domain="cropped",
            form="openvino",
            sensitivity=0.95,
            threshold=point.threshold,
        ),
        "data_digest": "ab" * 32,
        "scans": SiteScans(
            listed=len(leading) + (0 if sparse else 9),
            quarantined=0 if sparse else 2,
            taken_out={} if sparse else {"trained_file": 3, "trained_picture": 1, "tested_patient": 3},
            unchecked="version 3 has no pseudonyms of its patients" if sparse else None,
            scans=leading["path"].nunique(),
            patients=leading["patient"].nunique(),
            classes={name: int((leading["class"] == name).sum()) for name in both},
            malignant_patients=malignant,
            without_region=0 if "given" in kinds else len(leading),
            synthetic=len(leading) if sparse else 0,
        ),
        "main": kinds[0],
        "forms": forms,
        "audits": None if sparse else _audits(),
        "not_audited": "no scan has a region" if sparse else None,
        "unlike": None if sparse else _unlike(),
        "recalibration": None if sparse or only else _recalibration(kinds[0], patients),
        "not_recalibrated": "a recalibration needs 10 patients of each class" if sparse or only else None,
        "needed": _needed(main.performance),
        "mistakes": {kind: len(rows) for kind, rows in mistakes.items()},
        "warnings": []
        if sparse
        else [
            f"{patients} patients, {malignant} of them malignant: fewer than the 100 of each class that an external "
            "validation should have (Collins et al. 2016), so the intervals are wide.",
            "7 scans were taken out because the model knows them or their patients.",
        ],
        "settings": ValidateSettings(prevalence=PREVALENCE, wanted=0.85, seed=0),
        "seconds": {"site": 1.2, "predictions": 8.4, "engine": 7.9, "measure": 1.0},
    }
    if len(kinds) > 1 and main.performance.auroc is not None:
        fields["agreement"] = beside(main.performance.auroc, forms[kinds[1]].performance.auroc)
    return Validation(
        ValidationRecord(**fields | changes),
        tables,
        _taken_out(0 if sparse else 7),
        pd.DataFrame({"file": [], "reason": []})
        if sparse
        else pd.DataFrame({"file": ["B_201-0001-1.0.jpg", "M_202-0001-1.0.jpg"], "reason": ["empty", "no class"]}),
        {kind: _cases(rows.head(4)) for kind, rows in mistakes.items()},
    )


def simulate(
    classes: Classes, point: OperatingPoint, patients: int, skill: float, only: str = "", seed: int = 0
) -> pd.DataFrame:
    """Simulate a table of predictions as `validate.endpoint` returns it: one to three images a patient."""
    generator = np.random.default_rng(seed)
    names = [name for name in classes.names if not only or classes.side(name) == only]
    of_patient = generator.choice(len(names), patients)
    patient = np.repeat(np.arange(patients), generator.integers(1, 4, patients))
    name = np.array(names, object)[of_patient[patient]]
    noise = generator.normal(size=(patients, len(classes)))[patient] + generator.normal(size=(len(patient), 1)) / 2
    side = np.where(np.array([classes.side(one) for one in name]) == "M", 0.5, -0.5)[:, None]
    towards = np.where(np.array(classes.positive), 1.0, -1.0)
    own = np.array(classes.names, object)[None] == name[:, None]
    raw = softmax(skill * side * towards + 0.8 * own * skill + noise, axis=1)
    scan = [f"{classes.side(one)}_{p:03}-{i:04}-1.0.jpg" for i, (one, p) in enumerate(zip(name, patient, strict=True))]
    table = pd.DataFrame(
        {
            "path": [f"site/{one}" for one in scan],
            "scan": scan,
            "class": name,
            "label": [classes.side(one) for one in name],
            "patient": patient,
            "group": patient,
            "sha256": [f"{i:064x}" for i in range(len(scan))],
            **{side: generator.integers(20, 90, len(scan)).astype(float) for side in ("x", "y", "width", "height")},
            "undecided": np.where(generator.random(len(scan)) < 0.08, "abstention_band", ""),
            "box_probability": np.nan,
            **dict(zip(classes.columns, raw.T, strict=True)),
        }
    )
    return predictions.at_point(table, point, classes)


def beside(internal: Interval | None, external: Interval | None) -> Beside:
    """Put two metrics beside each other, with the interval of their difference by square and add."""
    difference = None
    if internal is not None and external is not None:
        value, (low, high) = external.value - internal.value, (None, None)
        if None not in (internal.low, internal.high, external.low, external.high):
            down = math.hypot(external.value - external.low, internal.high - internal.value)
            up = math.hypot(external.high - external.value, internal.value - internal.low)
            low, high = value - down, value + up
        difference = Interval(value, low, high)
    return Beside(internal=internal, external=external, difference=difference)


def _point(classes: Classes) -> OperatingPoint:
    count = len(classes)
    return OperatingPoint(1.0, (0.0,) * count, 0.4, (1 / count,) * count, (0.35, 0.45))


def _form(
    table: pd.DataFrame, classes: Classes, point: OperatingPoint, kind: str, internal: Performance | None
) -> FormResult:
    """Measure one kind of boxes."""
    found = performance.of(table, classes, point, PREVALENCE)
    pairs = {}
    for prefix, here, there in (
        ("", found, internal),
        ("patient_", found.patient_level, internal and internal.patient_level),
    ):
        for name in COMPARED:
            pairs[prefix + name] = beside(there and getattr(there, name), getattr(here, name))
    both = table["label"].nunique() == 2
    domain = {"given": "cropped", "automatic": "automatic", "frame": "normal"}[kind]
    grouped = table.assign(**{f"{SUBGROUP}scanner": np.where(table["patient"] % 3, "640 x 480", "1024 x 768")})
    grouped[f"{SUBGROUP}region size"] = pd.qcut(table["width"], 3, labels=["small", "middle", "large"]).astype(str)
    reasons = table["undecided"][table["undecided"] != ""].value_counts()
    return FormResult(
        performance=found,
        internal_domain=domain if internal else None,
        beside=pairs,
        calibration=_calibration(table) if both else None,
        net_benefit=_net_benefit(table) if both else [],
        subgroups=performance.by_subgroup(grouped, point.threshold, PREVALENCE),
        undecided={str(reason): int(count) for reason, count in reasons.items()},
    )


def _calibration(table: pd.DataFrame) -> Calibration:
    truth, score = (table["label"] == "M").to_numpy(), table[SCORE].to_numpy()
    bins = []
    for rows in np.array_split(np.argsort(score), min(8, len(score) // 4)):
        share = float(truth[rows].mean())
        observed = Interval(share, *metrics.clopper_pearson(int(truth[rows].sum()), len(rows)))
        patients = table["patient"].iloc[rows].nunique()
        bins.append(
            CalibrationBin(predicted=score[rows].mean(), observed=observed, images=len(rows), patients=patients)
        )
    ratio = float(truth.mean() / score.mean())
    return Calibration(
        in_the_large=Interval(math.log(ratio), math.log(ratio) - 0.4, math.log(ratio) + 0.4),
        slope=Interval(0.71, 0.48, 0.97),
        observed_to_expected=Interval(ratio, ratio / 1.2, ratio * 1.2),
        bins=bins,
    )


def _net_benefit(table: pd.DataFrame) -> list[NetBenefit]:
    truth, score = (table["label"] == "M").to_numpy(), table[SCORE].to_numpy()
    thresholds = np.linspace(0.01, 0.4, 40)
    model = metrics.net_benefit(truth, score, thresholds, PREVALENCE)
    everybody = metrics.net_benefit(truth, np.ones(len(truth)), thresholds, PREVALENCE)
    return [NetBenefit(threshold=t, model=m, everybody=e) for t, m, e in zip(thresholds, model, everybody, strict=True)]


def _audits() -> AuditRecord:
    return AuditRecord(
        domain="cropped",
        shortcut={
            "model": Interval(0.82, 0.75, 0.89),
            "model_on_blanked_nodule": Interval(0.61, 0.52, 0.70),
            "scan_area_geometry": Interval(0.55, 0.44, 0.66),
            "box_size": Interval(0.64, 0.53, 0.74),
        },
        kept={"model_on_blanked_nodule": 0.34},
        leakage={},
        findings={},
        not_measured={"acquisition_order": "fewer than 10 patients of a class"},
    )


def _unlike() -> Unlikeness:
    contrast = [3.0, 4.1, 5.2, 6.0, 7.3]
    rows = [
        ("mean_grey", [41.0, 55.0, 62.0, 70.0, 84.0], [22.0, 30.0, 36.0, 44.0, 60.0], 0.61, Interval(0.91, 0.88, 0.94)),
        ("frame_width", [640.0] * 5, [1024.0] * 5, 1.0, Interval(1.0, 0.97, 1.0)),
        ("fine_contrast", contrast, [one + 0.2 for one in contrast], 0.03, Interval(0.55, 0.49, 0.61)),
    ]
    return Unlikeness(
        properties=[
            Unlike(name=name, training=ours, site=theirs, outside=outside, auroc=auroc)
            for name, ours, theirs, outside, auroc in rows
        ],
        new_frames=1.0,
        summary="The frames are of another size than any training frame, and darker.",
    )


def _recalibration(kind: str, patients: int) -> Recalibration:
    before = {"sensitivity": Interval(0.78, 0.69, 0.86), "specificity": Interval(0.71, 0.62, 0.80)}
    after = {"sensitivity": Interval(0.93, 0.87, 0.98), "specificity": Interval(0.52, 0.42, 0.62)}
    gain = {"sensitivity": Interval(0.15, 0.08, 0.23), "specificity": Interval(-0.19, -0.28, -0.11)}
    return Recalibration(
        boxes=kind,
        folds=5,
        patients=patients,
        temperature=1.42,
        bias=[0.0, 0.31],
        threshold=0.312,
        before=before,
        after=after,
        gain=gain,
        summary="Fitted on this site's own patients, the threshold would find 15 more of 100 malignant nodules and "
        "send on 19 more of 100 benign ones.",
    )


def _needed(found: Performance) -> PatientsNeeded | None:
    sensitivity = found.patient_level.sensitivity
    if sensitivity is None:
        return None
    return PatientsNeeded(
        wanted=0.85,
        sensitivity=sensitivity,
        malignant=None,
        patients=None,
        summary="No number of patients is expected to show a sensitivity above 85 % here, since it is below that now.",
    )


def _taken_out(count: int) -> pd.DataFrame:
    reasons = ["trained_file"] * 3 + ["trained_picture"] + ["tested_patient"] * 3
    files = [f"M_3{i:02}-0001-1.0.jpg" for i in range(count)]
    return pd.DataFrame({"file": files, "reason": [REASONS[reason] for reason in reasons[:count]]})


def _cases(rows: pd.DataFrame) -> list[tuple[str, float, Any, Any]]:
    generator = np.random.default_rng(0)
    found = []
    for scan, score in zip(rows["scan"], rows[SCORE], strict=True):
        picture = np.kron(generator.integers(0, 160, (14, 14, 1), np.uint8), np.ones((8, 8, 3), np.uint8))
        overlay = picture.copy()
        overlay[30:80, 30:80, 0] = 230
        found.append((str(scan), float(score), picture, overlay))
    return found
