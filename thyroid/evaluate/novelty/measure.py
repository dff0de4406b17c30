"""Locks how unlike the training images an image may be, and measures what that limit passes and catches.

The reference is fitted on training patients and the limit is locked on validation patients, before any test image is
read. Test images say what share of patients the limit passes, and foreign images what it catches.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid import metrics
from thyroid.evaluate.novelty import foreign
from thyroid.evaluate.novelty.foreign import Foreign
from thyroid.evaluate.scored import ScoredModel
from thyroid.imaging import images
from thyroid.imaging.images import Pixels
from thyroid.metrics import Interval
from thyroid.model.novelty import fit
from thyroid.model.novelty.novelty import QUANTILES, Novelty
from thyroid.records.model import ForeignImages, NoveltyRecord

LEAST_TRAINING, LEAST_VALIDATION = 10, 3
"""Patients of the train and of the validation split without whom there is no reference."""


@dataclass(frozen=True, eq=False)
class Locked:
    """The reference of a model, with its limit.

    Attributes:
        novelty: The reference, as the artefact holds it.
        images: Number of training images that it was fitted on.
        patients: Number of their patients.
        validation_patients: Number of validation patients that its limit was locked on.
    """

    novelty: Novelty
    images: int
    patients: int
    validation_patients: int


@dataclass(frozen=True, eq=False)
class Detected:
    """What a reference passes and catches.

    Attributes:
        record: Content of the field `novelty` of evaluation.json and model.json.
        tested: Largest distance of every test patient's images as a multiple of the limit, by patient.
        foreign: Distance of every foreign image as a multiple of the limit [n], by kind.
    """

    record: NoveltyRecord
    tested: "pd.Series[float]"
    foreign: Mapping[str, NDArray[np.float64]]


def why_not(winner: ScoredModel) -> str | None:
    """Say in words why a model can have no reference; None if it can.

    Args:
        winner: A model whose network is loaded.
    """
    if not winner.network.has_pooled:
        return "the training is of an older release, which did not keep what it needs; train again"
    data, domain = winner.evaluation.data, winner.evaluation.serving_domain
    for split, least, what in (
        ("train", LEAST_TRAINING, "a reference needs"),
        ("validation", LEAST_VALIDATION, "a limit needs"),
    ):
        if (patients := data.examples(domain, split)["patient"].nunique()) < least:
            return f"the {split} split has images of {patients} patients, and {what} {least}"
    return None


def lock(winner: ScoredModel) -> Locked | None:
    """Fit the reference on training patients, and lock its limit on validation patients. No test image is read.

    Args:
        winner: A model whose network is loaded.

    Returns:
        The reference, or None for a model that can have none (see `why_not`).
    """
    if why_not(winner) is not None:
        return None
    data, seed = winner.evaluation.data, winner.evaluation.options.seed
    table, held_out = _training(winner), data.examples(winner.evaluation.serving_domain, "validation")
    patients = table["patient"].to_numpy(int)
    features = _features(winner, table, "training images")
    reference = fit.fit(features)
    fitted = fit.cross_fitted(features, patients, seed)
    distances = reference.distance(_features(winner, held_out, "validation images"))
    limit = fit.limit(distances, held_out["patient"].to_numpy(int), fitted, patients)
    quantiles = np.quantile(fitted, np.linspace(0, 1, QUANTILES))
    return Locked(
        Novelty(**vars(reference), quantiles=quantiles, limit=limit),
        images=len(table),
        patients=len(np.unique(patients)),
        validation_patients=int(held_out["patient"].nunique()),
    )


def measure(winner: ScoredModel, locked: Locked, forms: Mapping[str, NDArray[np.float32]]) -> Detected:
    """Measure what share of the test patients a reference passes, and how well it detects foreign images.

    Args:
        winner: The winner, scored on the test set.
        locked: Its reference, locked before.
        forms: The network's features of the test images of the serving domain [n, d], by other form than Keras.
    """
    evaluation, novelty, seed = winner.evaluation, locked.novelty, winner.evaluation.options.seed

    def distance(pixels: Pixels, doing: str) -> NDArray[np.float64]:
        return novelty.distance(winner.network.pooled(pixels, doing)) / novelty.limit

    table = evaluation.examples(evaluation.serving_domain, "test")
    pixels = images.rgb(evaluation.data.pixels(table, winner.size))
    own = distance(pixels, "test images")
    tested = pd.DataFrame({"patient": table["patient"].to_numpy(int), "distance": own})
    per_patient = tested.groupby("patient")["distance"].max()

    varied = _one_of_each_patient(tested, seed)
    made = foreign.make(pixels[varied], evaluation.data, evaluation.serving_domain, seed)
    found = {one.kind: distance(one.pixels, f"{one.kind} images") for one in made}
    passing = int((per_patient <= 1).sum())
    record = NoveltyRecord(
        images=locked.images,
        patients=locked.patients,
        features=len(novelty.mean),
        components=len(novelty.variances),
        quantiles=novelty.quantiles.tolist(),
        limit=float(novelty.limit),
        validation_patients=locked.validation_patients,
        passed=Interval(passing / len(per_patient), *metrics.clopper_pearson(passing, len(per_patient))),
        largest_difference={
            form: float(np.abs(novelty.distance(features) / novelty.limit / own - 1).max())
            for form, features in forms.items()
        },
        foreign=[_detection(one, found[one.kind], tested, varied, seed) for one in made],
    )
    return Detected(record, per_patient, found)


def _training(winner: ScoredModel) -> pd.DataFrame:
    """Return training images of the serving domain, the disturbed crops included, as many as `fit.draw` takes."""
    data, domain = winner.evaluation.data, winner.evaluation.serving_domain
    table = data.examples(domain, "train")
    if domain == "cropped":
        disturbed = data.with_jitter(table).dropna(subset=["jitter_sha256"])
        disturbed = disturbed.assign(file=disturbed["jitter_file"], sha256=disturbed["jitter_sha256"])
        table = pd.concat([table, disturbed[table.columns]], ignore_index=True)
    drawn = fit.draw(table["patient"].to_numpy(int), winner.evaluation.options.seed)
    return table.iloc[drawn].reset_index(drop=True)


def _features(winner: ScoredModel, table: pd.DataFrame, doing: str) -> NDArray[np.float32]:
    return winner.network.pooled(winner.evaluation.data.pixels(table, winner.size), doing)


def _one_of_each_patient(table: pd.DataFrame, seed: int) -> NDArray[np.intp]:
    """Return the places of one image of every patient, in a seeded order."""
    mixed = table.sample(frac=1, random_state=seed)
    return mixed.drop_duplicates("patient").index.to_numpy()


def _detection(
    made: Foreign, distance: NDArray[np.float64], tested: pd.DataFrame, varied: NDArray[np.intp], seed: int
) -> ForeignImages:
    """Measure how well distances tell foreign images from test images.

    Args:
        made: The foreign images.
        distance: Their distances as multiples of the limit [n].
        tested: Patient and distance of every test image.
        varied: Places of the test images that variations were made of.
        seed: Seed of the bootstrap.
    """
    patients = tested["patient"].to_numpy()
    # an image that was made of no test image is drawn by itself, as if of a patient of its own
    own = patients[varied][: len(distance)] if made.varied else -1 - np.arange(len(distance))
    is_foreign = np.repeat([True, False], [len(distance), len(tested)])
    auroc = metrics.auroc(is_foreign, np.append(distance, tested["distance"]), np.append(own, patients), seed=seed)
    return ForeignImages(kind=made.kind, images=len(distance), auroc=auroc, caught=float((distance > 1).mean()))
