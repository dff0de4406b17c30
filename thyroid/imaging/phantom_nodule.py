"""One nodule of a phantom: its signs, its shape on a frame, and where it fits.

The signs follow the descriptors of ACR TI-RADS (Tessler et al. 2017).
"""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

# Probability of each sign given the label, loosely after the odds in Tessler et al. 2017.
SIGNS = {
    "hypoechoic": {"B": 0.15, "M": 0.85},
    "irregular_margin": {"B": 0.12, "M": 0.80},
    "taller_than_wide": {"B": 0.08, "M": 0.55},
    "microcalcification": {"B": 0.08, "M": 0.65},
    "cystic": {"B": 0.40, "M": 0.04},
    "halo": {"B": 0.50, "M": 0.10},
}
GAP = 6
"""Pixels kept free around a nodule that is placed."""
FLUID = -28.0
"""Echo of fluid in dB."""
INNER = 0.6
"""Eccentricity up to which a nodule is placed: most nodules then reach the edge of the lobe and hardly beyond it."""


_ECHOES = {"anechoic": -25.0, "very_hypoechoic": -17.0, "hypoechoic": -5.5, "isoechoic": math.inf}
"""Words for a nodule's echo, each with the upper bound in dB; healthy tissue is at about 0."""


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

    @classmethod
    def of(cls, label: str, rng: np.random.Generator) -> "Nodule":
        """Draw the signs of a nodule.

        Args:
            label: "B" or "M"; decides the odds of the signs.
            rng: Draws them.
        """
        sign = {name: rng.random() < probability[label] for name, probability in SIGNS.items()}
        return cls(
            radius=rng.uniform(0.09, 0.19),
            aspect=rng.uniform(1.1, 1.5) if sign["taller_than_wide"] else rng.uniform(0.6, 0.95),
            echo=rng.uniform(-14, -8) if sign["hypoechoic"] else rng.uniform(-3, 5),
            roughness=rng.uniform(0.12, 0.24) if sign["irregular_margin"] else rng.uniform(0.0, 0.04),
            cyst=rng.uniform(0.35, 0.7) if sign["cystic"] else 0.0,
            halo=rng.uniform(6, 10) if sign["halo"] else 0.0,
            calcifications=int(rng.integers(6, 18)) if sign["microcalcification"] else 0,
        )

    @property
    def words(self) -> dict[str, str]:
        """The word of each descriptor of ACR TI-RADS for the signs that were drawn (see `thyroid.tirads`)."""
        return {
            "composition": "mixed" if self.cyst else "solid",
            "echogenicity": next(word for word, below in _ECHOES.items() if self.echo < below),
            "shape": "taller" if self.aspect > 1 else "wider",
            "margin": "lobulated" if self.roughness > 0.08 else "smooth",
            "foci": "punctate" if self.calcifications else "none",
        }


