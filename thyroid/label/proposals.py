"""Asks an endpoint in the background what it makes of every frame, and describes frames by a small thumbnail.

Readers see nothing of an answer but its boxes, and the features that it suggests unless they are to read blind. The
order of the frames follows from the rest (`order`).
"""

import contextlib
import hashlib
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from thyroid import storage, tirads
from thyroid.errors import InputError
from thyroid.imaging import geometry, images
from thyroid.imaging.geometry import Box
from thyroid.label.frames import Frame, GoneError
from thyroid.label.readings import FEATURES
from thyroid.web.endpoint import Endpoint
from thyroid.web.upload import PageError, View

log = logging.getLogger(__name__)

AWAY = 10.0
"""Seconds after which an endpoint that was away is asked again."""
STARTING = 120.0
"""Seconds that an endpoint which was started with the bench has for its first answer before it counts as away."""
IDLE = 5.0
"""Seconds between two looks at whether the endpoint serves another model, once every frame has its answer."""
SIDE = 16
"""Side of a thumbnail in pixels."""
BAND = "abstention_band"
"""Reason of an answer whose probability is too near the threshold to decide (docs/api.md)."""
_REFUSED = {"error_damaged", "error_total", "error_answer"}
"""Refusals that are about the frame. All others are about the endpoint, which may answer later."""

Descriptor = NDArray[np.float32]


class Proposed(BaseModel):
    """What a model says about a frame that nobody has read.

    Attributes:
        boxes: Proposed boxes in pixels of the frame, each with the calibrated probability that it fits a nodule, the
            best one first; empty for a model of full frames.
        unsure: Whether the best box is unsure by the limit that was locked on validation patients.
        malignant: Probability of malignancy, 0 to 1.
        decision: "benign", "malignant" or "abstain".
        reasons: Why there is no decision.
        model: Version of the model and its data.
        features: Features of the nodule in the best box, in the words of `readings.FEATURES`, where the model tells one
            word; empty for a model that tells none.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    boxes: tuple[tuple[Box, float], ...]
    unsure: bool
    malignant: float = Field(ge=0, le=1)
    decision: str
    reasons: tuple[str, ...] = ()
    model: str
    features: dict[str, str] = {}

    @property
    def probability(self) -> float | None:
        """Probability that the best box fits; None without one."""
        return self.boxes[0][1] if self.boxes else None

    @property
    def in_band(self) -> bool:
        """Whether the probability of malignancy is too near the threshold to decide."""
        return BAND in self.reasons


class _Candidate(BaseModel):
    box: Box
    probability: float = Field(ge=0, le=1)


class _Crop(BaseModel):
    proposals: list[_Candidate] = []
    unsure: bool = False


class _Descriptors(BaseModel):
    told: dict[str, list[str]] = {}


class _Answer(BaseModel):
    """The fields of the endpoint's answer that are used. A newer endpoint may have more."""

    model_config = ConfigDict(protected_namespaces=())

    crop: _Crop
    malignant: float = Field(ge=0, le=1)
    decision: str = Field(max_length=32)
    reason: str | None = None
    reasons: list[str] | None = None
    model_version: int
    data_digest: str = ""
    descriptors: _Descriptors | None = None


