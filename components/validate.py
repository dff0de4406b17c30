"""The external validation of a registered model as a pipeline step, in an image without TensorFlow."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kfp.dsl import HTML, ClassificationMetrics, Dataset, Metrics, Output

from components.step import step

if TYPE_CHECKING:
    from thyroid.records.validation import ValidationRecord


@step(image="validate")
def validate(
    registry: str,
    model: str,
    scans: str,
    rois: str,
    labels: str,
    clinical: str,
    site: str,
    prevalence: float,
    wanted: float,
    recalibrate: bool,
    by: str,
    seed: int,
    validation: Output[Dataset],
    report: Output[HTML],
    metrics: Output[Metrics],
    classification: Output[ClassificationMetrics],
):
    """Measure a registered model on scans of another site, beside its internal test."""
    import shutil
    from pathlib import Path

    from thyroid.evaluate import predictions
    from thyroid.validate.options import ValidateOptions
    from thyroid.validate.validate import validate as run

    options = ValidateOptions(
        registry=registry,
        model=model,
        scans=scans,
        rois=rois,
        labels=labels,
        clinical=clinical,
        site=site,
        prevalence=prevalence,
        wanted=wanted,
        recalibrate=recalibrate,
        by=by,
        seed=seed,
    )
    done = run(options, Path(validation.path))
    shutil.copy(done.folder / "report.html", report.path)
    validation.metadata |= {"site": done.record.site, "version": done.record.model.version}
    for name, value in _numbers(done.record):
        metrics.log_metric(name, value)
    result = done.record.forms[done.record.main]
    if result.beside["auroc"].external is not None:
        classification.log_roc_curve(*predictions.roc_points(done.tables[done.record.main]))
    classification.log_confusion_matrix(["benign", "malignant"], result.performance.confusion)


def _numbers(record: "ValidationRecord") -> Iterator[tuple[str, float]]:
    """Yield names and values of the figures: internal, external and their difference, with their bounds."""
    result = record.forms[record.main]
    yield "patients", record.scans.patients
    yield "accuracy", result.performance.accuracy
    yield "majority", result.performance.majority
    figures = ("auroc", "sensitivity", "specificity", "patient_auroc", "patient_sensitivity", "patient_specificity")
    for metric in figures:
        for side, interval in dict(result.beside[metric]).items():
            for name in ("value", "low", "high"):
                # A reader of metrics takes what is not a number for 0.
                if interval is not None and (number := getattr(interval, name)) is not None:
                    yield f"{side}_{metric}_{name}", number