@dataclass(frozen=True)
class Shape:
    """A nodule as one frame shows it.

    Attributes:
        nodule: The nodule.
        ripples: Amplitude (as a share of the radius) and phase of the margin's harmonics, from the third one on.
    """

    nodule: Nodule
    ripples: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, nodule: Nodule, rng: np.random.Generator) -> "Shape":
        """Draw the margin of a nodule."""
        return cls(
            nodule,
            tuple((rng.normal(0, nodule.roughness / math.sqrt(k)), rng.uniform(0, 2 * math.pi)) for k in range(3, 11)),
        )

    def ripple(self, angle: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return by how much the margin deviates from an ellipse at each angle, as a share of the radius."""
        rippled: NDArray[np.floating] = sum(
            amplitude * np.cos(k * angle + phase) for k, (amplitude, phase) in enumerate(self.ripples, start=3)
        )
        return rippled

    def extent(self, height: int) -> tuple[int, int, int, int]:
        """Return how far it reaches from its centre: left, up, right and down in pixels, with the gap around it."""
        angle = np.linspace(0, 2 * math.pi, 720)
        margin = self.nodule.radius * height * np.maximum(0, 1 + self.ripple(angle))
        tall = math.sqrt(self.nodule.aspect)
        x, y = margin * np.cos(angle) / tall, margin * np.sin(angle) * tall
        left, up, right, down = (math.ceil(side) + GAP for side in (-x.min(), -y.min(), x.max(), y.max()))
        return left, up, right, down

    def placed(
        self, free: NDArray[np.bool_], eccentricity: NDArray[np.floating], rng: np.random.Generator
    ) -> tuple["Shape", tuple[float, float]]:
        """Return a place where the nodule fits, and the nodule, which shrinks if it fits nowhere.

        The centre is in the inner part of the lobe, or as near to it as the nodule fits.

        Args:
            free: Where the nodule may be [height, width].
            eccentricity: Squared distance from the lobe's centre [height, width], 1 at the lobe's edge; infinite where
                the nodule's centre may not be.
            rng: Chooses among the places.

        Returns:
            The shape, and x and y of its centre in pixels.
        """
        left, up, right, down = self.extent(free.shape[0])
        kernel = np.ones((up + down + 1, left + right + 1), np.uint8)
        fits = cv2.erode(
            free.astype(np.uint8), kernel, anchor=(left, up), borderType=cv2.BORDER_CONSTANT, borderValue=0
        )
        where = np.where(fits > 0, eccentricity, np.inf)
        if np.isinf(where.min()):
            smaller = replace(self.nodule, radius=0.9 * self.nodule.radius)
            return replace(self, nodule=smaller).placed(free, eccentricity, rng)
        ys, xs = np.nonzero(where <= max(INNER, 1.1 * where.min()))
        chosen = int(rng.integers(len(xs)))
        return self, (float(xs[chosen]), float(ys[chosen]))

    def polar(
        self, size: tuple[int, ...], centre: tuple[float, float]
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Return where the pixels of a picture are in the nodule.

        Args:
            size: Height and width of the picture in pixels.
            centre: x and y of the nodule's centre in pixels.

        Returns:
            Distance from the centre, 1 on the ellipse, and by how much the margin deviates from the ellipse in this
            direction [height, width].
        """
        (height, width), (cx, cy) = size, centre
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        tall = math.sqrt(self.nodule.aspect)
        harmonics = self.ripple(np.arctan2((y - cy) / tall, (x - cx) * tall))
        return np.hypot((x - cx) * tall, (y - cy) / tall) / (self.nodule.radius * height), harmonics

    def paint(
        self, echo: NDArray[np.float32], centre: tuple[float, float], rng: np.random.Generator
    ) -> NDArray[np.bool_]:
        """Draw the nodule into a picture.

        Args:
            echo: Echogenicity in dB [height, width], which is changed.
            centre: x and y of its centre in pixels.
            rng: Draws brightness and calcifications.

        Returns:
            The nodule's mask [height, width].
        """
        nodule = self.nodule
        distance, harmonics = self.polar(echo.shape, centre)
        inside: NDArray[np.bool_] = distance < 1 + harmonics
        edge = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), 1.0 + 5 * nodule.roughness)
        echo += edge * (rng.uniform(0, 1.5) + nodule.echo - echo)
        # All evidence lies within the nodule, so that the shortcut audit of a sound model finds nothing around it: the
        # halo does not reach beyond the margin, and there is no enhancement behind fluid.
        echo -= nodule.halo * np.exp(-(((distance - 0.9 - harmonics) / 0.04) ** 2))
        if nodule.cyst:
            echo[distance < nodule.cyst] = FLUID
        ys, xs = np.nonzero(distance < 0.8 * (1 + harmonics))
        for i in rng.integers(0, len(ys), nodule.calcifications):
            cv2.circle(echo, (int(xs[i]), int(ys[i])), int(rng.integers(1, 3)), 16.0, -1)
        return inside
