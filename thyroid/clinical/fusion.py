"""Fuses images and clinical columns by a head over both, and compares it with either of them alone.

Research use only.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, softmax

from thyroid.clinical.encoder import Encoder
from thyroid.data import splits
from thyroid.errors import InputError
from thyroid.records.clinical import FusionComparison, FusionRecord

STRENGTHS = (10.0, 1.0, 0.1, 0.01, 0.001)
"""L2 penalties of the mean log loss to choose from. With the first the answer is almost that of the images alone."""
INNER = 5
"""Number of folds by patient in which the penalty is chosen."""
FLOOR = 1e-6
"""Smaller probabilities of images are raised to this value."""
_RIDGE = 1e-4  # penalty of the offsets, so that a class without a training row has a finite one

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Fusion:
    """Computes softmax(scale x log p + x W + b) of the images' probabilities p and the encoded columns x.

    The network ends in a dense layer with softmax on its pooled features, so log p is the output of that layer up to a
    constant. This head is therefore a dense layer on [features, columns] whose image part keeps the network's own
    direction: the columns add to it but cannot rotate it.

    Attributes:
        encoder: Encoder of the columns.
        scale: Factor of log p, 0 or more; 1 keeps the network's own.
        weights: W [d][n_classes].
        offsets: b [n_classes].
        strength: L2 penalty that was chosen.
    """

    encoder: Encoder
    scale: float
    weights: tuple[tuple[float, ...], ...]
    offsets: tuple[float, ...]
    strength: float

    @classmethod
    def from_record(cls, record: FusionRecord) -> "Fusion":
        """Return the head of a model.json."""
        weights = tuple(tuple(row) for row in record.weights)
        encoder = Encoder.from_record(record.encoder)
        return cls(encoder, record.scale, weights, tuple(record.offsets), record.strength)

    def to_dict(self) -> dict[str, Any]:
        """Return the head as JSON."""
        return asdict(self)

    def predict(self, p: ArrayLike, rows: Any) -> tuple[Array, list[str]]:
        """Return fused probabilities float64 [n, n_classes] and the encoder's notes.

        Args:
            p: Probabilities of the images [n, n_classes].
            rows: n rows as `Encoder.encode` takes them.
        """
        x, notes = self.encoder.encode(rows)
        return self.answer(p, x), notes

    def answer(self, p: ArrayLike, x: NDArray[np.float32]) -> Array:
        """Return fused probabilities float64 [n, n_classes] for rows that are already encoded.

        Args:
            p: Probabilities of the images [n, n_classes].
            x: Encoded rows [n, d].
        """
        weights = np.array(self.weights).reshape(x.shape[1], len(self.offsets))
        fused: Array = softmax(self.scale * _log(p) + x @ weights + np.array(self.offsets), axis=1)
        return fused


def fit(p: ArrayLike, rows: pd.DataFrame, y: ArrayLike, patient: ArrayLike, seed: int = 0) -> Fusion:
    """Fit the head by multinomial logistic regression.

    Its L2 penalty shrinks it to the images' own probabilities. The penalty is the one with the least log loss in a
    cross-validation by patient; of equal ones the stronger is taken. There are no class weights: the images'
    probabilities are calibrated to the classes' frequencies, and so is the head.

    Args:
        p: Probabilities [n, n_classes] of images of patients that the network did not learn from (validation or out of
            fold). On its own training images the network is too certain, and the columns would look useless.
        rows: Rows of `clinical_csv.join` [n].
        y: Class of every row, int in range(n_classes) [n].
        patient: Patient number [n].
        seed: Seed of the folds.

    Returns:
        The head.

    Raises:
        InputError: Lengths differ, values are not probabilities, a class is out of range, or there are too few patients
            for folds.
    """
    probabilities, classes, patients = _checked(p, rows, y, patient)
    # threadpoolctl comes with scikit-learn; threads slow down work on such small matrices
    from threadpoolctl import threadpool_limits

    fold = deal(classes, patients, INNER, seed)
    losses = np.zeros(len(STRENGTHS))
    with threadpool_limits(1):
        for number in np.unique(fold):
            held = fold == number
            path = _path(probabilities[~held], rows[~held], classes[~held], patients[~held])
            x = path[0].encoder.encode(rows[held])[0]
            for place, head in enumerate(path):
                right = head.answer(probabilities[held], x)[np.arange(len(x)), classes[held]]
                losses[place] -= np.log(np.maximum(right, FLOOR)).sum()
        best = int(np.flatnonzero(losses <= losses.min() + 1e-9 * len(classes))[0])
        return _path(probabilities, rows, classes, patients)[best]


def _path(p: Array, rows: pd.DataFrame, y: NDArray[np.int64], patient: NDArray[Any]) -> list[Fusion]:
    """Fit the heads of all `STRENGTHS`. Each fit starts from the solution of the next stronger penalty."""
    from scipy.optimize import minimize  # not imported by a server, which starts faster without it

    encoder = Encoder.fit(rows, patient)
    x = encoder.encode(rows)[0].astype(float)
    log_p, (n, k), d = _log(p), p.shape, x.shape[1]
    target = np.eye(k)[y]

    def loss(theta: Array, strength: float) -> tuple[float, Array]:
        scale, weights, offsets = theta[0], theta[1 : 1 + d * k].reshape(d, k), theta[1 + d * k :]
        z = log_softmax(scale * log_p + x @ weights + offsets, axis=1)
        off = (np.exp(z) - target) / n
        value = -(z * target).sum() / n + strength / 2 * ((weights**2).sum() + (scale - 1) ** 2)
        slopes = [
            [(off * log_p).sum() + strength * (scale - 1)],
            (x.T @ off + strength * weights).ravel(),
            off.sum(axis=0) + _RIDGE * offsets,
        ]
        return value + _RIDGE / 2 * (offsets**2).sum(), np.concatenate(slopes)

    theta = np.append(1.0, np.zeros((d + 1) * k))
    bounds = [(0, None)] + [(None, None)] * ((d + 1) * k)
    heads = []
    for strength in STRENGTHS:
        theta = minimize(loss, theta, (strength,), "L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": 1000}).x
        weights = tuple(tuple(row) for row in theta[1 : 1 + d * k].reshape(d, k).tolist())
        heads.append(Fusion(encoder, float(theta[0]), weights, tuple(theta[1 + d * k :].tolist()), strength))
    return heads


def _log(p: ArrayLike) -> Array:
    """Return log p minus its mean, which softmax ignores."""
    log_p = np.log(np.maximum(np.asarray(p, float), FLOOR))
    centred: Array = log_p - log_p.mean(axis=1, keepdims=True)
    return centred


def _checked(
    p: ArrayLike, rows: pd.DataFrame, y: ArrayLike, patient: ArrayLike
) -> tuple[Array, NDArray[np.int64], NDArray[Any]]:
    probabilities, classes, patients = np.asarray(p, float), np.asarray(y), np.asarray(patient)
    if probabilities.ndim != 2 or not len(probabilities) == len(rows) == len(classes) == len(patients):
        raise InputError("fusion: the numbers of probabilities, clinical rows, classes and patients differ")
    if not np.isfinite(probabilities).all() or (probabilities < 0).any() or abs(probabilities.sum(1) - 1).max() > 1e-3:
        raise InputError("fusion: the images' probabilities are not finite, not positive or do not sum to 1")
    if not np.issubdtype(classes.dtype, np.integer) or not 0 <= classes.min() <= classes.max() < probabilities.shape[1]:
        raise InputError(f"fusion: classes must be whole numbers from 0 to {probabilities.shape[1] - 1}")
    return probabilities, classes, patients


def deal(y: ArrayLike, patient: ArrayLike, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Deal rows into folds by whole patients, with the classes distributed as evenly as possible.

    There are fewer folds if there are fewer patients. A class with fewer patients than folds is not in every fold.

    Args:
        y: Class [n].
        patient: Patient number [n].
        count: Number of folds.
        seed: Seed of the deal.

    Returns:
        Fold of every row [n], 0 to `count` - 1.

    Raises:
        InputError: There are fewer than two patients, or no class has two rows.
    """
    classes, patients = np.asarray(y), np.asarray(patient)
    count = min(count, len(np.unique(patients)), int(np.unique(classes, return_counts=True)[1].max()))
    if count < 2:
        raise InputError("clinical: too few patients for a cross-validation; add patients")
    return splits.fold_of_rows(classes, patients, count, seed)


