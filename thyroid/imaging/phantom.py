"""Synthetic ultrasound-like phantoms, so that everything runs without a single patient's data.

A phantom is a thyroid lobe with one nodule, none or two, drawn as a log-compressed speckle pattern (the envelope of a
filtered complex Gaussian field: Burckhardt 1978, "Speckle in ultrasound B-mode scans") with depth attenuation, inside
the frame of a scanner (`phantom_scanner`) with ruler ticks and burned-in text. The signs of a nodule (`phantom_nodule`)
depend on the label, but only with probabilities, so that a perfect classifier does not exist. Every picture says that
it is synthetic. The words of ACR TI-RADS for what was drawn are known.
"""

import csv
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from thyroid import command, progress, tirads
from thyroid.imaging import images
from thyroid.imaging.geometry import Box
from thyroid.imaging.phantom_features import Features
from thyroid.imaging.phantom_nodule import GAP, Nodule, Shape
from thyroid.imaging.phantom_scanner import DEFAULT, SCANNERS, Name

PATIENTS = 260
"""Number of patients in the sample.

A tenth of them fix the threshold, and the gate requires ten malignant patients behind a threshold.
"""
MARK = b"synthetic phantom, not a patient"
"""JPEG comment of every phantom.

Cropping removes the banner, but by this mark a data version still knows how many phantoms it has.
"""

FRAME = SCANNERS[DEFAULT].frame
"""Width and height of a frame of the default scanner in pixels."""

BENIGN_SHARE = 0.6

ROIS, WORDS = "rois.csv", "descriptors.csv"
"""Tables beside the scans of a sample."""

WITHOUT_NODULE, WITH_TWO, OFF_CENTRE = 0.1, 0.2, 0.4
"""Expected shares of a varied sample's frames: no nodule, two nodules, and the first nodule off centre."""
CENTRAL = (0.16, 0.08)
"""How far the centre of a nodule that is not off centre lies from the middle: shares of the scan area's sides."""
_PLACES, _SECOND, _VARIATION, _FEATURES = 1, 2, 3, 4
"""Last numbers of the seeds of further generators; not 0, since NumPy pads seeds with zeros."""


@dataclass(frozen=True)
class Phantom:
    """One phantom frame.

    Attributes:
        image: uint8 [height, width, 3].
        rois: Tight box of each nodule: x, y, width, height in pixels of the frame. The first one belongs to the nodule
            that the label is about.
        words: The word of each descriptor of `tirads.DESCRIPTORS` for this nodule, as it was drawn, whatever the
            scanner shows of it; empty without a nodule.
    """

    image: images.Pixels
    rois: tuple[Box, ...]
    words: dict[str, str]

    @property
    def roi(self) -> Box:
        """Tight box of the nodule that the label is about.

        Raises:
            ValueError: The frame has no nodule.
        """
        if not self.rois:
            raise ValueError("this phantom has no nodule")
        return self.rois[0]

    @property
    def largest_words(self) -> dict[str, str]:
        """The words of the largest nodule; empty without one, or if that is the second one."""
        areas = [width * height for _, _, width, height in self.rois]
        return self.words if areas and areas[0] == max(areas) else {}


