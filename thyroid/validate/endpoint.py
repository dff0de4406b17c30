"""Predictions through the very path of the endpoint, in this process and without HTTP.

A scan takes the same path as the image of a request: `serve/payload.py`, `serve/preprocessing.py`, the locator and the
engine in the form that a server would choose here, the clinical head, and the operating point. Only admission and
deadline are left out, since nobody waits for the answer.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid import cores, progress
from thyroid.data.classes import Classes
from thyroid.data.filenames import SCORE
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.evaluate.predictions import at_point
from thyroid.imaging import images
from thyroid.imaging.geometry import Box
from thyroid.model import explain
from thyroid.model.artefact import Artefact
from thyroid.model.operating_point import OperatingPoint
from thyroid.registry.registry import MODEL_NAME
from thyroid.serve.answers import BAND, BOX_NOT_CONFIRMED, BOX_UNSURE, DESCRIPTORS_DISAGREE, UNLIKE, Scored
from thyroid.serve.limits import RequestError
from thyroid.serve.model import ThyroidModel
from thyroid.serve.payload import FRAME as IS_FRAME
from thyroid.serve.payload import Instance

T = TypeVar("T")

GIVEN, AUTOMATIC, FRAME = "given", "automatic", "frame"
"""Kinds of boxes: regions of rois.csv, the locator's best one, and none, for a model of full frames."""
UNDECIDED = {
    UNLIKE: "the picture is unlike those that the model learnt from",
    BOX_UNSURE: "the box is unsure",
    BOX_NOT_CONFIRMED: "this model may not decide on boxes that nobody has confirmed",
    BAND: "the probability is in the abstention band",
    DESCRIPTORS_DISAGREE: "the descriptors contradict the probability",
}
"""Reasons for which the endpoint leaves an image undecided, in words."""
BOX = ["x", "y", "width", "height"]
"""Columns of the box that was used, in pixels of the frame."""
_ABOUT = ["path", "scan", "class", "label", "patient", "group", "sha256", *BOX]
_IN_FLIGHT = 4
"""Images per core that are read, prepared or answered at once.

The engine then always has its next image. Frames are decoded by one thread per core, so that no more of them are held.
"""
_BATCH = 32


@dataclass(frozen=True)
class _Job:
    """A scan to judge.

    Attributes:
        path: Path of the scan.
        file: File with its picture.
        box: Its nodule as x, y, width, height in pixels; None for the locator's, or for the whole frame.
        clinical: Clinical values by column.
    """

    path: str
    file: Path
    box: Box | None
    clinical: dict[str, Any]


@dataclass(frozen=True)
class _Judged:
    """What the endpoint says of an image: unscaled probabilities [classes], why it abstains, and the box that it used.

    The probability of the box is None where the locator was not asked, and novelty and distance are where the model
    cannot tell (see `Scored`).
    """

    unscaled: NDArray[np.float64]
    undecided: str
    box: Box
    box_probability: float | None
    novelty: float | None
    distance: float | None

    @classmethod
    def of(cls, scored: Scored) -> "_Judged":
        done = scored.prepared.done
        reasons = ",".join(scored.decision.get("reasons", []))
        box = tuple(done["box"])
        return cls(scored.unscaled, reasons, box, done.get("probability"), scored.novelty, scored.distance)


