"""Estimates what a run on this machine will take: the seconds and the memory of its steps.

Seconds are estimated from the number of images, their size and the epochs. They are seconds of one core of the machine
where the constants were measured. The pace says how much more time this machine takes. It comes from every step of the
last run into the same output, or else from a short measurement. When a step ends, its time corrects the estimates of
the others.
"""

import json
import math
import statistics
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from kubernetes.utils.quantity import parse_quantity

from pipelines.cluster import NEEDS
from pipelines.local.machine import Machine
from thyroid import atomic, storage
from thyroid.model.backbones import BACKBONES

SIDE = 64
"""Side in pixels of the images with which the constants of the networks were measured."""

FIXED: Mapping[str, tuple[float, float]] = {
    "ingest": (1.0, 0.01),
    "crop": (1.0, 0.01),
    "evaluate": (5.0, 0.02),
    "register": (1.5, 0.0),
    "deploy": (0.5, 0.0),
    "conclude": (0.5, 0.0),
}
"""For each step: seconds to start, and seconds per image."""

EVALUATED = (3.5, 0.005)
"""Seconds of the evaluation per model, and per image and model."""

NETWORKS: Mapping[str, tuple[float, float, float]] = {
    "EfficientNetB7": (44.0, 0.010, 0.012),
    "VGG16": (9.0, 0.011, 0.004),
    "VGG19": (13.0, 0.012, 0.007),
    "ResNet50": (17.0, 0.004, 0.006),
    "ResNet101": (23.0, 0.008, 0.009),
}
"""For each backbone, three times of a training in seconds.

They are the time to start, the time of an image through the whole body, and the time of an image in an epoch of
fine-tuning.
"""

LOCATORS: Mapping[str, tuple[float, float]] = {
    "": (1.0, 0.0),
    "toy": (10.0, 0.05),
    "body": (30.0, 2.5),
}
"""For each way in which the step locate works, seconds to start, and seconds per image.

"toy" is a small body from random weights, "body" one from given weights, and with "" the step is skipped, since no
nodule is marked. Its input size and epochs are its own, so they do not follow those of the trainings.
"""

ARITHMETIC = 0.024
"""Seconds that the arithmetic of `measure` took on the machine where the constants were measured."""

VIEWS = 2
BUDGET = 4_000_000_000
"""Bytes for images and maps, as in `model.inputs`; `VIEWS` is as in `train.twophase`.

Importing those modules would import TensorFlow. A test compares the values.
"""
MAPS = 1_000_000
"""Largest number of bytes of the pixels and maps of an image with a side of 224 pixels."""

PICTURES = (".jpg", ".jpeg", ".dcm")


@dataclass(frozen=True)
class Planned:
    """A step of the plan.

    Attributes:
        name: Name of the step in the log.
        work: Seconds that the step takes on the machine where the constants were measured; 0 if unknown.
        memory: Bytes of memory that the step declares.
        parallel: Whether other steps of its kind can run at the same time.
    """

    name: str
    work: float = 0.0
    memory: float = 0.0
    parallel: bool = False


@dataclass(frozen=True)
class Pace:
    """How long steps take on this machine.

    Attributes:
        steps: For each step, its seconds on this machine divided by its work.
        others: Pace of the steps that are not in `steps`; 0 if no time is estimated.
        basis: Where the paces come from, in words.
    """

    steps: Mapping[str, float] = field(default_factory=dict)
    others: float = 0.0
    basis: str = ""


