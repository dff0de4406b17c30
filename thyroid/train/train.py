"""Train one backbone on one domain. A training can be stopped at any time and resumes where it was.

    python -m thyroid.train --data DIR --backbone VGG16 --output DIR

The recipes are:

- two-phase: the default, see `twophase`.
- frozen: the first phase of two-phase alone.
- warm: two-phase from the champion's body, if that does at least as well as the given weights.
- deck: the slide deck's recipe, see `deck`.

With --folds the recipe is also cross-validated by patient on the development part (train and validation). The test set
is not read.
"""

import argparse
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from thyroid import atomic, errors, metrics, storage
from thyroid.data import classes as kinds
from thyroid.data import overlap, splits, tables
from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, SCORE
from thyroid.errors import InputError
from thyroid.model import artefacts, backbones, inputs
from thyroid.model.backend import keras, policy, tf, where
from thyroid.model.network import GRAPH, Network
from thyroid.registry import changes, registry
from thyroid.train import checkpoints, deck, diagnose, plots, record, twophase
from thyroid.train.settings import Settings, resolve

log = logging.getLogger(__name__)

INNER_FOLDS = 8
"""In cross-validation, one in this many patients of the other folds is set aside for early stopping.

With fewer folds than this, the number of folds is used instead.
"""


@dataclass(frozen=True)
class Trained:
    """Holds the result of a training.

    Attributes:
        folder: Folder with the checkpoint, history.csv, history.png, parts.csv and train.json.
        facts: Content of train.json.
    """

    folder: Path
    facts: dict[str, Any]


