"""The scanners of phantoms: frame, shape of the view, speckle, gain, and how the signs of a nodule look on each.

Every default sample is from the first one. The others stand for other hospitals, where a model that learnt from the
first one does worse: on the convex probe every nodule is darker and its margin is smoother, so that thresholds no
longer fit, and the portable scanner loses most of what tells nodules apart. They are numbers that make pictures differ,
not models of real devices.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from thyroid.imaging import images
from thyroid.imaging.geometry import Box
from thyroid.imaging.phantom_nodule import Nodule

Name = Literal["linear", "convex", "portable"]
"""Name of a scanner in `SCANNERS`."""
DEFAULT: Name = "linear"

_APEX = 0.35
"""Distance of a sector's apex above the scan area, as a share of its height."""


@dataclass(frozen=True)
class Layout:
    """Where the parts of a scanner's frame are: x and y in pixels, from the right or the bottom edge if negative.

    Attributes:
        banner: The text that says that the picture is synthetic.
        patient: The patient's number.
        settings: Probe, frequency, gain and dynamic range.
        power: Mechanical and thermal index.
        bar: The grey bar.
    """

    banner: tuple[int, int] = (6, 4)
    patient: tuple[int, int] = (-200, 4)
    settings: tuple[int, int] = (6, 22)
    power: tuple[int, int] = (6, -16)
    bar: tuple[int, int] = (-16, 60)


