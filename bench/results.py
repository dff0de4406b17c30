"""Compares recipes, and what every backbone needs: writes results.md, results.json and results.png.

    python bench/results.py --data DIR --weights DIR --output docs
    python bench/results.py --runs SWEEP GRADED CLINICAL --output docs

The recipes are cross-validated by patient on the development part of a data version. The test set is not read. If the
command is stopped, the same command resumes from --work. With --runs, results.md also holds the results of searches
(`make sweep`), of runs with more than two classes and of runs with clinical columns (`make run`), in the given order.
What bench/descriptors.py and others measure stands below these, and is kept as it is.
"""

import argparse
import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thyroid import RESEARCH_USE_ONLY, atomic, errors, metrics
from thyroid.data import tables
from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, POSITIVE, SCORE
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.evaluate import plots
from thyroid.evaluate.performance import auroc
from thyroid.imaging import images
from thyroid.metrics import format_interval
from thyroid.model import backbones, inputs
from thyroid.model.backend import keras
from thyroid.records.clinical import ClinicalRecord, FusionComparison
from thyroid.records.data import DataRecord
from thyroid.records.evaluation import SummaryRecord
from thyroid.records.settings import Settings
from thyroid.train import checkpoints, diagnose, record, train, twophase
from thyroid.train.deck import RATE as DECK_RATE
from thyroid.train.options import TrainOptions

FOLDS = 5
DECK_EPOCHS = 15
MEMORY_SIZE = 224
MEMORY_BATCHES = (8, 16)
MEMORY_TARGET = 32
MEMORY_STEPS = 3
RUNS = "<!-- below: python bench/results.py --runs -->"
OTHERS = "<!-- below: other benchmarks, each with its command -->"
"""Marks what is written by hand below all sections of this file."""


