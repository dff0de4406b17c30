"""Audits of what a model could know without looking at the nodule, and of leakage between splits.

Shortcuts are measured on development patients by cross-validation. A logistic regression is fitted on features that
never saw a label: the part of the network that training leaves frozen, or splines of a few numbers. It is fitted
without the patients that it scores. Only the model's own answers are measured on the test set, which chooses nothing
here.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer, StandardScaler

from thyroid import cores, metrics, progress
from thyroid.data import classes as kinds
from thyroid.data import duplicates, overlap, splits, tables
from thyroid.data.filenames import CLASSES, POSITIVE, SCORE
from thyroid.errors import InputError
from thyroid.imaging import geometry, images
from thyroid.model import artefacts, inputs
from thyroid.model.network import Network
from thyroid.registry import changes, registry
from thyroid.storage import Location
from thyroid.train import record

FOLDS = 5
IMAGES = 2000
"""Largest number of development images that the audits look at. A seeded draw takes whole groups (see `splits`)."""
KEPT = 0.5
"""A shortcut is a finding if it keeps more than this share of its reference's distance from an AUROC of .5."""
_NO_REGION = "no region of a nodule is known (give rois.csv)"
STRENGTH = 0.01  # inverse L2 penalty of the head: there are many features and only a few hundred images

SHORTCUTS = {
    "model_on_blanked_nodule": "the model on test images with the nodule blanked",
    "blanked_nodule": "frozen features of images with the nodule blanked",
    "scan_area_geometry": "size of frame and scan area alone",
    "patient_number": "patient number alone",
    "acquisition_order": "image number, version and number of views alone",
    "box_size": "width and height of the nodule's box alone",
    "grey_levels": "grey-level statistics alone",
}

REFERENCES = {
    "model": "the model itself, test images",
    "whole_image": "frozen features of the whole image",
}
"""References that the shortcuts are compared with."""

_BLANKED = {
    "model_on_blanked_nodule": ("the model", ("model",)),
    "blanked_nodule": ("a head on its frozen features", ("whole_image", "model")),
}
"""Shortcuts that are judged: who answers, in words, and the names of the references.

The best reference that is above chance counts.
"""


def describe(name: str) -> str:
    """Return what a shortcut or reference of this name is, in words."""
    return (SHORTCUTS | REFERENCES)[name]


@dataclass
class Audits:
    """Results of the audits of one model in one domain.

    Attributes:
        domain: Domain of the audited images, "normal" or "cropped".
        shortcut: AUROC by name. `whole_image` and `model` are the references that the shortcuts are compared with.
        kept: Share of the reference's distance from an AUROC of .5 that a shortcut keeps, by shortcut. A shortcut is
            listed only if its reference is above chance.
        leakage: Counts across splits, and AUROCs under a split by patient and under a split by image.
        findings: What is wrong, in words, by audit ("shortcut", "leakage"). An audit that passed is not listed.
        not_measured: Reason why something was not measured, by name.
    """

    domain: str
    shortcut: dict[str, metrics.Interval] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    leakage: dict[str, Any] = field(default_factory=dict)
    findings: dict[str, str] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Convert to JSON. The shortcuts are in the order of the report's table: the judged ones come first."""
        order = ["model", "model_on_blanked_nodule", "whole_image", *SHORTCUTS]
        shown = {name: self.shortcut[name] for name in dict.fromkeys(order) if name in self.shortcut}
        return asdict(self) | {"shortcut": {name: asdict(auroc) for name, auroc in shown.items()}}


def audit(
    data: Path,
    domain: str,
    model: dict[str, Any],
    network: Network,
    parts: pd.Series,
    test: pd.DataFrame,
    seed: int = 0,
    decode: inputs.Decode = inputs.decode,
    registry_root: Location | None = None,
) -> Audits:
    """Audit one model in one domain.

    Args:
        data: Data version of `crop`.
        domain: "normal" or "cropped".
        model: Facts of the training (train.json).
        network: Network of the training.
        parts: What the training used each image for ("train" or "validation"), by name of `tables.examples`.
        test: The model's test predictions in the domain: file, label, patient and the probability of malignant.
        seed: Seed of draws, folds and bootstrap.
        decode: Function that reads the images.
        registry_root: Root of the registry with the champion that the model started from; None for no registry.

    Returns:
        The results, with a finding for every audit that failed.
    """
    done = Audits(domain)
    _shortcuts(done, data, model, network, test, seed, decode)
    leaks(done, data, model["train_domain"], parts)
    inherited(done, data, model, registry_root)
    _judge(done)
    return done


