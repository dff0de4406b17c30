"""What is audited: a model in one domain, with what is known of its images without looking at them."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid.data import splits, surroundings
from thyroid.data.classes import Classes
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.evaluate.audits.names import MARGINS
from thyroid.imaging import geometry, images
from thyroid.records.clinical import ClinicalRecord
from thyroid.records.train import TrainRecord
from thyroid.storage import Location

if TYPE_CHECKING:  # TensorFlow is not needed to read the names of the audits
    from thyroid.model.network import Network

FOLDS = 5
IMAGES = 2000
"""Largest number of images that cross-validation looks at. A seeded draw takes whole groups (see `splits`)."""

# Reasons why something was not measured.
TOO_FEW = "too few patients of a class"
TRAINED_WHOLE = "the deck's recipe trains the whole body, so that no feature is innocent of these labels"
ONE_CLASS = "a fold has one class only"
NO_REGION = "no region of a nodule is known (give rois.csv)"


class Audited(ABC):
    """Images of one domain and a model's answers to them, whose shortcuts are measured.

    Attributes:
        data: Data version of `crop`.
        domain: Domain of the audited images, "normal" or "cropped".
        test: The model's predictions of images of the domain that it was not trained on: file (name of the image),
            label, patient and the probability of malignant, by images alone.
        seed: Seed of draws, folds and bootstrap.
        boxes: The locator's proposals (boxes.parquet of the step `locate`): path, rank, width, height, heat. None where
            there is none.
    """

    data: DataVersion
    domain: str
    test: pd.DataFrame
    seed: int
    boxes: pd.DataFrame | None

    @property
    @abstractmethod
    def size(self) -> int:
        """Side of the model's images in pixels."""

    @property
    @abstractmethod
    def other_margins(self) -> list[float]:
        """Margins that are shown beside the one of the audited crops; none for full frames."""

    @abstractmethod
    def malignant(self, pixels: NDArray[np.uint8], doing: str) -> NDArray[np.float64]:
        """Return the model's unscaled probability of malignant for images.

        Args:
            pixels: Images, uint8 [n, size, size, 3].
            doing: What the images are, for the progress bar.

        Returns:
            float64 [n].
        """

    @cached_property
    def images(self) -> pd.DataFrame:
        """Every image of the domain; see `surroundings.context`."""
        return surroundings.context(self.data, self.domain)

    @cached_property
    @abstractmethod
    def development(self) -> pd.DataFrame:
        """Images on which shortcuts are cross-validated: rows of `images`, at most `IMAGES`."""

    @cached_property
    def fold(self) -> NDArray[np.int64] | None:
        """Fold of every development image, by patient and near-duplicate; None if there are too few of them."""
        return folds_of(self.development, self.seed)

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """Pixels of the development images."""
        return self.data.pixels(self.development, self.size)

    @property
    def margin(self) -> float | None:
        """Margin of the audited crops; None for full frames."""
        return self.data.margin if self.domain == "cropped" else None

    def blanked(self, table: pd.DataFrame, margin: float | None = None) -> NDArray[np.uint8]:
        """Return images without their nodules, as crops of another margin if one is given; see `blanked`."""
        return blanked(self.data, table, self.domain, self.size, margin)

    def recropped(self, table: pd.DataFrame, margin: float) -> NDArray[np.uint8]:
        """Return crops of another margin; see `surroundings.recropped`."""
        return surroundings.recropped(self.data, table, self.size, margin)

    @cached_property
    def best_boxes(self) -> pd.DataFrame | None:
        """The locator's best box of the frame of each development image: width, height and heat.

        The index is that of `development`. Values are null where the frame was not boxed, and for all but the first
        image of a frame, which would count its box twice. None where there is no locator.
        """
        if self.boxes is None:
            return None
        best = self.boxes[self.boxes["rank"] == 0].set_index("path")[["width", "height", "heat"]].astype(float)
        path = self.development["path"]
        return best.reindex(path.mask(path.duplicated())).set_index(self.development.index)


