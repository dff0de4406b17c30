"""Lock operating points, choose the winner, score the test set, audit the winner and decide whether it may be released.

python -m thyroid.evaluate --data DIR --models DIR [DIR ...] --output DIR
"""

import argparse
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid import atomic, cores, errors, metrics, progress
from thyroid.data import classes as kinds
from thyroid.data import tables
from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, POSITIVE, SCORE
from thyroid.errors import InputError
from thyroid.evaluate import artefact, audits, clinical_model, gate, performance, plots, predictions, report, subgroups
from thyroid.evaluate.predictions import Trained
from thyroid.imaging import images
from thyroid.model import artefacts, explain, inputs, operating_point
from thyroid.model.network import Network
from thyroid.model.operating_point import OperatingPoint
from thyroid.registry import changes, register, registry
from thyroid.storage import Location
from thyroid.train import plots as training_plots
from thyroid.train import record
from thyroid.train.settings import Settings

log = logging.getLogger(__name__)

WORST = 4
"""Number of false negatives, and of false positives, that the report shows."""


@dataclass(frozen=True)
class Evaluated:
    """The output of an evaluation.

    Attributes:
        folder: Folder with predictions.parquet, operating_points.json, evaluation.json, report.html, plots/,
            patients.csv and the winner's artefact (artefact/).
        facts: Content of evaluation.json.
    """

    folder: Path
    facts: dict[str, Any]