class Plan:
    """The steps of one run, with estimates that are updated when a step starts or ends.

    Args:
        steps: The steps in any order. Steps of which nothing is known may be missing.
        lanes: Number of steps of the same kind that run at the same time.
        pace: How long the steps take; none if no time is estimated.
    """

    def __init__(self, steps: Sequence[Planned], lanes: int = 1, pace: Pace | None = None) -> None:
        """Plan the steps, none of which has started."""
        self._steps = {step.name: step for step in steps}
        self.lanes, self._pace = lanes, pace or Pace()
        self._began: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._lock = threading.Lock()

    @property
    def width(self) -> int:
        """Length of the longest name of a step."""
        return max((len(name) for name in self._steps), default=0)

    def seconds(self, name: str) -> float:
        """Return the seconds of a step as estimated before the run; 0 for a step that is not in the plan."""
        return self._steps[name].work * self._pace.steps.get(name, self._pace.others) if name in self._steps else 0.0

    def memory(self, name: str) -> float:
        """Return the bytes of memory that a step declares; 0 for a step that is not in the plan."""
        return self._steps[name].memory if name in self._steps else 0.0

    def announced(self) -> str:
        """Return the line that is printed before the first step starts: steps, how many run in parallel, and time."""
        time_it_takes = f", about {words(self.left())} ({self._pace.basis})" if self._pace.others else ""
        parallel = f", up to {self.lanes} at a time" if self.lanes > 1 else ""
        return f"{len(self._steps)} steps{parallel}{time_it_takes}"

    def started(self, name: str) -> None:
        """Record that a step starts now. A step that is not in the plan is added."""
        with self._lock:
            self._began[name] = time.monotonic()
            self._steps.setdefault(name, Planned(name))

    def ended(self, name: str) -> str:
        """Record that a step has succeeded, and return the run's progress in words."""
        with self._lock:
            self._took[name] = time.monotonic() - self._began[name]
        done, of = len(self._took), len(self._steps)
        left = f", about {words(self.left())} left" if self._pace.others and done < of else ""
        return f"{done} of {of} steps done{left} ({name} took {words(self._took[name])})"

    def left_out(self, names: Iterable[str]) -> None:
        """Remove steps that a condition leaves out."""
        with self._lock:
            for name in names:
                self._steps.pop(name, None)

    def left(self) -> float:
        """Return the seconds until the last step ends, corrected by the times of the steps that have ended."""
        now = time.monotonic()
        with self._lock:
            estimated = {name: self.seconds(name) for name in self._steps}
            prior = 0.2 * sum(estimated.values())  # the first step is short, so its time says little
            done = sum(estimated[name] for name in self._took)
            factor = (sum(self._took.values()) + prior) / (done + prior) if prior else 1.0
            ahead = {
                name: max(seconds * factor - (now - self._began.get(name, now)), 0.1 * seconds * factor)
                for name, seconds in estimated.items()
                if name not in self._took
            }
            together = [seconds for name, seconds in ahead.items() if self._steps[name].parallel]
        alone = sum(ahead.values()) - sum(together)
        return alone + max(sum(together) / self.lanes, max(together, default=0.0))

    def remember(self, file: Path) -> None:
        """Write the measured paces of the steps to a JSON file, for the next run."""
        found = {name: took / work for name, took in self._took.items() if (work := self._steps[name].work)}
        atomic.write_json(file, found)


def words(seconds: float) -> str:
    """Return a time in words, rounded like an estimate: 8 s, 50 s, 2 min 20 s, 35 min, 2 h 10 min."""
    if seconds < 10:
        return f"{max(1, round(seconds))} s"
    if seconds < 600:
        minutes, rest = divmod(round(seconds / 5) * 5, 60)
        return " ".join(filter(None, [f"{minutes} min" if minutes else "", f"{rest} s" if rest else ""]))
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


@dataclass(frozen=True)
class Workload:
    """What a run trains, as far as its time and memory depend on it.

    Attributes:
        backbones: Backbones to train.
        images: Number of scans and crops; 0 if it is unknown, and then no time is estimated.
        size: Side of the networks' input in pixels.
        epochs: Epochs of fine-tuning.
        recipe: Recipe of the training.
        domains: Number of domains.
        folds: Folds of the cross-validation; 0 for none.
        locator: Body of the locator: "toy", "body", or "" if none is trained; see `LOCATORS`.
    """

    backbones: Sequence[str]
    images: int
    size: int
    epochs: int
    recipe: str
    domains: int = 1
    folds: int = 0
    locator: Literal["", "toy", "body"] = ""

    def seconds(self, backbone: str) -> float:
        """Return the seconds of a backbone's training on the machine where the constants were measured."""
        start, body, tuning = NETWORKS[backbone]
        if self.recipe == "deck":  # it runs forward and backward through the whole body
            image = 3 * self.epochs * body
        else:
            image = VIEWS * body + (0 if self.recipe == "frozen" else self.epochs * tuning)
        return self.domains * (start + self.images * self.scale * image * (1 + self.folds))

    @property
    def locating(self) -> float:
        """Seconds of the step locate on the machine where the constants were measured."""
        start, image = LOCATORS[self.locator]
        return start + self.images * image

    @property
    def scale(self) -> float:
        """Number of pixels of the input, as a multiple of that with which the constants were measured."""
        return (self.size / SIDE) ** 2