def performance(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> dict[str, Any]:
    """Return the AUROC, the accuracy and the majority of predictions, and the paired AUROC difference to `reference`.

    Args:
        table: Predictions, one row per image.
        reference: Predictions on the same images to compare with; None leaves the difference out.
    """
    positive = table["label"] == CLASSES[POSITIVE]
    score = table[SCORE]
    row: dict[str, Any] = {
        "auroc": auroc(table),
        "accuracy": metrics.accuracy(positive, np.stack([1 - score, score], axis=1)),
        "majority": metrics.majority(positive),
    }
    if reference is not None:
        other = reference.set_index("file").loc[table["file"], SCORE].to_numpy()
        patient = table["patient"].astype(int)
        row["difference"] = metrics.auroc_difference(positive, score, other, patient, fold=table["fold"])
    return row


def recipes(
    data: Path, domain: str, weights: str, size: int, work: Path, *, epochs: int, deck_epochs: int
) -> list[dict[str, Any]]:
    """Train VGG16 with every recipe: frozen, two-phase and a shallower tap on all folds, the deck's on the first."""
    common: dict[str, Any] = {"weights": weights, "image_size": size, "folds": FOLDS, "work": work / "trainings"}
    rows = []
    folders = {}
    ways: dict[str, dict[str, Any]] = {
        "frozen": {"recipe": "frozen"},
        "two-phase": {"recipe": "two-phase", "epochs": epochs},
        "frozen, tapped at block4_pool": {"recipe": "frozen", "tap": "block4_pool"},
        "deck": {"recipe": "deck", "epochs": deck_epochs, "only_fold": 1},
    }
    for name, options in ways.items():
        folder = work / f"VGG16-{name.replace(', ', '-').replace(' ', '-')}"
        done = train.train(data, folder, "VGG16", domain, TrainOptions(**common | options))
        folders[name] = folder
        table = record.out_of_fold(folder, domain)
        reference = None if name == "frozen" else record.out_of_fold(folders["frozen"], domain)
        row = {"recipe": name, "seconds": done.record.seconds, "measured": "all folds and the final model"}
        row |= performance(table, reference)
        if name == "deck":
            epoch = float(pd.read_csv(folder / "history.csv")["seconds"].min())
            row |= {
                "seconds": epoch * DECK_EPOCHS,
                "measured": f"fold 1 after {deck_epochs} epochs; one training of {DECK_EPOCHS} epochs, extrapolated",
                "diagnosis": diagnose.diagnose(data, folder),
            }
            first = record.out_of_fold(folders["two-phase"], domain)
            rows.append(
                {"recipe": "two-phase, fold 1 alone", "seconds": None, "measured": "as above"}
                | performance(first[first["fold"] == 1])
            )
        rows.append(row)
        keras.backend.clear_session()
    return rows


def sizes(data: Path, domain: str, weights: str, size: int, work: Path) -> list[dict[str, Any]]:
    """Measure every backbone's size, frozen cross-validated AUROC, input of the first convolution, and memory."""
    rows = []
    pixels = inputs.decode(DataVersion.read(data).examples(domain, "validation").head(diagnose.SAMPLE), size)
    for name, row in backbones.BACKBONES.items():
        folder = work / f"{name}-frozen"
        trainings = work / "trainings"
        options = TrainOptions(weights=weights, image_size=size, folds=FOLDS, recipe="frozen", work=trainings)
        done = train.train(data, folder, name, domain, options)
        start = backbones.find_weights(row, weights)
        spread = {
            recipe: diagnose.scale(name, backbones.build(row, size, start, deck=recipe == "deck"), pixels)
            for recipe in ("two-phase", "deck")
        }
        rows.append(
            {
                "backbone": name,
                "parameters": done.record.parameters,
                "megabytes": (folder / done.record.checkpoint).stat().st_size / 1e6,
                "weights": done.record.weights,
                "seconds": done.record.seconds,
                "spread": spread,
                "memory": memory(name),
            }
            | performance(record.out_of_fold(folder, domain))
        )
        keras.backend.clear_session()
    return rows


def memory(backbone: str) -> dict[str, dict[int, float]]:
    """Return the peak memory in GB by recipe and batch size.

    Each is measured in a process of its own, except that of `MEMORY_TARGET`, which is extrapolated.
    """
    result: dict[str, dict[int, float]] = {}
    for recipe in ("two-phase", "deck"):
        measured = {}
        for batch in MEMORY_BATCHES:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                measured[batch] = pool.submit(_peak, backbone, recipe, batch).result()
            print(f"{backbone}, {recipe}: {measured[batch]:.2f} GB at batch {batch}", flush=True)
        small, large = MEMORY_BATCHES
        slope = (measured[large] - measured[small]) / (large - small)
        result[recipe] = measured | {MEMORY_TARGET: measured[large] + slope * (MEMORY_TARGET - large)}
    return result


def _peak(backbone: str, recipe: str, batch: int) -> float:
    """Train a few steps on noise images of `MEMORY_SIZE` pixels and return the process's peak memory in GB."""
    row = backbones.get(backbone)
    shape = (batch * MEMORY_STEPS, MEMORY_SIZE, MEMORY_SIZE)
    pixels = np.random.default_rng(0).integers(0, 255, (*shape, 1), dtype=np.uint8)
    labels = np.eye(len(CLASSES), dtype=np.float32)[np.arange(len(pixels)) % len(CLASSES)]
    model = backbones.build(row, MEMORY_SIZE, None, deck=recipe == "deck")
    if recipe == "deck":
        network = keras.Model(model.input, model.output)
        twophase.compile_model(network, DECK_RATE, smoothing=0.0)
        network.fit(images.rgb(pixels), labels, batch_size=batch, verbose=0)
    else:
        job = twophase.Job(model, row, pixels, labels, Path(), 1, batch, 0, 0.0)
        extractor, _, tuner = job.networks()
        maps = extractor.predict(inputs.batches(pixels, batch), verbose=0)
        twophase.compile_model(tuner, Settings().rate)
        tuner.fit(maps, labels, batch_size=batch, verbose=0)
    return checkpoints.memory()["memory_mb"] / 1000


def write(
    output: Path,
    facts: DataRecord,
    settings: dict[str, Any],
    compared: list[dict[str, Any]],
    sized: list[dict[str, Any]],
) -> None:
    """Write results.md for people, results.json for machines, and results.png."""
    output.mkdir(parents=True, exist_ok=True)
    deck = next(row for row in compared if row["recipe"] == "deck")
    two_phase = next(row for row in compared if row["recipe"] == "two-phase")
    tap = next(row for row in compared if "tapped" in row["recipe"])
    splits = facts.splits
    development = {label: splits["train"][label] + splits["validation"][label] for label in CLASSES}
    lines = [
        "# Results",
        "",
        f"> **{RESEARCH_USE_ONLY}**",
        "",
        f"Written by `make results` (`python bench/results.py`). Data version `{facts.digest[:12]}`: "
        f"{development['B']} benign and {development['M']} malignant scans of the development part "
        f"({splits['train']['patients'] + splits['validation']['patients']} patients), domain {settings['domain']}, "
        f"{settings['size']} px, start {settings['weights']}. Patient-grouped {FOLDS}-fold cross-validation; every "
        "image is scored by a model that saw none of its patient's. Brackets: 95 % intervals over patients. The test "
        "set was not read.",
        "",
        "## Recipes (VGG16)",
        "",
        "| recipe | AUROC | less frozen, paired | accuracy | majority | seconds | measured on |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row['recipe']} | {row['auroc']} | {row.get('difference', '')} | {row['accuracy']:.3f} | "
            f"{row['majority']:.3f} | {'' if row['seconds'] is None else round(row['seconds'])} | {row['measured']} |"
            for row in compared
        ),
        "",
        "![AUROC of every recipe with its interval](results.png)",
        "",
        _conclusion("Fine-tuning the last block", two_phase["difference"], "the frozen features"),
        _conclusion("Tapping the body at block4", tap["difference"], "its last block"),
        "",
        "## Why the deck's recipe fails",
        "",
        f"After {settings['deck_epochs']} epochs, `python -m thyroid.diagnose` finds:",
        "",
        *(f"- **{name}**: {text}" for name, text in deck["diagnosis"].findings.items()),
        "",
        "Standard deviation of what reaches the first convolution, by what is done to the image before:",
        "",
        "| backbone | as its weights expect | the deck's 1/255 | factor |",
        "|---|---|---|---|",
        *(
            f"| {row['backbone']} | {row['spread']['two-phase']['stem_spread']:.3g} | "
            f"{row['spread']['deck']['stem_spread']:.3g} | "
            f"{row['spread']['two-phase']['stem_spread'] / row['spread']['deck']['stem_spread']:.0f} |"
            for row in sized
        ),
        "",
        "## Size against result",
        "",
        "Frozen phase and head only. A backbone that starts from none has random weights: its result says nothing "
        "about it.",
        "",
        "| backbone | start | parameters | MB | AUROC | accuracy | majority | seconds |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {row['backbone']} | {row['weights']} | {row['parameters']:,} | {row['megabytes']:.0f} | "
            f"{row['auroc']} | "
            f"{row['accuracy']:.3f} | {row['majority']:.3f} | {row['seconds']:.0f} |"
            for row in sorted(sized, key=lambda row: row["parameters"])
        ),
        "",
        "## Memory",
        "",
        f"Peak of the process in GB at {MEMORY_SIZE} px over {MEMORY_STEPS} steps on a CPU: batches of "
        f"{' and '.join(map(str, MEMORY_BATCHES))} measured, {MEMORY_TARGET} extrapolated on a line. Two-phase keeps "
        "no activations of the frozen part. On Kubeflow the training step requests the two-phase figure and the memory "
        "budget for images and maps (4 GB), and its limit is the deck's figure.",
        "",
        "| backbone | "
        + " | ".join(
            f"{recipe}, {batch}" for recipe in ("two-phase", "deck") for batch in (*MEMORY_BATCHES, MEMORY_TARGET)
        )
        + " |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row['backbone']} | "
            + " | ".join(f"{value:.1f}" for by_batch in row["memory"].values() for value in by_batch.values())
            + " |"
            for row in sized
        ),
        "",
    ]
    (output / "results.md").write_text("\n".join(lines) + _kept(output), encoding="utf-8")
    atomic.write_json(output / "results.json", {"memory_gb": {row["backbone"]: row["memory"] for row in sized}})
    forest = [(row["recipe"], row["auroc"]) for row in compared]
    plots.forest(forest + [(f"{row['backbone']}, frozen", row["auroc"]) for row in sized], output / "results.png")