def evaluate(
    data: Path,
    models: Sequence[Path],
    output: Path,
    serving_domain: str | None = None,
    sensitivity: float = operating_point.SENSITIVITY,
    abstain: float = 0.0,
    prevalence: float = operating_point.PREVALENCE,
    clinical: Location | None = None,
    registry_root: Location | None = None,
    waive: Sequence[str] = (),
    seed: int = 0,
) -> Evaluated:
    """Score `models`, choose the one with the highest AUROC in the serving domain, and submit it to the champion gate.

    Each model's temperature, bias and threshold are locked on validation patients of the serving domain. The winner is
    chosen on the same patients. Where every model was cross-validated (`train --folds`), it is chosen on all
    development patients instead, each scored by a model that did not see them. The operating points and the winner are
    written to operating_points.json before any test image is read. The test set is scored for the report and the gate,
    and never chooses.

    Args:
        data: Data version of `crop`.
        models: Output folders of `train`.
        output: Folder to write to.
        serving_domain: Domain in which the models are compared; None for the first trained domain.
        sensitivity: Sensitivity that the threshold must reach on validation, above 0, at most 1.
        abstain: Share of validation images to leave undecided, 0 to below 1.
        prevalence: Share of malignant nodules where the model would be used, between 0 and 1.
        clinical: clinical.csv, whose columns are explored and define subgroups, and the columns that the model may use;
            see `clinical_model.read`. None for no clinical data.
        registry_root: Root of the registry whose champion the winner is compared with; None for no registry.
        waive: Audits whose failure the gate ignores; see `gate.WAIVABLE`.
        seed: Seed of the bootstrap, 0 to 4294967295.

    Returns:
        The output folder and the content of its evaluation.json.

    Raises:
        InputError: There is no model, a model is of another data version, one backbone is given twice on a domain, the
            serving domain has no images, the test or validation part has one class only, clinical.csv cannot be used,
            or an argument is out of range.
        RuntimeError: OpenVINO could not convert the winner's network.
    """
    started = time.monotonic()
    operating_point.check(sensitivity, abstain, prevalence)
    if not 0 <= seed < 2**32:
        raise InputError(f"seed {seed}: must be between 0 and 4294967295")
    waive = gate.check_waivers(waive)
    scans, regions, facts = tables.read(data)
    trained, classes = predictions.trained_models(data, models, facts), kinds.of(facts)
    domains = [d for d in tables.DOMAINS if d in {one.facts["train_domain"] for one in trained}]
    serving_domain = serving_domain or next((d for d in facts["domains"] if d in domains), domains[0])
    domains = list(dict.fromkeys([*domains, serving_domain]))
    beside = None if clinical is None else clinical_model.read(clinical, tables.used(scans))

    _clean(output)
    decode = inputs.Decoded()
    networks = _load(data, trained, serving_domain, decode)
    validation, points = _lock(data, trained, networks, decode, classes, serving_domain, sensitivity, abstain)
    ranked_by, ranked = _choose(trained, validation, serving_domain, seed)
    winner = ranked[0][0]
    images_alone, helped = points[winner.key], clinical_model.Benefit()
    if beside is not None:
        place = trained.index(winner)
        raw = predictions.raw(validation[place], classes)
        helped = clinical_model.weigh(data, winner, raw, serving_domain, beside, output / "plots", seed)
        if helped.head is not None:
            fused = helped.fused(raw, classes)
            points[winner.key] = operating_point.lock(fused, classes, sensitivity, abstain)
            validation[place] = predictions.at_point(fused, points[winner.key], classes)
    locked = {"-".join(key): point.facts() for key, point in points.items()}
    chosen = {"winner": "-".join(winner.key), "points": locked, "columns": helped.facts.get("used", [])}
    atomic.write_json(output / "operating_points.json", chosen)
    shown = decode(predictions.examples(data, serving_domain, "test"), winner.facts["image_size"])
    exported = artefact.export(winner, shown, output / "artefact")

    test = []
    for one in trained:
        log.info(f"scoring {one.facts['backbone']} trained on {one.facts['train_domain']} on test")
        raw = predictions.predict(data, networks[one.key], one.facts, domains, "test", decode)
        if one is winner:
            by_images = predictions.at_point(raw.copy(), images_alone, classes)
            raw = helped.fused(raw, classes)
        test.append(predictions.at_point(raw, points[one.key], classes))
    table = pd.concat([*validation, *test], ignore_index=True)
    seen_by_images = predictions.of_model(by_images, winner.facts, serving_domain, "test")
    clinical_model.tell_on_test(helped, seen_by_images, predictions.raw(seen_by_images, classes), classes, seed)
    if beside is not None:
        table = table.join(beside.groups.add_prefix(subgroups.PREFIX), "path")
    changed = None if registry_root is None else changes.since_last(data, registry_root)
    if changed is not None:
        table["new"] = table["path"].map(tables.used(scans).set_index("path")["sha256"]).isin(list(changed.new))
    table["scan"] = table.pop("path").map(lambda path: Path(path).name)
    table.to_parquet(output / "predictions.parquet", index=False)

    ranking = [
        _row(one, chosen_by, points[one.key], table, classes, domains, serving_domain, sensitivity, prevalence, seed)
        for one, chosen_by in ranked
    ]
    best, point, network = ranking[0], points[winner.key], networks[winner.key]
    tested = predictions.of_model(table, best, serving_domain, "test")
    log.info(f"auditing {winner.facts['backbone']} trained on {winner.facts['train_domain']}")
    audited = audits.audit(
        data, serving_domain, winner.facts, network, winner.parts, seen_by_images, seed, decode, registry_root
    ).facts()
    others = _other_audits(data, trained, winner, networks, decode, domains, serving_domain, table, seed, registry_root)
    worst = _worst_cases(data, network, decode, tested, point, best["image_size"], output / "plots")
    rows = None if beside is None else beside.rows.loc[seen_by_images["path"]].reset_index(drop=True)
    shown_to = _images(data, tested)
    judging = tables.used(scans).query("split == 'test'").assign(cohort=facts["cohort"])
    current, anchor = gate.rivals(registry_root, shown_to, classes, serving_domain, judging, rows, decode)
    by_group = subgroups.figures(tested, point, prevalence, seed, current)
    result = {
        **classes.facts(),
        "data": {
            key: facts[key] for key in ("digest", "scans", "quarantined", "patients", "duplicate_groups", "splits")
        },
        "models": ranking,
        "ranked_by": ranked_by,
        "winner": {key: best[key] for key in ("backbone", "train_domain")},
        "serving_domain": serving_domain,
        "domains": domains,
        "changes": None if changed is None else _what_is_new(changed, tested, seed),
        "domain_matrix": _domain_matrix(table, ranking, domains, seed),
        "audits": audited,
        "other_audits": others,
        "subgroups": by_group,
        "clinical": None if beside is None else helped.facts,
        "gate": gate.decide(
            best,
            serving_domain,
            tested,
            audited,
            by_group,
            current,
            sensitivity,
            waive,
            seed,
            helped.facts or None,
            anchor,
        ),
        "settings": {"sensitivity": sensitivity, "abstain": abstain, "prevalence": prevalence},
        "worst": worst,
        "diagnosis": [record.diagnosis(one.folder) for one in trained],
        "seconds": facts["seconds"] | {_step(row): row["seconds"] for row in ranking},
    }
    checkpoint = artefacts.sha256(winner.folder / best["checkpoint"])
    result["gate"]["test_set_read_before"] = registry.read_test_set(
        registry_root, result["gate"]["test_digest"], checkpoint
    )
    _draw(table, result, points, output / "plots", seed)
    folder = output / "artefact"
    contents, columns = (
        tables.contents(scans, regions),
        helped.rows.loc[seen_by_images["path"]] if helped.head else None,
    )
    artefact.write(
        winner, network, exported, best, point, facts, result, contents, tested, folder, helped.head, columns
    )
    result["artefact"] = artefacts.sha256(folder / "model.json")
    patients = scans.loc[contents.index, ["patient"]].assign(cohort=facts["cohort"])
    patients.to_csv(output / register.PATIENTS, index=False)
    result["patients"] = artefacts.sha256(output / register.PATIENTS)
    result["seconds"]["evaluate"] = round(time.monotonic() - started, 1)
    report.write(output, data, facts, result)
    atomic.write_json(output / "evaluation.json", result)
    _tell(result)
    return Evaluated(output, result)