@dataclass(frozen=True)
class CrossFitted:
    """Holds out-of-fold probabilities, each by a head that was fitted without the patient.

    Attributes:
        fused: Fused probabilities, float64 [n, n_classes].
        clinical: Probabilities of the clinical columns alone, float64 [n, n_classes].
        fold: Fold of every row [n].
    """

    fused: Array
    clinical: Array
    fold: NDArray[np.int64]


def cross_fitted(
    p: ArrayLike, rows: pd.DataFrame, y: ArrayLike, patient: ArrayLike, *, folds: int = 5, seed: int = 0
) -> CrossFitted:
    """Compute fused and clinical-only probabilities out of fold.

    Encoder, penalty and head are fitted separately in every fold. The clinical-only answer is the same regression on
    uniform probabilities of images.

    Args:
        p: Probabilities [n, n_classes], as for `fit`.
        rows: Rows of `clinical_csv.join` [n].
        y: Class of every row, int in range(n_classes) [n].
        patient: Patient number [n].
        folds: Number of folds.
        seed: Seed of the folds.

    Raises:
        InputError: As for `fit` and `deal`.
    """
    probabilities, classes, patients = _checked(p, rows, y, patient)
    fold = deal(classes, patients, folds, seed)
    nothing = np.full_like(probabilities, 1 / probabilities.shape[1])
    fused, clinical = np.empty_like(probabilities), np.empty_like(probabilities)
    for number in np.unique(fold):
        held = fold == number
        for image, answer in ((probabilities, fused), (nothing, clinical)):
            head = fit(image[~held], rows[~held], classes[~held], patients[~held], seed)
            answer[held] = head.predict(image[held], rows[held])[0]
    return CrossFitted(fused, clinical, fold)


