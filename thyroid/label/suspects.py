"""Scans whose labels look wrong, found by confident learning from predictions that never saw the scan's patient.

    python -m thyroid.suspects --model DIR --data DIR --output suspects.csv

The method is that of Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels"
(J Artif Intell Res 2021;70:1373), with pruning by noise rate. It is written from the paper: cleanlab, its authors'
library, is under the AGPL. A suspect is a scan to look at again. It is not an error that has been found, and no label
is changed.

The order is worth more than the number that is flagged, which is too large where predictions are weak. With the labels
of 5 % of the patients flipped on DDTI, and predictions of an AUROC of .78, 27 % of the frames are flagged: two thirds
of the flipped ones, and one flagged frame in eight is flipped. Among the first 5 % of the order it is three in ten
(`bench/suspects.py`).
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from thyroid import RESEARCH_USE_ONLY, atomic, command, storage
from thyroid.data import csv_tables, tables
from thyroid.data.classes import Classes
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.label.frames import Frame

log = logging.getLogger(__name__)

COLUMNS = ("path", "label", "suggested", "self_confidence", "margin")
"""Columns of suspects.csv: path of the scan below the folder of scans, its class, the class that the predictions
suggest, the predicted probability of its own class, and by how much that of the suggested class is larger."""

_ROUNDING = 1e-9
"""A mean of equal probabilities may be larger than each of them by its rounding."""


@dataclass(frozen=True)
class Suspect:
    """A scan to look at again.

    Attributes:
        path: Its path below the folder of scans.
        label: Its class.
        suggested: Class that the predictions suggest.
        self_confidence: Predicted probability of its own class, 0 to 1.
        margin: Probability of the suggested class minus that of its own, -1 to 1.
    """

    path: str
    label: str
    suggested: str
    self_confidence: float
    margin: float


def find(label: ArrayLike, probability: ArrayLike) -> pd.DataFrame:
    """Rank scans by how much their labels look wrong.

    A scan counts as confidently of a class if the class' probability is at least the mean that scans of this label
    have. The table of labels against confident classes, scaled to the number of scans of each label, estimates how
    many scans of one label belong to another class. As many are flagged, those of the largest margins. The thresholds
    adapt to predictions that favour the frequent class.

    Args:
        label: Index of the given class [n].
        probability: Probabilities [n, classes] of models that did not see the scan's patient.

    Returns:
        One row per scan, the most suspicious first, with the number of the scan as index: label, suggested (indices),
        self_confidence, margin, and flagged, whether it is one of the estimated errors. Flagged rows are first.

    Raises:
        ValueError: The shapes differ, a label is no index of a class, or a probability is not between 0 and 1.
    """
    given, chance = np.asarray(label, int), np.asarray(probability, float)
    if chance.ndim != 2 or given.shape != chance.shape[:1] or chance.shape[1] < 2:
        raise ValueError("expected labels [n] and probabilities [n, classes] of at least two classes")
    if not ((chance >= 0) & (chance <= 1)).all():
        raise ValueError("a probability is not between 0 and 1")
    if len(given) and not 0 <= given.min() <= given.max() < chance.shape[1]:
        raise ValueError("a label is not the index of a class")
    place, errors = np.arange(len(given)), _count_errors(given, chance)
    own = chance[place, given]
    others = np.where(np.bincount(given, minlength=chance.shape[1]) > 0, chance, -1)
    others[place, given] = -2
    suggested, flagged = others.argmax(axis=1), np.zeros(len(given), bool)
    for was, other in np.argwhere(errors > 0):
        of_label = np.flatnonzero((given == was) & ~flagged)
        margin = chance[of_label, other] - own[of_label]
        chosen = of_label[np.argsort(-margin, kind="stable")[: errors[was, other]]]
        flagged[chosen], suggested[chosen] = True, other
    found = pd.DataFrame(
        {
            "label": given,
            "suggested": suggested,
            "self_confidence": own,
            "margin": chance[place, suggested] - own,
            "flagged": flagged,
        }
    )
    return found.sort_values(["flagged", "margin"], ascending=False, kind="stable")


def _count_errors(given: NDArray[np.int_], chance: NDArray[np.float64]) -> NDArray[np.int_]:
    """Return the estimated number of scans of each label (row) that belong to another class (column), int [k, k]."""
    classes = chance.shape[1]
    count = np.bincount(given, minlength=classes)
    threshold = [chance[given == name, name].mean() if count[name] else math.inf for name in range(classes)]
    confident = chance >= np.array(threshold) - _ROUNDING
    sure, called = confident.any(axis=1), np.where(confident, chance, -1).argmax(axis=1)
    joint = np.zeros((classes, classes))
    np.add.at(joint, (given[sure], called[sure]), 1)
    empty = joint.sum(axis=1) == 0
    joint[empty, empty] = 1  # nothing is known of such a label, so that none of its scans is flagged
    joint *= (count / joint.sum(axis=1))[:, None]
    np.fill_diagonal(joint, 0)
    errors: NDArray[np.int_] = np.rint(joint).astype(int)
    return errors


def of_training(model: Path, data: Path, domain: str = "") -> pd.DataFrame:
    """Rank the scans of a data version by the out-of-fold predictions of a training.

    The probabilities of a scan are the means over its regions. Scans of the test split have no such predictions.

    Args:
        model: Folder of a training with folds.
        data: Data version of `crop` that it was trained on.
        domain: Domain of the predictions; empty for the one that was trained on.

    Returns:
        Table of `COLUMNS` with class names, and flagged, as `find` ranks it.

    Raises:
        InputError: The training is not finished, is of another data version, or has no folds.
    """
    from thyroid.train import record  # draws plots with Matplotlib, which the bench does without

    training, version = record.read(model), DataVersion.read(data)
    record.require_data(model, training, version)
    classes, domain = Classes.from_record(training), domain or training.train_domain
    try:
        predicted = record.out_of_fold(model, domain)
    except FileNotFoundError:
        raise InputError(
            f"{model}: trained without folds, so that it has no prediction of a scan that it did not learn from; "
            "train with --folds 5"
        ) from None
    except ValueError as error:
        raise InputError(f"{model / 'folds.parquet'}: damaged ({error}); train again") from None
    known = version.examples(domain).drop_duplicates("name").set_index("name")
    if unknown := sorted(set(predicted["file"]) - set(known.index)):
        raise InputError(f"{model / 'folds.parquet'}: {len(unknown)} images are not of {data}; give its own data")
    predicted = predicted.assign(path=predicted["file"].map(known["path"]))
    scans = predicted.groupby("path").agg({"class": "first", **dict.fromkeys(classes.columns, "mean")})
    found = find(classes.index(scans["class"]), np.clip(scans[classes.columns].to_numpy(), 0, 1))
    names = np.array(classes.names, object)
    prefix = f"{version.facts.source.rstrip('/')}/"
    return found.assign(
        path=[str(path).removeprefix(prefix) for path in scans.index[found.index]],
        label=names[found["label"]],
        suggested=names[found["suggested"]],
    )[[*COLUMNS, "flagged"]].reset_index(drop=True)


def write(path: Path, found: pd.DataFrame) -> None:
    """Write suspects.csv from rows of `of_training`, atomically."""
    text = found[list(COLUMNS)].to_csv(index=False, float_format="%.4f", lineterminator="\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, text.encode())


def read(location: storage.Location) -> dict[str, Suspect]:
    """Read suspects.csv.

    Args:
        location: Where it is.

    Returns:
        Suspects by the path of the scan, in the order of the file.

    Raises:
        InputError: There is no such file, it is not a CSV table, a column is missing, a number is none, or a path
            occurs twice.
    """
    table = csv_tables.read(storage.file(location), str(location), "suspects")
    if missing := [column for column in COLUMNS if column not in table]:
        raise InputError(f"{location}: column {', '.join(missing)} is missing; expected {', '.join(COLUMNS)}")
    suspects: dict[str, Suspect] = {}
    for line, row in enumerate(table[list(COLUMNS)].itertuples(index=False), 2):
        path, label, suggested, *numbers = (str(cell).strip() for cell in row)
        try:
            confidence, margin = (float(text) for text in numbers)
        except ValueError:
            confidence = margin = math.nan
        if not (0 <= confidence <= 1 and -1 <= margin <= 1):
            raise InputError(f"{location}: line {line}: self_confidence must be 0 to 1, and margin -1 to 1")
        if not path or path in suspects:
            raise InputError(f"{location}: line {line}: its path is {'there twice' if path else 'empty'}; remove it")
        suspects[path] = Suspect(path, label, suggested, confidence, margin)
    return suspects


def match(found: Mapping[str, Suspect], frames: Sequence[Frame]) -> dict[str, Suspect]:
    """Return suspects by the path of their frame, the most suspicious first. Those of other frames are left out.

    Args:
        found: Suspects by path, as `read` returns them. A frame of a DICOM file has its pseudonym there.
        frames: The frames of the bench.
    """
    paths = {frame.pseudonym or frame.path: frame.path for frame in frames}
    return {paths[path]: suspect for path, suspect in found.items() if path in paths}


def run(
    *,
    model: Path,
    data: Path,
    output: Path,
    domain: Annotated[str, command.one_of(tables.DOMAINS)] = "",
    most: int = 0,
) -> None:
    """List the scans whose labels look wrong, for the labelling bench.

    Args:
        model: Folder of thyroid.train with --folds.
        data: Data version of thyroid.crop that it was trained on.
        output: File to write, suspects.csv.
        domain: normal or cropped; if not given, the one that was trained on.
        most: Number of scans to list, the most suspicious ones; 0 for as many as the method estimates to be wrong.
    """
    if most < 0:
        raise InputError(f"most {most}: give a number of scans, or 0 for as many as are estimated to be wrong")
    found = of_training(model, data, domain)
    chosen = found.head(most) if most else found[found["flagged"]]
    write(output, chosen)
    log.info(
        f"{output}: {len(chosen)} of {len(found)} scans to look at again "
        f"({int(found['flagged'].sum())} are estimated to be wrong, which is too many where predictions are weak)"
    )
    log.info(RESEARCH_USE_ONLY)


main = command.main("python -m thyroid.suspects", run)
