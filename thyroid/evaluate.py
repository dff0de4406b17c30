"""Score every trained model, choose the winner on validation or by cross-validation, diagnose all, write the report.

python -m thyroid.evaluate --data DIR --models DIR [DIR ...] --output DIR
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, roc_curve

from thyroid import crop, diagnose, errors, images, inputs, metrics, phantom, plots, registry, report, tables, train
from thyroid.backend import keras
from thyroid.errors import InputError
from thyroid.names import CLASSES, POSITIVE
from thyroid.train import PROBABILITIES


@dataclass(frozen=True)
class Evaluated:
    """Folder with predictions.parquet, evaluation.json (`facts`), report.html, plots/ and the winner's artefact."""

    folder: Path
    facts: dict[str, Any]


def evaluate(
    data: Path, models: Sequence[Path], output: Path, serving_domain: str | None = None, seed: int = 0
) -> Evaluated:
    """Score `models` and choose the one with the highest AUROC in the serving domain on patients it was not trained on.

    These are the validation patients or, where every model was cross-validated (`train --folds`), all development patients,
    each scored by a model that did not see them. The test set is scored for the report and never chooses.

    Args:
        data: data version of `crop`.
        models: folders of `train`.
        output: folder to write to.
        serving_domain: where models are compared; None for the first trained domain.
        seed: of the bootstrap.

    Raises:
        InputError: no model, a model of another data version, one backbone twice on a domain, or a serving domain without
            images.
    """
    started = time.monotonic()
    facts = tables.read(data)[2]
    trained = [(folder, train.read(folder)) for folder in models]
    if not trained:
        raise InputError("there is no model to evaluate")
    for folder, model in trained:
        if model["data_digest"] != facts["digest"]:
            raise InputError(f"{folder}: trained on another data version than {data}")
    keys = [(model["backbone"], model["train_domain"]) for _, model in trained]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise InputError(f"{twice[0][0]} trained on {twice[0][1]} is given twice; compare one recipe at a time")
    domains = [d for d in tables.DOMAINS if d in {model["train_domain"] for _, model in trained}]
    serving_domain = serving_domain or next((d for d in facts["domains"] if d in domains), domains[0])
    domains = list(dict.fromkeys([*domains, serving_domain]))

    (output / "plots").mkdir(parents=True, exist_ok=True)
    parts, diagnoses = [], []
    for folder, model in trained:
        print(f"scoring {model['backbone']} trained on {model['train_domain']}", flush=True)
        network = registry.load_keras(folder / model["checkpoint"])
        parts.append(_predict(data, network, model, domains))
        diagnoses.append(diagnose.diagnose(data, folder, network))
        keras.backend.clear_session()
    predictions = pd.concat(parts, ignore_index=True)
    predictions.to_parquet(output / "predictions.parquet", index=False)
    rows = [_figures(folder, model, predictions, domains, serving_domain, seed) for folder, model in trained]
    ranked_by = "cross_validation" if all("cross_validation" in row for row in rows) else "validation"
    rows.sort(key=lambda row: (-row[ranked_by]["auroc"], row["parameters"]))
    winner = {key: rows[0][key] for key in ("backbone", "train_domain")}
    winner_folder = next(f for f, m in trained if {k: m[k] for k in winner} == winner)

    result = {
        "data": {
            key: facts[key] for key in ("digest", "scans", "quarantined", "patients", "duplicate_groups", "splits")
        },
        "models": rows,
        "ranked_by": ranked_by,
        "winner": winner,
        "diagnosis": [diagnosis.facts() for diagnosis in diagnoses],
        "serving_domain": serving_domain,
        "domains": domains,
        "seconds": facts["seconds"] | {_step(row): row["seconds"] for row in rows},
    }
    _draw(predictions, rows, ranked_by, domains, serving_domain, output / "plots")
    plots.diagnosis(result["diagnosis"], output / "plots" / "diagnosis.png")
    _artefact(winner_folder, rows[0], facts, serving_domain, output / "artefact")
    result["seconds"]["evaluate"] = round(time.monotonic() - started, 1)
    report.write(output, data, facts, result)
    tables.write_json(output / "evaluation.json", result)
    _print_ranking(rows, ranked_by, winner, serving_domain)
    for diagnosis in diagnoses:
        if diagnosis.findings:
            print(diagnose.tell(diagnosis))
    return Evaluated(output, result)