def context(data: Path, domain: str) -> pd.DataFrame:
    """Collect what is known of the images of a domain without looking at them.

    Args:
        data: Data version of `crop`.
        domain: "normal" or "cropped".

    Returns:
        One row per image with the columns of `tables.examples`, and: frame (file of the scan area, null where none is
        known), boxes (nodules of this image as x, y, width, height in pixels of `frame`), box_width and box_height (of
        the largest box), image, version, views (number of images of the patient), frame_width, frame_height, area_x,
        area_y, area_width, area_height. Images that were already cropped in the input have no frame and no boxes: they
        show nothing outside the nodule.
    """
    scans, regions, _ = tables.read(data)
    table = tables.examples(data, domain)
    known = ["image", "version", "area_x", "area_y", "area_width", "area_height"]
    scans = tables.used(scans).set_index("path")
    about = scans[known].assign(frame=scans["normal_path"], frame_width=scans["width"], frame_height=scans["height"])
    table = table.join(about, on="path")
    framed = regions[regions["path"].map(scans["domain"]) == "normal"]
    key = "path" if domain == "normal" else "crop_path"
    boxes: dict[str, list[geometry.Box]] = {}
    row: Any  # pandas-stubs: a field of a row may be any scalar
    for row in framed.itertuples():
        area = scans.loc[row.path]
        box = (int(row.x - area["area_x"]), int(row.y - area["area_y"]), int(row.width), int(row.height))
        boxes.setdefault(getattr(row, key), []).append(box)
    # pandas-stubs: cells are no lists
    table["boxes"] = [  # type: ignore[assignment]
        boxes.get(name, []) for name in table["path" if domain == "normal" else "name"]
    ]
    largest = [max(some, key=lambda box: box[2] * box[3], default=(0, 0, None, None)) for some in table["boxes"]]
    table["box_width"], table["box_height"] = [box[2] for box in largest], [box[3] for box in largest]
    table["views"] = table.groupby("patient")["file"].transform("size")
    return table


def blanked(data: Path, table: pd.DataFrame, domain: str, size: int) -> NDArray[np.uint8]:
    """Return images in which the nodules are blacked out, as a network takes them.

    The smallest square around each nodule is blacked out, because the outline of its box would still reveal its shape.
    In the normal domain the whole image is kept. In the cropped domain a square window of the frame is kept that is as
    wide as the crop with its margin, because the crop's own outline would reveal the shape, too.

    Args:
        data: Data version of `crop`.
        table: Rows of `context` with boxes.
        domain: "normal" or "cropped".
        size: Side of the images in pixels.

    Returns:
        Images, uint8 [n, size, size, 3].
    """
    root, margin = tables.images(data), tables.read_facts(data)["margin"]

    def one(row: Any) -> images.Pixels:
        frame = np.asarray(Image.open(root / row.frame, formats=("JPEG",)).convert("RGB")).copy()
        squares = [_square(box) for box in row.boxes]
        for x, y, side in squares:
            frame[max(0, y) : y + side, max(0, x) : x + side] = 0
        if domain == "normal":
            return images.letterbox(frame, size)
        x, y, side = squares[0]
        reach = round(margin * side)
        window = np.zeros((side + 2 * reach, side + 2 * reach, 3), np.uint8)
        top, left = max(0, y - reach), max(0, x - reach)
        seen = frame[top : max(0, y + side + reach), left : max(0, x + side + reach)]
        window[top - (y - reach) :, left - (x - reach) :][: seen.shape[0], : seen.shape[1]] = seen
        return images.letterbox(window, size)

    with ThreadPoolExecutor(cores.available()) as pool:
        rows = list(table.itertuples())
        return np.stack(list(progress.bar(pool.map(one, rows), len(rows), "blank nodules", "image")))


def _square(box: geometry.Box) -> tuple[int, int, int]:
    """Return x, y and side of the smallest square around the box with its centre; it may reach beyond the image."""
    x, y, width, height = box
    side = max(width, height)
    return x - (side - width) // 2, y - (side - height) // 2, side


