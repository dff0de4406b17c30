"""Score the registry's champion and its anchor on the candidate's test images, so that the gate can compare them."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid.clinical.fusion import Fusion
from thyroid.data import overlap, surroundings, version
from thyroid.data.classes import Classes
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.model.artefact import MODEL, Artefact, load_keras
from thyroid.model.operating_point import OperatingPoint
from thyroid.registry import changes
from thyroid.registry.registry import Registry
from thyroid.storage import Location


@dataclass(frozen=True)
class Champion:
    """A champion on the candidate's test images: its scores, or the reason why it has none.

    Attributes:
        version: Version in the registry; None where there is no champion.
        scores: Probability of malignant for each test image, in the order of the images; None where it was not scored.
        threshold: The champion's own threshold, on the scale of its scores.
        problem: Why it has no scores, or, without a version, why no champion was looked for.
        note: What a reader of the comparison must know: what could not be compared of the scans that it was trained on,
            and that its crops have another margin than the candidate's.
        margin: Margin of the crops that it was scored on, which is its own. None for full frames, for files that came
            in cropped, and where it was not scored.
        band: The champion's own band of abstention; None for none.
    """

    version: int | None
    scores: NDArray[np.float64] | None = None
    threshold: float | None = None
    problem: str | None = None
    note: str | None = None
    margin: float | None = None
    band: tuple[float, float] | None = None

    def calls(self, scores: Any) -> Any:
        """Return whether each of `scores` reaches the threshold."""
        assert self.threshold is not None
        return np.asarray(scores, float) >= self.threshold


@dataclass(frozen=True)
class Rivals:
    """What the candidate is compared with.

    Attributes:
        champion: The champion on the candidate's test images.
        anchor: The anchor on them; None where it is the champion, or there is none.
    """

    champion: Champion
    anchor: Champion | None = None

    @property
    def by_role(self) -> dict[str, Champion]:
        """The rivals that are registered versions, by role: "champion" and "anchor"."""
        roles = {"champion": self.champion, "anchor": self.anchor}
        return {role: rival for role, rival in roles.items() if rival is not None and rival.version is not None}


@dataclass(frozen=True, eq=False)
class CommonTestSet:
    """The test set that the candidate and its rivals are scored on.

    Attributes:
        data: Data version of the candidate.
        images: Test images as `DataVersion.examples` gives them.
        domain: Serving domain of the candidate.
        scans: Every scan of the test set, as in `overlap.find`. A rival must not have been developed on any of them.
        clinical: Clinical columns of the images, in the same order; None where there are none.
    """

    data: DataVersion
    images: pd.DataFrame
    domain: str
    scans: pd.DataFrame
    clinical: pd.DataFrame | None = None

    @cached_property
    def known(self) -> pd.DataFrame:
        """Rows of `surroundings.context` for the images, in the same order."""
        every = surroundings.context(self.data, self.domain).drop_duplicates("file").set_index("file")
        return every.loc[self.images["file"].tolist()].reset_index()

    @cached_property
    def framed(self) -> NDArray[np.bool_]:
        """Which of the images are crops of a frame, bool [n], so that they can be cut with another margin."""
        if self.domain != "cropped":
            return np.zeros(len(self.images), bool)
        return self.known["boxes"].map(len).to_numpy() > 0

    def is_cut_with(self, margin: float) -> bool:
        """Return whether the images of the data version are those that a model of this margin sees when it is served.

        Full frames, and files that came in cropped, have no margin.
        """
        return not self.framed.any() or math.isclose(margin, self.data.margin)

    def pixels(self, size: int, margin: float) -> NDArray[np.uint8]:
        """Return the images as a model of this margin sees them when it is served.

        Args:
            size: Side of the model's images in pixels.
            margin: Margin of the model. Crops of frames are cut anew if that of the data version is another one.

        Returns:
            uint8 [n, size, size, 1 or 3].

        Raises:
            InputError: Files are missing, or differ from the ones that the data version describes.
        """
        if self.is_cut_with(margin):
            return self.data.pixels(self.images, size)
        out = version.allocate((len(self.images), size, size, 3), np.uint8)
        out[self.framed] = surroundings.recropped(self.data, self.known[self.framed], size, margin)
        if not self.framed.all():
            out[~self.framed] = images.rgb(self.data.pixels(self.images[~self.framed], size))
        return out


def rivals(root: Location | None, test: CommonTestSet) -> Rivals:
    """Score the registry's champion and its anchor on the candidate's test images.

    A series of candidates, each a little worse than the last one, would always pass a comparison with the champion
    alone. The anchor is a champion that stays until another one is shown to be better than it, so the losses cannot add
    up.

    A model of crops is scored on crops of its own margin, because it sees such crops when it is served.

    A model that cannot be compared fairly leads to a refusal of the candidate, not to a crash, because somebody has to
    look. Such a model has other classes or another serving domain, was trained on images or patients that are now in
    the test set, names its patients with another key, uses clinical columns that are missing now, or is damaged.

    Args:
        root: Root of the registry; None for no registry.
        test: Test set of the candidate.

    Returns:
        The champion, and the anchor if it is another version.
    """
    if root is None:
        return Rivals(Champion(None, problem="no registry was given: not compared with any champion"))
    aliases = Registry(root).read_aliases()
    if "champion" not in aliases:
        return Rivals(Champion(None))
    current = _score(root, aliases["champion"], test)
    if aliases["anchor"] == aliases["champion"]:
        return Rivals(current)
    return Rivals(current, _score(root, aliases["anchor"], test))


def _score(root: Location, number: int, test: CommonTestSet) -> Champion:
    """Score a version on the candidate's test images."""
    registry = Registry(root)
    folder = registry.locate(str(number))  # outside try: an unreachable registry must not refuse the candidate
    try:
        registry.check(folder)
        artefact = Artefact.verify(folder)
        record, own = artefact.record, Classes.from_record(artefact.record)
        if own != test.data.classes:
            return Champion(number, problem=f"its classes are {own}, not {test.data.classes}")
        if record.serving_domain != test.domain:
            return Champion(
                number,
                problem=f"it serves {record.serving_domain} images and the candidate {test.domain} "
                "ones (set --serving-domain)",
            )
        learnt = changes.scans_of(folder)
        seen = overlap.find(root, learnt[learnt["split"] != "test"], test.scans)
        if seen.scans:
            known = f"{seen.scans} scans of this test set, or their patients, were among its development scans"
            return Champion(number, problem=f"{known} ({seen.describe()})")
        if seen.problem:
            return Champion(number, problem=seen.problem)
        probability = _probability(artefact, test)
    except (InputError, OSError) as error:
        return Champion(number, problem=str(error))
    point = OperatingPoint.from_record(record)
    notes = [] if seen.note is None else [seen.note]
    if not test.is_cut_with(record.margin):
        notes.append(f"it saw crops of its own margin, {record.margin:g}, where this model's is {test.data.margin:g}")
    return Champion(
        number,
        own.malignant(point.scale(probability)),
        point.threshold,
        note="; ".join(notes) or None,
        margin=record.margin if test.framed.any() else None,
        band=point.band,
    )


def _probability(artefact: Artefact, test: CommonTestSet) -> NDArray[np.float64]:
    """Return the unscaled probabilities of the test images, float64 [n, classes].

    Raises:
        InputError: The model cannot be loaded, the images cannot be read, or it uses clinical columns that are not
            known.
    """
    from thyroid.model import inputs  # imports TensorFlow, which checking the options of a run does not need

    network = load_keras(artefact.folder / MODEL)
    probability = inputs.predict(network, test.pixels(artefact.record.image_size, artefact.record.margin))
    if artefact.record.clinical is None:
        return probability
    head = Fusion.from_record(artefact.record.clinical)
    columns = [column.name for column in head.encoder.columns]
    if test.clinical is None or not set(columns) <= set(test.clinical):
        raise InputError(f"it uses the clinical columns {', '.join(columns)}: give clinical.csv")
    return head.predict(probability, test.clinical[columns])[0]