@dataclass(frozen=True)
class _Background:
    """What a frame shows besides nodules: skin, muscle, the carotid artery and a healthy lobe.

    Attributes:
        echo: Echogenicity in dB [height, width].
        eccentricity: Squared distance from the lobe's centre [height, width], 1 at the lobe's edge.
        artery: Mask of the artery [height, width].
    """

    echo: NDArray[np.float32]
    eccentricity: NDArray[np.floating]
    artery: NDArray[np.bool_]

    @classmethod
    def draw(cls, height: int, width: int, rng: np.random.Generator) -> "_Background":
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        u, v = x / width, y / height
        wave = 0.02 * np.sin(2 * math.pi * (u * rng.uniform(0.5, 1.5) + rng.random()))
        echo = np.full((height, width), -6.0, np.float32)
        for _ in range(int(rng.integers(3, 6))):  # skin and muscle fasciae
            depth = rng.uniform(0.02, 0.22)
            echo += rng.uniform(6, 14) * np.exp(-(((v - depth - wave) / rng.uniform(0.005, 0.02)) ** 2))
        eccentricity = ((u - rng.uniform(0.42, 0.58)) / rng.uniform(0.36, 0.46)) ** 2 + (
            (v - 0.52) / rng.uniform(0.26, 0.33)
        ) ** 2
        lobe = cv2.GaussianBlur((eccentricity < 1).astype(np.float32), (0, 0), 3)
        echo += lobe * (rng.uniform(0, 3) - echo)
        side = rng.choice([0.06, 0.94])
        away = ((u - side) * width / height) ** 2 + (v - rng.uniform(0.45, 0.65)) ** 2
        artery = away < rng.uniform(0.05, 0.09) ** 2
        echo[artery] = -30
        return cls(echo, eccentricity, artery)


@dataclass(frozen=True)
class _Content:
    """What one frame shows.

    Attributes:
        nodule: The nodule that the label is about; absent if count is 0.
        second: A second nodule, shown if count is 2.
        count: Number of nodules: 0, 1 or 2.
        off_centre: Whether the first nodule lies towards the edges of the lobe.
        places: Chooses places and the second nodule's details, so that all else is as in the frame with one nodule.
        features: Further features of the first nodule; None for none.
        details: Draws what these features show.
    """

    nodule: Nodule
    second: Nodule
    count: int
    off_centre: bool
    places: np.random.Generator
    features: Features | None
    details: np.random.Generator


def _tissue(
    visible: NDArray[np.bool_], content: _Content, rng: np.random.Generator
) -> tuple[NDArray[np.float32], list[NDArray[np.bool_]]]:
    """Return echogenicity in dB [height, width] and the mask of each nodule.

    Args:
        visible: The pixels that are not cut off by the shape of the view [height, width].
        content: What the frame shows.
        rng: Draws everything but what `content` draws.
    """
    height, width = visible.shape
    background = _Background.draw(height, width, rng)
    echo, eccentricity, free = background.echo, background.eccentricity, visible & ~background.artery
    side, depth = CENTRAL
    centre = (0.5 + rng.uniform(-side, side)) * width, (0.5 + rng.uniform(-depth, depth)) * height
    shape = Shape.of(content.nodule, rng)
    if content.off_centre:
        y, x = np.mgrid[0:height, 0:width]
        outer = (np.abs(x / width - 0.5) > side) | (np.abs(y / height - 0.5) > depth)
        shape, centre = shape.placed(free, np.where(outer, eccentricity, np.inf), content.places)
    # Without a nodule it is drawn into a copy, since what follows has to be drawn from the same state.
    masks = [shape.paint(echo if content.count else echo.copy(), centre, rng)]
    if content.features is not None and content.count:
        content.features.paint(echo, shape, centre, content.details)
    if content.count == 2:
        x0, y0, w, h = cv2.boundingRect(masks[0].astype(np.uint8))
        free[max(0, y0 - GAP) : y0 + h + GAP, max(0, x0 - GAP) : x0 + w + GAP] = False
        shape, centre = Shape.of(content.second, content.places).placed(free, eccentricity, content.places)
        masks.append(shape.paint(echo, centre, content.places))
    depths = np.arange(height, dtype=np.float32)[:, None] / height
    echo -= rng.uniform(8, 18) * depths**1.5  # depth attenuation
    return echo, [mask & visible for mask in masks[: content.count]]