def of_model(predictions: pd.DataFrame, row: dict[str, Any], domain: str, split: str) -> pd.DataFrame:
    """The predictions of one model in one domain and split."""
    return predictions[
        (predictions["backbone"] == row["backbone"])
        & (predictions["train_domain"] == row["train_domain"])
        & (predictions["domain"] == domain)
        & (predictions["split"] == split)
    ]


def roc_points(table: pd.DataFrame) -> tuple[list[float], list[float], list[float]]:
    """False positive rate, true positive rate and threshold; the first threshold is 1, not infinity."""
    fpr, tpr, threshold = roc_curve(table["label"] == CLASSES[POSITIVE], table[PROBABILITIES[POSITIVE]])
    return fpr.tolist(), tpr.tolist(), np.minimum(threshold, 1.0).tolist()


def confusion(table: pd.DataFrame) -> NDArray[np.int64]:
    """Counts [true, predicted] in the order of `names.CLASSES`, at the more probable class."""
    predicted = np.array(CLASSES)[table[PROBABILITIES].to_numpy().argmax(axis=1)]
    return confusion_matrix(table["label"], predicted, labels=list(CLASSES))


def _step(row: dict[str, Any]) -> str:
    return f"train-{row['backbone']}-{row['train_domain']}"


def _predict(data: Path, network: Any, model: dict[str, Any], domains: Sequence[str]) -> pd.DataFrame:
    parts = []
    for domain in domains:
        for split in ("validation", "test"):
            table = crop.examples(data, domain, split)
            if table.empty:
                raise InputError(f"{data}: the {domain} domain has no image in the {split} split")
            probability = inputs.predict(network, inputs.decode(table, model["image_size"]))
            table.insert(0, "domain", domain)
            table.insert(0, "train_domain", model["train_domain"])
            table.insert(0, "backbone", model["backbone"])
            table[PROBABILITIES] = probability
            table["file"] = [str(Path(file).relative_to(data)) for file in table["file"]]
            parts.append(table.drop(columns="sha256"))
    return pd.concat(parts, ignore_index=True)


def auroc_of(table: pd.DataFrame, seed: int = 0) -> metrics.Interval:
    """AUROC of predictions; out-of-fold ones, which have a column fold, are compared within their fold."""
    positive, score = table["label"] == CLASSES[POSITIVE], table[PROBABILITIES[POSITIVE]]
    return metrics.auroc(positive, score, table["patient"].astype(int), seed=seed, fold=table.get("fold"))


def _figures(
    folder: Path,
    model: dict[str, Any],
    predictions: pd.DataFrame,
    domains: Sequence[str],
    serving_domain: str,
    seed: int,
) -> dict[str, Any]:
    """One row of the ranking, as it stands in summary.json."""
    chosen_by = {"validation": auroc_of(of_model(predictions, model, serving_domain, "validation"), seed)}
    if model["folds"] and not model["only_fold"]:
        chosen_by["cross_validation"] = cross_validated(folder, serving_domain, seed)
    test = {}
    for domain in domains:
        table = of_model(predictions, model, domain, "test")
        positive, score = table["label"] == CLASSES[POSITIVE], table[PROBABILITIES[POSITIVE]]
        test[domain] = {
            "n": len(table),
            "auroc": asdict(auroc_of(table, seed)),
            "accuracy": metrics.accuracy(positive, score),
            "majority": metrics.majority(positive),
            "confusion": confusion(table).tolist(),
        }
    kept = ("backbone", "train_domain", "recipe", "weights", "image_size", "parameters", "checkpoint", "seconds")
    return {key: model[key] for key in kept} | {
        "bytes": (folder / model["checkpoint"]).stat().st_size,
        "test": test,
        **{name: {"auroc": one.value, "low": one.low, "high": one.high} for name, one in chosen_by.items()},
    }


def cross_validated(folder: Path, domain: str, seed: int = 0) -> metrics.Interval:
    """AUROC of a training's out-of-fold predictions in a domain."""
    return auroc_of(train.out_of_fold(folder, domain), seed)