@dataclass(frozen=True)
class Scanner:
    """How a scanner shows tissue. Ranges are the bounds of uniform draws.

    Attributes:
        number: 0 for the default scanner; the patients of each other one are drawn from other random numbers.
        probe: Name of the probe.
        frame: Width and height of a frame in pixels.
        layout: Where the parts of the frame are.
        width: Range of the scan area's width in pixels.
        height: Range of the scan area's height in pixels.
        top: Least distance of the scan area from the top edge in pixels.
        sector: Whether the view is a sector, as of a convex probe.
        trapezoids: Share of patients whose view is a trapezoid; that of the others is a rectangle.
        speckle: Lateral and axial standard deviation of the point spread in pixels.
        dynamic: Range of the dynamic range in dB.
        gain: Range of the gain in dB.
        contrast: Share of a nodule's echo and halo, and of the radius of its cyst, that is left.
        echo: What is added to a nodule's echo in dB.
        sharpness: Share of a margin's roughness that is left.
        calcifications: Share of the microcalcifications that is left.
    """

    number: int = 0
    probe: str = "L12-5"
    frame: tuple[int, int] = (640, 480)
    layout: Layout = Layout()
    width: tuple[int, int] = (330, 500)
    height: tuple[int, int] = (300, 380)
    top: int = 60
    sector: bool = False
    trapezoids: float = 0.3
    speckle: tuple[float, float] = (1.9, 0.9)
    dynamic: tuple[float, float] = (48, 56)
    gain: tuple[float, float] = (-2, 2)
    contrast: float = 1.0
    echo: float = 0.0
    sharpness: float = 1.0
    calcifications: float = 1.0

    def seen(self, nodule: Nodule) -> Nodule:
        """Return a nodule as this scanner shows it."""
        return replace(
            nodule,
            echo=self.contrast * nodule.echo + self.echo,
            halo=self.contrast * nodule.halo,
            cyst=self.contrast * nodule.cyst,
            roughness=self.sharpness * nodule.roughness,
            calcifications=round(self.calcifications * nodule.calcifications),
        )

    def area(self, rng: np.random.Generator) -> tuple[Box, NDArray[np.bool_]]:
        """Draw the scan area of a patient.

        Args:
            rng: Draws it.

        Returns:
            Its box in pixels of the frame, and the pixels of it that are not cut off by the shape of the view [height,
            width].
        """
        width, height = int(rng.integers(*self.width)), int(rng.integers(*self.height))
        left = (self.frame[0] - width) // 2 + int(rng.integers(-20, 20))
        box = (left, self.top + int(rng.integers(0, 30)), width, height)
        trapezoid = bool(rng.random() < self.trapezoids)
        if self.sector:
            return box, _sector(height, width)
        margin = (1 - np.arange(height)[:, None] / height) * 0.10 * width * trapezoid
        columns = np.arange(width)[None, :]
        return box, (columns >= margin) & (columns <= width - margin)

    def grey(self, echo: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the grey levels of tissue with speckle, 6 to 255.

        Args:
            echo: Echogenicity in dB [height, width].
            rng: Draws speckle, dynamic range and gain.
        """
        decibel = echo + self._speckle(echo.shape, rng)
        dynamic = rng.uniform(*self.dynamic)
        level = (decibel + dynamic - 20 + rng.uniform(*self.gain)) / dynamic
        grey: NDArray[np.float32] = np.clip(level * 255, 6, 255)
        return grey

    def _speckle(self, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
        """Return speckle in dB with a mean of about 0."""
        lateral, axial = self.speckle
        field = [
            cv2.GaussianBlur(rng.standard_normal(shape, np.float32), (0, 0), sigmaX=lateral, sigmaY=axial)
            for _ in range(2)
        ]
        envelope = np.hypot(*field)
        speckle: NDArray[np.float32] = (20 * np.log10(envelope / envelope.mean() + 1e-3)).astype(np.float32)
        return speckle

    def annotate(self, canvas: images.Pixels, area: Box, patient: int, rng: np.random.Generator) -> None:
        """Draw burned-in text, ruler ticks and a grey bar around the scan area; none of it depends on the label.

        Args:
            canvas: The frame, uint8 [height, width, 3], which is changed.
            area: Box of the scan area in pixels of the frame.
            patient: Patient number.
            rng: Draws the settings that the text names.
        """
        left, top, width, height = area
        picture = Image.fromarray(canvas)
        draw = ImageDraw.Draw(picture)
        small, normal = ImageFont.load_default(11), ImageFont.load_default(13)
        draw.text(
            self._place(self.layout.banner), "SYNTHETIC PHANTOM - NOT A PATIENT", fill=(235, 235, 235), font=normal
        )
        draw.text(self._place(self.layout.patient), f"ID {patient:06d}  THYROID", fill=(200, 200, 200), font=normal)
        draw.text(
            self._place(self.layout.settings),
            f"{self.probe}  {rng.integers(7, 15)} MHz   G {rng.integers(40, 80)}   DR {rng.integers(55, 75)}",
            fill=(170, 170, 170),
            font=small,
        )
        draw.text(
            self._place(self.layout.power),
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
        x, y = self._place(self.layout.bar)
        for i in range(100):
            draw.line((x, y + i, x + 8, y + i), fill=(255 - 2 * i,) * 3)
        canvas[:] = np.asarray(picture)

    def _place(self, at: tuple[int, int]) -> tuple[int, int]:
        x, y = at
        return x % self.frame[0], y % self.frame[1]


def _sector(height: int, width: int) -> NDArray[np.bool_]:
    """Return the pixels of a sector that touches all sides of a scan area [height, width]."""
    y, x = np.mgrid[0:height, 0:width]
    across, down = x - (width - 1) / 2, y + _APEX * height
    radius, farthest = np.hypot(across, down), (1 + _APEX) * height
    slope = math.tan(math.asin(width / 2 / farthest))
    seen: NDArray[np.bool_] = (radius <= farthest) & (radius >= _APEX * height) & (np.abs(across) <= slope * down)
    return seen


SCANNERS: dict[Name, Scanner] = {
    "linear": Scanner(),
    "convex": Scanner(
        number=1,
        probe="C9-2",
        frame=(800, 600),
        layout=Layout(banner=(270, 4), patient=(6, 4), settings=(-180, 4), power=(-120, -16), bar=(8, 120)),
        width=(620, 690),
        height=(400, 460),
        top=70,
        sector=True,
        speckle=(3.4, 1.6),
        dynamic=(60, 70),
        gain=(3, 8),
        contrast=0.9,
        echo=-6.0,
        sharpness=0.4,
    ),
    "portable": Scanner(
        number=2,
        probe="P15",
        frame=(512, 384),
        layout=Layout(patient=(-150, 4), settings=(6, -16), power=(-100, -16), bar=(8, 50)),
        width=(300, 400),
        height=(250, 290),
        top=44,
        trapezoids=0.0,
        speckle=(1.3, 1.3),
        dynamic=(38, 44),
        gain=(-6, -2),
        contrast=0.15,
        echo=-2.0,
        sharpness=0.25,
        calcifications=0.0,
    ),
}
"""The scanners by name."""
