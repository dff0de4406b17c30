"""Train a locator on the marked nodules of the training part, and box the nodule on every frame.

    python -m thyroid.locate --data DIR --scans DIR --output DIR

Every development frame is boxed by a locator that did not see its patient (cross-fitted by patient), the test frames by
the final one, which is trained on the training part. The test set decides nothing. Where there is no region to learn
from, the step is skipped and says why.
"""

import hashlib
import json
import logging
import resource
import shutil
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid.data.version import DataVersion
from thyroid.imaging import images
from thyroid.locate import crop_rule, export, head, learner, maps, plots, table, warm_start
from thyroid.locate import proposals as proposing
from thyroid.locate.crop_rule import Crops, Measured
from thyroid.locate.frames import Frames
from thyroid.locate.learner import Learner, Plan
from thyroid.locate.options import LocateOptions
from thyroid.locate.proposals import Proposals
from thyroid.metrics import detection
from thyroid.model import locator, locator_network
from thyroid.model.artefact import sha256
from thyroid.model.backbones import weights_name
from thyroid.model.backend import keras, tf
from thyroid.model.locator_network import Body
from thyroid.records.locate import BOXES, RECORD, BoxCalibration, CropRule, LocateRecord, LocatorRecord
from thyroid.storage import Location, backup, mirror

log = logging.getLogger(__name__)

CODE = 1
"""Version of what is done with the heads' answers. Raise it when a result changes, so that none is reused."""
LEAST, LEAST_HELD = 4, 2
"""Smallest number of patients with a region per fold of the cross-fitting; and in the validation and test part."""


@dataclass(frozen=True)
class Located:
    """The output of the step.

    Attributes:
        folder: Folder with locate.json, boxes.parquet, the automatic crops (crops/), the networks (locator/) and
            pictures.
        record: Content of locate.json.
    """

    folder: Path
    record: LocateRecord


def locate(data: Path, scans: Path, output: Path, options: LocateOptions = LocateOptions()) -> Located:
    """Train and measure a locator, and write the boxes and automatic crops of all frames.

    Args:
        data: Data version of `crop`.
        scans: Data version of `ingest`, which the paths of the scans are relative to.
        output: Folder to write to.
        options: How it is trained.

    Raises:
        InputError: The data version is damaged, an image is missing, or the weights are unusable.
        TrainingDivergedError: The loss is no longer a finite number.
        RuntimeError: OpenVINO could not convert the network.
    """
    started, used = time.monotonic(), _processor_seconds()
    output.mkdir(parents=True, exist_ok=True)
    version_ = DataVersion.read(data)
    body, start = locator_network.choose(options.weights)
    plan = learner.TOY if body.row is None else learner.FULL
    everything = Frames.read(version_, plan.size)
    if reason := _why_not(everything, plan):
        log.info(f"no locator: {reason}")
        record = LocateRecord(data_digest=version_.digest, skipped=reason, seconds=round(time.monotonic() - started, 1))
        record.write(output / RECORD)
        return Located(output, record)
    base = options.work or output / ".work"
    champion = warm_start.find(options)
    session = _Session(version_, everything, plan, options, body, start, champion)
    with backup.kept(base, f"locate-{session.key}") as work:
        if _is_whole(work / backup.DONE):
            shutil.copytree(work / backup.DONE, output, dirs_exist_ok=True)
            log.info(f"the locator is trained already; the result is read from {mirror.address(work)}")
            return Located(output, LocateRecord.read(output / RECORD))
        record = session.run(scans, base, work, output)
        used, seconds = _processor_seconds() - used, time.monotonic() - started
        record = record.model_copy(update={"seconds": round(seconds, 1), "processor_seconds": round(used, 1)})
        record.write(output / RECORD)
        _keep(output, work, not options.work)
    assert record.locator is not None
    found, median = record.locator.cross_fitted, record.locator.cross_fitted_median_box
    log.info(
        f"locator ({body.name}): IoU of at least .5 in {found.iou50} of the development frames, cross-fitted; the "
        f"median box in {median.iou50}. {seconds:.0f} s"
    )
    return Located(output, record)


def _processor_seconds() -> float:
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in spent)


def _why_not(everything: Frames, plan: Plan) -> str | None:
    """Return why there can be no locator, in words; None if there can be one."""
    if not len(everything):
        return "there is no full frame to learn from, only crops"
    if not everything.marked.any():
        return "no frame has a region; give regions with --rois rois.csv"
    split = everything.table["split"].to_numpy()
    for name, least in (("train", LEAST * plan.folds), ("validation", LEAST_HELD), ("test", LEAST_HELD)):
        part = everything.table[everything.marked & (split == name)]
        if (count := part["group"].nunique()) < least:
            return f"the {name} part has {count} patients with a region, and at least {least} are needed; mark more"
        if name == "train" and part["class"].value_counts().max() < plan.folds:
            return f"no class has {plan.folds} frames with a region in the {name} part; mark more"
    return None