def describe(data: bytes) -> Descriptor:
    """Return a frame's thumbnail: the scan area in `SIDE` x `SIDE` grey levels, without its mean and of length 1.

    It needs no model. Frames of one patient or of one scanner's setting lie near each other.

    Args:
        data: Bytes of a JPEG or PNG.

    Returns:
        float32 [SIDE * SIDE].

    Raises:
        ValueError: The image is damaged, too large or too small.
    """
    grey = cv2.cvtColor(geometry.normal(images.decode(data, formats=images.SERVED)), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    small -= small.mean()
    result: Descriptor = small / max(float(np.linalg.norm(small)), 1e-6)
    return result


class Proposer:
    """Asks the endpoint about frames, one at a time in a thread of its own, and keeps the answers on disk.

    The bench works without it: a frame has no proposal while the endpoint is away, or if it refuses the frame. When the
    endpoint serves another model, every frame is asked about again; until then the earlier answer stays.

    Args:
        endpoint: Address of the endpoint; "" for none, then frames are only described.
        token: Bearer token of the endpoint; None if it needs none.
        cache: Folder or bucket for the answers, which outlives the process.
        read: Returns the bytes of a frame as JPEG or PNG. It raises a `GoneError` for a frame that vanished or is
            damaged, and another `InputError` if no frame can be read now.
        is_starting: Whether the endpoint was started with the bench.
        is_gone: Returns whether a frame was removed, or erased, while it was asked about; its answer is not kept then.
    """

    def __init__(
        self,
        endpoint: str,
        token: str | None,
        cache: storage.Location,
        read: Callable[[Frame], bytes],
        *,
        is_starting: bool = False,
        is_gone: Callable[[Frame], bool] = lambda frame: False,
    ) -> None:
        """Set up the client. Nothing is read or sent before `start`."""
        self._endpoint = Endpoint(endpoint, token) if endpoint else None
        self._cache, self._read, self._is_gone = storage.at(cache), read, is_gone
        self._lock, self._woken, self._stopped = threading.Lock(), threading.Event(), threading.Event()
        self._wanted: tuple[Frame, ...] = ()
        self._queue: deque[Frame] = deque()
        self._queued_for: str | None = None
        self._proposed: dict[str, Proposed] = {}
        self._descriptors: dict[str, Descriptor] = {}
        self._asked: dict[str, str] = {}
        """Path of a frame to the model that has answered, or refused it."""
        self._lost: set[str] = set()
        self._resume = 0.0
        self._due = time.monotonic() + STARTING if is_starting else 0.0
        """Until when an endpoint that has never answered is only starting."""
        self._away = self._full = False
        self._thread = threading.Thread(target=self._work, name="proposals", daemon=True)

    def start(self) -> None:
        """Start to ask."""
        self._thread.start()

    def stop(self, wait: float = 5.0) -> None:
        """End the thread, for which it waits some seconds if a request is on its way."""
        self._stopped.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(wait)

    def want(self, frames: Sequence[Frame]) -> None:
        """Say which frames to ask about, those that are needed first at the front. It replaces what was wanted."""
        with self._lock:
            self._wanted = tuple(frames)
            self._queued_for = None
            self._queue.clear()
        self._woken.set()

    def forget(self, paths: AbstractSet[str]) -> None:
        """Forget what is known of frames whose pictures have changed, or were removed.

        Args:
            paths: Their paths.
        """
        with self._lock:
            for known in (self._proposed, self._descriptors, self._asked):
                for path in paths & known.keys():
                    del known[path]
            self._lost -= paths

    def of(self, path: str) -> Proposed | None:
        """Return what the model says about a frame; None if it has not answered, or not yet."""
        return self._proposed.get(path)

    @property
    def proposed(self) -> dict[str, Proposed]:
        """The answers so far, by the path of the frame."""
        with self._lock:
            return dict(self._proposed)

    @property
    def descriptors(self) -> dict[str, Descriptor]:
        """The thumbnails so far, by the path of the frame."""
        with self._lock:
            return dict(self._descriptors)

    @property
    def away(self) -> bool:
        """Whether there is an endpoint that did not answer when it was last asked."""
        return self._away

    def _work(self) -> None:
        while not self._stopped.is_set():
            self._woken.clear()
            model = self._model()
            frame = self._next(model)
            if frame is None:
                self._woken.wait(IDLE)
                continue
            try:
                self._handle(frame, model)
            except Exception:  # one frame must not end the thread, and a traceback could hold its name
                log.warning("a frame could not be described or proposed for")
                self._settle(frame, model)

    def _model(self) -> str | None:
        """Return the model that the endpoint serves; None if there is none to ask."""
        if self._endpoint is None or time.monotonic() < self._resume:
            return None
        facts = self._endpoint.facts()
        if facts is None:
            self._note_away(True)
            return None
        self._note_away(False)
        if not facts.get("locator") and facts.get("serving_domain") == "cropped":
            return None  # it would refuse every frame without a box
        return _named(facts["version"], str(facts.get("data_digest", "")))

    def _note_away(self, away: bool) -> None:
        now = time.monotonic()
        if not away:
            self._due = 0.0
        elif now < self._due:
            self._resume = now + IDLE
            return
        else:
            self._resume = now + AWAY
        if away != self._away:
            log.warning("the endpoint is away; the bench goes on without proposals" if away else "the endpoint is back")
        self._away = away

    def _next(self, model: str | None) -> Frame | None:
        """Return the next frame with something to do."""
        with self._lock:
            if self._queued_for != (key := model or ""):
                self._queue = deque(frame for frame in self._wanted if self._is_open(frame.path, model))
                self._queued_for = key
            return self._queue.popleft() if self._queue else None

    def _is_open(self, path: str, model: str | None) -> bool:
        if path in self._lost:
            return False
        return path not in self._descriptors or (model is not None and self._asked.get(path) != model)

    def _handle(self, frame: Frame, model: str | None) -> None:
        try:
            data = self._read(frame)
            with self._lock:
                known = frame.path in self._descriptors
            descriptor = None if known else describe(data)
        except (GoneError, OSError, ValueError):  # it vanished or is damaged, which the bench shows to its reader
            with self._lock:
                self._lost.add(frame.path)
            return
        except InputError:  # the bucket cannot be read now
            with self._lock:
                self._queue.append(frame)
            self._stopped.wait(AWAY)
            return
        if descriptor is not None:
            with self._lock:
                self._descriptors[frame.path] = descriptor
        if model is None:
            return
        digest = hashlib.sha256(data).hexdigest()[:32]
        found = self._cached(f"{model}/{digest}.json")
        if found is None:
            try:
                found = self._ask(frame, data)
            except PageError as error:
                if error.code not in _REFUSED:
                    self._note_away(True)
                    with self._lock:
                        self._queue.append(frame)
                    return
            if found is not None and not self._is_gone(frame):
                self._keep(f"{found.model}/{digest}.json", found)
        self._settle(frame, model, found)

    def _settle(self, frame: Frame, model: str | None, found: Proposed | None = None) -> None:
        with self._lock:
            if model is None:
                self._lost.add(frame.path)
                return
            # The model that was asked, not the one that answered: in a canary rollout these differ again and again.
            self._asked[frame.path] = model
            if found is not None:
                self._proposed[frame.path] = found

    def _ask(self, frame: Frame, data: bytes) -> Proposed | None:
        """Return the endpoint's answer; None if it is of another form than documented."""
        assert self._endpoint is not None
        view = View(name="frame", data=data, width=frame.width, height=frame.height, full_frame=True)
        return read_answer(self._endpoint.predict(view, uuid.uuid4().hex), frame.width, frame.height)

    def _cached(self, name: str) -> Proposed | None:
        with contextlib.suppress(InputError, OSError, ValidationError):
            data, generation = self._cache.read(name)
            if generation != storage.ABSENT:
                return Proposed.model_validate_json(data)
        return None

    def _keep(self, name: str, found: Proposed) -> None:
        try:
            self._cache.write(name, found.model_dump_json().encode())
        except (InputError, OSError):
            if not self._full:
                log.warning("proposals cannot be kept on disk; the endpoint is asked again after a restart")
            self._full = True


def read_answer(answer: Mapping[str, Any], width: int, height: int) -> Proposed | None:
    """Return what the endpoint's answer for one frame says; None if its form is not the documented one.

    Args:
        answer: An entry of `predictions` (docs/api.md).
        width: Width of the frame in pixels.
        height: Height of the frame in pixels.
    """
    try:
        told = _Answer.model_validate(answer)
    except ValidationError:
        return None
    boxes = tuple((one.box, one.probability) for one in told.crop.proposals)
    for (x, y, wide, high), _ in boxes:
        if min(x, y) < 0 or min(wide, high) < 1 or x + wide > width or y + high > height:
            return None
    reasons = told.reasons if told.reasons is not None else [told.reason] if told.reason else []
    return Proposed(
        boxes=boxes,
        unsure=told.crop.unsure,
        malignant=told.malignant,
        decision=told.decision,
        reasons=tuple(reasons),
        model=_named(told.model_version, told.data_digest),
        features={} if told.descriptors is None else _features(told.descriptors.told),
    )


def _features(told: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the features of which a model tells one word, or one or more kinds of foci."""
    known = {name: words for name, words in told.items() if name in FEATURES}
    values = {name: tirads.parse(name, tirads.JOINT.join(words)) for name, words in known.items()}
    return {name: tirads.cell(name, found) for name, found in values.items() if found is not None}


def _named(version: int, digest: str) -> str:
    """Return the name of a model's folder of answers."""
    return f"{version}-{hashlib.sha256(digest.encode()).hexdigest()[:12]}"
