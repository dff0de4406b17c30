"""Synthetic ultrasound-like phantoms, so that everything runs without a single patient's data.

A phantom is a thyroid lobe with one nodule, none or two, drawn as a log-compressed speckle pattern (the envelope of a
filtered complex Gaussian field: Burckhardt 1978, "Speckle in ultrasound B-mode scans") with depth attenuation, inside a
scanner frame with ruler ticks and burned-in text. The signs of a nodule (`phantom_nodule`) depend on the label, but
only with probabilities, so that a perfect classifier does not exist. Every picture says that it is synthetic.
"""

import csv
import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from thyroid import command, progress
from thyroid.imaging import images
from thyroid.imaging.geometry import Box
from thyroid.imaging.phantom_nodule import GAP, Nodule, Shape

PATIENTS = 260
"""Number of patients in the sample.

A tenth of them fix the threshold, and the gate requires ten malignant patients behind a threshold.
"""
MARK = b"synthetic phantom, not a patient"
"""JPEG comment of every phantom.

Cropping removes the banner, but by this mark a data version still knows how many phantoms it has.
"""

FRAME = (640, 480)
"""Width and height of a frame in pixels."""

BENIGN_SHARE = 0.6

WITHOUT_NODULE, WITH_TWO, OFF_CENTRE = 0.1, 0.2, 0.4
"""Expected shares of a varied sample's frames: no nodule, two nodules, and the first nodule off centre."""
CENTRAL = (0.16, 0.08)
"""How far the centre of a nodule that is not off centre lies from the middle: shares of the scan area's sides."""
_PLACES, _SECOND, _VARIATION = 1, 2, 3
"""Last numbers of the seeds of further generators; not 0, since NumPy pads seeds with zeros."""


@dataclass(frozen=True)
class Phantom:
    """One phantom frame.

    Attributes:
        image: uint8 [height, width, 3].
        rois: Tight box of each nodule: x, y, width, height in pixels of the frame. The first one belongs to the nodule
            that the label is about.
    """

    image: images.Pixels
    rois: tuple[Box, ...]

    @property
    def roi(self) -> Box:
        """Tight box of the nodule that the label is about.

        Raises:
            ValueError: The frame has no nodule.
        """
        if not self.rois:
            raise ValueError("this phantom has no nodule")
        return self.rois[0]