class Endpoint:
    """A registered model that answers as its endpoint does.

    It is a context manager, which releases the model's threads at the end. It must not be used within a running event
    loop, nor by several threads at once.

    Args:
        folder: Folder of the artefact.
        released: Whether the version is the champion.
        form: One of `engine.FORMS`; None for the form that a server would choose on this machine.

    Attributes:
        artefact: The verified artefact.
        classes: Classes of the model.
        point: Its operating point.
        form: Form that answers.
        lost: Reason by path for every scan that could not be judged, over all calls.

    Raises:
        InputError: The artefact was changed, has no form that can run here, or does not answer its reference image as
            evaluated.
    """

    def __init__(self, folder: Path, released: bool, form: str | None = None) -> None:
        """Load the model as a server does."""
        self._model = ThyroidModel(MODEL_NAME, folder, released, form)
        self._model.load()
        self.artefact: Artefact = self._model.artefact
        self.classes: Classes = self._model.answers.classes
        self.point: OperatingPoint = self._model.point
        self.form: str = self._model.chosen
        self.lost: dict[str, str] = {}
        self._runner = asyncio.Runner()  # one event loop for all calls, which the model's semaphores are bound to

    def __enter__(self) -> Self:
        """Return the endpoint."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the threads of the model."""
        self._model.retire()
        self._runner.close()

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of boxes with which the model can be tried, the leading one first."""
        if self.artefact.record.serving_domain == "normal":
            return (FRAME,)
        return (GIVEN,) if self._model.locator is None else (GIVEN, AUTOMATIC)

    def predict(self, data: DataVersion, kind: str, clinical: pd.DataFrame | None = None) -> pd.DataFrame:
        """Judge the full frames of a site.

        A scan that cannot be read or judged is left out, and `lost` says why.

        Args:
            data: Data version of the site; every scan in use is judged.
            kind: One of `kinds`. "given" judges every given region, the others every frame once.
            clinical: Columns of clinical.csv by path of the scan, as `ClinicalTable.rows` has them. Columns that
                the model does not use are ignored, and missing values are left out of the request.

        Returns:
            One row per judged image: path (of the scan), scan (file name), class, label ("B" or "M"), patient, group,
            sha256 (of the scan), x, y, width, height (the box that was used, in pixels of the frame; null for whole
            frames), the columns of `predictions.at_point`, undecided (the reasons of the endpoint's abstention, joined
            by a comma; "" for none), box_probability (NaN where the locator was not asked), and novelty and distance as
            in `Scored` (NaN where the model cannot tell).

        Raises:
            InputError: The model cannot be tried with this kind of boxes, or a column of clinical.csv holds texts where
                the model takes numbers.
        """
        if kind not in self.kinds:
            raise InputError(f"boxes {kind!r}: this model can be tried with {' and '.join(self.kinds)} only")
        rows = _rows(data, kind)
        values = self._clinical(rows["path"], clinical)
        found = self._each(_jobs(data, rows, values), _Judged.of, "judge")
        known = [one for one in found if one is not None]
        table = rows.loc[[one is not None for one in found], _ABOUT].reset_index(drop=True)
        if kind == AUTOMATIC:
            boxes = np.array([one.box for one in known], int).reshape(-1, len(BOX))
            table = table.assign(**dict(zip(BOX, boxes.T, strict=True))).astype(dict.fromkeys(BOX, "Int64"))
        unscaled = np.array([one.unscaled for one in known], float).reshape(-1, len(self.classes))
        table[self.classes.columns] = unscaled
        table = at_point(table, self.point, self.classes)
        table["undecided"] = np.array([one.undecided for one in known], object)
        for name in ("box_probability", "novelty", "distance"):
            table[name] = np.array([getattr(one, name) for one in known], float)
        return table

    def answer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the network's own probabilities, float64 [n, classes], of at least one image.

        They are neither fused with clinical columns nor scaled.

        Args:
            pixels: uint8 [n, size, size, 3], of the side that the model takes.
        """
        starts = range(0, len(pixels), _BATCH)
        parts = [self._model.engine_.predict(pixels[at : at + _BATCH])[0] for at in starts]
        return np.concatenate(parts).astype(float)

    def cases(
        self, data: DataVersion, rows: pd.DataFrame
    ) -> list[tuple[str, float, NDArray[np.uint8], NDArray[np.uint8]]]:
        """Return what `plots.worst_cases` draws of some rows of `predict`.

        Args:
            data: The data version that was judged.
            rows: Rows of `predict`. Their boxes are used as they are.

        Returns:
            File name, probability of malignant, the network's input and its heat map over it (uint8 [size, size, 3]
            each), in the order of `rows`. Scans that have become unreadable are left out.
        """
        rows = rows.assign(local_path=rows["path"].map(data.used.set_index("path")["local_path"]))
        found = self._each(_jobs(data, rows, [{}] * len(rows)), _picture, "draw")
        scores = zip(rows["scan"], rows[SCORE].astype(float), found, strict=True)
        return [(str(scan), score, *pictures) for scan, score, pictures in scores if pictures is not None]

    def _clinical(self, paths: pd.Series, clinical: pd.DataFrame | None) -> list[dict[str, Any]]:
        """Return the values that a request for each path would hold."""
        if self._model.head is None or clinical is None:
            return [{}] * len(paths)
        used = [column for column in self._model.head.encoder.columns if column.name in clinical]
        for column in used:
            known = clinical[column.name].dropna()
            if column.kind == "number" and len(known) and not pd.api.types.is_numeric_dtype(known):
                raise InputError(
                    f"clinical.csv: column {column.name} holds texts, but the model takes numbers; correct or remove it"
                )
        rows = clinical[[column.name for column in used]].reindex(paths).to_dict("records")
        return [{str(name): value for name, value in row.items() if not pd.isna(value)} for row in rows]

    def _each(self, jobs: Sequence[_Job], keep: Callable[[Scored], T], doing: str) -> list[T | None]:
        """Return what `keep` makes of every scored scan, None for a lost one."""
        return self._runner.run(self._in_flight(jobs, keep, doing))

    async def _in_flight(self, jobs: Sequence[_Job], keep: Callable[[Scored], T], doing: str) -> list[T | None]:
        found: list[T | None] = [None] * len(jobs)
        waiting = iter(enumerate(jobs))
        with progress.bar(None, len(jobs), doing, "image") as bar:

            async def work() -> None:
                for number, job in waiting:
                    scored = await self._score(job)
                    found[number] = None if scored is None else keep(scored)
                    bar.update()

            await asyncio.gather(*(work() for _ in range(_IN_FLIGHT * cores.available())))
        return found

    async def _score(self, job: _Job) -> Scored | None:
        try:
            image = await asyncio.to_thread(images.read, job.file)
        except (OSError, ValueError) as error:
            self.lost[job.path] = str(getattr(error, "strerror", None) or error)
            return None
        try:
            # The data version says that the picture is a frame, so the endpoint need not guess.
            return await self._model.score(Instance("image", image, job.box, clinical=job.clinical, domain=IS_FRAME))
        except RequestError as error:
            self.lost[job.path] = str(error)
            return None