def _shortcuts(
    done: Audits,
    data: Path,
    model: dict[str, Any],
    network: Network,
    test: pd.DataFrame,
    seed: int,
    decode: inputs.Decode,
) -> None:
    table = context(data, done.domain)
    has_nodule = table["boxes"].map(len) > 0
    development = _some(table[table["split"] != "test"], seed)
    fold = _folds(development, seed)
    if fold is None:
        reason = "too few development patients of a class"
        done.not_measured |= dict.fromkeys([*SHORTCUTS, "whole_image", "leaky_split"], reason)
    else:
        pixels = decode(development, model["image_size"])
        measure = functools.partial(_measure, done, development, fold, seed)
        _without_looking(done, development, measure)
        measure("grey_levels", _grey(pixels))
        _frozen_features(done, data, model, network, development, pixels, fold, measure, seed)
    tested = table[table["name"].isin(test["file"]) & has_nodule].reset_index(drop=True)
    if tested["label"].nunique() == len(CLASSES):
        without_nodule = blanked(data, tested, done.domain, model["image_size"])
        score = kinds.of(model).malignant(network.probabilities(without_nodule, "test images, nodule blanked"))
        answered = test.set_index("file").loc[tested["name"], SCORE]
        positive, patient = tested["label"] == CLASSES[POSITIVE], tested["patient"].astype(int)
        done.shortcut["model"] = metrics.auroc(positive, answered, patient, seed=seed)
        done.shortcut["model_on_blanked_nodule"] = metrics.auroc(positive, score, patient, seed=seed)
    else:
        done.not_measured["model_on_blanked_nodule"] = _NO_REGION


def _folds(development: pd.DataFrame, seed: int) -> NDArray[np.int64] | None:
    """Return the fold of every image, by patient and near-duplicate; None where there are too few of them."""
    count = min(FOLDS, int(development.groupby("class")["group"].nunique().min()))
    try:
        by_group = splits.folds(development, count, seed) if count > 1 else None
    except InputError:
        by_group = None
    return None if by_group is None else development["group"].map(by_group).to_numpy()


def _measure(
    done: Audits,
    development: pd.DataFrame,
    fold: NDArray[np.int64],
    seed: int,
    name: str,
    features: NDArray[np.float64],
    rows: NDArray[np.bool_] | None = None,
    bent: bool = True,
) -> None:
    """Measure the out-of-fold AUROC of a head on features [n, k] of the development images, or of those at `rows`.

    The head of `_out_of_fold` sees splines of the features if `bent` is set.
    """
    rows = np.ones(len(development), bool) if rows is None else rows
    table, mine = development[rows], fold[rows]
    score = _out_of_fold(features[rows], table["label"].to_numpy(), mine, bent)
    if score is None:
        done.not_measured[name] = "a fold has one class only"
        return
    positive, patient = table["label"] == CLASSES[POSITIVE], table["patient"].astype(int)
    done.shortcut[name] = metrics.auroc(positive, score, patient, seed=seed, fold=mine)


def _without_looking(done: Audits, development: pd.DataFrame, measure: Callable[..., None]) -> None:
    """Measure what the file name, the layout of the frame and the box reveal without any pixel."""
    measure("patient_number", development[["patient"]].to_numpy(float))
    version = pd.to_numeric(development["version"].str.split(".").str[0])
    order = development.assign(version=version)[["image", "version", "views"]]
    measure("acquisition_order", order.to_numpy(float))
    columns = ["frame_width", "frame_height", "area_x", "area_y", "area_width", "area_height"]
    if development["frame"].notna().all():
        measure("scan_area_geometry", development[columns].to_numpy(float))
    else:
        done.not_measured["scan_area_geometry"] = "images came in cropped: their frames are not known"
    marked = _marked(development)
    if marked is None:
        done.not_measured["box_size"] = _NO_REGION
        return
    sides = development[["box_width", "box_height"]].astype(float).fillna(1).to_numpy()
    measure("box_size", np.column_stack([sides, sides.prod(axis=1), sides[:, 1] / sides[:, 0]]), marked)


