"""Describes what the endpoint's answers to held-out patients are like, so that the watch can notice drift.

Every property is what the endpoint would log for the same image, sent with the same box.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid.data.filenames import SCORE
from thyroid.data.version import DataVersion
from thyroid.evaluate.boxes import boxes
from thyroid.evaluate.boxes.located import AUTOMATIC, AutomaticBoxes
from thyroid.evaluate.scored import ScoredModel
from thyroid.model.descriptors.head import Head
from thyroid.model.novelty.novelty import Novelty
from thyroid.records.model import PROPERTIES, UsualAnswers
from thyroid.records.watch import AUTO, FRAME, GIVEN, WHOLE

MOST_PATIENTS = 1000
"""Largest number of patients whose values are kept. A seeded draw takes them."""

_BOX = ["x", "y", "width", "height"]


def describe(
    winner: ScoredModel, novelty: Novelty | None, boxes_released: bool, head: Head | None = None
) -> dict[str, UsualAnswers]:
    """Describe the answers to validation and test patients by what was judged.

    Given boxes, and full frames for a model that serves these, are of validation and test images. Automatic boxes are
    of the test frames with a marked nodule.

    Args:
        winner: The winner, scored on the test set.
        novelty: Its reference; None if it has none.
        boxes_released: Whether the model may decide on automatic boxes.
        head: The descriptors that it tells; None if it tells none.

    Returns:
        A description for every source of which there are images. A file that came in cropped is "whole", as if the
        request said that it is a crop.
    """
    table = pd.concat(_answers(winner, novelty, boxes_released, head), ignore_index=True)
    seed = winner.evaluation.options.seed
    return {str(source): _summary(rows, seed) for source, rows in table.groupby("source")}


def _answers(
    winner: ScoredModel, novelty: Novelty | None, boxes_released: bool, head: Head | None
) -> Iterator[pd.DataFrame]:
    """Yield tables with a row per answer: patient, source, decision and `PROPERTIES`, NaN where there is none."""
    evaluation, data = winner.evaluation, winner.evaluation.data
    domain = evaluation.serving_domain
    for split, scored in (("validation", winner.validation), ("test", winner.tested(domain))):
        files = data.examples(domain, split)
        unlike = _distances(winner, novelty, files)
        yield _table(data, scored, _given(data, scored, domain), unlike, _disagreeing(winner, head, files, scored))
    if (located := boxes.usable(winner)) is not None:
        scored = winner.tested(AUTOMATIC)
        files = located.examples(winner.training.train_domain)
        unlike = _distances(winner, novelty, files)
        doubtful = _disagreeing(winner, head, files, scored) | (not boxes_released)
        yield _table(data, scored, _automatic(located, scored), unlike, doubtful)


def _distances(winner: ScoredModel, novelty: Novelty | None, examples: pd.DataFrame) -> "pd.Series[float]":
    """Return the distance of every image as a multiple of the limit, NaN without a reference."""
    if novelty is None:
        return pd.Series(np.nan, examples.index)
    pixels = winner.evaluation.data.pixels(examples, winner.size)
    return pd.Series(novelty.distance(winner.network.pooled(pixels, "held-out images")) / novelty.limit)


def _disagreeing(
    winner: ScoredModel, head: Head | None, examples: pd.DataFrame, scored: pd.DataFrame
) -> NDArray[np.bool_]:
    """Return on which images the model makes no decision because its descriptors disagree with it."""
    if head is None or head.record.tirads is None or not head.record.tirads.doubts:
        return np.zeros(len(examples), bool)
    pixels = winner.evaluation.data.pixels(examples, winner.size)
    probability = head.probabilities(winner.network.features(pixels, "held-out images"))
    answers = zip(scored["decision"], probability, strict=True)
    return np.array([head.disagrees(str(decision), head.tell(row).points) for decision, row in answers], bool)


def _given(data: DataVersion, scored: pd.DataFrame, domain: str) -> pd.DataFrame:
    """Return the box of every image in pixels of its frame (x, y, width, height), and its source."""
    scans = data.used.set_index("path").loc[scored["path"]].reset_index(drop=True)
    if domain == "normal":
        areas = scans[["area_x", "area_y", "area_width", "area_height"]].set_axis(_BOX, axis=1)
        return areas.assign(source=FRAME)
    regions = data.regions.drop_duplicates("crop_path").set_index("crop_path")
    found = regions.loc[scored["file"], _BOX].reset_index(drop=True)
    return found.assign(source=scans["domain"].map({"normal": GIVEN, "cropped": WHOLE}))


def _automatic(located: AutomaticBoxes, scored: pd.DataFrame) -> pd.DataFrame:
    """Return the best box of every frame, with its probability and whether it is unsure."""
    best = located.boxes.set_index("path").loc[scored["path"]].reset_index(drop=True)
    return best[[*_BOX, "unsure"]].assign(source=AUTO, box_probability=best["probability"])


def _table(
    data: DataVersion,
    scored: pd.DataFrame,
    box: pd.DataFrame,
    distance: "pd.Series[float]",
    doubtful: NDArray[np.bool_],
) -> pd.DataFrame:
    """Build a table of `_answers`.

    Args:
        data: Data version, whose scans have the sizes of the frames.
        scored: Predictions at the operating point.
        box: Their boxes in the same order, with source and, for automatic ones, box_probability and unsure.
        distance: Their distances as multiples of the limit.
        doubtful: On which of them the endpoint makes no decision for other reasons.
    """
    sizes = data.used.set_index("path").loc[scored["path"], ["width", "height"]].astype(float).reset_index(drop=True)
    undecided = doubtful | (distance > 1).to_numpy()
    if "unsure" in box:
        undecided |= box["unsure"].to_numpy(bool)
    area = box["width"].to_numpy(float) * box["height"].to_numpy(float)
    return pd.DataFrame(
        {
            "patient": scored["patient"].to_numpy(int),
            "source": box["source"].to_numpy(),
            "decision": np.where(undecided, "abstain", scored["decision"].to_numpy(str)),
            "probability": scored[SCORE].to_numpy(float),
            "distance": distance.to_numpy(float),
            "box_probability": box["box_probability"].to_numpy(float) if "box_probability" in box else np.nan,
            "width": sizes["width"],
            "height": sizes["height"],
            "aspect": sizes["width"] / sizes["height"],
            "box_share": area / (sizes["width"] * sizes["height"]),
        }
    )


def _summary(answers: pd.DataFrame, seed: int) -> UsualAnswers:
    """Describe the answers of one source."""
    drawn = answers.sample(frac=1, random_state=seed).drop_duplicates("patient")
    kept = drawn.head(MOST_PATIENTS)[list(PROPERTIES)].dropna(axis=1, how="all")
    shares = {name: drawn["decision"].eq(name).mean() for name in ("abstain", "malignant")}
    counts = answers["decision"].value_counts()
    return UsualAnswers(
        patients=len(drawn),
        images=len(answers),
        # each property is sorted by itself, so that no patient can be put together again
        values={str(name): np.sort(column.to_numpy()).round(6).tolist() for name, column in kept.items()},
        decisions={name: int(counts.get(name, 0)) for name in ("benign", "malignant", "abstain")},
        shares={name: round(float(share), 6) for name, share in shares.items()},
    )