def _is_whole(done: Path) -> bool:
    """Return whether a finished result is there, every file as it was written."""
    try:
        record = LocateRecord.read(done / RECORD)
        crops = pd.read_parquet(done / BOXES, columns=["crop_path", "crop_sha256"]).dropna()
        wanted = record.files | dict(zip(crops["crop_path"], crops["crop_sha256"], strict=True))
        return all(sha256(done / name) == digest for name, digest in wanted.items())
    except Exception:  # a damaged file raises many kinds; the result is then made again
        return False


def _keep(output: Path, work: Path, temporary: bool) -> None:
    """Keep the result for a repeated run, and remove what only an interrupted one needs."""
    if temporary:
        shutil.rmtree(work.parent)
        return
    ready = work / "ready"
    shutil.rmtree(ready, ignore_errors=True)
    shutil.copytree(output, ready)
    shutil.rmtree(work / backup.DONE, ignore_errors=True)  # damaged
    ready.replace(work / backup.DONE)
    for path in work.iterdir():
        if path.name not in (backup.DONE, ".lock"):
            shutil.rmtree(path)


@dataclass(frozen=True)
class _Session:
    """One run of the step, with everything that its result depends on.

    Attributes:
        data: Data version of `crop`.
        everything: Its full frames.
        plan: How much is computed.
        options: How the locator is trained.
        body: Body of the locator.
        start: Weights of the body.
        champion: Champion that the head may start from; None for none.
    """

    data: DataVersion
    everything: Frames
    plan: Plan
    options: LocateOptions
    body: Body
    start: str | Path | None
    champion: warm_start.Champion | None

    @property
    def key(self) -> str:
        """Name of the work folder. Everything that would change the result changes the name."""
        rows = self.everything.table[["path", "sha256", "split", "group", "patient", "class"]]
        content = {
            "data": [self.data.digest, self.data.margin],
            "rows": rows.to_numpy().tolist(),
            "body": [self.body.name, sha256(self.start) if isinstance(self.start, Path) else self.start],
            "plan": astuple(self.plan),
            "options": [self.options.unsure, self.options.seed],
            "champion": None if self.champion is None else self.champion.sha256,
            "versions": [version("thyroid"), keras.__version__, tf.__version__, maps.CODE, CODE, *head.CONSTANTS],
        }
        return hashlib.sha256(json.dumps(content, default=int).encode()).hexdigest()[:16]

    def run(self, scans: Path, base: Location, work: Path, output: Path) -> LocateRecord:
        """Train, measure, box every frame, and write everything but locate.json.

        Args:
            scans: Data version that the paths of the scans are relative to.
            base: Folder that the feature maps are kept in.
            work: Folder from which this training resumes.
            output: Folder to write to.
        """
        split = self.everything.table["split"].to_numpy()
        marked = self.everything.marked
        development = self.everything.where(marked & (split != "test"))
        training = development.where((development.table["split"] == "train").to_numpy())
        extractor = maps.prepare(
            self.body, self.start, base, self.data, training, views=self.plan.views, seed=self.options.seed
        )
        own, reused = extractor(self.data, development)
        learning = Learner(development, own, self.plan, work / extractor.mark, self.options.seed)
        fold = learner.deal(development, self.plan.folds, self.options.seed)
        heads = learning.cross_fit(fold)
        held_out = learning.held_out(heads, fold)
        warm = None if self.champion is None else warm_start.head_of(self.champion, self.options, self.data, extractor)
        final = learning.fit(np.flatnonzero(development.table["split"] == "train"), warm)
        network = locator_network.assemble(extractor.network, final)
        export.write(network, output)

        test = self.everything.where(split == "test")
        pixels = images.rgb(self.data.pixels(test.table, self.plan.size))
        on_test = Proposals.read(test, *learner.answers(network, pixels))
        parts: list[tuple[Frames, Proposals, str]] = [(development, held_out, "cross-fitted"), (test, on_test, "final")]
        if len(unmarked := self.everything.where(~marked & (split != "test"))):
            # of a development frame without a region only the head that never saw its patient may propose
            inputs = images.rgb(self.data.pixels(unmarked.table, self.plan.size))
            places = _folds_of(unmarked, development, fold)
            parts.append((unmarked, learner.propose_on(inputs, extractor, heads, places, unmarked), "cross-fitted"))
        known = test.marked
        result = _Result(self, development, held_out, test.where(known), on_test.where(known), pixels[known])
        rule = result.crop_rule(extractor, heads, fold, network)
        record = result.record(network.count_params(), rule, fold, output)
        if warm is not None and self.champion is not None:
            record = record.model_copy(update={"champion": self.champion.version})
        boxes = table.crop(table.build(parts, record), self.data, scans, output)
        boxes.to_parquet(output / BOXES, index=False)
        result.draw(record, output)
        return LocateRecord(
            data_digest=self.data.digest,
            locator=record,
            margin=self.data.margin,
            files={name: sha256(output / name) for name in (*locator.FILES, BOXES)},
            unmarked=int((~marked).sum()),
            reused=reused,
            seconds=0.0,
        )


