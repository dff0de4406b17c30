"""Compares points of TI-RADS with the model's decisions: from how many on they are suspicious, and what that is worth.

The comparison is of patients, as the endpoint decides: a patient's probability is the mean over the images, and the
points of a patient are those that are possible for any image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import fisher_exact

from thyroid import metrics
from thyroid.data.filenames import CLASSES, POSITIVE, SCORE
from thyroid.evaluate import clinical_model, predictions
from thyroid.evaluate.scored import ScoredModel
from thyroid.metrics import Interval
from thyroid.model.descriptors.head import Head
from thyroid.records.model import TiradsRecord
from thyroid.tirads import LEVELS, Points

CUTS = tuple(points for points in LEVELS.values() if points)
"""Points that may count as suspicious: the fewest of each level from TR2 on."""
LEAST = 5
"""Patients with points that disagree with the decision without whom nothing is proven."""
_PROVEN = 0.05


@dataclass(frozen=True)
class Compared:
    """Decisions on patients beside the points of their images.

    Attributes:
        patients: Number of patients with a decision.
        disagree: Number of them whose points disagree with it.
        wrong_if_disagree: Number of wrong decisions among these.
        wrong_if_agree: Number of wrong decisions among the others.
    """

    patients: int
    disagree: int
    wrong_if_disagree: int
    wrong_if_agree: int

    @property
    def shares(self) -> tuple[Interval | None, Interval | None]:
        """Share of wrong decisions where the two disagree, and elsewhere, each with its exact interval."""
        return (
            _share(self.wrong_if_disagree, self.disagree),
            _share(self.wrong_if_agree, self.patients - self.disagree),
        )

    @property
    def why_not(self) -> str | None:
        """Why a disagreement does not show that the decision is more often wrong, in words; None if it does.

        The test is Fisher's exact one, one-sided.
        """
        if self.disagree < LEAST:
            return (
                f"the two disagree on {self.disagree} of {self.patients} patients that the network did not learn from, "
                f"and {LEAST} are needed"
            )
        agree = self.patients - self.disagree
        table = [
            [self.wrong_if_disagree, self.disagree - self.wrong_if_disagree],
            [self.wrong_if_agree, agree - self.wrong_if_agree],
        ]
        p = float(fisher_exact(table, alternative="greater").pvalue)
        if p < _PROVEN:
            return None
        wrong, other = self.shares
        there = "n/a" if wrong is None else f"{wrong.value:.0%}"
        elsewhere = "n/a" if other is None else f"{other.value:.0%}"
        return (
            f"on patients that the network did not learn from, {there} of the decisions are wrong where the two "
            f"disagree ({self.disagree} patients), and {elsewhere} of the others ({agree} patients): no more than "
            f"chance may give (p = {p:.2f})"
        )


def points(head: Head, probability: NDArray[np.float64]) -> list[Points]:
    """Return the points that are possible for each image, of probabilities of the findings given out [n, k]."""
    return [head.tell(row).points for row in probability]


def lock(
    winner: ScoredModel, head: Head, images: pd.DataFrame, found: Sequence[Points]
) -> tuple[int, str | None] | None:
    """Choose the points that count as suspicious, and find out whether a disagreement is a reason of doubt.

    The points are chosen by Youden's index of the middle of the interval against the class (Youden 1950,
    10.1002/1097-0142(1950)3:1<32::AID-CNCR2820030106>3.0.CO;2-3), on development patients whose points are out of fold.
    The model makes no decision where the two disagree only if that is proven on patients that the network did not
    learn from.

    Args:
        winner: A model with a locked operating point.
        head: Its findings.
        images: Labelled development images.
        found: Their points, out of fold.

    Returns:
        The points, and why a disagreement is no reason of doubt, None if it is. None if one side is missing.
    """
    table = with_bounds(images, found)
    patients = _by_patient(table.assign(**{SCORE: 0.0}))
    if patients["positive"].nunique() < len(CLASSES):
        return None
    cut = _youden(((patients["low"] + patients["high"]) / 2).to_numpy(), patients["positive"].to_numpy(bool))
    scored = _scores(winner)
    unseen = table[table["name"].isin(scored.index)]
    unseen = unseen.assign(**{SCORE: scored.loc[unseen["name"]].to_numpy()})
    return cut, compare(winner, with_cut(head, cut), unseen).why_not


def _scores(winner: ScoredModel) -> "pd.Series[float]":
    """Return the probability of malignant of the images that the network did not learn from, by their name."""
    if not winner.cross_validated:
        return winner.validation.set_index("file")[SCORE]
    raw, _ = clinical_model.unseen(winner)
    if winner.clinical is not None:
        raw = winner.clinical.apply(raw, winner.classes)
    return predictions.at_point(raw, winner.point, winner.classes).set_index("file")[SCORE]


def with_cut(head: Head, cut: int, why_not: str | None = None) -> Head:
    """Return a head whose points are compared with decisions, of which nothing is measured yet."""
    nothing = {"covered": None, "mean_width": None, "wrong_if_disagree": None, "wrong_if_agree": None}
    record = TiradsRecord(cut=cut, doubts=why_not is None, why_not=why_not, compared=0, disagree=0, **nothing)
    return Head(head.record.model_copy(update={"tirads": record}), head.weight, head.bias)


def compare(winner: ScoredModel, head: Head, images: pd.DataFrame) -> Compared:
    """Compare decisions on patients with the points of their images.

    Args:
        winner: The model that decides.
        head: Its findings, with the points that count as suspicious.
        images: Rows with patient, label, low, high and the probability of malignant.
    """
    if images.empty:
        return Compared(0, 0, 0, 0)
    patients = _by_patient(images)
    patients = patients.assign(decision=winner.point.decide(patients[SCORE]))
    patients = patients[patients["decision"] != "abstain"]
    disagree = np.array(
        [
            head.disagrees(decision, Points(int(low), int(high)))
            for decision, low, high in zip(patients["decision"], patients["low"], patients["high"], strict=True)
        ],
        bool,
    )
    wrong = ((patients["decision"] == "malignant") != patients["positive"]).to_numpy(bool)
    return Compared(len(patients), int(disagree.sum()), int(wrong[disagree].sum()), int(wrong[~disagree].sum()))


def with_bounds(images: pd.DataFrame, found: Sequence[Points]) -> pd.DataFrame:
    """Return images with the fewest (low) and the most (high) points of each."""
    return images.assign(low=[one.low for one in found], high=[one.high for one in found])


def _by_patient(images: pd.DataFrame) -> pd.DataFrame:
    """Aggregate images by patient: low, high, positive and the probability of malignant."""
    rows = images.assign(positive=images["label"] == CLASSES[POSITIVE]).groupby("patient", as_index=False)
    return rows.agg({"low": "min", "high": "max", "positive": "any", SCORE: "mean"})


def _youden(middle: NDArray[np.float64], positive: NDArray[np.bool_]) -> int:
    """Return the cut with the largest sum of sensitivity and specificity, the lowest one of several."""
    sums = [(middle[positive] >= cut).mean() + (middle[~positive] < cut).mean() for cut in CUTS]
    return CUTS[int(np.argmax(sums))]


def _share(hits: int, trials: int) -> Interval | None:
    return None if not trials else Interval(hits / trials, *metrics.clopper_pearson(hits, trials))