def _frozen_features(
    done: Audits,
    data: Path,
    model: dict[str, Any],
    network: Network,
    development: pd.DataFrame,
    pixels: NDArray[np.uint8],
    fold: NDArray[np.int64],
    measure: Callable[..., None],
    seed: int,
) -> None:
    """Measure the same features and head on whole images, on surroundings alone, and under a split that leaks."""
    if model["recipe"] == "deck":
        reason = "the deck's recipe trains the whole body, so that no feature is innocent of these labels"
        done.not_measured |= dict.fromkeys(("whole_image", "blanked_nodule", "leaky_split"), reason)
        return
    features = network.features(pixels, "frozen features")
    _leaky(done, development, features, fold, seed)
    marked = _marked(development)
    measure("whole_image", features, marked, bent=False)
    if marked is None:
        done.not_measured["blanked_nodule"] = _NO_REGION
        return
    surroundings = np.zeros_like(features)
    without_nodule = blanked(data, development[marked], done.domain, model["image_size"])
    surroundings[marked] = network.features(without_nodule, "frozen features, nodule blanked")
    measure("blanked_nodule", surroundings, marked, bent=False)


def _marked(development: pd.DataFrame) -> NDArray[np.bool_] | None:
    """Return which images have a box of a nodule; None unless more than half of them have one."""
    marked = development["boxes"].map(len).to_numpy() > 0
    return marked if marked.mean() > 0.5 else None