def _kept(output: Path) -> str:
    """Return the part of results.md that an earlier call with --runs wrote."""
    file = output / "results.md"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return RUNS + text.partition(RUNS)[2] if RUNS in text else ""


def write_runs(output: Path, runs: Sequence[Path]) -> None:
    """Write the results of runs to results.md, in place of those of earlier runs.

    Args:
        output: Folder of results.md.
        runs: Outputs of `make sweep` or `make run`.

    Raises:
        InputError: A folder is not such an output.
    """
    output.mkdir(parents=True, exist_ok=True)
    file = output / "results.md"
    text = file.read_text(encoding="utf-8") if file.exists() else f"# Results\n\n> **{RESEARCH_USE_ONLY}**\n"
    written, mark, others = text.partition(OTHERS)
    above = written.partition(RUNS)[0]
    sections = [RUNS, ""]
    for run in runs:
        try:
            if (study := run / "sweep" / "study.json").is_file():
                sections += _search(json.loads(study.read_text()))
            else:
                sections += _run(run)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{run}: not the output of make sweep or make run: {errors.one_line(error)}") from None
    file.write_text(above.rstrip() + "\n\n" + "\n".join(sections) + mark + others, encoding="utf-8")


def _run(run: Path) -> list[str]:
    summary = SummaryRecord.read(run / "summary.json")
    if summary.clinical is not None and summary.clinical.development is not None:
        return _columns(summary, summary.clinical, summary.clinical.development)
    if len(summary.classes) > len(CLASSES):
        return _graded(summary)
    raise InputError(f"{run}: two classes and no clinical columns that were tried; name such runs")


