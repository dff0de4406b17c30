"""Foreign images: pictures that a model should not judge, as its network would see them.

They measure how well novelty detects what is unlike the training images. Nothing is fitted on them.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from sklearn.datasets import load_sample_images

from thyroid.data.version import DataVersion
from thyroid.imaging import geometry, images, phantom
from thyroid.imaging.images import Pixels
from thyroid.imaging.phantom import Phantom
from thyroid.imaging.phantom_scanner import SCANNERS, Name
from thyroid.model import scan_statistics

COUNT = 40
"""Number of images of a kind that is made from nothing, and largest number of test images that a kind is made of."""
PHANTOMS = 20
"""Number of phantoms of each other scanner, which take longer to draw."""
BLANK, SATURATED, NOISE, PHOTOGRAPH = "blank", "saturated", "noise", "photograph"
DOPPLER, QUARTER, HALF, INVERTED = "colour Doppler", "turned by 90 degrees", "turned by 180 degrees", "inverted"
"""The kinds that there are for every model; those of `other_scanners` come on top."""

_DARK = 40  # grey level of the brightest blank image
_GAIN, _OFFSET = 6, 120  # of a saturated image
_SIDE = 200  # of a noise image in pixels, which the network's input is scaled from
_LEAST = 120  # shortest side of a part of a photograph in pixels
_FIRST_PATIENT = 9001  # phantoms of other scanners have patient numbers that no sample has


@dataclass(frozen=True)
class Foreign:
    """Foreign images of one kind.

    Attributes:
        kind: Name of the kind.
        pixels: uint8 [n, size, size, 3], as the network sees them.
        varied: Whether they were made of the first n test images.
    """

    kind: str
    pixels: Pixels
    varied: bool = False


def make(tested: Pixels, data: DataVersion, domain: str, seed: int) -> list[Foreign]:
    """Make the foreign images of every kind. The same arguments always give the same images.

    Args:
        tested: Test images that variations are made of, uint8 [n, size, size, 3]; the first `COUNT` are used.
        data: Data version of the model, whose margin crops of other scanners have.
        domain: Domain in which the model is served: "normal" or "cropped".
        seed: Seed of everything that is drawn.
    """
    size, test = tested.shape[1], tested[:COUNT]
    drawn: list[tuple[str, Callable[[np.random.Generator, int], Pixels]]] = [
        (BLANK, _blank),
        (NOISE, _noise),
        (PHOTOGRAPH, _photograph),
    ]
    varied: list[tuple[str, Callable[[np.random.Generator, Pixels], Pixels]]] = [
        (SATURATED, _saturated),
        (DOPPLER, _doppler),
        (QUARTER, lambda _, image: np.ascontiguousarray(np.rot90(image))),
        (HALF, lambda _, image: np.ascontiguousarray(image[::-1, ::-1])),
        (INVERTED, lambda _, image: 255 - image),
    ]
    made = []
    for number, (kind, draw) in enumerate(drawn):
        rng = np.random.default_rng([seed, number])
        made.append(Foreign(kind, _inputs([draw(rng, place) for place in range(COUNT)], size)))
    for number, (kind, vary) in enumerate(varied, len(drawn)):
        rng = np.random.default_rng([seed, number])
        made.append(Foreign(kind, _inputs([vary(rng, image) for image in test], size), varied=True))
    for scanner in other_scanners(data):
        shown = [_as_served(one, domain, data.margin) for one in _phantoms(scanner)]
        made.append(Foreign(f"phantom of the scanner {scanner}", _inputs(shown, size)))
    return made


def other_scanners(data: DataVersion) -> list[Name]:
    """Return the scanners of phantoms that the data are not from.

    Phantoms do not say which scanner they are from, but each scanner has frames of its own size.
    """
    own = set(scan_statistics.sizes(data)) if data.facts.synthetic else set()
    return [name for name, scanner in SCANNERS.items() if scanner.frame not in own]


def _inputs(pictures: Sequence[Pixels], size: int) -> Pixels:
    """Return pictures of any size as the network sees them, uint8 [n, size, size, 3]."""
    return np.stack([images.rgb(images.stored(picture, size)) for picture in pictures])


def _as_served(shown: Phantom, domain: str, margin: float) -> Pixels:
    """Return the part of a phantom's frame that a model of this domain judges."""
    if domain == "normal":
        return geometry.normal(shown.image)
    return geometry.region(shown.image, shown.roi, margin=margin)