def draw(
    label: str,
    patient: int,
    image: int,
    seed: int = 0,
    *,
    nodules: int = 1,
    off_centre: bool = False,
    scanner: Name = DEFAULT,
    features: bool = False,
) -> Phantom:
    """Draw one frame; the same arguments always give the same frame.

    Args:
        label: "B" or "M"; decides the odds of the first nodule's signs, not the signs.
        patient: Patient number; a patient's images share the nodules and the scanner settings.
        image: Image number within the patient; changes view, speckle and gain.
        seed: Seed of the whole set.
        nodules: How many nodules the frame shows: 0, 1 or 2. Without one, the frame is the same but for the nodule. A
            second one is usually smaller and has the signs of a benign nodule, whatever the label, which is that of the
            first; their boxes do not overlap.
        off_centre: Whether the first nodule's centre lies anywhere in the lobe but where it lies by default. The nodule
            is wholly within the scan area, and smaller if it would not fit.
        scanner: Name of the scanner. Patients of equal number on two scanners are different patients.
        features: Whether the first nodule may have further features (`phantom_features`), whatever the label. All else
            is as in the frame without them.

    Raises:
        ValueError: There cannot be this number of nodules.
    """
    if nodules not in (0, 1, 2):
        raise ValueError(f"nodules: expected 0, 1 or 2, not {nodules}")
    device = SCANNERS[scanner]
    # The default scanner's key has no number, so that its frames stay those of earlier releases.
    key = [seed, patient, "BM".index(label), *([0, 0, device.number] if device.number else [])]
    shared = np.random.default_rng(key)
    nodule = Nodule.of(label, shared)
    area, visible = device.area(shared)

    rng = np.random.default_rng([*key, image + 1])
    places = np.random.default_rng([*key, image + 1, _PLACES])
    further = Features.draw(np.random.default_rng([*key, 0, _FEATURES])) if features else None
    details = np.random.default_rng([*key, image + 1, _FEATURES])
    first = device.seen(nodule if further is None else further.look(nodule))
    second = device.seen(_second_nodule(key))
    content = _Content(first, second, nodules, off_centre, places, further, details)
    echo, masks = _tissue(visible, content, rng)
    grey = device.grey(echo, rng)
    grey[~visible] = 0

    left, top, width, height = area
    canvas = np.zeros((*device.frame[::-1], 3), np.uint8)
    canvas[top : top + height, left : left + width] = grey.astype(np.uint8)[..., None]
    device.annotate(canvas, area, patient, rng)
    boxes = (cv2.boundingRect(mask.astype(np.uint8)) for mask in masks)
    words = nodule.words if further is None else further.words(nodule)
    return Phantom(canvas, tuple((left + x, top + y, w, h) for x, y, w, h in boxes), words if nodules else {})


def _second_nodule(key: list[int]) -> Nodule:
    """Return the second nodule of a patient, which looks benign and is small enough to fit beside the first."""
    rng = np.random.default_rng([*key, 0, _SECOND])
    return replace(Nodule.of("B", rng), radius=rng.uniform(0.05, 0.09))


@dataclass(frozen=True)
class _Task:
    """A frame to write.

    Attributes:
        label: "B" or "M".
        patient: Patient number.
        image: Image number within the patient.
        seed: Seed of the whole set.
        folder: Folder of the scans.
        varied: Whether number and place of the nodules vary.
        scanner: Name of the scanner.
        features: Whether nodules may have further features.
    """

    label: str
    patient: int
    image: int
    seed: int
    folder: str
    varied: bool
    scanner: Name
    features: bool


def variation(patient: int, image: int, seed: int = 0) -> tuple[int, bool]:
    """Return how many nodules a frame of a varied sample shows, and whether the first one is off centre.

    Both are independent of the label, so that neither is a shortcut to it.

    Args:
        patient: Patient number.
        image: Image number within the patient.
        seed: Seed of the whole set.
    """
    rng = np.random.default_rng([seed, patient, 0, image + 1, _VARIATION])
    number, place = rng.random(2)
    nodules = 0 if number < WITHOUT_NODULE else 2 if number < WITHOUT_NODULE + WITH_TWO else 1
    return nodules, bool(place < OFF_CENTRE)


