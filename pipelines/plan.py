"""What a run on this machine is going to take: its steps with seconds and memory, said beforehand and kept up to date.

Seconds are reckoned from the number of images, their size and the epochs, in seconds of one core of the machine where the
constants were measured. How much slower or faster this machine is (its pace) is what the last run into the same output
showed for every step, or else a moment of arithmetic. While steps end, what they took corrects the rest.
"""

import json
import math
import statistics
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from kubernetes.utils.quantity import parse_quantity

from pipelines.cluster import NEEDS
from thyroid import atomic, storage
from thyroid.model.backbones import BACKBONES

SIDE = 64
"""Pixels of a side at which the constants of the networks were measured."""

FIXED: Mapping[str, tuple[float, float]] = {
    "ingest": (1.0, 0.01),
    "crop": (1.0, 0.01),
    "evaluate": (5.0, 0.02),
    "register": (1.5, 0.0),
    "deploy": (0.5, 0.0),
    "conclude": (0.5, 0.0),
}
"""Step to its seconds to start, and an image."""

EVALUATED = (3.5, 0.005)
"""Seconds of the evaluation a model, and an image of a model."""

NETWORKS: Mapping[str, tuple[float, float, float]] = {
    "EfficientNetB7": (44.0, 0.010, 0.012),
    "VGG16": (9.0, 0.011, 0.004),
    "VGG19": (13.0, 0.012, 0.007),
    "ResNet50": (17.0, 0.004, 0.006),
    "ResNet101": (23.0, 0.008, 0.009),
}
"""Backbone to a training's seconds to start, an image through the whole body, and an image of an epoch of fine-tuning."""

ARITHMETIC = 0.024
"""Seconds that `pace` took there."""

VIEWS = 2
BUDGET = 4_000_000_000
"""As in `train.twophase` and `model.inputs`, whose import would bring TensorFlow in; a test compares them."""
MAPS = 1_000_000
"""At most so many bytes of pixels and maps an image, at 224 pixels a side."""

PICTURES = (".jpg", ".jpeg", ".dcm")


@dataclass(frozen=True)
class Planned:
    """A step.

    Attributes:
        name: in the log.
        work: seconds that it takes where the constants were measured; 0 for unknown.
        memory: bytes that it declares.
        beside: whether others of its kind may run at the same time.
    """

    name: str
    work: float = 0.0
    memory: float = 0.0
    beside: bool = False


class Plan:
    """The steps of one run, told when each begins and ends.

    Args:
        steps: in any order; those that nothing is known of may be missing.
        lanes: of the steps that may run beside others of their kind, so many do.
        paces: step to its seconds on this machine by its work; `pace` for the others.
        pace: 0 if no time is reckoned.
        basis: where the paces are from, in words.
    """

    def __init__(
        self,
        steps: Sequence[Planned],
        lanes: int = 1,
        paces: Mapping[str, float] | None = None,
        pace: float = 0.0,
        basis: str = "",
    ) -> None:
        self._steps = {step.name: step for step in steps}
        self.lanes, self._paces, self._pace, self._basis = lanes, paces or {}, pace, basis
        self._began: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._lock = threading.Lock()

    @property
    def width(self) -> int:
        """Of the longest name."""
        return max((len(name) for name in self._steps), default=0)

    def seconds(self, name: str) -> float:
        """Reckoned before the run; 0 for a step that is not planned."""
        return self._steps[name].work * self._paces.get(name, self._pace) if name in self._steps else 0.0

    def memory(self, name: str) -> float:
        """Declared, in bytes; 0 for a step that is not planned."""
        return self._steps[name].memory if name in self._steps else 0.0

    def announced(self) -> str:
        """What is said before the first step starts."""
        time_it_takes = f", about {words(self.left())} ({self._basis})" if self._pace else ""
        beside = f", {self.lanes} trainings at a time" if self.lanes > 1 else ""
        return f"{len(self._steps)} steps{beside}{time_it_takes}"

    def started(self, name: str) -> None:
        """Step `name` begins now."""
        with self._lock:
            self._began[name] = time.monotonic()
            self._steps.setdefault(name, Planned(name))

    def ended(self, name: str) -> str:
        """Step `name` has succeeded: how far the run has come, in words."""
        with self._lock:
            self._took[name] = time.monotonic() - self._began[name]
        done, of = len(self._took), len(self._steps)
        left = f", about {words(self.left())} left" if self._pace and done < of else ""
        return f"{done} of {of} steps done{left} ({name} took {words(self._took[name])})"

    def left_out(self, names: Iterable[str]) -> None:
        """These are not going to run, by a condition."""
        with self._lock:
            for name in names:
                self._steps.pop(name, None)

    def left(self) -> float:
        """Seconds until the last step ends; what the steps so far took corrects what was reckoned for the others."""
        now = time.monotonic()
        with self._lock:
            reckoned = {name: self.seconds(name) for name in self._steps}
            prior = 0.2 * sum(reckoned.values())  # so short a step as the first says little
            done = sum(reckoned[name] for name in self._took)
            factor = (sum(self._took.values()) + prior) / (done + prior) if prior else 1.0
            ahead = {
                name: max(seconds * factor - (now - self._began.get(name, now)), 0.1 * seconds * factor)
                for name, seconds in reckoned.items()
                if name not in self._took
            }
            together = [seconds for name, seconds in ahead.items() if self._steps[name].beside]
        alone = sum(ahead.values()) - sum(together)
        return alone + max(sum(together) / self.lanes, max(together, default=0.0))

    def remember(self, file: Path) -> None:
        """Write the paces that the steps showed, for the next run."""
        found = {name: took / work for name, took in self._took.items() if (work := self._steps[name].work)}
        atomic.write_json(file, found)