@functools.cache  # every evaluation of a process draws the same
def _phantoms(scanner: Name) -> list[Phantom]:
    patients = range(_FIRST_PATIENT, _FIRST_PATIENT + PHANTOMS)
    return [phantom.draw("BM"[patient % 2], patient, 1, scanner=scanner) for patient in patients]


def _blank(_: np.random.Generator, place: int) -> Pixels:
    """Return an even image; with `place` its grey level goes from 0 to `_DARK`."""
    return np.full((_SIDE, _SIDE, 3), round(_DARK * place / (COUNT - 1)), np.uint8)


def _noise(rng: np.random.Generator, place: int) -> Pixels:
    """Return even noise, grey and coloured in turns."""
    values = rng.integers(0, 256, (_SIDE, _SIDE, 3 if place % 2 else 1), np.uint8)
    return images.rgb(values)


def _photograph(rng: np.random.Generator, place: int) -> Pixels:
    """Return a part of one of scikit-learn's two sample photographs, grey and coloured in turns."""
    photographs = _photographs()
    photograph = photographs[place // 2 % len(photographs)]
    height, width = photograph.shape[:2]
    side = int(rng.integers(_LEAST, min(height, width)))
    top, left = int(rng.integers(0, height - side)), int(rng.integers(0, width - side))
    part = np.ascontiguousarray(photograph[top : top + side, left : left + side])
    return part if place % 2 else images.rgb(cv2.cvtColor(part, cv2.COLOR_RGB2GRAY)[..., None])


@functools.cache
def _photographs() -> list[Pixels]:
    return list(load_sample_images().images)


def _saturated(_: np.random.Generator, image: Pixels) -> Pixels:
    """Return the image as with far too much gain."""
    return np.clip(image.astype(np.int32) * _GAIN + _OFFSET, 0, 255).astype(np.uint8)


def _doppler(rng: np.random.Generator, image: Pixels) -> Pixels:
    """Return the image with a box of colour Doppler over it: the frame line of the box, and flow inside it.

    The scanner's colour bar is left out. It stands outside the scan area, of which a model never sees anything.
    """
    height, width = image.shape[:2]
    left, top = int(width * rng.uniform(0.1, 0.3)), int(height * rng.uniform(0.1, 0.3))
    right, bottom = int(width * rng.uniform(0.7, 0.9)), int(height * rng.uniform(0.7, 0.9))
    y, x = np.mgrid[0:height, 0:width]
    speed = np.zeros((height, width))  # -1 to 1: away from the probe, and towards it
    for _ in range(int(rng.integers(4, 9))):
        column, row = rng.uniform(left, right), rng.uniform(top, bottom)
        long, short = width * rng.uniform(0.04, 0.12), height * rng.uniform(0.02, 0.06)
        angle = rng.uniform(0, np.pi)
        along = (x - column) * np.cos(angle) + (y - row) * np.sin(angle)
        across = (y - row) * np.cos(angle) - (x - column) * np.sin(angle)
        flow = np.clip(1.2 - (along / long) ** 2 - (across / short) ** 2, 0, 1) * rng.choice([-1, 1])
        speed = np.where(np.abs(flow) > np.abs(speed), flow, speed)
    speed[(x < left) | (x > right) | (y < top) | (y > bottom)] = 0
    fast = np.abs(speed)
    towards = np.stack([120 + 135 * fast, 220 * fast**2, 0 * fast], axis=-1)  # dark red to yellow
    away = np.stack([0 * fast, 220 * fast**2, 120 + 135 * fast], axis=-1)  # dark blue to cyan
    coloured = np.where((speed > 0)[..., None], towards, np.where((speed < 0)[..., None], away, image))
    shown = np.ascontiguousarray(coloured.astype(np.uint8))
    cv2.rectangle(shown, (left, top), (right, bottom), (230, 230, 230), 1)
    return shown
