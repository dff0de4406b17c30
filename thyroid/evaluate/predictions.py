"""Predictions of every trained model on validation and test images, as one table.

The table (predictions.parquet) has one row per model and image, with the columns:

- backbone, train_domain: the model.
- domain, file (within `DataVersion.images`), sha256, scan (file name), class, label (the side of the class), patient,
  group, split: the image. The domain "automatic" holds test frames with a marked nodule a second time, as the model
  sees them without a marked box; the file of an automatic crop is within the folder of `locate`.
- probability_CLASS of every class, and probability_M of the malignant side: scaled at the model's operating point.
- raw_CLASS of every class, and raw_M of the malignant side: before scaling.
- decision, and called: the class that the image is called.
- new, only with a registry: whether the registry's newest model did not have the scan.
- "group: NAME" for every usable column of clinical.csv: the subgroup of the scan.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from thyroid.clinical.fusion import Fusion
from thyroid.data import tables
from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, POSITIVE, SCORE
from thyroid.evaluate import performance
from thyroid.model import operating_point
from thyroid.records.evaluation import ChangesRecord, DomainMatrix, ModelRow, TestPart
from thyroid.registry.changes import Changes


@dataclass(frozen=True, eq=False)
class ClinicalHead:
    """A head that adds clinical columns to the probabilities of a network.

    Attributes:
        head: The head.
        rows: Values of its columns, by the path of the scan.
    """

    head: Fusion
    rows: pd.DataFrame

    def apply(self, table: pd.DataFrame, classes: Classes) -> pd.DataFrame:
        """Replace the unscaled probabilities of `table`, which has the path of each scan, by those of the head."""
        answers, _ = self.head.predict(table[classes.columns].to_numpy(), self.rows_of(table))
        return table.assign(**dict(zip(classes.columns, answers.T, strict=True)))

    def rows_of(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the values of the columns for the scans of `table`, in its order."""
        return self.rows.loc[table["path"]].reset_index(drop=True)


def at_point(table: pd.DataFrame, point: operating_point.OperatingPoint, classes: Classes) -> pd.DataFrame:
    """Apply the operating point to unscaled predictions.

    The probabilities are scaled, the network's own are kept (raw_CLASS, raw_M), and decision and called class are
    added. `table` is changed in place and returned.
    """
    raw = table[classes.columns].to_numpy()
    table[_raw(classes)] = raw
    table[performance.RAW] = classes.malignant(raw)
    table[classes.columns] = scaled = point.scale(raw)
    table[SCORE] = classes.malignant(scaled)
    table["decision"] = point.decide(table[SCORE])
    table["called"] = np.array(classes.names, object)[point.call(scaled, classes)]
    return table


def unscaled(table: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """Return predictions of `at_point` with the unscaled probabilities that it was given."""
    return table.assign(**{column: table[raw] for column, raw in zip(classes.columns, _raw(classes), strict=True)})


def _raw(classes: Classes) -> list[str]:
    return [f"raw_{name}" for name in classes.names]


def of_model(predictions: pd.DataFrame, row: ModelRow, domain: str, split: str) -> pd.DataFrame:
    """Select the predictions of one model (backbone and train_domain of `row`) in one domain and split."""
    wanted: pd.Series[bool] = (
        (predictions["backbone"] == row.backbone)
        & (predictions["train_domain"] == row.train_domain)
        & (predictions["domain"] == domain)
        & (predictions["split"] == split)
    )
    return predictions[wanted].reset_index(drop=True)


def domain_matrices(
    predictions: pd.DataFrame, rows: Sequence[ModelRow], domains: Sequence[str], seed: int
) -> dict[str, DomainMatrix]:
    """Compare the domains trained on with all `domains` for every backbone that was trained on both, by backbone."""
    matrices = {}
    for backbone in dict.fromkeys(row.backbone for row in rows):
        of_backbone = [row for row in rows if row.backbone == backbone]
        if len(of_backbone) == len(tables.DOMAINS):
            cells = {
                (row.train_domain, domain): of_model(predictions, row, domain, "test")
                for row in of_backbone
                for domain in domains
            }
            matrices[backbone] = performance.domain_matrix(cells, [d for d in domains if d in tables.DOMAINS], seed)
    return matrices


def describe_changes(changed: Changes, tested: pd.DataFrame, seed: int) -> ChangesRecord:
    """Report what has changed since the last registered model, and the winner's AUROC on new and known test images."""
    new, known = (_measure_part(part, seed) for part in (tested[tested["new"]], tested[~tested["new"]]))
    return ChangesRecord(**changed.to_dict(), test_new=new, test_known=known)


def _measure_part(part: pd.DataFrame, seed: int) -> TestPart:
    auroc = {"auroc": performance.auroc(part, seed)} if part["label"].nunique() == len(CLASSES) else {}
    return TestPart(images=len(part), patients=int(part["patient"].nunique()), **auroc)


def roc_points(table: pd.DataFrame) -> tuple[list[float], list[float], list[float]]:
    """Return false positive rates, true positive rates and thresholds. The first threshold is 1 instead of infinity."""
    fpr, tpr, threshold = roc_curve(table["label"] == CLASSES[POSITIVE], table[SCORE])
    return fpr.tolist(), tpr.tolist(), np.minimum(threshold, 1.0).tolist()
