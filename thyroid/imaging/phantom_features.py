"""Further features of a phantom's nodule, so that nearly every value of ACR TI-RADS can be drawn.

The signs of `phantom_nodule` depend on the label; these do not, so that a model which tells them has not told the
label. All of them lie within the nodule, as all evidence does. Bubbles, shells, coarse calcifications and comet tails
look the same on every scanner.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from thyroid import tirads
from thyroid.imaging.phantom_nodule import FLUID, Nodule, Shape

KINDS = {"spongiform": 0.15, "cystic": 0.15, "very_hypoechoic": 0.15}
"""Probability of each look, of which a nodule has at most one."""
FOCI = {"comet_tail": 0.2, "macro": 0.2, "rim": 0.2}
"""Probability of each kind of echogenic foci, in addition to the punctate ones, which are a sign."""
_BUBBLES = 0.6
"""Share of a spongiform nodule that is fluid; ACR asks for more than half."""
_BRIGHT = 8.0
"""Echo in dB above which a pixel is a calcification, which stays."""

_Echo = NDArray[np.float32]


@dataclass(frozen=True)
class Features:
    """The further features of a nodule, shared by all its images.

    Attributes:
        kind: A key of `KINDS`; "" for none, which leaves the nodule's composition and echo as they are.
        foci: Keys of `FOCI`.
        echo: Echo of the tissue in dB, for a nodule of a kind.
    """

    kind: str
    foci: tuple[str, ...]
    echo: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draw the features of a nodule."""
        chance, upper = rng.random(), np.cumsum(list(KINDS.values()))
        kind = [*KINDS, ""][int(np.searchsorted(upper, chance, side="right"))]
        foci = tuple(name for name, odds in FOCI.items() if rng.random() < odds)
        echo = {"cystic": FLUID, "very_hypoechoic": rng.uniform(-23, -19)}.get(kind, rng.uniform(-3, 5))
        return cls(kind, foci, echo)

    def look(self, nodule: Nodule) -> Nodule:
        """Return a nodule with the echo of its kind, and then without a single cyst."""
        return replace(nodule, echo=self.echo, cyst=0.0) if self.kind else nodule

    def words(self, nodule: Nodule) -> dict[str, str]:
        """Return the word of each descriptor for a nodule that has these features (see `thyroid.tirads`)."""
        words = self.look(nodule).words
        foci = {*self.foci, words["foci"]} - ({tirads.NONE} if self.foci else set())
        composition = {"composition": self.kind} if self.kind in tirads.DESCRIPTORS["composition"] else {}
        return words | composition | {"foci": tirads.cell("foci", foci)}

    def paint(self, echo: _Echo, shape: Shape, centre: tuple[float, float], rng: np.random.Generator) -> None:
        """Draw what the nodule's own painting does not show.

        Args:
            echo: Echogenicity in dB [height, width] with the nodule, which is changed.
            shape: The nodule.
            centre: x and y of its centre in pixels.
            rng: Chooses places.
        """
        radius = shape.nodule.radius * echo.shape[0]
        distance, harmonics = shape.polar(echo.shape, centre)
        share = distance / np.maximum(1 + harmonics, 0.1)  # of the way from the centre to the margin
        if self.kind == "spongiform":
            _paint_bubbles(echo, share, radius, rng)
        for kind, paint in (("rim", _paint_rim), ("macro", _paint_macro), ("comet_tail", _paint_tails)):
            if kind in self.foci:
                paint(echo, share, radius, rng)


def _paint_bubbles(echo: _Echo, share: NDArray[np.floating], radius: float, rng: np.random.Generator) -> None:
    """Fill most of the nodule with small cysts."""
    noise = cv2.GaussianBlur(rng.standard_normal(echo.shape, np.float32), (0, 0), 1 + 0.03 * radius)
    inside = share < 0.95
    echo[inside & (noise < np.quantile(noise[inside], _BUBBLES)) & (echo < _BRIGHT)] = FLUID


def _paint_rim(echo: _Echo, share: NDArray[np.floating], radius: float, rng: np.random.Generator) -> None:
    """Draw a calcified shell along most of the margin, at least two pixels thick."""
    y, x = np.nonzero((share < 0.97) & (share > min(0.86, 0.97 - 2.5 / radius)))
    middle = np.nonzero(share == share.min())
    turn = (np.arctan2(y - middle[0][0], x - middle[1][0]) + rng.uniform(0, 2 * math.pi)) % (2 * math.pi)
    there = turn < rng.uniform(0.7, 1.0) * 2 * math.pi
    echo[y[there], x[there]] = 14


def _paint_macro(echo: _Echo, share: NDArray[np.floating], radius: float, rng: np.random.Generator) -> None:
    """Draw one or two coarse calcifications, each with its shadow down to the margin."""
    for x, y in _places(share, 0.55, int(rng.integers(1, 3)), rng):
        size = max(3, round(radius * rng.uniform(0.14, 0.2)))
        shadow = np.zeros(echo.shape, bool)
        shadow[y:, max(0, x - size) : x + size + 1] = True
        echo[shadow & (share < 0.97) & (echo < _BRIGHT)] -= 12
        cv2.circle(echo, (x, y), size, 16.0, -1)


def _paint_tails(echo: _Echo, share: NDArray[np.floating], radius: float, rng: np.random.Generator) -> None:
    """Draw bright spots with a tail below each, which tapers and fades."""
    length = max(6, round(0.4 * radius))
    for x, y in _places(share, 0.65, int(rng.integers(3, 6)), rng):
        tail = np.full(echo.shape, -np.inf, np.float32)
        for step in range(length):
            wide = round(2.5 * (1 - step / length))
            tail[y + step : y + step + 1, max(0, x - wide) : x + wide + 1] = 16 - 16 * step / length
        np.maximum(echo, tail, out=echo, where=share < 0.97)


def _places(share: NDArray[np.floating], most: float, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return x and y of random pixels in the inner part of a nodule."""
    ys, xs = np.nonzero(share < most)
    return [(int(xs[i]), int(ys[i])) for i in rng.integers(0, len(ys), count)]
