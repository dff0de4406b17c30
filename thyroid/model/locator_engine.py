"""Runs the locator of an artefact, in the form that its classifier runs in."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from thyroid import errors
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.model import engine, locator
from thyroid.model.artefact import Artefact, load_keras
from thyroid.model.engine import Answer, Engine
from thyroid.model.locator import Locator, View
from thyroid.records.locate import LocatorRecord

NEAR = 0.1
"""Largest distance (1 - IoU) of a form's boxes from those of Keras up to which the classifier's form is chosen."""

_TOLERANCE = 1e-3
"""How far the heat of the reference image may be from what it was when the locator was loaded."""


def choose(record: LocatorRecord, classifier: str) -> str:
    """Return the form that a locator runs in.

    This is the form of the classifier if the locator was scored in it and its boxes are `NEAR` those of Keras, with
    which the cost of automatic boxes was measured. Otherwise it is the OpenVINO form that runs
    here and is closest to Keras, and Keras where there is none.

    Args:
        record: What is known of the locator.
        classifier: Form of the classifier, one of `engine.FORMS`.
    """
    usable = [form for form in engine.openvino_forms() if form in record.forms]
    near = [form for form in usable if record.forms[form].largest_difference <= NEAR]
    if classifier == engine.KERAS or classifier in near:
        return classifier
    return min(usable, key=lambda form: record.forms[form].largest_difference, default=engine.KERAS)


class LocatorEngine:
    """Runs a verified artefact's locator.

    Args:
        artefact: The artefact. Its model.json has a locator.
        record: That locator.
        classifier: Form that the classifier runs in, one of `engine.FORMS`.

    Attributes:
        locator: Prepares the network's input and reads its answers.
        form: Form that the locator runs in, one of `engine.FORMS`.

    Raises:
        InputError: A file of the locator is missing, cannot be run here, or does not answer as a locator does.
    """

    def __init__(self, artefact: Artefact, record: LocatorRecord, classifier: str) -> None:
        """Load the network and check its answer to the artefact's reference image."""
        self.locator = Locator(record)
        self.form = choose(record, classifier)
        self._file = artefact.folder / (locator.KERAS if self.form == engine.KERAS else locator.OPENVINO)
        if self._file.relative_to(artefact.folder).as_posix() not in artefact.record.files:
            raise InputError(f"{self._file}: missing from the model; register the model again")
        reference = images.decode((artefact.folder / "reference.jpg").read_bytes())
        self._reference = self.locator.view(reference).pixels
        try:
            self._engine = _load(self._file, record.image_size, self.form)
            answer = [output[0] for output in self._engine.predict(self._reference[None])]
        except (RuntimeError, ImportError) as error:  # of OpenVINO, and of an image without TensorFlow
            reason = errors.one_line(error)[:200]
            raise InputError(f"{self._file}: cannot be run here ({reason}); register the model again") from None
        if fault := self._fault(answer):
            self._engine.close()
            raise InputError(f"{self._file}: {fault}")
        self._expected = answer[0]

    def _fault(self, answer: Sequence[NDArray[np.float32]]) -> str | None:
        """Return what is wrong with an answer, in words; None if it is that of a locator."""
        record = self.locator.record
        cells = record.image_size // record.stride
        if [output.shape for output in answer] != [(cells, cells), (cells, cells, 4)]:
            return f"not a locator of {cells} x {cells} cells; register the model again"
        if not all(np.isfinite(output).all() for output in answer):
            return "answers its reference image with values that are not finite"
        return None

    async def answer(self, seen: View) -> Answer:
        """Return heat [g, g] and distances [g, g, 4] of a view without blocking the event loop."""
        return await self._engine.answer(seen.pixels)

    async def self_test(self) -> bool:
        """Return whether the answer to the reference image is still what it was when the locator was loaded."""
        heat, distances = await self._engine.answer(self._reference)
        same = bool(np.abs(heat - self._expected).max() <= _TOLERANCE)  # False for values that are not finite
        return same and bool(np.isfinite(distances).all())

    def close(self) -> None:
        """Release the engine's threads. No image may be in flight."""
        self._engine.close()


def _load(file: Path, size: int, form: str) -> Engine:
    if form == engine.KERAS:
        from thyroid.model import locator_network  # noqa: F401  registers its layer, which a file alone must not bring

        return engine.KerasEngine(load_keras(file))
    # One mode alone, since each takes 95 to 325 MB: the one in which a lone frame, for which a person waits, gets all
    # cores.
    running = engine.OpenVINOEngine(file, size, form, alone=True)
    running.warm()
    return running