@dataclass(frozen=True, eq=False)
class Subject(Audited):
    """A model in one domain, to be audited.

    Attributes:
        data: Data version of `crop`.
        domain: Domain of the audited images, "normal" or "cropped".
        training: Record of the training (train.json).
        network: Network of the training.
        parts: What the training used each image for ("train" or "validation"), by name of `DataVersion.examples`.
        test: The model's test predictions in the domain: file, label, patient and the probability of malignant.
        registry: Root of the registry with the champion that the model started from; None for no registry.
        seed: Seed of draws, folds and bootstrap.
        clinical: What clinical.csv was worth for the model; None where there are no clinical data.
        boxes: The locator's proposals (boxes.parquet of the step `locate`): path, rank, width, height, heat. None where
            there is no locator.
    """

    data: DataVersion
    domain: str
    training: TrainRecord
    network: "Network"
    parts: pd.Series
    test: pd.DataFrame
    registry: Location | None = None
    seed: int = 0
    clinical: ClinicalRecord | None = None
    boxes: pd.DataFrame | None = None

    @property
    def size(self) -> int:
        """Side of the model's images in pixels."""
        return self.training.image_size

    @property
    def other_margins(self) -> list[float]:
        """Margins that are shown beside the one of the audited crops; none for full frames."""
        return [] if self.margin is None else [one for one in MARGINS if not math.isclose(one, self.margin)]

    def malignant(self, pixels: NDArray[np.uint8], doing: str) -> NDArray[np.float64]:
        """Return the network's unscaled probability of malignant, float64 [n]."""
        return Classes.from_record(self.training).malignant(self.network.probabilities(pixels, doing))

    @cached_property
    def development(self) -> pd.DataFrame:
        """Images that are not of the test set; a seeded draw of whole groups if there are more than `IMAGES`."""
        return drawn(self.images[self.images["split"] != "test"], self.seed)

    @property
    def has_frozen_features(self) -> bool:
        """Whether a part of the network never saw a label.

        The deck's recipe trains the whole body, so that no feature is innocent of the labels.
        """
        return self.training.recipe != "deck"

    @cached_property
    def features(self) -> NDArray[np.float64]:
        """Frozen features of the development images."""
        return self.network.features(self.pixels, "frozen features")


def folds_of(table: pd.DataFrame, seed: int) -> NDArray[np.int64] | None:
    """Return the fold of every image, by patient and near-duplicate; None if there are too few of them.

    Args:
        table: At least one image, with class, label, group and sha256.
        seed: Seed of the deal.
    """
    count = min(FOLDS, int(table.groupby("class")["group"].nunique().min()))
    try:
        by_group = splits.folds(table, count, seed) if count > 1 else None
    except InputError:
        by_group = None
    return None if by_group is None else table["group"].map(by_group).to_numpy()


def drawn(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return a seeded draw of whole groups if a table has more than `IMAGES` rows, else all rows.

    Args:
        table: At least one row, with the column group.
        seed: Seed of the draw.
    """
    sizes = table.groupby("group").size().sample(frac=1, random_state=seed)
    kept = sizes.index[sizes.cumsum() <= max(IMAGES, sizes.iloc[0])]
    return table[table["group"].isin(kept)].reset_index(drop=True)


def blanked(
    data: DataVersion, table: pd.DataFrame, domain: str, size: int, margin: float | None = None
) -> NDArray[np.uint8]:
    """Return images in which the nodules are blacked out, as a network takes them.

    The smallest square around each nodule is blacked out, because the outline of its box would still reveal its shape.
    In the normal domain the whole image is kept. In the cropped domain a square window of the frame is kept that is as
    wide as the crop with its margin, because the crop's own outline would reveal the shape, too.

    Args:
        data: Data version of `crop`.
        table: Rows of `surroundings.context` with boxes.
        domain: "normal" or "cropped".
        size: Side of the images in pixels.
        margin: Margin of the crops; that of the data version if it is None.

    Returns:
        Images, uint8 [n, size, size, 3].
    """

    def blank(row: Any) -> NDArray[np.uint8]:
        frame = surroundings.scan_area(data, row).copy()
        squares = [_square(box) for box in row.boxes]
        for x, y, side in squares:
            frame[max(0, y) : y + side, max(0, x) : x + side] = 0
        if domain == "normal":
            return images.letterbox(frame, size)
        x, y, side = squares[0]
        reach = round((data.margin if margin is None else margin) * side)
        window = np.zeros((side + 2 * reach, side + 2 * reach, 3), np.uint8)
        top, left = max(0, y - reach), max(0, x - reach)
        seen = frame[top : max(0, y + side + reach), left : max(0, x + side + reach)]
        window[top - (y - reach) :, left - (x - reach) :][: seen.shape[0], : seen.shape[1]] = seen
        return images.letterbox(window, size)

    surroundings.fetch(data, table)
    return surroundings.each(table, blank, "blank nodules")


def _square(box: geometry.Box) -> tuple[int, int, int]:
    """Return x, y and side of the smallest square around the box with its centre; it may reach beyond the image."""
    x, y, width, height = box
    side = max(width, height)
    return x - (side - width) // 2, y - (side - height) // 2, side