def words(seconds: float) -> str:
    """In words, as exact as one can be: 8 s, 50 s, 2 min 20 s, 35 min, 2 h 10 min."""
    if seconds < 10:
        return f"{max(1, round(seconds))} s"
    if seconds < 600:
        minutes, rest = divmod(round(seconds / 5) * 5, 60)
        return " ".join(filter(None, [f"{minutes} min" if minutes else "", f"{rest} s" if rest else ""]))
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def training(
    backbones: Sequence[str],
    images: int,
    size: int,
    epochs: int,
    recipe: str,
    domains: int,
    folds: int,
    cores: int,
    memory: float,
    remembered: Path,
) -> Plan:
    """The plan of the training pipeline.

    Args:
        backbones: that are trained.
        images: number of scans and crops; 0 if it is not known, and no time is reckoned.
        size: side of the networks' input in pixels.
        epochs: of fine-tuning.
        recipe: of the training.
        domains: number of them.
        folds: of the cross-validation.
        cores: steps that may run at a time.
        memory: bytes that they may take together.
        remembered: file of `Plan.remember`, if there is one.
    """
    scale, models = (size / SIDE) ** 2, domains * len(backbones)
    steps = []
    for name, (start, image) in FIXED.items():
        of_models = models * (EVALUATED[0] + images * scale * EVALUATED[1]) if name == "evaluate" else 0.0
        steps.append(Planned(name, start + images * image + of_models, _bytes(NEEDS[name].memory_request)))
    needed = 0.0
    for backbone in backbones:
        start, whole, last = NETWORKS[backbone]
        # the deck's recipe goes forth and back through the whole body
        one = 3 * epochs * whole if recipe == "deck" else VIEWS * whole + (0 if recipe == "frozen" else epochs * last)
        work = domains * (start + images * scale * one * (1 + folds))
        needed = max(needed, declared := training_memory(backbone, recipe, images, size))
        steps.append(Planned(f"train-{backbone}", work, declared, beside=True))
    lanes = max(1, min(cores, len(backbones), int(memory // needed)))
    if not images:
        return Plan(steps, lanes)
    if paces := _remembered(remembered):
        return Plan(steps, lanes, paces, statistics.median(paces.values()), "by the last run's steps")
    return Plan(steps, lanes, {}, pace(), "roughly, by a short measurement; the steps will tell")


def _remembered(file: Path) -> dict[str, float]:
    """The paces that the last run wrote; none where there are none, or the file is damaged: they only serve a guess."""
    try:
        paces = {str(name): float(pace) for name, pace in json.loads(file.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return paces if all(0 < pace < math.inf for pace in paces.values()) else {}


def sweep(backbone: str, workers: int) -> Plan:
    """The plan of the search for settings, whose trials differ too much for a time to be reckoned."""
    steps = [Planned(name) for name in ("ingest", "crop", "sweep-prepare", "sweep-rank", "sweep-conclude")]
    heads, images = _bytes(NEEDS["sweep_heads"].memory_request), _bytes(BACKBONES[backbone].memory_request)
    for number in range(1, workers + 1):
        steps.append(Planned(f"sweep-heads-{number}", memory=heads, beside=True))
        steps.append(Planned(f"sweep-images-{number}", memory=images, beside=True))
    return Plan(steps)


def training_memory(backbone: str, recipe: str, images: int, size: int) -> float:
    """Bytes that a training declares: as on a cluster, less what so few images leave of the budget for them."""
    row = BACKBONES[backbone]
    if recipe == "deck":
        return _bytes(row.memory_limit)
    unused = BUDGET - min(BUDGET, images * MAPS * (size / 224) ** 2) if images else 0
    return _bytes(row.memory_request) - unused


def count(places: Iterable[storage.Location | None]) -> int:
    """Number of pictures in folders; 0 where one of the places is a bucket, which would take long to list."""
    given = [place for place in places if place is not None]
    if any(storage.is_bucket(place) for place in given):
        return 0
    return sum(path.suffix.lower() in PICTURES for place in given for path in Path(place).rglob("*"))


def pace() -> float:
    """Seconds that a little arithmetic, half of Python's and half of NumPy's, takes here by those where it was measured.

    Of this thread's processor time: what else the machine does just now is no property of it.
    """
    values = np.random.default_rng(0).random((256, 256))
    taken = []
    for _ in range(5):
        began = time.thread_time()
        for _ in range(10):
            values = np.abs(np.fft.fft2(values))
            values /= values.max()
        total = 0
        for number in range(300_000):
            total += number * number % 7
        taken.append(time.thread_time() - began)
    return statistics.median(taken) / ARITHMETIC


def _bytes(quantity: str) -> float:
    return float(parse_quantity(quantity))
