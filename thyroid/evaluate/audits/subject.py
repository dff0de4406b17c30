"""What is audited: a model in one domain, with what is known of its images without looking at them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from thyroid import cores, progress
from thyroid.data import splits
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.imaging import geometry, images
from thyroid.records.clinical import ClinicalRecord
from thyroid.records.train import TrainRecord
from thyroid.storage import Location

if TYPE_CHECKING:  # TensorFlow is not needed to read the names of the audits
    from thyroid.model.network import Network

FOLDS = 5
IMAGES = 2000
"""Largest number of development images that the audits look at. A seeded draw takes whole groups (see `splits`)."""

# Reasons why something was not measured.
TOO_FEW = "too few development patients of a class"
TRAINED_WHOLE = "the deck's recipe trains the whole body, so that no feature is innocent of these labels"
ONE_CLASS = "a fold has one class only"
NO_REGION = "no region of a nodule is known (give rois.csv)"


@dataclass(frozen=True, eq=False)
class Subject:
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

    @property
    def size(self) -> int:
        """Side of the model's images in pixels."""
        return self.training.image_size

    @cached_property
    def images(self) -> pd.DataFrame:
        """Every image of the domain; see `context`."""
        return context(self.data, self.domain)

    @cached_property
    def development(self) -> pd.DataFrame:
        """Images that are not of the test set; a seeded draw of whole groups if there are more than `IMAGES`."""
        table = self.images[self.images["split"] != "test"]
        sizes = table.groupby("group").size().sample(frac=1, random_state=self.seed)
        kept = sizes.index[sizes.cumsum() <= max(IMAGES, sizes.iloc[0])]
        return table[table["group"].isin(kept)].reset_index(drop=True)

    @cached_property
    def fold(self) -> NDArray[np.int64] | None:
        """Fold of every development image, by patient and near-duplicate; None if there are too few of them."""
        count = min(FOLDS, int(self.development.groupby("class")["group"].nunique().min()))
        try:
            by_group = splits.folds(self.development, count, self.seed) if count > 1 else None
        except InputError:
            by_group = None
        return None if by_group is None else self.development["group"].map(by_group).to_numpy()

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """Pixels of the development images."""
        return self.data.pixels(self.development, self.size)

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

    def blanked(self, table: pd.DataFrame) -> NDArray[np.uint8]:
        """Return images without their nodules; see `blanked`."""
        return blanked(self.data, table, self.domain, self.size)


def context(data: DataVersion, domain: str) -> pd.DataFrame:
    """Collect what is known of the images of a domain without looking at them.

    Args:
        data: Data version of `crop`.
        domain: "normal" or "cropped".

    Returns:
        One row per image with the columns of `DataVersion.examples`, and: frame (file of the scan area, null where none
        is known), boxes (nodules of this image as x, y, width, height in pixels of `frame`), box_width and box_height
        (of the largest box), image, version, views (number of images of the patient), frame_width, frame_height,
        area_x, area_y, area_width, area_height. Images that were already cropped in the input have no frame and no
        boxes: they show nothing outside the nodule.
    """
    table = data.examples(domain)
    known = ["image", "version", "area_x", "area_y", "area_width", "area_height"]
    scans = data.used.set_index("path")
    about = scans[known].assign(frame=scans["normal_path"], frame_width=scans["width"], frame_height=scans["height"])
    table = table.join(about, on="path")
    framed = data.regions[data.regions["path"].map(scans["domain"]) == "normal"]
    key = "path" if domain == "normal" else "crop_path"
    boxes: dict[str, list[geometry.Box]] = {}
    row: Any  # pandas-stubs: a field of a row may be any scalar
    for row in framed.itertuples():
        area = scans.loc[row.path]
        box = (int(row.x - area["area_x"]), int(row.y - area["area_y"]), int(row.width), int(row.height))
        boxes.setdefault(getattr(row, key), []).append(box)
    # pandas-stubs: cells are no lists
    table["boxes"] = [  # type: ignore[assignment]
        boxes.get(name, []) for name in table["path" if domain == "normal" else "name"]
    ]
    largest = [max(some, key=lambda box: box[2] * box[3], default=(0, 0, None, None)) for some in table["boxes"]]
    table["box_width"], table["box_height"] = [box[2] for box in largest], [box[3] for box in largest]
    table["views"] = table.groupby("patient")["file"].transform("size")
    return table


def blanked(data: DataVersion, table: pd.DataFrame, domain: str, size: int) -> NDArray[np.uint8]:
    """Return images in which the nodules are blacked out, as a network takes them.

    The smallest square around each nodule is blacked out, because the outline of its box would still reveal its shape.
    In the normal domain the whole image is kept. In the cropped domain a square window of the frame is kept that is as
    wide as the crop with its margin, because the crop's own outline would reveal the shape, too.

    Args:
        data: Data version of `crop`.
        table: Rows of `context` with boxes.
        domain: "normal" or "cropped".
        size: Side of the images in pixels.

    Returns:
        Images, uint8 [n, size, size, 3].
    """

    def blank(row: Any) -> NDArray[np.uint8]:
        frame = np.asarray(Image.open(data.images / row.frame, formats=("JPEG",)).convert("RGB")).copy()
        squares = [_square(box) for box in row.boxes]
        for x, y, side in squares:
            frame[max(0, y) : y + side, max(0, x) : x + side] = 0
        if domain == "normal":
            return images.letterbox(frame, size)
        x, y, side = squares[0]
        reach = round(data.margin * side)
        window = np.zeros((side + 2 * reach, side + 2 * reach, 3), np.uint8)
        top, left = max(0, y - reach), max(0, x - reach)
        seen = frame[top : max(0, y + side + reach), left : max(0, x + side + reach)]
        window[top - (y - reach) :, left - (x - reach) :][: seen.shape[0], : seen.shape[1]] = seen
        return images.letterbox(window, size)

    with ThreadPoolExecutor(cores.available()) as pool:
        rows = list(table.itertuples())
        return np.stack(list(progress.bar(pool.map(blank, rows), len(rows), "blank nodules", "image")))


def _square(box: geometry.Box) -> tuple[int, int, int]:
    """Return x, y and side of the smallest square around the box with its centre; it may reach beyond the image."""
    x, y, width, height = box
    side = max(width, height)
    return x - (side - width) // 2, y - (side - height) // 2, side