def training(workload: Workload, machine: Machine, remembered: Path) -> Plan:
    """Return the plan of the training pipeline.

    Args:
        workload: What the run trains.
        machine: What its steps may use together.
        remembered: File that `Plan.remember` wrote; it may be missing.
    """
    images, models = workload.images, workload.domains * len(workload.backbones)
    steps = []
    for name, (start, image) in FIXED.items():
        of_models = models * (EVALUATED[0] + images * workload.scale * EVALUATED[1]) if name == "evaluate" else 0.0
        steps.append(Planned(name, start + images * image + of_models, _bytes(NEEDS[name].memory_request)))
    # without regions, or as a toy, the locator needs little
    needed = _bytes(NEEDS["locate"].memory_request) if workload.locator == "body" else 0.0
    steps.append(Planned("locate", workload.locating, needed, parallel=True))
    for backbone in workload.backbones:
        declared = training_memory(backbone, workload.recipe, images, workload.size)
        needed = max(needed, declared)
        steps.append(Planned(f"train-{backbone}", workload.seconds(backbone), declared, parallel=True))
    beside = len(workload.backbones) + 1  # the locator's
    lanes = max(1, min(machine.cores, beside, int(machine.memory // needed)))
    if not images:
        return Plan(steps, lanes)
    if paces := _remembered(remembered):
        return Plan(steps, lanes, Pace(paces, statistics.median(paces.values()), "from the steps of the last run"))
    return Plan(steps, lanes, Pace({}, measure(), "a rough estimate from a short measurement"))


def _remembered(file: Path) -> dict[str, float]:
    """Return the paces of the last run; none if the file is missing or damaged, since they only serve estimates."""
    try:
        paces = {str(name): float(pace) for name, pace in json.loads(file.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return paces if all(0 < pace < math.inf for pace in paces.values()) else {}


def sweep(backbone: str, workers: int) -> Plan:
    """Return the plan of the search for settings, without times, since its trials differ too much.

    Args:
        backbone: Backbone to search for.
        workers: Number of workers per stage.
    """
    steps = [Planned(name) for name in ("ingest", "crop", "sweep-prepare", "sweep-rank", "sweep-conclude")]
    heads, images = _bytes(NEEDS["sweep_heads"].memory_request), _bytes(BACKBONES[backbone].memory_request)
    for number in range(1, workers + 1):
        steps.append(Planned(f"sweep-heads-{number}", memory=heads, parallel=True))
        steps.append(Planned(f"sweep-images-{number}", memory=images, parallel=True))
    return Plan(steps)


def training_memory(backbone: str, recipe: str, images: int, size: int) -> float:
    """Return the bytes of memory that a training declares.

    They are the request on a cluster, less the part of the budget for images and maps that so few images do not use.
    The deck's recipe declares its limit on a cluster.

    Args:
        backbone: Backbone to train.
        recipe: Recipe of the training.
        images: Number of images; 0 if it is unknown.
        size: Side of the input in pixels.
    """
    row = BACKBONES[backbone]
    if recipe == "deck":
        return _bytes(row.memory_limit)
    unused = BUDGET - min(BUDGET, images * MAPS * (size / 224) ** 2) if images else 0
    return _bytes(row.memory_request) - unused


def count(places: Iterable[storage.Location | None]) -> int:
    """Return the number of pictures in the given folders.

    If one of the places is a bucket, the number is 0, since listing a bucket would take too long.
    """
    given = [place for place in places if place is not None]
    if any(storage.is_bucket(place) for place in given):
        return 0
    return sum(path.suffix.lower() in PICTURES for place in given for path in Path(place).rglob("*"))


def measure() -> float:
    """Return how many times longer some arithmetic takes here than on the machine where the constants were measured.

    Half of the arithmetic is Python's and half is NumPy's. It is measured in processor time of this thread, so that
    other load on the machine does not count.
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