def _search(study: dict[str, Any]) -> list[str]:
    plan = study["plan"]
    return [
        "## Search",
        "",
        f"`make sweep`: {plan['backbone']} on {tables.DOMAIN_NAMES[plan['domain']]}, data version "
        f"`{plan['data_digest'][:12]}`, "
        f"start {plan['weights']}. Macro AUROC out of fold, patient-grouped; the test set was not read.",
        "",
        "| stage | trials (pruned, failed) | default settings | best | paired difference | "
        "left when other patients choose than judge |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {stage['finished'] + stage['pruned'] + stage['failed']} "
            f"({stage['pruned']}, {stage['failed']}) | "
            f"{metrics.Interval(**stage['default']['auroc'])} | "
            f"{metrics.Interval(**stage['best']['auroc'])} | "
            f"{metrics.Interval(**stage['difference'])} | "
            f"{metrics.Interval(**stage['corrected']['difference']) if stage['corrected'] else 'n/a'} |"
            for name, stage in study["stages"].items()
        ),
        "",
        study["helped"],
        "",
        "Settings found: " + ", ".join(f"{name} {value}" for name, value in study["chosen"]["settings"].items()) + ".",
        "",
    ]


def _about(summary: SummaryRecord) -> str:
    best, data = summary.models[0], summary.data
    by_class = {name: sum(part[name] for part in data.splits.values()) for name in summary.classes}
    counts = ", ".join(f"{count} of {name}" for name, count in by_class.items())
    return (
        f"{best.backbone}, {best.recipe}, {best.image_size} px, start {best.weights}, on "
        f"{tables.DOMAIN_NAMES[summary.serving_domain]}; data version `{data.digest[:12]}`: {counts}; classes "
        f"`{Classes.from_record(summary)}`"
    )


def _graded(summary: SummaryRecord) -> list[str]:
    best, domain = summary.models[0], summary.serving_domain
    test = best.test[domain]
    return [
        f"## {len(summary.classes)} classes",
        "",
        f"`make run LABELS=... CLASSES=...`: {_about(summary)}. {test.n} test images of {test.patients} patients.",
        "",
        "| class against all others | test images | patients | AUROC | sensitivity at its own point | specificity |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {row.n} | {row.patients} | {format_interval(row.auroc)} | "
            f"{format_interval(row.sensitivity)} | {format_interval(row.specificity)} |"
            for name, row in test.classes.items()
        ),
        f"| macro (mean) | {test.n} | {test.patients} | {format_interval(test.macro_auroc)} | | |",
        "",
        f"Malignant side against benign side: AUROC {format_interval(test.auroc)}, "
        f"{summary.ranked_by.replace('_', '-')} {best.chosen_by(summary.ranked_by)}. "
        f"{'Quadratic-weighted kappa' if summary.ordered else 'Kappa'} {format_interval(test.kappa)}. "
        f"Accuracy {test.accuracy:.3f}, majority class alone {test.majority:.3f}. Gate: {summary.gate.decision}.",
        "",
    ]