def _clean(output: Path) -> None:
    """Remove the results of an earlier evaluation, so that they cannot be mistaken for those of this one."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "evaluation.json").unlink(missing_ok=True)
    for name in ("plots", "artefact"):
        shutil.rmtree(output / name, ignore_errors=True)
    (output / "plots").mkdir()


def _load(
    data: Path, trained: Sequence[Trained], serving_domain: str, decode: inputs.Decode
) -> dict[tuple[str, str], Network]:
    """Load every model's network and score the validation images with it.

    The networks are loaded in parallel, because TensorFlow prepares a graph on one core.
    """
    table = predictions.examples(data, serving_domain, "validation")
    sizes = {one.facts["image_size"] for one in trained}
    pixels = {size: decode(table, size) for size in sizes}

    def load(one: Trained) -> Network:
        network = one.load()
        network.probabilities(pixels[one.facts["image_size"]], "validation images")
        return network

    with ThreadPoolExecutor(cores.available()) as pool:
        loaded = progress.bar(pool.map(load, trained), len(trained), "load networks", "network")
        return {one.key: network for one, network in zip(trained, loaded, strict=True)}


def _lock(
    data: Path,
    trained: Sequence[Trained],
    networks: Mapping[tuple[str, str], Network],
    decode: inputs.Decode,
    classes: Classes,
    serving_domain: str,
    sensitivity: float,
    abstain: float,
) -> tuple[list[pd.DataFrame], dict[tuple[str, str], OperatingPoint]]:
    """Return every model's validation predictions in the serving domain, and the operating points locked on them."""
    locked, points = [], {}
    for one in trained:
        log.info(f"locking {one.facts['backbone']} trained on {one.facts['train_domain']} on validation")
        table = predictions.predict(data, networks[one.key], one.facts, [serving_domain], "validation", decode)
        points[one.key] = operating_point.lock(table, classes, sensitivity, abstain)
        locked.append(predictions.at_point(table, points[one.key], classes))
    return locked, points