def train(
    data: Path,
    output: Path,
    backbone: str,
    domain: str | None = None,
    weights: str = "imagenet",
    image_size: int = 224,
    epochs: int = 15,
    batch_size: int = 32,
    seed: int = 0,
    recipe: str = "two-phase",
    tap: str = "",
    folds: int = 0,
    only_fold: int = 0,
    deterministic: bool = False,
    registry_root: storage.Location | None = None,
    champion: int | None = None,
    memory_budget: int = inputs.MEMORY_BUDGET,
    work: Path | None = None,
    tuned: Settings | None = None,
) -> Trained:
    """Train `backbone` on the training part of one domain of `data`.

    Args:
        data: Data version of `crop`.
        output: Folder to write to.
        backbone: A name in `backbones.BACKBONES`.
        domain: "normal" or "cropped". None for the first one that the data version was made for.
        weights: Initial weights, see `backbones.find_weights`.
        image_size: Side of the model's square input in pixels.
        epochs: Epochs of fine-tuning, or of training all layers in the deck's recipe. 0 trains only the head.
        batch_size: Images per step. It is halved if the memory does not suffice.
        seed: Seed of initialisation, order, augmentation and folds.
        recipe: One of `backbones.RECIPES`, or a settings file of `thyroid.sweep`, which may be on gs://. An image size
            or a tap in the file replaces the argument.
        tap: Layer at which the body ends. Empty for its last layer.
        folds: 0, or the number of folds of a cross-validation, whose predictions go to folds.parquet.
        only_fold: The only fold to train, or 0 for all.
        deterministic: Whether to use TensorFlow's deterministic kernels. The same seed then gives the same bits, at
            some cost.
        registry_root: Registry with the champion from which the warm recipe starts. It starts from the champion if that
            is of this backbone, these classes and this domain, has learnt from no scan that is used to judge now, and a
            head on its frozen features has at least the validation AUROC of a head on those of `weights`. Otherwise, or
            without a champion, the recipe starts from `weights` like two-phase.
        champion: Version of the champion. None for the present one.
        memory_budget: Bytes. Decoded images, or maps of the frozen part, are paged from a temporary file if they need
            more.
        work: Folder that outlives a stopped process and from which a training resumes. None for one within `output`.
        tuned: Settings of a recipe that is given by name. None for the defaults. The deck's recipe has no settings.

    Raises:
        InputError: An argument is out of range, the weights are unusable, an image is missing or changed, or a part
            lacks a class.
        TrainingDivergedError: The loss is no longer a finite number.
    """
    started = time.monotonic()
    row = backbones.get(backbone)
    given, (recipe, found) = recipe, resolve(recipe)
    tuned = (tuned or found).of(row.name)
    image_size, tap = tuned.image_size or image_size, tuned.tap or tap
    check(recipe, image_size, epochs, batch_size, folds, only_fold, tap, seed)
    if work is not None and work.resolve().is_relative_to(output.resolve()):
        raise InputError(f"work folder {work} lies within the output {output}: choose another one")
    start = backbones.find_weights(row, weights)
    scans, _, facts = tables.read(data)
    if "domains" not in facts:
        raise InputError(f"{data}: its images are not cropped yet; run `python -m thyroid.crop` first")
    classes = kinds.of(facts)
    domain = domain or facts["domains"][0]
    margin = facts["margin"]
    if recipe != given and domain == "cropped" and margin != tuned.margin:
        raise InputError(
            f"{data}: cropped with margin {margin}, and {given} wants {tuned.margin}: crop with that --margin"
        )
    tuned = replace(tuned, margin=margin, image_size=image_size, tap=tap, backbone=row.name)
    table = _development(data, domain)
    warm = None
    if recipe == "warm":
        judging = tables.used(scans).query("split != 'train'").assign(cohort=facts["cohort"])
        warm = _warm_start(registry_root, champion, row, classes, domain, judging)
    table["part"] = table["split"]
    plans = {"main": table["part"]} | fold_parts(scans, table, folds, seed)
    for name, part in plans.items():
        require_classes(part, table, classes, name, domain, data)
    if batch_size > (count := int((table["part"] == "train").sum())):
        log.info(f"batch size {batch_size} is larger than the training part: one step of {count} images an epoch")

    epochs = 0 if recipe == "frozen" or tuned.unfrozen == 0 else epochs
    settings = {
        "backbone": row.name,
        "train_domain": domain,
        "weights": "none" if start is None else start if start == "imagenet" else Path(start).name,
        "image_size": image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "recipe": recipe,
        "champion": None if warm is None else warm.sha256,
        "tap": tap,
        "folds": folds,
        "only_fold": only_fold,
        "deterministic": deterministic,
        "precision": "float32" if recipe == "deck" else policy(),
        **({} if recipe == "deck" else {"settings": asdict(tuned)}),
    }
    work = (work or output / ".work") / _key(settings, start, table)
    output.mkdir(parents=True, exist_ok=True)
    if (work / "done" / "train.json").is_file():
        shutil.copytree(work / "done", output, dirs_exist_ok=True)
        log.info(f"{row.name} on {domain}: was trained before the interruption, taken from {work}")
        return Trained(output, record.read(output))
    work.mkdir(parents=True, exist_ok=True)
    _tell_start(row.name, weights, start)
    log.info(f"{row.name} on {domain}, {recipe}: {count} images to train, {len(table) - count} to validate; {where()}")

    if deterministic:
        tf.config.experimental.enable_op_determinism()
    with twophase.prepared(
        row,
        start,
        table,
        classes.one_hot(table["class"]),
        work,
        tuned,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        started=started,
        memory_budget=memory_budget,
        deck=recipe == "deck",
    ) as job:
        model = job.model
        pristine = model.get_weights()
        held_out = None
        if folds:
            held_out = _cross_validate(job, data, table, classes, plans, recipe, pristine, only_fold)
            model.set_weights(pristine)
        starts = None
        if warm is not None:
            job, starts = _better_start(job, table, warm)
        fitted, part = _fit(job, table, classes, plans["main"], "main", recipe)

    kept = _float32(job, len(classes), start, tap, recipe)
    network = Network.trace(kept, classes, None if recipe == "deck" else max(1, tuned.unfrozen))
    best = fitted.best if recipe == "deck" else _validation(network, job, table)
    checkpoint = f"{row.name}-{fitted.best['epoch']:03d}-{best['loss']:.4f}-{best['accuracy']:.4f}.keras"
    kept.save(output / checkpoint)
    (output / GRAPH).write_bytes(network.graph.SerializeToString())
    fitted.history.to_csv(output / "history.csv", index=False)
    plots.history(fitted.history, f"{row.name} on {domain}, {recipe}", output / "history.png")
    pd.DataFrame({"file": table["name"], "part": part}).to_csv(output / "parts.csv", index=False)
    (output / "folds.parquet").unlink(missing_ok=True)
    if held_out is not None:
        held_out.to_parquet(output / "folds.parquet", index=False)
    if (logs := job.work / "main" / "tensorboard").is_dir():
        shutil.rmtree(output / "tensorboard", ignore_errors=True)
        shutil.copytree(logs, output / "tensorboard")
    result = (
        settings
        | {
            **classes.facts(),
            "parameters": model.count_params(),
            "checkpoint": checkpoint,
            "files": {name: artefacts.sha256(output / name) for name in (checkpoint, GRAPH)},
            "epoch": fitted.best["epoch"],
            "batch_size": job.batch_size,
            "validation": {key: best[key] for key in ("auroc", "loss", "accuracy")},
            "data_digest": facts["digest"],
        }
        | checkpoints.memory()
    )
    if warm is not None and starts is not None:
        result["starts"] = starts
        if starts["champion"] >= starts["weights"]:
            result["weights"] = warm.name
    places = pd.Series(range(len(table)), table["file"])
    diagnosis = diagnose.examine(
        data,
        result,
        pd.Series(part.to_numpy(), table["name"]),
        kept,
        network,
        lambda wanted, size: job.pixels[places[wanted["file"]]],
    )
    atomic.write_json(output / record.DIAGNOSIS, diagnosis.facts())
    result["seconds"] = round(time.monotonic() - started, 1)
    atomic.write_json(output / "train.json", result)
    if diagnosis.findings:
        log.info(diagnose.tell(diagnosis))
    _tidy(work, output, checkpoint)
    log.info(f"{row.name} on {domain}: validation AUROC {best['auroc']:.3f}, {checkpoint}, {result['seconds']:.0f} s")
    return Trained(output, result)