def _draw(
    predictions: pd.DataFrame,
    rows: Sequence[dict[str, Any]],
    ranked_by: str,
    domains: Sequence[str],
    serving_domain: str,
    folder: Path,
) -> None:
    for row in rows:
        name, title = f"{row['backbone']}-{row['train_domain']}", f"{row['backbone']} trained on {row['train_domain']}"
        table = of_model(predictions, row, serving_domain, "test")
        title = f"{title}, {serving_domain} test set"
        interval = metrics.Interval(**row["test"][serving_domain]["auroc"])
        plots.roc(table["label"].tolist(), table[PROBABILITIES].to_numpy(), title, interval, folder / f"roc-{name}.png")
        plots.confusion(np.array(row["test"][serving_domain]["confusion"]), title, folder / f"confusion-{name}.png")
    plots.ranking(
        [
            (
                f"{row['backbone']} ({row['train_domain']})",
                metrics.Interval.of(row[ranked_by]),
                metrics.Interval(**row["test"][serving_domain]["auroc"]),
            )
            for row in rows
        ],
        report.CHOSEN_BY[ranked_by],
        folder / "ranking.png",
    )
    if len(domains) > 1:
        for backbone in dict.fromkeys(row["backbone"] for row in rows):
            mine = {row["train_domain"]: row for row in rows if row["backbone"] == backbone}
            cells = {(t, d): metrics.Interval(**mine[t]["test"][d]["auroc"]) for t in mine for d in domains}
            if set(mine) >= set(domains):
                plots.domain_matrix(cells, domains, f"{backbone}: test AUROC", folder / f"domains-{backbone}.png")


def _artefact(folder: Path, row: dict[str, Any], facts: dict[str, Any], serving_domain: str, output: Path) -> None:
    """The winner as the registry takes it: model.keras, a synthetic reference image with its answer, model.json."""
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / row["checkpoint"]
    reference = images.encode(crop.normal(phantom.draw("M", patient=1, image=1).image))
    (output / "reference.jpg").write_bytes(reference)
    network = registry.load_keras(checkpoint)
    pixels = images.rgb(images.square(reference, row["image_size"]))
    probability = network.predict(pixels[None], verbose=0)[0]
    (output / "model.keras").write_bytes(checkpoint.read_bytes())
    registry.describe(
        output,
        {
            "name": registry.NAME,
            "backbone": row["backbone"],
            "weights": row["weights"],
            "classes": list(CLASSES),
            "image_size": row["image_size"],
            "domain": row["train_domain"],
            "serving_domain": serving_domain,
            "parameters": row["parameters"],
            "data_digest": facts["digest"],
            "reference": dict(zip(CLASSES, probability.astype(float).tolist(), strict=True)),
            "forms": {"keras": {"validation": row["validation"], "test": row["test"]}},
        },
    )


def _print_ranking(rows: Sequence[dict[str, Any]], ranked_by: str, winner: dict[str, Any], serving_domain: str) -> None:
    name = report.CHOSEN_BY[ranked_by]
    print(f"\nRanking by {name} AUROC in the {serving_domain} domain (95 % intervals over patients)")
    print(f"{'model':<28}{name:<24}{'test':<24}{'accuracy':>9}{'majority':>10}{'parameters':>13}{'MB':>7}")
    for row in rows:
        validation = metrics.Interval.of(row[ranked_by])
        test = row["test"][serving_domain]
        print(
            f"{row['backbone'] + ' (' + row['train_domain'] + ')':<28}{validation!s:<24}"
            f"{metrics.Interval(**test['auroc'])!s:<24}{test['accuracy']:>9.3f}{test['majority']:>10.3f}"
            f"{row['parameters']:>13,}{row['bytes'] / 1e6:>7.0f}"
        )
    print(f"Winner, chosen by {name}: {winner['backbone']} trained on {winner['train_domain']}\n")


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m thyroid.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="data version of thyroid.crop")
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="folders of thyroid.train")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--serving-domain", choices=tables.DOMAINS, help="default: the first trained domain")
    parser.add_argument("--seed", type=int, default=0)
    evaluate(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    raise SystemExit(main())