def _choose(
    trained: Sequence[Trained], validation: Sequence[pd.DataFrame], serving_domain: str, seed: int
) -> tuple[str, list[tuple[Trained, dict[str, dict[str, float | None]]]]]:
    """Return the name of the AUROC that ranks the models, and the models with their AUROCs, best first."""
    rows = []
    for one, table in zip(trained, validation, strict=True):
        found = {"validation": performance.auroc(table, seed)}
        if one.facts["folds"] and not one.facts["only_fold"]:
            found["cross_validation"] = performance.auroc(record.out_of_fold(one.folder, serving_domain), seed)
        chosen_by: dict[str, dict[str, float | None]] = {
            name: {"auroc": auroc.value, "low": auroc.low, "high": auroc.high} for name, auroc in found.items()
        }
        rows.append((one, chosen_by))
    ranked_by = "cross_validation" if all("cross_validation" in found for _, found in rows) else "validation"
    rows.sort(key=lambda row: (-(row[1][ranked_by]["auroc"] or 0), row[0].facts["parameters"]))
    return ranked_by, rows


def _step(row: dict[str, Any]) -> str:
    return f"train-{row['backbone']}-{row['train_domain']}"


def _row(
    one: Trained,
    chosen_by: dict[str, Any],
    point: OperatingPoint,
    table: pd.DataFrame,
    classes: Classes,
    domains: Sequence[str],
    serving_domain: str,
    sensitivity: float,
    prevalence: float,
    seed: int,
) -> dict[str, Any]:
    """Build one row of the ranking, as it appears in summary.json."""
    model = one.facts
    kept = ("backbone", "train_domain", "recipe", "weights", "image_size", "parameters", "checkpoint", "seconds")
    starts = {"starts": model["starts"]} if "starts" in model else {}
    if "settings" in model:
        starts |= {"tuned": Settings(**model["settings"]).told()}
    return (
        {key: model[key] for key in kept}
        | starts
        | {
            "bytes": (one.folder / model["checkpoint"]).stat().st_size,
            "operating_point": point.facts() | {"sensitivity": sensitivity},
            **chosen_by,
            "validation": chosen_by["validation"]
            | _locked(table, classes, one, point, serving_domain, prevalence, seed),
            "test": {
                domain: performance.of(
                    predictions.of_model(table, model, domain, "test"), classes, point, prevalence, seed
                )
                for domain in domains
            },
        }
    )


def _locked(
    table: pd.DataFrame,
    classes: Classes,
    one: Trained,
    point: OperatingPoint,
    serving_domain: str,
    prevalence: float,
    seed: int,
) -> dict[str, Any]:
    """Measure the operating point on the images that it was locked on."""
    locked = predictions.of_model(table, one.facts, serving_domain, "validation")
    found = performance.of(locked, classes, point, prevalence, seed)
    kept = ("n", "patients", "macro_auroc", "sensitivity", "specificity", "ece", "ece_unscaled")
    malignant = sum(found["patient_level"]["confusion"][POSITIVE])
    return {name: found[name] for name in kept} | {"malignant_patients": malignant}


def _other_audits(
    data: Path,
    trained: Sequence[Trained],
    winner: Trained,
    networks: Mapping[tuple[str, str], Network],
    decode: inputs.Decode,
    domains: Sequence[str],
    serving_domain: str,
    table: pd.DataFrame,
    seed: int,
    registry_root: Location | None,
) -> list[dict[str, Any]]:
    """Audit the models with the winner's backbone that were trained on other domains, each on its own domain."""
    done = []
    for one in trained:
        domain = one.facts["train_domain"]
        if one.facts["backbone"] == winner.facts["backbone"] and domain in set(domains) - {serving_domain}:
            tested = predictions.of_model(table, one.facts, domain, "test")
            audited = audits.audit(
                data, domain, one.facts, networks[one.key], one.parts, tested, seed, decode, registry_root
            )
            done.append(audited.facts())
    return done