def check(
    recipe: str, image_size: int, epochs: int, batch_size: int, folds: int, only_fold: int, tap: str, seed: int
) -> None:
    """Check the arguments of `train`.

    Raises:
        InputError: An argument is out of range or does not fit another one.
    """
    if recipe not in backbones.RECIPES:
        raise InputError(
            f"recipe {recipe!r} is unknown; choose from {', '.join(backbones.RECIPES)}, or give a settings file "
            "(*.json)"
        )
    if recipe == "deck" and (tap or epochs < 1):
        raise InputError("the deck's recipe trains the whole body for at least one epoch: no tap, epochs above 0")
    for name, value, least in (
        ("image size", image_size, backbones.MIN_SIZE),
        ("epochs", epochs, 0),
        ("batch size", batch_size, 1),
    ):
        if value < least:
            raise InputError(f"{name} {value} is below {least}, the least that works")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed {seed}: must be between 0 and 4294967295")
    if recipe == "warm" and folds:
        raise InputError(
            "folds with the warm recipe: the champion has seen the patients that a fold holds out; use two-phase"
        )
    if folds < 0 or folds == 1 or not 0 <= only_fold <= folds:
        raise InputError(f"folds {folds}, only fold {only_fold}: give 0, or at least 2 folds and one of them")


def _development(data: Path, domain: str) -> pd.DataFrame:
    """Return the images of the train and validation splits. The test split is not for training."""
    table = tables.examples(data, domain)
    return table[table["split"] != "test"].reset_index(drop=True)


def fold_parts(scans: pd.DataFrame, table: pd.DataFrame, folds: int, seed: int) -> dict[str, pd.Series]:
    """Assign every image to a part in each fold of a cross-validation.

    Args:
        scans: Scans of the data version.
        table: Development images, with group.
        folds: Number of folds; 0 for none.
        seed: Seed of the folds.

    Returns:
        "train", "validation" or "held-out" per row of `table`, by name of the fold. Empty without folds.

    Raises:
        InputError: As for `splits.folds`.
    """
    if not folds:
        return {}
    development = tables.used(scans)
    development = development[development["split"] != "test"]
    fold = splits.folds(development, folds, seed)
    parts = {}
    for number in range(1, folds + 1):
        rest = development[development["group"].map(fold) != number]
        inner = splits.folds(rest, min(INNER_FOLDS, folds), seed)
        part = table["group"].map(inner).map(lambda n: "validation" if n == 1 else "train")
        parts[f"fold-{number}"] = part.mask(table["group"].map(fold) == number, "held-out")
    return parts


