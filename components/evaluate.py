"""The evaluation as a pipeline step. It is the fan-in of the five named trainings."""

import inspect

from kfp.dsl import HTML, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from components.step import step
from thyroid.model.backbones import BACKBONES


def evaluate(
    images: Input[Dataset],
    serving_domain: str,
    sensitivity: float,
    abstain: float,
    prevalence: float,
    clinical: str,
    descriptors: str,
    registry: str,
    waive: str,
    shadow: int,
    seed: int,
    evaluation: Output[Model],
    report: Output[HTML],
    metrics: Output[Metrics],
    classification: Output[ClassificationMetrics],
    boxes: Input[Dataset] = None,
    **models: Input[Model],
):
    """Lock operating points, choose the winner on validation, score the test set, audit, decide the gate and report."""
    from pathlib import Path

    import pandas as pd

    from thyroid.evaluate import evaluate as library
    from thyroid.evaluate import predictions
    from thyroid.evaluate.boxes import words
    from thyroid.evaluate.options import EvaluateOptions

    trained = [Path(model.path) for model in models.values() if model is not None]
    folders = [folder for model in trained for folder in sorted(model.iterdir()) if (folder / "train.json").is_file()]
    options = EvaluateOptions(
        serving_domain=serving_domain,
        sensitivity=sensitivity,
        abstain=abstain,
        prevalence=prevalence,
        clinical=clinical,
        descriptors=descriptors,
        registry=registry,
        locate=None if boxes is None else Path(boxes.path),
        waive=[name for name in waive.split(",") if name],
        shadow=shadow,
        seed=seed,
    )
    done = library.evaluate(Path(images.path), folders, Path(evaluation.path), options)
    Path(report.path).write_bytes((done.folder / "report.html").read_bytes())
    best, domain = done.record.models[0], done.record.serving_domain
    evaluation.metadata |= done.record.winner.to_dict()
    test = best.test[domain]
    numbers = {"validation_auroc": best.validation.auroc.value, "test_accuracy": test.accuracy}
    numbers |= {"test_majority": test.majority} | words.numbers(done.record)
    for metric in ("auroc", "sensitivity", "specificity", "ece"):
        numbers |= {f"test_{metric}_{name}": value for name, value in test.to_dict().get(metric, {}).items()}
    for name, value in numbers.items():
        if value is not None:
            metrics.log_metric(name, value)
    metrics.log_metric("promoted", int(done.record.gate.decision == "promoted"))  # MLflow's plugin takes texts for 0
    table = predictions.of_model(pd.read_parquet(done.folder / "predictions.parquet"), best, domain, "test")
    classification.log_roc_curve(*predictions.roc_points(table))
    classification.log_confusion_matrix(["benign", "malignant"], test.confusion)


# kfp needs a fixed interface, so there is one optional model for each row of the backbone table.
_signature = inspect.signature(evaluate)
_fixed = [p for p in _signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
_models = [
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Input[Model]) for name in BACKBONES
]
evaluate.__signature__ = _signature.replace(parameters=_fixed + _models)  # type: ignore[attr-defined]
evaluate.__annotations__ = {p.name: p.annotation for p in _fixed + _models}
evaluate = step(image="train")(evaluate)