def _what_is_new(changed: changes.Changes, tested: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Report what has changed since the last registered model, and the winner's AUROC on new and known test images."""
    parts = {"test_new": tested[tested["new"]], "test_known": tested[~tested["new"]]}
    return changed.facts() | {
        name: {"images": len(part), "patients": int(part["patient"].nunique())}
        | ({"auroc": asdict(performance.auroc(part, seed))} if part["label"].nunique() == len(CLASSES) else {})
        for name, part in parts.items()
    }


def _images(data: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Give predictions the full paths of their images, as `inputs.decode` needs them."""
    root = tables.images(data)
    return table.assign(file=[str(root / file) for file in table["file"]])


def _worst_cases(
    data: Path,
    network: Network,
    decode: inputs.Decode,
    tested: pd.DataFrame,
    point: OperatingPoint,
    size: int,
    folder: Path,
) -> dict[str, int]:
    """Draw the most confident mistakes with their heat maps, and return the number of mistakes of each kind."""
    positive = tested["label"] == CLASSES[POSITIVE]
    called = tested[SCORE] >= point.threshold
    counts = {}
    for name, wrong, surest in (
        ("false-negatives", positive & ~called, True),
        ("false-positives", ~positive & called, False),
    ):
        counts[name] = int(wrong.sum())
        shown = tested[wrong].sort_values(SCORE, ascending=surest).head(WORST).reset_index(drop=True)
        if shown.empty:
            continue
        pixels = decode(_images(data, shown), size)
        heat = network.heat_maps(pixels)
        cases = [
            (scan, float(score), images.rgb(image), explain.overlay(image, hot))
            for scan, score, image, hot in zip(shown["scan"], shown[SCORE], pixels, heat, strict=True)
        ]
        title = f"{name.replace('-', ' ').capitalize()}: the surest {len(cases)} of {counts[name]}"
        plots.worst_cases(cases, title, folder / f"{name}.png")
    return counts


def _domain_matrix(
    table: pd.DataFrame, rows: Sequence[dict[str, Any]], domains: Sequence[str], seed: int
) -> dict[str, Any]:
    """Compare train and test domains (four cells) for every backbone that was trained on both, by backbone."""
    matrix = {}
    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        mine = [row for row in rows if row["backbone"] == backbone]
        if len(domains) == len(mine) == len(tables.DOMAINS):
            cells = {
                (row["train_domain"], domain): predictions.of_model(table, row, domain, "test")
                for row in mine
                for domain in domains
            }
            matrix[backbone] = performance.domain_matrix(cells, domains, seed)
    return matrix


def _draw(
    table: pd.DataFrame,
    result: dict[str, Any],
    points: dict[tuple[str, str], OperatingPoint],
    folder: Path,
    seed: int,
) -> None:
    domain, ranked_by = result["serving_domain"], result["ranked_by"]
    for row in progress.bar(result["models"], len(result["models"]), "draw", "network"):
        tested = predictions.of_model(table, row, domain, "test")
        point = points[row["backbone"], row["train_domain"]]
        title = (
            f"{row['backbone']} trained on {tables.DOMAIN_NAMES[row['train_domain']]},\n"
            f"test set of {tables.DOMAIN_NAMES[domain]}"
        )
        name = f"{row['backbone']}-{row['train_domain']}"
        plots.draw(
            tested,
            kinds.of(result),
            row["test"][domain],
            point,
            result["settings"]["prevalence"],
            title,
            name,
            folder,
            seed,
        )
    plots.ranking(
        [
            (
                f"{row['backbone']} ({tables.DOMAIN_NAMES[row['train_domain']]})",
                metrics.Interval.of(row[ranked_by]),
                metrics.Interval.of(row["test"][domain]["auroc"]),
            )
            for row in result["models"]
        ],
        report.CHOSEN_BY[ranked_by],
        folder / "ranking.png",
    )
    for backbone, matrix in result["domain_matrix"].items():
        plots.domain_matrix(
            matrix["cells"], result["domains"], f"{backbone}: test AUROC", folder / f"domains-{backbone}.png"
        )
    for audited in (result["audits"], *result["other_audits"]):
        if audited["shortcut"]:
            plots.shortcuts(
                [
                    (audits.describe(name), metrics.Interval.of(auroc), name in audits.REFERENCES)
                    for name, auroc in audited["shortcut"].items()
                ],
                folder / f"shortcuts-{audited['domain']}.png",
            )
    training_plots.diagnosis(result["diagnosis"], folder / "diagnosis.png")


def _tell(result: dict[str, Any]) -> None:
    domain, name = result["serving_domain"], report.CHOSEN_BY[result["ranked_by"]]
    log.info(f"\nRanking by {name} AUROC in the {domain} domain (95 % intervals over patients)")
    log.info(f"{'model':<28}{name:<24}{'test':<24}{'accuracy':>9}{'majority':>10}{'parameters':>13}{'MB':>7}")
    for row in result["models"]:
        test = row["test"][domain]
        log.info(
            f"{row['backbone'] + ' (' + row['train_domain'] + ')':<28}"
            f"{metrics.Interval.of(row[result['ranked_by']])!s:<24}{metrics.Interval.of(test['auroc'])!s:<24}"
            f"{test['accuracy']:>9.3f}{test['majority']:>10.3f}{row['parameters']:>13,}{row['bytes'] / 1e6:>7.0f}"
        )
    best = result["models"][0]
    log.info(f"Winner, chosen by {name}: {best['backbone']} trained on {best['train_domain']}")
    at = best["test"][domain]
    log.info(
        f"Threshold {best['operating_point']['threshold']:.3f}, locked on validation for a sensitivity of "
        f"{result['settings']['sensitivity']:.2f}: on test images sensitivity "
        f"{metrics.Interval.of(at['sensitivity'])}, specificity {metrics.Interval.of(at['specificity'])}"
    )
    for diagnosis in result["diagnosis"]:
        for name, text in diagnosis["findings"].items():
            log.warning(f"WARNING, {diagnosis['backbone']} trained on {diagnosis['train_domain']}, {name}: {text}")
    for audited in (result["audits"], *result["other_audits"]):
        for name, text in audited["findings"].items():
            log.warning(f"WARNING, {name} audit of the {audited['domain']} domain: {text}")
    log.info(f"Gate: {result['gate']['decision']}")
    for reason in result["gate"]["reasons"]:
        log.info(f"  {reason}")


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the evaluation with the options of the command line.

    Args:
        argv: Arguments without the program's name; None for those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m thyroid.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="data version of thyroid.crop")
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="folders of thyroid.train")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--serving-domain", choices=tables.DOMAINS, help="default: the first trained domain")
    parser.add_argument(
        "--sensitivity",
        type=float,
        default=operating_point.SENSITIVITY,
        help="that the threshold must reach on validation",
    )
    parser.add_argument("--abstain", type=float, default=0.0, help="share of images to leave undecided")
    parser.add_argument(
        "--prevalence", type=float, default=operating_point.PREVALENCE, help="of malignant nodules in use"
    )
    parser.add_argument("--clinical", help="CSV with filename or patient; clinical.csv#age,sex: columns for the model")
    parser.add_argument("--registry", dest="registry_root", help="whose champion the winner is held against")
    parser.add_argument("--waive", nargs="*", default=(), metavar="AUDIT", help=f"let pass: {', '.join(gate.WAIVABLE)}")
    parser.add_argument("--seed", type=int, default=0)
    evaluate(**vars(parser.parse_args(argv)))