def require_classes(part: pd.Series, table: pd.DataFrame, classes: Classes, name: str, domain: str, data: Path) -> None:
    """Check that the parts hold all classes.

    Every class must be in the training part, and in the validation part of the main training. In a fold both sides,
    benign and malignant, must be in the validation and held-out parts.

    Args:
        part: Part of each image, per row of `table`.
        table: Images with class and label.
        classes: Classes of the data version.
        name: "main", or the name of a fold.
        domain: Domain of the images, for the message.
        data: Data version, for the message.

    Raises:
        InputError: A part lacks a class.
    """
    where = "" if name == "main" else f" of {name}"
    for split in ("train", "validation", *(() if name == "main" else ("held-out",))):
        column, wanted = ("class", classes.names) if name == "main" or split == "train" else ("label", CLASSES)
        for label in wanted:
            if not ((part == split) & (table[column] == label)).any():
                cure = "" if name == "main" else "; use fewer folds"
                raise InputError(
                    f"{data}: the {domain} domain has no image of class {label} in the {split} split{where}{cure}"
                )


def _key(settings: dict[str, Any], start: str | Path | None, table: pd.DataFrame) -> str:
    """Return the name of the folder of this training. Everything that would change its result changes the name."""
    content = settings | {
        "weights": artefacts.sha256(start) if isinstance(start, Path) else settings["weights"],
        "images": table[["sha256", "class", "part"]].to_numpy().tolist(),
        "versions": [version("thyroid"), keras.__version__, tf.__version__, *twophase.CONSTANTS],
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return f"{settings['backbone']}-{settings['train_domain']}-{digest}"


def _tell_start(name: str, weights: str, start: str | Path | None) -> None:
    if start is None:
        why = "" if weights.lower() == "none" else f"no file for it in {weights}; "
        log.info(f"{name}: {why}starts from random weights (none): expect little of it")
    else:
        log.info(f"{name}: starts from {start}")


@dataclass(frozen=True)
class _Warm:
    """Holds a champion to start from: its version in words, the SHA-256 of its file, and its network."""

    name: str
    sha256: str
    network: Any


def _warm_start(
    root: storage.Location | None,
    version: int | None,
    row: backbones.Backbone,
    classes: Classes,
    domain: str,
    judging: pd.DataFrame,
) -> _Warm | None:
    """Return the champion if a training may start from it, else print the reason and return None.

    `judging` is the argument of `overlap.find`.
    """
    version = version or (None if root is None else registry.read_aliases(root).get("champion"))
    if root is None or version is None:
        log.info(f"{row.name}: there is no champion to start from")
        return None
    folder = registry.find(root, str(version))
    facts = artefacts.verify(folder)
    seen = overlap.find(root, changes.scans_of(folder).query("split == 'train'"), judging)
    for reason, holds in (
        (f"it tells {', '.join(facts['classes'])} apart", facts["classes"] != list(classes.names)),
        (f"it is {facts['backbone']}", facts["backbone"] != row.name),
        (f"it was trained on {facts['domain']} images", facts["domain"] != domain),
        (
            f"it learnt from {seen.scans} scans that are to judge now, or from their patients ({seen.told()})",
            seen.scans,
        ),
        (seen.problem, seen.problem),
    ):
        if holds:
            log.info(f"{row.name}: does not start from champion {version}: {reason}")
            return None
    if seen.note:
        log.info(f"{row.name}: champion {version}: {seen.note}")
    network = artefacts.load_keras(folder / artefacts.MODEL)
    return _Warm(f"{record.STARTED}{version}", artefacts.sha256(folder / artefacts.MODEL), network)


def _better_start(job: twophase.Job, table: pd.DataFrame, warm: _Warm) -> tuple[twophase.Job, dict[str, float] | None]:
    """Return the job from the start whose frozen features separate the classes better on validation, and both AUROCs.

    The champion has not learnt from any of these images, but most of them were used for its early stopping, which
    favours it a little. The gate judges on test patients. The job gets a folder of its own for each start, because the
    maps of the other start must not be reused.
    """
    train, validation = (np.flatnonzero(table["part"] == which) for which in ("train", "validation"))
    pristine = job.model.get_weights()
    if [one.shape for one in pristine] != [one.shape for one in warm.network.get_weights()]:
        log.info(f"{job.backbone.name}: does not start from {warm.name}: its layers are not the same (a tap)")
        return job, None
    found = {}
    for name in ("weights", "champion"):
        trial = replace(job, work=job.work / name, epochs=0)
        job.model.set_weights(pristine)
        if name == "champion":
            backbones.copy_weights(warm.network, job.model)
        found[name] = twophase.fit(trial, train, validation, "start").best["auroc"]
        job.batch_size = trial.batch_size
    chosen = "champion" if found["champion"] >= found["weights"] else "weights"
    job.model.set_weights(pristine)
    if chosen == "champion":
        backbones.copy_weights(warm.network, job.model)
    log.info(
        f"{job.backbone.name}: validation AUROC of a head on frozen features {found['champion']:.3f} from {warm.name}, "
        f"{found['weights']:.3f} from the given weights: starts from {'it' if chosen == 'champion' else 'these'}"
    )
    return replace(job, work=job.work / chosen), found


def _fit(
    job: twophase.Job, table: pd.DataFrame, classes: Classes, part: pd.Series, name: str, recipe: str
) -> tuple[twophase.Fitted, pd.Series]:
    """Fit job.model on one assignment of the images, and return the fit and the assignment that the recipe used."""
    if recipe == "deck":
        mine = table[part == "train"] if name == "main" else table[part != "held-out"]
        fitted, own = twophase.within_memory(job, lambda: deck.fit(job, mine, classes, name))
        return fitted, part.mask(part.index.isin(own.index), own.reindex(part.index))
    train, validation = (np.flatnonzero(part == which) for which in ("train", "validation"))
    return twophase.fit(job, train, validation, name), part


def _cross_validate(
    job: twophase.Job,
    data: Path,
    table: pd.DataFrame,
    classes: Classes,
    plans: dict[str, pd.Series],
    recipe: str,
    pristine: list[NDArray[Any]],
    only_fold: int,
) -> pd.DataFrame:
    """Return out-of-fold predictions in every domain of the data version.

    They are the rows of `_development` with fold and domain.
    """
    size = job.pixels.shape[1]
    parts = []
    for name in [f"fold-{only_fold}"] if only_fold else [name for name in plans if name != "main"]:
        file = job.work / f"{name}.parquet"
        if (ready := _read_fold(file)) is None:
            log.info(f"{job.backbone.name}: {name} of {len(plans) - 1}")
            job.model.set_weights(pristine)
            _fit(job, table, classes, plans[name], name, recipe)
            held = set(table[plans[name] == "held-out"]["group"])
            rows = []
            for domain in tables.DOMAINS:
                mine = _development(data, domain)
                mine = mine[mine["group"].isin(held)].reset_index(drop=True)
                if len(mine):
                    pixels = inputs.decode(mine, size, job.memory_budget)
                    mine[classes.columns] = probability = _predict(job, job.model, pixels)
                    mine[SCORE] = classes.malignant(probability)
                    rows.append(mine.assign(domain=domain, fold=int(name.split("-")[1])))
            ready = pd.concat(rows, ignore_index=True).drop(columns=["path", "split", "sha256"])
            ready["file"] = ready.pop("name")
            with atomic.replacing(file, durable=False, shared=False) as temporary:
                ready.to_parquet(temporary, index=False)
        parts.append(ready)
    return pd.concat(parts, ignore_index=True)


def _predict(job: twophase.Job, model: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    return twophase.within_memory(job, lambda: inputs.predict(model, pixels, job.batch_size))


def _read_fold(file: Path) -> pd.DataFrame | None:
    """Return a finished fold's predictions, or None if there are none.

    If the file is damaged, a message is printed and the result is None, too.
    """
    try:
        return pd.read_parquet(file) if file.exists() else None
    except (ValueError, OSError) as error:
        log.info(f"{file}: damaged ({errors.one_line(error)}); the fold is trained again")
        return None


def _float32(job: twophase.Job, classes: int, start: str | Path | None, tap: str, recipe: str) -> Any:
    """Return the model in the form that is stored.

    It has no compile state, so that it loads in safe mode, and is in single precision.
    """
    model = job.model
    if model.get_layer(backbones.BODY).layers[-1].dtype_policy.name == "float32":
        return keras.Model(model.inputs, model.outputs, name=model.name)
    plain = backbones.build(job.backbone, job.pixels.shape[1], start, tap, deck=recipe == "deck", classes=classes)
    backbones.copy_weights(model, plain)
    backbones.split(plain, max(1, job.settings.unfrozen))  # so that the stored file also shows which layers were frozen
    return plain


def _validation(network: Network, job: twophase.Job, table: pd.DataFrame) -> dict[str, float]:
    """Return the metrics of the model in its stored form. During the fit they may be in mixed precision."""
    rows = np.flatnonzero(table["part"] == "validation")
    pixels, truth = job.pixels[rows], job.labels[rows]

    def ask() -> NDArray[np.float64]:
        network.batch_size = job.batch_size
        return network.probabilities(pixels, "validation images")

    probability = twophase.within_memory(job, ask)
    return {
        "auroc": float(roc_auc_score(truth, probability)),  # macro, each class against the rest
        "loss": float(-np.log(np.maximum((probability * truth).sum(axis=1), keras.config.epsilon())).mean()),
        "accuracy": metrics.accuracy(truth.argmax(axis=1), probability),
    }


def _tidy(work: Path, output: Path, checkpoint: str) -> None:
    """Remove everything from the work folder that a repeated run does not need.

    A folder within the output is deleted. Any other one keeps the finished training: a repeated run returns it, while
    other trainings may still be running.
    """
    if work.parent == output / ".work":
        shutil.rmtree(work.parent)
        return
    ready = work / "ready"
    shutil.rmtree(ready, ignore_errors=True)
    ready.mkdir()
    tables_of_it = ("history.csv", "history.png", "parts.csv", "folds.parquet")
    for name in (checkpoint, GRAPH, *tables_of_it, record.DIAGNOSIS, "train.json"):
        if (output / name).exists():
            shutil.copy(output / name, ready / name)
    if (output / "tensorboard").is_dir():
        shutil.copytree(output / "tensorboard", ready / "tensorboard")
    ready.replace(work / "done")
    for rest in work.iterdir():
        if rest.name != "done":
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink()


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command `python -m thyroid.train`."""
    parser = argparse.ArgumentParser(prog="python -m thyroid.train", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="data version of thyroid.crop")
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint and its history")
    parser.add_argument("--backbone", required=True, help=", ".join(backbones.BACKBONES))
    parser.add_argument("--domain", choices=tables.DOMAINS, help="default: the data version's first")
    parser.add_argument("--weights", default="imagenet", help="imagenet, none, a *.weights.h5 file or a folder of them")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=15, help="of fine-tuning")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    recipes = f"{', '.join(backbones.RECIPES)}, or a settings.json of thyroid.sweep"
    parser.add_argument("--recipe", default="two-phase", help=recipes)
    parser.add_argument("--registry", dest="registry_root", help="whose champion the warm recipe starts from")
    parser.add_argument("--champion", type=int, help="its version; default: the present one")
    parser.add_argument("--tap", default="", help="layer of the body to end at, for instance block4_pool")
    parser.add_argument("--folds", type=int, default=0, help="also cross-validate by patient with so many folds")
    parser.add_argument("--only-fold", type=int, default=0, help="of these folds train this one")
    parser.add_argument("--deterministic", action="store_true", help="the same seed gives the same bits, more slowly")
    budget = "bytes; larger arrays are paged from a temporary file"
    parser.add_argument("--memory-budget", type=int, default=inputs.MEMORY_BUDGET, help=budget)
    parser.add_argument("--work", type=Path, help="folder that outlives the process; default: within the output")
    train(**vars(parser.parse_args(argv)))
