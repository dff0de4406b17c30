"""The proposals of a locator for many frames: their calibration, the limit of being unsure, and their metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from thyroid import metrics
from thyroid.imaging.geometry import Box
from thyroid.locate.frames import Frames
from thyroid.metrics import detection
from thyroid.metrics.intervals import DRAWS
from thyroid.model import locator
from thyroid.records.locate import BoxCalibration, BoxPerformance, SizeRow

_SIZES = ("small", "middle", "large")
_PENALTY = 10.0
"""Inverse strength of the penalty of the logistic calibration: enough that a few frames cannot separate it."""


@dataclass(frozen=True)
class Proposals:
    """The proposals for some frames.

    Attributes:
        boxes: x, y, width, height of each proposal in pixels of the frame, the best one first, by frame.
        heats: Heat of each proposal, by frame.
    """

    boxes: tuple[tuple[Box, ...], ...]
    heats: tuple[tuple[float, ...], ...]

    @classmethod
    def read(cls, frames: Frames, heat: NDArray[np.float32], distances: NDArray[np.float32]) -> "Proposals":
        """Return the proposals for frames from the answers of a locator's network.

        Args:
            frames: The frames.
            heat: Heat maps [n, g, g].
            distances: Distances [n, g, g, 4].
        """
        stride = frames.size // heat.shape[1]
        found = [
            locator.propose(one, far, stride, locator.Place.of(area, frames.size))
            for one, far, area in zip(heat, distances, frames.areas(), strict=True)
        ]
        return cls(
            tuple(tuple(box for box, _ in one) for one in found),
            tuple(tuple(value for _, value in one) for one in found),
        )

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.boxes)

    def where(self, chosen: NDArray[np.bool_]) -> "Proposals":
        """Return the proposals for some of the frames, those that are chosen [n]."""
        rows = np.flatnonzero(chosen).tolist()
        return Proposals(tuple(self.boxes[row] for row in rows), tuple(self.heats[row] for row in rows))

    def probabilities(self, calibration: BoxCalibration) -> list[list[float]]:
        """Return the calibrated probability of every proposal, by frame."""
        return [locator.probabilities(list(heats), calibration) for heats in self.heats]

    def best(self, calibration: BoxCalibration) -> NDArray[np.float64]:
        """Return the calibrated probability of the best proposal of every frame [n]."""
        return np.array([one[0] for one in self.probabilities(calibration)])


def median_box(frames: Frames, learnt: Frames) -> tuple[tuple[Box, ...], ...]:
    """Return one box per frame: that of median place and size in the scan area of other frames. It knows no picture.

    Args:
        frames: The frames.
        learnt: Marked frames, of each of which the largest nodule counts.
    """
    shares = []
    for boxes, (left, top, wide, high) in zip(learnt.boxes, learnt.areas(), strict=True):
        x, y, width, height = max(boxes, key=lambda box: box[2] * box[3])
        shares.append(((x + width / 2 - left) / wide, (y + height / 2 - top) / high, width / wide, height / high))
    x, y, width, height = np.median(shares, axis=0).tolist()
    result = []
    for left, top, wide, high in frames.areas():
        corner = (round(left + (x - width / 2) * wide), round(top + (y - height / 2) * high))
        result.append(((*corner, round(width * wide), round(height * high)),))
    return tuple(result)


def fit_calibration(proposals: Proposals, frames: Frames) -> BoxCalibration:
    """Fit the probability that a proposal fits a nodule: that of the best one, and a constant for the others.

    Args:
        proposals: Proposals for marked frames by locators that did not learn from them.
        frames: The frames.
    """
    fits = detection.compare(proposals.boxes, frames.boxes).hit
    if fits.all() or not fits.any():  # too few frames to learn from: one probability for all (rule of succession)
        share = (fits.sum() + 1) / (len(fits) + 2)
        return BoxCalibration(intercept=float(np.log(share / (1 - share))), heat=0.0, lead=0.0)
    values = [(locator.logit(heats[0]), locator.leads(list(heats))[0]) for heats in proposals.heats]
    fitted = LogisticRegression(C=_PENALTY).fit(np.array(values), fits)
    heat, lead = fitted.coef_[0].tolist()
    best = BoxCalibration(intercept=float(fitted.intercept_[0]), heat=heat, lead=lead)
    return best.model_copy(update={"runner_up": _runner_up(proposals, frames, best)})


def _runner_up(proposals: Proposals, frames: Frames, best: BoxCalibration) -> float:
    """Return the constant with which the other proposals fit as often, on average, as their probability says."""
    sums, fits = [], 0
    for boxes, sure, marked in zip(proposals.boxes, proposals.probabilities(best), frames.boxes, strict=True):
        for box, probability in zip(boxes[1:], sure[1:], strict=True):
            sums.append(locator.logit(probability))
            fits += bool(detection.iou([box], marked).max() >= detection.FITS)
    if not sums:
        return 0.0
    share = (fits + 0.5) / (len(sums) + 1)  # never 0 or 1
    return float(brentq(lambda constant: expit(np.array(sums) + constant).mean() - share, -30, 30))


def cross_calibrated(proposals: Proposals, frames: Frames, fold: NDArray[np.int_]) -> NDArray[np.float64]:
    """Return the probability of each best proposal by a calibration that did not see its patient either.

    Args:
        proposals: Cross-fitted proposals for marked frames.
        frames: The frames.
        fold: Fold of each frame [n].
    """
    out = np.zeros(len(fold))
    for number in np.unique(fold):
        held = fold == number
        out[held] = proposals.where(held).best(fit_calibration(proposals.where(~held), frames.where(~held)))
    return out


def cross_median(frames: Frames, fold: NDArray[np.int_]) -> tuple[tuple[Box, ...], ...]:
    """Return for each frame the median box of the other folds' frames.

    Args:
        frames: Marked frames.
        fold: Fold of each frame [n].
    """
    out: dict[int, tuple[Box, ...]] = {}
    for number in np.unique(fold):
        held = fold == number
        boxes = median_box(frames.where(held), frames.where(~held))
        out |= dict(zip(np.flatnonzero(held).tolist(), boxes, strict=True))
    return tuple(out[place] for place in range(len(fold)))


def lock_limit(probability: NDArray[np.float64], unsure: float) -> float:
    """Return the probability below which a box is unsure.

    Args:
        probability: Calibrated probability of the best box of every validation frame [n].
        unsure: Share of these frames to leave unsure.
    """
    return float(np.quantile(probability, unsure)) if unsure else 0.0


def measure(
    proposals: Proposals | tuple[tuple[Box, ...], ...],
    frames: Frames,
    probability: NDArray[np.float64] | None = None,
    limit: float = 0.0,
    *,
    seed: int = 0,
) -> BoxPerformance:
    """Measure how well proposals fit the marked nodules.

    Args:
        proposals: Proposals for marked frames, or boxes without heat.
        frames: The frames.
        probability: Calibrated probability of the best proposals [n]; None for boxes without one.
        limit: Probability below which a box is unsure.
        seed: Seed of the bootstrap.
    """
    boxes = proposals.boxes if isinstance(proposals, Proposals) else proposals
    heats: Sequence[Sequence[float]] = (
        proposals.heats if isinstance(proposals, Proposals) else [[1.0] * len(one) for one in boxes]
    )
    patient = frames.table["patient"].to_numpy(int)
    fits = detection.compare(boxes, frames.boxes)
    draws = metrics.Draws(patient, DRAWS, seed)
    precision = detection.average_precision_draws(boxes, heats, frames.boxes, patient, draws)
    of_probability = {}
    if probability is not None:
        of_probability = _measure_probability(probability, fits.hit, patient, limit=limit, seed=seed)
    return BoxPerformance(
        frames=len(frames),
        patients=len(np.unique(patient)),
        centre=detection.mean_interval(fits.centre, patient, seed),
        iou50=detection.mean_interval(fits.hit, patient, seed),
        mean_iou=detection.mean_interval(fits.iou, patient, seed),
        recall_at_3=detection.mean_interval(fits.recall, patient, seed),
        ap50=metrics.interval(precision),
        by_size=_by_size(fits.hit, frames, patient, seed),
        **of_probability,
    )


def _measure_probability(
    probability: NDArray[np.float64], hit: NDArray[np.bool_], patient: NDArray[np.int_], *, limit: float, seed: int
) -> dict[str, Any]:
    sample = metrics.Draws(patient, 0)
    found: dict[str, Any] = {"ece": float(metrics.ece_draws(sample, hit, probability, patient)[0])}
    if hit.any() and not hit.all():
        found["auroc"] = metrics.auroc(hit, probability, patient, seed=seed)
    surest = np.zeros(len(hit), bool)
    surest[np.argsort(-probability, kind="stable")[: (len(hit) + 1) // 2]] = True
    found["surest_half"] = detection.mean_interval(hit[surest], patient[surest], seed)
    sure = probability >= limit
    found["sure"] = detection.mean_interval(sure, patient, seed)
    if sure.any():
        found["sure_iou50"] = detection.mean_interval(hit[sure], patient[sure], seed)
    return found


def _by_size(hit: NDArray[np.bool_], frames: Frames, patient: NDArray[np.int_], seed: int) -> list[SizeRow]:
    """Return the hit rate by thirds of the frames, by the side of their largest nodule as a share of the scan area."""
    side = np.array(
        [
            max(np.sqrt(box[2] * box[3]) for box in boxes) / np.sqrt(area[2] * area[3])
            for boxes, area in zip(frames.boxes, frames.areas(), strict=True)
        ]
    )
    rows = []
    for name, part in zip(_SIZES, np.array_split(np.argsort(side, kind="stable"), len(_SIZES)), strict=True):
        if len(part):
            rate = detection.mean_interval(hit[part], patient[part], seed)
            rows.append(SizeRow(size=name, frames=len(part), iou50=rate))
    return rows
