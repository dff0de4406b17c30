"""Synthetic ultrasound-like phantoms, so that everything runs without a single patient's data.

A phantom is a thyroid lobe with one nodule, drawn as a log-compressed speckle pattern (the envelope of a filtered
complex Gaussian field: Burckhardt 1978, "Speckle in ultrasound B-mode scans") with depth attenuation, inside a scanner
frame with ruler ticks and burned-in text. The nodule follows the descriptors of ACR TI-RADS (Tessler et al. 2017):
echogenicity, margin, shape, composition and calcifications depend on the label, but only with the probabilities below,
so that a perfect classifier does not exist. Every picture says that it is synthetic.
"""

import csv
import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from thyroid import command, progress
from thyroid.imaging import images

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

# Probability of each sign given the label, loosely after the odds in Tessler et al. 2017.
SIGNS = {
    "hypoechoic": {"B": 0.15, "M": 0.85},
    "irregular_margin": {"B": 0.12, "M": 0.80},
    "taller_than_wide": {"B": 0.08, "M": 0.55},
    "microcalcification": {"B": 0.08, "M": 0.65},
    "cystic": {"B": 0.40, "M": 0.04},
    "halo": {"B": 0.50, "M": 0.10},
}
BENIGN_SHARE = 0.6


@dataclass(frozen=True)
class Nodule:
    """One nodule, shared by all its images.

    Lengths are fractions of the scan area's height; echo and halo are in dB; cyst is a fraction of the nodule's radius.
    """

    radius: float
    aspect: float
    echo: float
    roughness: float
    cyst: float
    halo: float
    calcifications: int


@dataclass(frozen=True)
class Phantom:
    """One phantom frame.

    Attributes:
        image: uint8 [height, width, 3].
        roi: Tight box of the nodule: x, y, width, height in pixels of the frame.
    """

    image: images.Pixels
    roi: tuple[int, int, int, int]


def _nodule(label: str, rng: np.random.Generator) -> Nodule:
    sign = {name: rng.random() < probability[label] for name, probability in SIGNS.items()}
    return Nodule(
        radius=rng.uniform(0.09, 0.19),
        aspect=rng.uniform(1.1, 1.5) if sign["taller_than_wide"] else rng.uniform(0.6, 0.95),
        echo=rng.uniform(-14, -8) if sign["hypoechoic"] else rng.uniform(-3, 5),
        roughness=rng.uniform(0.12, 0.24) if sign["irregular_margin"] else rng.uniform(0.0, 0.04),
        cyst=rng.uniform(0.35, 0.7) if sign["cystic"] else 0.0,
        halo=rng.uniform(6, 10) if sign["halo"] else 0.0,
        calcifications=int(rng.integers(6, 18)) if sign["microcalcification"] else 0,
    )