def _write(task: _Task) -> tuple[list[tuple[str, int, int, int, int]], tuple[str, ...]]:
    """Write a frame, and return its rows of rois.csv and its row of descriptors.csv."""
    name = f"{task.label}_{task.patient:03d}-{task.image:04d}-1.0.jpg"
    nodules, off_centre = variation(task.patient, task.image, task.seed) if task.varied else (1, False)
    phantom = draw(
        task.label,
        task.patient,
        task.image,
        task.seed,
        nodules=nodules,
        off_centre=off_centre,
        scanner=task.scanner,
        features=task.features,
    )
    (Path(task.folder) / name).write_bytes(images.encode(phantom.image, MARK))
    words = phantom.largest_words
    return [(name, *roi) for roi in phantom.rois], (name, *(words.get(one, "") for one in tirads.DESCRIPTORS))


def generate(
    output: Path,
    patients: int = PATIENTS,
    images_per_patient: int = 1,
    seed: int = 0,
    *,
    varied: bool = False,
    scanner: Name = DEFAULT,
    features: bool = False,
) -> Path:
    """Write `patients * images_per_patient` frames to `output/scans` and their nodules to `output/rois.csv`.

    `output/descriptors.csv` has the words of ACR TI-RADS for what was drawn, of the largest nodule of each frame.

    Six patients in ten are benign. The same arguments give the same files, whatever the number of cores.

    Args:
        output: Folder to write to.
        patients: Number of patients.
        images_per_patient: Number of images of each patient.
        seed: Seed of the whole set.
        varied: Whether some frames show no nodule, two, or one off centre, as `variation` says. A frame without a
            nodule has no row in rois.csv, one with two has two rows. The label is then the patient's: a frame may not
            show what it is about, and a second nodule looks benign. By default every frame shows one nodule. Where the
            second one is the largest, the frame has no words in descriptors.csv.
        scanner: Name of the scanner. Names of files and labels are the same on every scanner.
        features: Whether nodules may have further features, whatever the label.

    Returns:
        Path of rois.csv.
    """
    folder = output / "scans"
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.random.default_rng(seed).permutation(
        ["B"] * round(patients * BENIGN_SHARE) + ["M"] * (patients - round(patients * BENIGN_SHARE))
    )
    tasks = [
        _Task(str(labels[patient - 1]), patient, image, seed, str(folder), varied, scanner, features)
        for patient in range(1, patients + 1)
        for image in range(1, images_per_patient + 1)
    ]
    with ProcessPoolExecutor() as pool:
        written = list(progress.bar(pool.map(_write, tasks, chunksize=16), len(tasks), "phantoms", "scan"))
    rois = output / ROIS
    _write_table(rois, ["filename", "x", "y", "width", "height"], [row for rows, _ in written for row in rows])
    _write_table(output / WORDS, ["filename", *tirads.DESCRIPTORS], [words for _, words in written])
    return rois


def _write_table(path: Path, header: list[str], rows: Sequence[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def run(
    *,
    output: Path,
    patients: int = PATIENTS,
    images_per_patient: int = 1,
    seed: int = 0,
    varied: bool = False,
    scanner: Name = DEFAULT,
    features: bool = False,
) -> None:
    """Draw synthetic ultrasound-like phantoms, so that everything runs without a single patient's data.

    Args:
        output: Folder for scans/, rois.csv and descriptors.csv.
        patients: Number of patients.
        images_per_patient: Number of scans of each patient.
        seed: Seed of the whole set.
        varied: Also draw frames without a nodule, with two, and with one off centre (about 10, 20 and 40 in 100).
        scanner: Scanner that the scans look like: linear is the sample's, convex and portable are other hospitals'.
        features: Also draw spongiform, cystic and very hypoechoic nodules, coarse and rim calcifications, comet tails.
    """
    rois = generate(output, patients, images_per_patient, seed, varied=varied, scanner=scanner, features=features)
    print(f"{output / 'scans'}, {rois} and {output / WORDS}: synthetic phantoms, not patients")


main = command.main("python -m thyroid.phantom", run)