def _folds_of(others: Frames, development: Frames, fold: NDArray[np.int_]) -> NDArray[np.int_]:
    """Return the fold whose head never saw the patient of each frame; any fold for a patient who is in none."""
    known = dict(zip(development.table["group"].tolist(), fold.tolist(), strict=True))
    return np.array([known.get(group, 0) for group in others.table["group"].tolist()], int)


@dataclass(frozen=True)
class _Result:
    """The proposals for marked frames, by locators that did not learn from them.

    Attributes:
        session: The run.
        development: Development frames.
        held_out: Their cross-fitted proposals.
        test: Test frames.
        tested: Their proposals by the final locator.
        pixels: Inputs of the test frames.
    """

    session: _Session
    development: Frames
    held_out: Proposals
    test: Frames
    tested: Proposals
    pixels: NDArray[np.uint8]

    def crop_rule(
        self, extractor: maps.Extractor, heads: Sequence[Any], fold: NDArray[np.int_], network: Any
    ) -> CropRule:
        """Fit the rule that tells crops from frames on development frames, and measure it on test frames."""
        seed = self.session.options.seed
        cut = Crops.cut(self.development, seed)
        proposed = learner.propose_on(cut.pixels, extractor, heads, fold, cut.frames)
        of_test = Crops.cut(self.test, seed + 1)
        proposed_test = Proposals.read(of_test.frames, *learner.answers(network, of_test.pixels))
        return crop_rule.fit(
            Measured.of(self.development, self.held_out, cut, proposed),
            Measured.of(self.test, self.tested, of_test, proposed_test),
            seed,
        )

    def record(self, parameters: int, rule: CropRule, fold: NDArray[np.int_], output: Path) -> LocatorRecord:
        """Calibrate, lock the limit, measure, and return the locator's record."""
        session, seed = self.session, self.session.options.seed
        calibration = proposing.fit_calibration(self.held_out, self.development)
        split = self.development.table["split"].to_numpy()
        training = self.development.where(split == "train")
        probability = self.held_out.best(calibration)
        limit = proposing.lock_limit(probability[split == "validation"], session.options.unsure)
        crossed = proposing.cross_calibrated(self.held_out, self.development, fold)
        return LocatorRecord(
            body=session.body.name,
            weights=weights_name(session.start),
            image_size=session.plan.size,
            stride=locator_network.STRIDE,
            parameters=parameters,
            frames=len(training),
            patients=int(training.table["patient"].nunique()),
            calibration=calibration,
            unsure=session.options.unsure,
            limit=limit,
            crop_rule=rule,
            folds=session.plan.folds,
            cross_fitted=proposing.measure(self.held_out, self.development, crossed, limit, seed=seed),
            cross_fitted_median_box=proposing.measure(
                proposing.cross_median(self.development, fold), self.development, seed=seed
            ),
            test=proposing.measure(self.tested, self.test, self.tested.best(calibration), limit, seed=seed),
            test_median_box=proposing.measure(proposing.median_box(self.test, training), self.test, seed=seed),
            forms=export.compare(output, self.pixels, self.test, self.tested, calibration, limit=limit, seed=seed),
            data_digest=session.data.digest,
        )

    def draw(self, record: LocatorRecord, output: Path) -> None:
        """Write the pictures."""
        calibration: BoxCalibration = record.calibration
        of_test = self.tested.best(calibration)
        plots.sheet(self.test, self.tested, of_test, record.limit, output / "sheet.png")
        parts = {
            "development, cross-fitted": (
                self.held_out.best(calibration),
                detection.compare(self.held_out.boxes, self.development.boxes).hit,
            ),
            "test": (of_test, detection.compare(self.tested.boxes, self.test.boxes).hit),
        }
        plots.risk_coverage(parts, record.limit, output / "risk_coverage.png")
        plots.calibration(parts, output / "calibration.png")