def _columns(summary: SummaryRecord, clinical: ClinicalRecord, development: FusionComparison) -> list[str]:
    fitted, test = clinical.fitted_on, clinical.test
    if fitted is None or test is None:
        raise ValueError("its clinical columns were not compared on the test set")
    rows = (("images", "images alone"), ("clinical", "columns alone"), ("fused", "both"))
    gains = (("fused_less_images", "both less images, paired"), ("fused_less_clinical", "both less columns, paired"))
    return [
        "## Clinical data",
        "",
        f"`make run CLINICAL=...#{','.join(clinical.wanted)}`: {_about(summary)}. The head was fitted on "
        f"{fitted.images} images of {fitted.patients} {fitted.what}.",
        "",
        "| macro AUROC | development, cross-fitted | test set |",
        "|---|---|---|",
        *(f"| {name} | {development.auroc[key]} | {test.auroc[key]} |" for key, name in rows),
        *(f"| {name} | {development.difference[key]} | {test.difference[key]} |" for key, name in gains),
        "",
        f"{development.sentence} The model uses {', '.join(clinical.used) or 'the image alone'}.",
        "",
        *(f"- **Leakage**: {finding}." for finding in clinical.leaks.findings),
        "",
        f"Gate: {summary.gate.decision}. What gives the class away is no evidence that a model sees it.",
        "",
    ]


def _conclusion(what: str, difference: metrics.Interval, than: str) -> str:
    if difference.low is not None and difference.low > 0:
        return f"{what} is better than {than}: the paired difference's interval is above 0."
    if difference.high is not None and difference.high < 0:
        return f"{what} is worse than {than}: the paired difference's interval is below 0."
    return f"{what} is not shown to differ from {than}: the paired difference's interval holds 0."


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python bench/results.py", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="data version of thyroid.crop")
    parser.add_argument(
        "--runs", type=Path, nargs="+", help="outputs of make sweep and make run: write what they found"
    )
    parser.add_argument("--output", type=Path, default=Path("docs"))
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("results-work"),
        help="folder for trainings; kept, so that a stop costs little",
    )
    parser.add_argument("--domain", choices=tables.DOMAINS, default="cropped")
    parser.add_argument("--weights", default="imagenet", help="imagenet, none, a *.weights.h5 file or a folder of them")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=8, help="of fine-tuning")
    parser.add_argument(
        "--deck-epochs", type=int, default=3, help="of the deck's recipe; the time of 15 is extrapolated"
    )
    given = parser.parse_args(argv)
    if given.runs:
        write_runs(given.output, given.runs)
        print(f"{given.output / 'results.md'}\n{RESEARCH_USE_ONLY}")
    if given.data is None:
        if not given.runs:
            raise InputError("--data or --runs is needed: a data version, or outputs of runs")
        return
    data = DataVersion.read(given.data)
    if data.examples(given.domain).empty:
        raise InputError(f"{given.data}: the {given.domain} domain has no image")
    common = (given.data, given.domain, given.weights, given.image_size, given.work)
    compared = recipes(*common, epochs=given.epochs, deck_epochs=given.deck_epochs)
    sized = sizes(*common)
    settings = {"domain": given.domain, "size": given.image_size, "deck_epochs": given.deck_epochs}
    settings["weights"] = next(row["weights"] for row in sized if row["backbone"] == "VGG16")
    write(given.output, data.facts, settings, compared, sized)
    print(f"{given.output / 'results.md'}\n{RESEARCH_USE_ONLY}")


if __name__ == "__main__":
    raise SystemExit(main())