def _some(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return all images, or whole groups in a seeded order up to `IMAGES` images."""
    sizes = table.groupby("group").size().sample(frac=1, random_state=seed)
    kept = sizes.index[sizes.cumsum() <= max(IMAGES, sizes.iloc[0])]
    return table[table["group"].isin(kept)].reset_index(drop=True)


def _out_of_fold(
    features: NDArray[np.floating], label: NDArray[Any], fold: NDArray[np.int64], bent: bool
) -> NDArray[np.float64] | None:
    """Score every image with a logistic regression that was fitted without its fold.

    Returns None where a fold, or the rest without it, lacks a class. If `bent` is set, the regression sees cubic
    splines of the features.
    """
    score = np.empty(len(label))
    for one in np.unique(fold):
        held = fold == one
        if len(set(label[held])) < 2 or len(set(label[~held])) < 2:
            return None
        bend = [SplineTransformer(n_knots=4, degree=3, knots="quantile", extrapolation="constant")] if bent else []
        head = make_pipeline(
            StandardScaler(),
            *bend,
            LogisticRegression(C=1.0 if bent else STRENGTH, class_weight="balanced", max_iter=1000),
        )
        head.fit(features[~held], label[~held] == CLASSES[POSITIVE])
        score[held] = head.decision_function(features[held])
    return score


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Compute mean, standard deviation, share of black (below 8) and five percentiles of every image: [n, 8]."""
    flat = pixels.mean(axis=-1).reshape(len(pixels), -1)
    percentiles = np.percentile(flat, [5, 25, 50, 75, 95], axis=1).T
    return np.column_stack([flat.mean(axis=1), flat.std(axis=1), (flat < 8).mean(axis=1), percentiles])


def _leaky(
    done: Audits, development: pd.DataFrame, features: NDArray[np.floating], fold: NDArray[np.int64], seed: int
) -> None:
    """Score the same features and head under a split by image instead of by patient.

    This is what a careless split would report.
    """
    label = development["label"].to_numpy()
    dealer = StratifiedKFold(len(np.unique(fold)), shuffle=True, random_state=seed)
    by_image = np.empty(len(label), int)
    for number, (_, held) in enumerate(dealer.split(features, label)):
        by_image[held] = number
    positive, patient = label == CLASSES[POSITIVE], development["patient"].astype(int).to_numpy()
    draws = metrics.Draws(patient, seed=seed)
    drawn = {}
    for name, folds in (("by_patient", fold), ("leaky_split", by_image)):
        score = _out_of_fold(features, label, folds, bent=False)
        if score is None:
            done.not_measured["leaky_split"] = "a fold has one class only"
            return
        drawn[name] = metrics.auroc_draws(draws, positive, score, patient, folds)
    done.leakage |= {name: asdict(metrics.interval(area)) for name, area in drawn.items()}
    done.leakage["difference"] = asdict(metrics.interval(drawn["leaky_split"] - drawn["by_patient"]))


def leaks(done: Audits, data: Path, train_domain: str, parts: pd.Series) -> None:
    """Count patients and near-duplicates that are in several splits, and test scans that the model was trained on.

    Near-duplicates are searched again, from the hashes of the images.

    Args:
        done: Audits to add to.
        data: Data version.
        train_domain: Domain that the model was trained on and that the images of `parts` belong to.
        parts: What the training used each image for, by name of `tables.examples`.
    """
    scans = tables.used(tables.read(data)[0])
    patients = scans.groupby("patient")["split"].nunique()
    pairs = duplicates.near_duplicates(scans["phash"].tolist())
    split = scans["split"].tolist()
    crossing = [pair for pair in pairs if split[pair[0]] != split[pair[1]]]
    table = tables.examples(data, train_domain)
    learnt = table[table["name"].isin(parts.index)]
    if learnt.empty:
        done.findings["leakage"] = "which images the model was trained on is not known"
    tested = scans[scans["split"] == "test"]
    done.leakage |= {
        "patients_across_splits": int((patients > 1).sum()),
        "near_duplicates_across_splits": len(crossing),
        "test_images_trained_on": len(set(tested["path"]) & set(learnt["path"])),
        "test_patients_trained_on": len(set(tested["patient"]) & set(learnt["patient"])),
    }


def inherited(done: Audits, data: Path, model: dict[str, Any], registry_root: Location | None) -> None:
    """Count test scans that the champion from which the model started was trained on.

    A model that did not start from a champion has no such scans, and nothing is added. If the scans of the champion are
    not known, that is a finding.

    Args:
        done: Audits to add to.
        data: Data version.
        model: Facts of the training (train.json).
        registry_root: Root of the registry; None for no registry.
    """
    if model["recipe"] != "warm" or not model["weights"].startswith(record.STARTED):
        return
    scans, _, facts = tables.read(data)
    tested = tables.used(scans).query("split == 'test'").assign(cohort=facts["cohort"])
    try:
        if registry_root is None:
            raise InputError("no registry was given")
        version = model["weights"].removeprefix(record.STARTED)
        folder = registry.find(registry_root, version, only=(*artefacts.CARD, artefacts.SCANS))
        if artefacts.facts(folder)["files"].get(artefacts.MODEL) != model["champion"]:
            raise InputError(f"{registry_root}: its version is another model")
        seen = overlap.find(registry_root, changes.scans_of(folder).query("split == 'train'"), tested)
        if seen.problem:
            done.findings["leakage"] = f"{model['weights']}, which the model started from: {seen.problem}"
    except InputError as error:
        done.findings["leakage"] = (
            f"what {model['weights']}, which the model started from, learnt from is not known: {error}"
        )
        return
    done.leakage |= {
        "test_images_its_start_learnt_from": seen.pictures,
        "test_images_of_patients_its_start_learnt_from": seen.patients,
    }


def _judge(done: Audits) -> None:
    """Add findings for leaked scans and for shortcuts that keep more than `KEPT` of their reference."""
    broken: list[str] = []
    counts = {name: count for name, count in done.leakage.items() if isinstance(count, int) and count}
    if counts:
        told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
        done.findings["leakage"] = f"{told}: the model may have seen what it is tested on, and every figure is too good"
    for name, (who, references) in _BLANKED.items():
        known = [done.shortcut[one] for one in references if one in done.shortcut]
        above = [one for one in known if one.low is not None and one.low > 0.5]
        if name not in done.shortcut or not known:
            continue
        if not above:
            why = f"what it is held against ({', '.join(map(str, known))}) is not above chance"
            done.not_measured[f"{name}, judged"] = why
            continue
        whole = max(above, key=lambda one: one.value)
        done.kept[name] = (done.shortcut[name].value - 0.5) / (whole.value - 0.5)
        if done.kept[name] > KEPT:
            broken.append(
                f"without the nodule {who} reaches AUROC {done.shortcut[name]}, {done.kept[name]:.0%} of the distance "
                f"from chance of {whole} with it"
            )
    if broken:
        done.findings["shortcut"] = f"most of the evidence is not in the nodule: {'; '.join(broken)}"