def _speckle(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return speckle in dB with a mean of about 0; lateral resolution is coarser than axial, as with a linear probe."""
    field = [cv2.GaussianBlur(rng.standard_normal(shape, np.float32), (0, 0), sigmaX=1.9, sigmaY=0.9) for _ in range(2)]
    envelope = np.hypot(*field)
    speckle: NDArray[np.float32] = (20 * np.log10(envelope / envelope.mean() + 1e-3)).astype(np.float32)
    return speckle


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
    """

    nodule: Nodule
    second: Nodule
    count: int
    off_centre: bool
    places: np.random.Generator


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
    if content.count == 2:
        x0, y0, w, h = cv2.boundingRect(masks[0].astype(np.uint8))
        free[max(0, y0 - GAP) : y0 + h + GAP, max(0, x0 - GAP) : x0 + w + GAP] = False
        shape, centre = Shape.of(content.second, content.places).placed(free, eccentricity, content.places)
        masks.append(shape.paint(echo, centre, content.places))
    depths = np.arange(height, dtype=np.float32)[:, None] / height
    echo -= rng.uniform(8, 18) * depths**1.5  # depth attenuation
    return echo, [mask & visible for mask in masks[: content.count]]


def _scanner_frame(
    canvas: images.Pixels, area: tuple[int, int, int, int], patient: int, rng: np.random.Generator
) -> None:
    """Draw burned-in text, ruler ticks and a grey bar around the scan area; none of it depends on the label."""
    left, top, width, height = area
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    small, normal = ImageFont.load_default(11), ImageFont.load_default(13)
    draw.text((6, 4), "SYNTHETIC PHANTOM - NOT A PATIENT", fill=(235, 235, 235), font=normal)
    draw.text((FRAME[0] - 200, 4), f"ID {patient:06d}  THYROID", fill=(200, 200, 200), font=normal)
    draw.text(
        (6, 22),
        f"L12-5  {rng.integers(7, 15)} MHz   G {rng.integers(40, 80)}   DR {rng.integers(55, 75)}",
        fill=(170, 170, 170),
        font=small,
    )
    draw.text(
        (6, FRAME[1] - 16),
        f"MI {rng.uniform(0.5, 1.2):.1f}  TIs {rng.uniform(0.1, 0.6):.1f}",
        fill=(170, 170, 170),
        font=small,
    )
    for i, y in enumerate(range(top, top + height + 1, max(8, height // 20))):
        draw.line((left - (14 if i % 5 == 0 else 9), y, left - 5, y), fill=(220, 220, 220))
        if i % 5 == 0:
            draw.text((left - 26, y - 6), str(i // 5), fill=(220, 220, 220), font=small)
    for x in range(left, left + width + 1, max(8, width // 15)):
        draw.line((x, top - 8, x, top - 5), fill=(220, 220, 220))
    for i in range(100):
        draw.line((FRAME[0] - 16, 60 + i, FRAME[0] - 8, 60 + i), fill=(255 - 2 * i,) * 3)
    canvas[:] = np.asarray(picture)


def draw(label: str, patient: int, image: int, seed: int = 0, *, nodules: int = 1, off_centre: bool = False) -> Phantom:
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

    Raises:
        ValueError: There cannot be this number of nodules.
    """
    if nodules not in (0, 1, 2):
        raise ValueError(f"nodules: expected 0, 1 or 2, not {nodules}")
    key = [seed, patient, "BM".index(label)]
    shared = np.random.default_rng(key)
    nodule = Nodule.of(label, shared)
    width, height = int(shared.integers(330, 500)), int(shared.integers(300, 380))
    area = ((FRAME[0] - width) // 2 + int(shared.integers(-20, 20)), 60 + int(shared.integers(0, 30)), width, height)
    sector = bool(shared.random() < 0.3)

    rng = np.random.default_rng([*key, image + 1])
    content = _Content(
        nodule, _second_nodule(key), nodules, off_centre, np.random.default_rng([*key, image + 1, _PLACES])
    )
    visible = _visible(height, width, sector)
    echo, masks = _tissue(visible, content, rng)
    decibel = echo + _speckle((height, width), rng)
    dynamic = rng.uniform(48, 56)
    grey = np.clip((decibel + dynamic - 20 + rng.uniform(-2, 2)) / dynamic * 255, 6, 255)
    grey[~visible] = 0

    left, top = area[:2]
    canvas = np.zeros((FRAME[1], FRAME[0], 3), np.uint8)
    canvas[top : top + height, left : left + width] = grey.astype(np.uint8)[..., None]
    _scanner_frame(canvas, area, patient, rng)
    boxes = (cv2.boundingRect(mask.astype(np.uint8)) for mask in masks)
    return Phantom(canvas, tuple((left + x, top + y, w, h) for x, y, w, h in boxes))


def _second_nodule(key: list[int]) -> Nodule:
    """Return the second nodule of a patient, which looks benign and is small enough to fit beside the first."""
    rng = np.random.default_rng([*key, 0, _SECOND])
    return replace(Nodule.of("B", rng), radius=rng.uniform(0.05, 0.09))


def _visible(height: int, width: int, sector: bool) -> NDArray[np.bool_]:
    """Return the pixels of the scan area that show tissue: all, or the trapezoidal view of a linear probe."""
    margin = (1 - np.arange(height)[:, None] / height) * 0.10 * width * sector
    columns = np.arange(width)[None, :]
    return (columns >= margin) & (columns <= width - margin)


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
    """

    label: str
    patient: int
    image: int
    seed: int
    folder: str
    varied: bool


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


def _write(task: _Task) -> list[tuple[str, int, int, int, int]]:
    name = f"{task.label}_{task.patient:03d}-{task.image:04d}-1.0.jpg"
    nodules, off_centre = variation(task.patient, task.image, task.seed) if task.varied else (1, False)
    phantom = draw(task.label, task.patient, task.image, task.seed, nodules=nodules, off_centre=off_centre)
    (Path(task.folder) / name).write_bytes(images.encode(phantom.image, MARK))
    return [(name, *roi) for roi in phantom.rois]


def generate(
    output: Path, patients: int = PATIENTS, images_per_patient: int = 1, seed: int = 0, *, varied: bool = False
) -> Path:
    """Write `patients * images_per_patient` frames to `output/scans` and their nodules to `output/rois.csv`.

    Six patients in ten are benign. The same arguments give the same files, whatever the number of cores.

    Args:
        output: Folder to write to.
        patients: Number of patients.
        images_per_patient: Number of images of each patient.
        seed: Seed of the whole set.
        varied: Whether some frames show no nodule, two, or one off centre, as `variation` says. A frame without a
            nodule has no row in rois.csv, one with two has two rows. The label is then the patient's: a frame may not
            show what it is about, and a second nodule looks benign. By default every frame shows one nodule.

    Returns:
        Path of rois.csv.
    """
    folder = output / "scans"
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.random.default_rng(seed).permutation(
        ["B"] * round(patients * BENIGN_SHARE) + ["M"] * (patients - round(patients * BENIGN_SHARE))
    )
    tasks = [
        _Task(str(labels[patient - 1]), patient, image, seed, str(folder), varied)
        for patient in range(1, patients + 1)
        for image in range(1, images_per_patient + 1)
    ]
    with ProcessPoolExecutor() as pool:
        written = list(progress.bar(pool.map(_write, tasks, chunksize=16), len(tasks), "phantoms", "scan"))
    rois = output / "rois.csv"
    with rois.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "x", "y", "width", "height"])
        writer.writerows(row for rows in written for row in rows)
    return rois


def run(
    *, output: Path, patients: int = PATIENTS, images_per_patient: int = 1, seed: int = 0, varied: bool = False
) -> None:
    """Draw synthetic ultrasound-like phantoms, so that everything runs without a single patient's data.

    Args:
        output: Folder for scans/ and rois.csv.
        patients: Number of patients.
        images_per_patient: Number of scans of each patient.
        seed: Seed of the whole set.
        varied: Also draw frames without a nodule, with two, and with one off centre (about 10, 20 and 40 in 100).
    """
    rois = generate(output, patients, images_per_patient, seed, varied=varied)
    print(f"{output / 'scans'} and {rois}: synthetic phantoms, not patients")


main = command.main("python -m thyroid.phantom", run)
