"""Measures what automatic boxes cost a model of crops: AUROC, order and decisions with given and with automatic boxes.

Both scores are of the same frames, so their difference is paired. Intervals resample patients.
"""

from typing import Any

import numpy as np
import pandas as pd

from thyroid import metrics
from thyroid.data.filenames import SCORE
from thyroid.evaluate import gate, performance
from thyroid.metrics import Interval
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.locate import AutomaticBoxes


def pair(given: pd.DataFrame, automatic: pd.DataFrame, boxes: pd.DataFrame) -> pd.DataFrame:
    """Put the score with the marked boxes beside that with the automatic box, for every frame.

    Args:
        given: Predictions of the crops of marked nodules: path and the probability of malignant (`filenames.SCORE`).
            Other scans than those of `automatic` are left out.
        automatic: Predictions of the automatic crops, one row per frame: path, label, patient and the same probability.
        boxes: Best box of every frame: path and unsure.

    Returns:
        One row per frame, in the order of `automatic`: path, label, patient, given (the mean over the frame's marked
        nodules), automatic, and unsure (bool).
    """
    mean = given.groupby("path")[SCORE].mean()
    unsure = boxes.set_index("path")["unsure"].astype(bool)
    return pd.DataFrame(
        {
            "path": automatic["path"],
            "label": automatic["label"],
            "patient": automatic["patient"].astype(int),
            "given": automatic["path"].map(mean).astype(float),
            "automatic": automatic[SCORE].astype(float),
            "unsure": automatic["path"].map(unsure).astype(bool),
        }
    ).reset_index(drop=True)


def flips(frames: pd.DataFrame, point: OperatingPoint) -> "pd.Series[bool]":
    """Return for each frame of `pair` whether its decision changes with the automatic box, abstentions included."""
    changed = point.decide(frames["given"]) != point.decide(frames["automatic"])
    return pd.Series(changed, frames.index)


def measure(frames: pd.DataFrame, point: OperatingPoint, seed: int = 0) -> AutomaticBoxes:
    """Measure what automatic boxes cost, and decide whether the model may decide on them.

    Args:
        frames: Result of `pair`, with frames of both classes.
        point: The model's operating point, locked on marked boxes of other patients.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: The frames have one class only.
    """
    positive, patient = performance.is_malignant(frames), frames["patient"]
    given, automatic = frames["given"], frames["automatic"]
    difference = metrics.auroc_difference(positive, automatic, given, patient, seed=seed)
    changed, sure = flips(frames, point), ~frames["unsure"]
    why_not = gate.reason_against_boxes(difference)
    optional = _on_sure(frames[sure], seed) | ({} if why_not is None else {"reason": why_not})
    return AutomaticBoxes(
        frames=len(frames),
        patients=int(patient.nunique()),
        given=_auroc(frames, "given", seed),
        automatic=_auroc(frames, "automatic", seed),
        difference=difference,
        rank_correlation=metrics.rank_correlation(automatic, given, patient, seed=seed),
        flips=int(changed.sum()),
        sure_frames=int(sure.sum()),
        sure_flips=int((changed & sure).sum()),
        allowed=gate.BOXES_MARGIN,
        released=why_not is None,
        **optional,
    )


def _on_sure(sure: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Return the AUROCs on the frames whose box is sure; nothing if they have one class only."""
    if len(np.unique(performance.is_malignant(sure))) < 2:
        return {}
    return {f"sure_{name}": _auroc(sure, name, seed) for name in ("given", "automatic")}


def _auroc(frames: pd.DataFrame, column: str, seed: int) -> Interval:
    return metrics.auroc(performance.is_malignant(frames), frames[column], frames["patient"], seed=seed)
