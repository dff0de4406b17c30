"""The labelling bench: what proposals save a reader, and what the order of the frames saves the locator.

    python bench/label.py [--scans DIR] [--rois rois.csv] [--weights DIR] [--work DIR]

`boxes_per_minute_vs_from_scratch`: a scripted reader marks every nodule of every frame, with the proposals of a locator
that did not learn from the patient (`thyroid.locate`, cross-fitted), and without any. A proposal whose IoU with the
nodule is at least `ACCEPTED` is accepted with a key, one that the arrow keys mend in less time than drawing takes is
corrected, and everything else is drawn. Events become seconds by the keystroke-level model (Card, Moran & Newell, CACM
1980;23:396). It is a model of hands, not of people: nobody was timed.

`learning_curve_vs_random`: hit rate (IoU of at least .5) of the locator after `TOTAL` patients that
`thyroid.label.order` chose, over that after as many random ones. Cross-fitted by patient: the patients of the other
folds are the pool, and the hit rate is that of the fold's own frames. Both sides start from the same random `START`
patients and train the same way. The order sees the answers of the locator trained so far, and thumbnails. There is no
classifier, so no decision can lie in a band.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from training import DDTI, WEIGHTS, data_version

from thyroid import metrics
from thyroid.data.version import DataVersion
from thyroid.imaging.geometry import Box
from thyroid.label import order
from thyroid.label.frames import Frame
from thyroid.label.proposals import Descriptor, Proposed, describe
from thyroid.locate import head, learner, maps
from thyroid.locate.frames import Frames
from thyroid.locate.learner import Learner, Plan
from thyroid.locate.proposals import Proposals
from thyroid.metrics import detection
from thyroid.model import locator, locator_network
from thyroid.model.backend import keras

KEY, BUTTON, POINT, LOOK = 0.2, 0.1, 1.1, 1.35
"""Seconds in the keystroke-level model of a keystroke (K, average skilled typist), of a press or release of a button
(B), of pointing at a target (P) and of a mental act (M). One hand is at the keys and one at the pointer."""
DRAWN = 2 * (POINT + BUTTON)
"""Seconds of drawing a box: to one corner, press, to the other corner, release."""
ACCEPTED = 0.7
"""IoU from which the reader leaves a box as it is."""
MOST_PRESSES = 12
START = ROUND = 20
TOTAL = 60
"""Patients of the first labelling, of every further round, and of all."""
FOLDS = 5
CURVE = 0.5
"""Share of the usual epochs that the trainings of the learning curve have, on both sides: there are many."""
UNSURE = 0.2
"""Share of the frames whose box counts as unsure, as in `LocateOptions`."""


@dataclass(frozen=True)
class Acts:
    """What one frame costs a reader.

    Attributes:
        keys: Keystrokes.
        buttons: Presses and releases.
        points: Times that the pointer is moved to a target.
        looks: Mental acts: looking at the frame, and in the strict count deciding what to do about a proposal.
    """

    keys: int = 0
    buttons: int = 0
    points: int = 0
    looks: int = 1

    @property
    def seconds(self) -> float:
        """Seconds by the keystroke-level model."""
        return self.keys * KEY + self.buttons * BUTTON + self.points * POINT + self.looks * LOOK

    @property
    def events(self) -> int:
        """Pointer and key events: keystrokes, presses and releases."""
        return self.keys + self.buttons


AT_ONCE = Acts(keys=1)
"""The best proposal is accepted and saved."""


def nudges(box: Box, truth: Box, frame_width: int) -> int | None:
    """Return the keys that move and resize an accepted box until it fits: presses of arrows, and modifiers once each.

    An arrow moves the box, with Shift its right or lower side, by a two-hundredth of the frame's width, with Ctrl by
    five times as much. The reader presses what improves the IoU most; None if that takes too long or leads nowhere.
    """
    steps = [(side, way * far) for side in range(4) for way in (-1, 1) for far in (1, 5)]
    unit = max(1, round(frame_width / 200))
    own, used = list(box), set[str]()
    for presses in range(MOST_PRESSES + 1):
        if detection.iou([own], [truth])[0, 0] >= ACCEPTED:
            return presses + len(used)
        tried = [[value + unit * far * (place == side) for place, value in enumerate(own)] for side, far in steps]
        overlap = [float(detection.iou([one], [truth])[0, 0]) if min(one[2:]) > 0 else 0.0 for one in tried]
        best = int(np.argmax(overlap))
        if overlap[best] <= detection.iou([own], [truth])[0, 0]:
            return None
        own = tried[best]
        used |= {"shift"} if steps[best][0] > 1 else set()
        used |= {"ctrl"} if abs(steps[best][1]) > 1 else set()
    return None


def pairs(proposals: Sequence[Box], marked: Sequence[Box]) -> dict[int, int]:
    """Return the proposal that belongs to a nodule, by the place of the nodule: one to one, the best pair first."""
    found: dict[int, int] = {}
    overlap = detection.iou(marked, proposals)
    while overlap.size and overlap.max() > 0:
        nodule, proposal = (int(place) for place in np.unravel_index(overlap.argmax(), overlap.shape))
        found[nodule] = proposal
        overlap[nodule], overlap[:, proposal] = 0, 0
    return found


def read_with(proposals: Sequence[Box], marked: Sequence[Box], width: int) -> tuple[Acts, Counter[str], list[float]]:
    """Return what a frame with proposals costs, how its nodules were marked, and the IoU of each marked box.

    The best proposal is accepted and saved with one key if there is nothing else to do. Others are accepted with a key
    each, and the frame is saved with another one. A box is corrected with the arrow keys where these take less time
    than drawing it. Dragging a corner of an accepted box takes as many targets as drawing, and the key before it.
    """
    matched = pairs(proposals, marked)
    how: Counter[str] = Counter()
    fits, keys, drags = [], 1, 0
    for nodule, truth in enumerate(marked):
        box = proposals[matched[nodule]] if nodule in matched else None
        pressed = None if box is None else nudges(box, truth, width)
        if box is None or pressed is None or (1 + pressed) * KEY >= DRAWN:
            how["drawn"] += 1
            drags += 1
            fits.append(1.0)
        else:
            how["corrected" if pressed else "accepted"] += 1
            keys += 1 + pressed
            fits.append(ACCEPTED if pressed else locator.iou(box, truth))
    if len(marked) == 1 and how["accepted"] == 1 and matched[0] == 0:
        keys = 1
    return Acts(keys, 2 * drags, 2 * drags), how, fits


def draw_all(marked: Sequence[Box]) -> Acts:
    """Return what a frame costs on which every nodule is drawn."""
    return Acts(1, 2 * len(marked), 2 * len(marked))


def ratio(above: np.ndarray, below: np.ndarray, patient: np.ndarray) -> metrics.Interval:
    """Return the ratio of two sums over frames with its interval, which resamples patients."""
    draws = metrics.Draws(patient)
    return metrics.interval(draws.totals(above, patient) / np.maximum(draws.totals(below, patient), 1e-9))


@dataclass(frozen=True)
class Study:
    """Marked frames, and what locators learn from.

    Attributes:
        frames: The frames.
        maps: Their feature maps, float16 [views, n, g, g, channels].
        plan: How much is computed.
        work: Folder for the state of trainings.
        listed: The frames as the bench lists them.
        descriptors: Thumbnail of each frame, by path.
    """

    frames: Frames
    maps: np.ndarray
    plan: Plan
    work: Path
    listed: tuple[Frame, ...]
    descriptors: dict[str, Descriptor]

    @classmethod
    def prepare(cls, data: DataVersion, weights: str, work: Path) -> "Study":
        """Compute the feature maps of all marked frames, once."""
        body, start = locator_network.choose(weights)
        plan = replace(learner.TOY if body.row is None else learner.FULL, folds=FOLDS)
        frames = Frames.read(data, plan.size)
        frames = frames.where(frames.marked)
        training = frames.where((frames.table["split"] == "train").to_numpy())
        extractor = maps.prepare(body, start, work, data, training, views=plan.views, seed=0)
        rows: list[Any] = list(frames.table.itertuples())
        listed = tuple(
            Frame(row.path, f"{number:016x}", row.width, row.height, int(row.patient), row.label, str(row.group))
            for number, row in enumerate(rows)
        )
        thumbnails = {row.path: describe(Path(row.path).read_bytes()) for row in rows}
        return cls(frames, extractor(data, frames)[0], plan, work, listed, thumbnails)

    @property
    def patient(self) -> np.ndarray:
        """Patient of each frame [n]."""
        return self.frames.table["patient"].to_numpy(int)

    def rows(self, groups: Sequence[str]) -> np.ndarray:
        """Return the places of the frames of some patients."""
        return np.flatnonzero([frame.group in set(groups) for frame in self.listed])

    def trained(self, name: str, rows: np.ndarray, seed: int) -> Any:
        """Return a head that is trained on some frames."""
        keras.backend.clear_session()
        plan = replace(self.plan, epochs=round(self.plan.epochs * CURVE))
        return Learner(self.frames, self.maps, plan, self.work / name, seed).fit(rows)

    def proposals(self, network: Any, rows: np.ndarray) -> Proposals:
        """Return what a head proposes on some frames."""
        chosen = np.zeros(len(self.frames), bool)
        chosen[rows] = True
        return Proposals.read(self.frames.where(chosen), *head.answer(network, self.maps[0][rows]))

    def proposed(self, network: Any, rows: np.ndarray) -> dict[str, Proposed]:
        """Return a head's answers in the form of the endpoint's, by path. The heat stands for the probability."""
        found = self.proposals(network, rows)
        limit = float(np.quantile([heats[0] for heats in found.heats], UNSURE))
        return {
            self.listed[row].path: Proposed(
                boxes=tuple(zip(boxes, heats, strict=True)),
                unsure=heats[0] < limit,
                malignant=0.5,
                decision="abstain",
                model="bench",
            )
            for row, boxes, heats in zip(rows.tolist(), found.boxes, found.heats, strict=True)
        }


def boxes_per_minute(study: Study) -> float:
    """Print what the scripted reader does, and return the ratio."""
    fold = learner.deal(study.frames, FOLDS, seed=0)
    learning = Learner(study.frames, study.maps, study.plan, study.work / "all", 0)
    found = learning.held_out(learning.cross_fit(fold), fold)
    hit = detection.mean_interval(detection.compare(found.boxes, study.frames.boxes).hit, study.patient)
    how: Counter[str] = Counter()
    helped, fits = [], []
    widths = study.frames.table["width"].astype(int).tolist()
    for boxes, marked, width in zip(found.boxes, study.frames.boxes, widths, strict=True):
        acts, ways, fit = read_with(boxes, marked, width)
        helped.append(acts)
        how += ways
        fits += fit
    strict = [acts if acts.seconds == AT_ONCE.seconds else replace(acts, looks=2) for acts in helped]
    alone = [draw_all(marked) for marked in study.frames.boxes]
    nodules = sum(how.values())
    seconds = {name: np.array([one.seconds for one in acts]) for name, acts in (("helped", helped), ("alone", alone))}
    drawn, assisted = (np.array([one.events for one in acts], float) for acts in (alone, helped))
    ways_told = ", ".join(f"{count / nodules:.0%} {name}" for name, count in how.most_common())
    paces = ", ".join(f"{60 * nodules / seconds[name].sum():.1f} a minute {name}" for name in seconds)
    gain = ratio(seconds["alone"], seconds["helped"], study.patient)
    print(
        f"{len(alone)} frames of {len(set(study.patient))} patients, {nodules} nodules; proposals, cross-fitted: "
        f"IoU >= .5 in {hit}\nwith proposals {ways_told}; mean IoU of the result {np.mean(fits):.3f}\n"
        f"keystroke-level model (K {KEY}, B {BUTTON}, P {POINT}, M {LOOK} s): {paces}; ratio {gain}\n"
        f"    if all but accepting the best proposal at once takes another M: "
        f"{ratio(seconds['alone'], np.array([one.seconds for one in strict]), study.patient)}\n"
        f"    pointer and key events alone: {ratio(drawn, assisted, study.patient)}\n"
        f"    where every proposal fits: {sum(one.seconds for one in alone) / sum(_all_fit(study)):.3f}",
        flush=True,
    )
    return gain.value


def _all_fit(study: Study) -> list[float]:
    """Return the seconds of each frame if the proposals were the marked boxes."""
    return [read_with(marked, marked, 1)[0].seconds for marked in study.frames.boxes]


def chosen_by_order(study: Study, pool: Sequence[str], start: Sequence[str], name: str, seed: int) -> list[str]:
    """Return `TOTAL` patients of the pool: the start, then round by round those that the order puts first."""
    known = list(start)
    inside = set(pool)
    frames = [frame for frame in study.listed if frame.group in inside]
    descriptors = {frame.path: study.descriptors[frame.path] for frame in frames}
    while len(known) < TOTAL:
        network = study.trained(f"{name}-{len(known)}", study.rows(known), seed)
        left = study.rows([group for group in pool if group not in set(known)])
        done = {study.listed[row].path for row in study.rows(known)}
        ranked = order.rank(frames, done, study.proposed(network, left), descriptors, seed)
        known += list(dict.fromkeys(frame.group for frame in ranked))[: min(ROUND, TOTAL - len(known))]
    return known


def learning_curve(study: Study, seeds: int) -> float:
    """Print the hit rates after `TOTAL` patients, and return their ratio."""
    fold = learner.deal(study.frames, FOLDS, seed=0)
    hits = {side: np.zeros((seeds, len(study.frames))) for side in ("order", "random")}
    for seed in range(seeds):
        for number in range(FOLDS):
            held = np.flatnonzero(fold == number)
            pool = sorted({study.listed[row].group for row in np.flatnonzero(fold != number)})
            if len(pool) <= TOTAL:
                raise SystemExit(f"{len(pool)} patients to choose from; more than {TOTAL} are needed")
            drawn = [str(one) for one in np.random.default_rng((seed, number)).permutation(pool)]
            name = f"curve-{seed}-{number}"
            sides = {"random": drawn[:TOTAL], "order": chosen_by_order(study, pool, drawn[:START], name, seed)}
            for side, groups in sides.items():
                network = study.trained(f"{name}-{side}", study.rows(groups), seed)
                found = study.proposals(network, held)
                marked = [study.frames.boxes[row] for row in held]
                hits[side][seed, held] = detection.compare(found.boxes, marked).hit
        gain = show_curve(study, {side: found[: seed + 1] for side, found in hits.items()})
    return gain.value


def show_curve(study: Study, hits: dict[str, np.ndarray]) -> metrics.Interval:
    """Print the hit rates of the seeds so far, bool [seeds, n] by side, and return the ratio of their means."""
    means = {side: found.mean(0) for side, found in hits.items()}
    gain = ratio(means["order"], means["random"], study.patient)
    low, high = (gain.value if bound is None else bound for bound in (gain.low, gain.high))
    verdict = "helps" if low > 1 else "harms" if high < 1 else "makes no difference that can be seen: 1 is inside"
    told = {side: detection.mean_interval(found, study.patient) for side, found in means.items()}
    seeds = {side: " ".join(f"{one:.3f}" for one in found.mean(1)) for side, found in hits.items()}
    print(
        f"hit rate after {TOTAL} patients, {len(hits['order'])} seeds, {FOLDS} folds: by the order {told['order']} "
        f"({seeds['order']}), at random {told['random']} ({seeds['random']}); ratio {gain}\nthe order {verdict}",
        flush=True,
    )
    return gain


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real = DDTI.is_dir()  # without real scans, phantoms and a toy body show that the benchmark runs
    parser.add_argument("--scans", type=Path, default=DDTI / "normal" if real else None)
    parser.add_argument("--rois", type=Path, default=DDTI / "rois.csv" if real else None)
    parser.add_argument("--weights", default=str(WEIGHTS) if WEIGHTS.is_dir() else "none")
    parser.add_argument("--work", type=Path, help="folder from which an interrupted benchmark resumes")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = DataVersion.read(data_version(given.scans, given.rois, folder))
        study = Study.prepare(data, given.weights, given.work or folder / "work")
        ratios = {
            "boxes_per_minute_vs_from_scratch": round(boxes_per_minute(study), 3),
            "learning_curve_vs_random": round(learning_curve(study, given.seeds), 3),
        }
    print(f"{time.perf_counter() - began:.0f} s. Research use only.")
    print(json.dumps({"bench": "label", "ratios": ratios}))


if __name__ == "__main__":
    main()