def _speckle(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return speckle in dB with a mean of about 0; lateral resolution is coarser than axial, as with a linear probe."""
    field = [cv2.GaussianBlur(rng.standard_normal(shape, np.float32), (0, 0), sigmaX=1.9, sigmaY=0.9) for _ in range(2)]
    envelope = np.hypot(*field)
    speckle: NDArray[np.float32] = (20 * np.log10(envelope / envelope.mean() + 1e-3)).astype(np.float32)
    return speckle


def _tissue(
    height: int, width: int, nodule: Nodule, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return echogenicity in dB [height, width] and the nodule's mask."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    u, v = x / width, y / height
    wave = 0.02 * np.sin(2 * math.pi * (u * rng.uniform(0.5, 1.5) + rng.random()))
    echo = np.full((height, width), -6.0, np.float32)
    for _ in range(int(rng.integers(3, 6))):  # skin and muscle fasciae
        depth = rng.uniform(0.02, 0.22)
        echo += rng.uniform(6, 14) * np.exp(-(((v - depth - wave) / rng.uniform(0.005, 0.02)) ** 2))
    lobe = ((u - rng.uniform(0.42, 0.58)) / rng.uniform(0.36, 0.46)) ** 2 + (
        (v - 0.52) / rng.uniform(0.26, 0.33)
    ) ** 2 < 1
    echo += cv2.GaussianBlur(lobe.astype(np.float32), (0, 0), 3) * (rng.uniform(0, 3) - echo)
    side = rng.choice([0.06, 0.94])  # carotid artery
    echo[((u - side) * width / height) ** 2 + (v - rng.uniform(0.45, 0.65)) ** 2 < rng.uniform(0.05, 0.09) ** 2] = -30

    cx = (0.5 + rng.uniform(-0.16, 0.16)) * width
    cy = (0.5 + rng.uniform(-0.08, 0.08)) * height
    tall = math.sqrt(nodule.aspect)
    angle = np.arctan2((y - cy) / tall, (x - cx) * tall)
    harmonics = sum(
        rng.normal(0, nodule.roughness / math.sqrt(k)) * np.cos(k * angle + rng.uniform(0, 2 * math.pi))
        for k in range(3, 11)
    )
    distance = np.hypot((x - cx) * tall, (y - cy) / tall) / (nodule.radius * height)
    inside = distance < 1 + harmonics
    edge = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), 1.0 + 5 * nodule.roughness)
    echo += edge * (rng.uniform(0, 1.5) + nodule.echo - echo)
    # All evidence lies within the nodule, so that the shortcut audit of a sound model finds nothing around it: the halo
    # does not reach beyond the margin, and there is no enhancement behind fluid.
    echo -= nodule.halo * np.exp(-(((distance - 0.9 - harmonics) / 0.04) ** 2))
    if nodule.cyst:
        echo[distance < nodule.cyst] = -28
    ys, xs = np.nonzero(distance < 0.8 * (1 + harmonics))
    for i in rng.integers(0, len(ys), nodule.calcifications):
        cv2.circle(echo, (int(xs[i]), int(ys[i])), int(rng.integers(1, 3)), 16.0, -1)
    echo -= rng.uniform(8, 18) * v**1.5  # depth attenuation
    return echo, inside


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


def draw(label: str, patient: int, image: int, seed: int = 0) -> Phantom:
    """Draw one frame; the same arguments always give the same frame.

    Args:
        label: "B" or "M"; decides the odds of the nodule's signs, not the signs.
        patient: Patient number; a patient's images share the nodule and the scanner settings.
        image: Image number within the patient; changes view, speckle and gain.
        seed: Seed of the whole set.
    """
    shared = np.random.default_rng([seed, patient, "BM".index(label)])
    nodule = _nodule(label, shared)
    width, height = int(shared.integers(330, 500)), int(shared.integers(300, 380))
    area = ((FRAME[0] - width) // 2 + int(shared.integers(-20, 20)), 60 + int(shared.integers(0, 30)), width, height)
    sector = bool(shared.random() < 0.3)

    rng = np.random.default_rng([seed, patient, "BM".index(label), image + 1])
    echo, inside = _tissue(height, width, nodule, rng)
    decibel = echo + _speckle((height, width), rng)
    dynamic = rng.uniform(48, 56)
    grey = np.clip((decibel + dynamic - 20 + rng.uniform(-2, 2)) / dynamic * 255, 6, 255)
    if sector:  # trapezoidal view of a linear probe
        rows = np.arange(height)[:, None] / height
        margin = (1 - rows) * 0.10 * width
        columns = np.arange(width)[None, :]
        outside = (columns < margin) | (columns > width - margin)
        grey[outside] = 0
        inside &= ~outside

    left, top = area[:2]
    canvas = np.zeros((FRAME[1], FRAME[0], 3), np.uint8)
    canvas[top : top + height, left : left + width] = grey.astype(np.uint8)[..., None]
    _scanner_frame(canvas, area, patient, rng)
    x, y, w, h = cv2.boundingRect(inside.astype(np.uint8))
    return Phantom(canvas, (left + x, top + y, w, h))


def _write(task: tuple[str, int, int, int, str]) -> tuple[str, int, int, int, int]:
    label, patient, image, seed, folder = task
    name = f"{label}_{patient:03d}-{image:04d}-1.0.jpg"
    phantom = draw(label, patient, image, seed)
    (Path(folder) / name).write_bytes(images.encode(phantom.image, MARK))
    return (name, *phantom.roi)


def generate(output: Path, patients: int = PATIENTS, images_per_patient: int = 1, seed: int = 0) -> Path:
    """Write `patients * images_per_patient` frames to `output/scans` and their nodules to `output/rois.csv`.

    Six patients in ten are benign. The same arguments give the same files, whatever the number of cores.

    Args:
        output: Folder to write to.
        patients: Number of patients.
        images_per_patient: Number of images of each patient.
        seed: Seed of the whole set.

    Returns:
        Path of rois.csv.
    """
    folder = output / "scans"
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.random.default_rng(seed).permutation(
        ["B"] * round(patients * BENIGN_SHARE) + ["M"] * (patients - round(patients * BENIGN_SHARE))
    )
    tasks = [
        (str(labels[patient - 1]), patient, image, seed, str(folder))
        for patient in range(1, patients + 1)
        for image in range(1, images_per_patient + 1)
    ]
    with ProcessPoolExecutor() as pool:
        rows = list(progress.bar(pool.map(_write, tasks, chunksize=16), len(tasks), "phantoms", "scan"))
    rois = output / "rois.csv"
    with rois.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "x", "y", "width", "height"])
        writer.writerows(rows)
    return rois


def run(*, output: Path, patients: int = PATIENTS, images_per_patient: int = 1, seed: int = 0) -> None:
    """Draw synthetic ultrasound-like phantoms, so that everything runs without a single patient's data.

    Args:
        output: Folder for scans/ and rois.csv.
        patients: Number of patients.
        images_per_patient: Number of scans of each patient.
        seed: Seed of the whole set.
    """
    rois = generate(output, patients, images_per_patient, seed)
    print(f"{output / 'scans'} and {rois}: synthetic phantoms, not patients")


main = command.main("python -m thyroid.phantom", run)