def _rows(data: DataVersion, kind: str) -> pd.DataFrame:
    """Return a row for each image to judge: the columns of `_ABOUT`, and local_path."""
    scans = data.used[data.used["domain"] == "normal"].drop(columns=["width", "height"])
    scans = scans.assign(scan=[Path(path).name for path in scans["path"]]).astype({"patient": int, "group": int})
    if kind != GIVEN:
        empty = pd.Series(pd.NA, scans.index, "Int64")
        return scans.assign(**dict.fromkeys(BOX, empty)).reset_index(drop=True)
    regions = data.regions[data.regions["source"] == "given"].sort_values(["path", "index"])
    return scans.merge(regions[["path", *BOX]], on="path")


def _jobs(data: DataVersion, rows: pd.DataFrame, clinical: Sequence[dict[str, Any]]) -> list[_Job]:
    sides = rows[BOX].to_numpy(object)
    boxes = [None if pd.isna(x) else (int(x), int(y), int(width), int(height)) for x, y, width, height in sides]
    places = zip(rows["path"], rows["local_path"], boxes, clinical, strict=True)
    return [_Job(path, data.folder / local, box, values) for path, local, box, values in places]


def _picture(scored: Scored) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the network's input, and its heat map over it."""
    pixels = scored.prepared.pixels
    return pixels, explain.overlay(pixels, explain.heat(scored.evidence, len(pixels)))