def compare(
    images: ArrayLike,
    clinical: ArrayLike,
    fused: ArrayLike,
    y: ArrayLike,
    patient: ArrayLike,
    *,
    fold: ArrayLike | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> FusionComparison:
    """Compare images and columns together with images alone and with columns alone.

    All metrics are of the same patients and the same draws of them.

    Args:
        images: Probabilities of the images [n, n_classes], out of fold.
        clinical: Probabilities of the clinical columns alone [n, n_classes], out of fold.
        fused: Fused probabilities [n, n_classes], out of fold.
        y: Class [n].
        patient: Patient number [n].
        fold: Fold of the cross-fitting [n]; only pairs within a fold count.
        draws: Number of bootstrap draws over patients.
        seed: Seed of the draws.

    Returns:
        The AUROCs (macro, one class against the rest), their differences and the verdict.

    Raises:
        InputError: There is only one class.
    """
    from thyroid import metrics  # imports scikit-learn

    classes, patients = np.asarray(y), np.asarray(patient)
    if len(np.unique(classes)) < 2:
        raise InputError("clinical: all rows are of one class; AUROC needs two")
    resampled = metrics.Draws(patient, draws, seed)
    answers = {"images": images, "clinical": clinical, "fused": fused}
    drawn = {name: metrics.macro_auroc_draws(resampled, y, p, patient, fold) for name, p in answers.items()}
    gain = {f"fused_less_{name}": metrics.interval(drawn["fused"] - drawn[name]) for name in ("images", "clinical")}
    difference = gain["fused_less_images"]
    low, high = difference.low, difference.high
    decision = "helped" if low and low > 0 else "harmed" if high and high < 0 else "not shown to help"
    fewest = min(len(np.unique(patients[classes == c])) for c in np.unique(classes))
    statement = {
        "helped": "Clinical columns helped",
        "harmed": "Clinical columns harmed",
        "not shown to help": "Clinical columns were not shown to help",
    }[decision]
    doubt = f"; a class has only {fewest} patients, so the interval is too narrow" if fewest < metrics.FEW else ""
    areas = {name: metrics.macro_auroc(resampled, y, p, patient, fold) for name, p in answers.items()}
    return FusionComparison(
        auroc=areas,
        difference=gain,
        patients=len(resampled.patients),
        verdict=decision,
        sentence=f"{statement}: macro AUROC {areas['fused']} with them, {areas['images']} with images alone, "
        f"difference {difference}{doubt}.",
    )
