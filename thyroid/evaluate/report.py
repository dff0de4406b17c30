"""Render report.html, the report for people: a single file that opens without a network connection."""

import datetime
from pathlib import Path
from typing import Any

from thyroid import RESEARCH_USE_ONLY, metrics, rendering
from thyroid.clinical import association
from thyroid.data import classes as kinds
from thyroid.data import tables
from thyroid.data.classes import BINARY, Classes
from thyroid.data.plots import class_names
from thyroid.evaluate import audits, gate, performance, plots, subgroups
from thyroid.imaging import images
from thyroid.metrics import format_interval

CHOSEN_BY = {"validation": "validation", "cross_validation": "cross-validated"}
"""Name of the AUROC that ranks the models, in words."""

FIGURES = {
    "auroc": "AUROC",
    "auprc": "AUPRC (average precision)",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV in the test set",
    "npv": "NPV in the test set",
    "ppv_at_prevalence": "PPV at the stated prevalence",
    "npv_at_prevalence": "NPV at the stated prevalence",
    "brier": "Brier score",
    "ece": "Expected calibration error",
    "ece_unscaled": "... before temperature scaling",
}
"""Rows of the table of metrics: key and title."""

OF_CLASSES = {
    "macro_auroc": "Macro AUROC (mean of each class against all others)",
    "kappa": "Kappa of called and true class",
}
"""Further rows for classes other than just benign and malignant."""

_TEMPLATE = "report.html"


def write(output: Path, data: Path, facts: dict[str, Any], result: dict[str, Any]) -> None:
    """Render report.html into `output`.

    Args:
        output: Folder of the evaluation, with its plots/.
        data: Data version of `crop`, for its plots and its quarantine list.
        facts: Facts of the data version (data.json).
        result: Result of the evaluation.
    """
    environment = rendering.environment("thyroid.evaluate")
    environment.filters |= {
        "p": _p,
        "percent": lambda share: f"{share:.1%}",
        "sentence": _sentence,
    }
    best, domain, classes = result["models"][0], result["serving_domain"], kinds.of(result)
    html = environment.get_template(_TEMPLATE).render(
        notice=RESEARCH_USE_ONLY,
        date=datetime.date.today().isoformat(),
        facts=facts,
        result=result,
        best=best,
        best_test=best["test"][domain],
        lead=lead(result),
        warnings=warnings(result),
        short_reasons=_short_reasons(result["gate"]),
        domain=domain,
        domain_names=tables.DOMAIN_NAMES,
        chosen_by=CHOSEN_BY[result["ranked_by"]],
        classes=classes.names,
        class_names=class_names(classes),
        several=classes != BINARY,
        split_at=str(classes),
        told_changes=_told_changes(result["changes"]),
        figure_names=FIGURES if classes == BINARY else FIGURES | OF_CLASSES,
        aggregation=performance.AGGREGATION,
        pictures_of_a_model=plots.NAMES,
        kept_limit=audits.KEPT,
        small=subgroups.SMALL,
        margin=gate.MARGIN,
        clinical_pictures=association.NAMES,
        given_away=bool(gate.given_away(result["clinical"])),
        quarantine=tables.read_quarantine(data, tables.read_facts(data)).to_dict("records"),
        draws=metrics.DRAWS,
        pictures={path.stem: images.data_uri(path.read_bytes()) for path in (output / "plots").glob("*.png")}
        | {name: images.data_uri((data / f"{name}.png").read_bytes()) for name in ("statistics", "crops")},
    )
    (output / "report.html").write_text(html, encoding="utf-8")


def lead(result: dict[str, Any]) -> list[str]:
    """Summarise the result of an evaluation for a clinician, in a few sentences and without the warnings."""
    best, domain = result["models"][0], result["serving_domain"]
    test = best["test"][domain]
    auroc = test["auroc"]
    among = "" if len(result["models"]) == 1 else f" among {len(result['models'])} trained models"
    by = "validation patients" if result["ranked_by"] == "validation" else "development patients, out of fold,"
    told = [
        f"{best['backbone']}, trained on {tables.DOMAIN_NAMES[best['train_domain']]} and meant for "
        f"{tables.DOMAIN_NAMES[domain]}, was chosen{among} on {by} alone. The figures here are of {test['n']} test "
        f"images of {test['patients']} other patients."
    ]
    if (beside := result["clinical"]) and beside["used"]:
        alone, columns = (format_interval(beside["test"]["auroc"][name]) for name in ("images", "clinical"))
        doubt = " These columns may be what the label was made from." if gate.given_away(beside) else ""
        told.append(
            f"It sees the image and the clinical columns {', '.join(beside['used'])}; on the same test images the "
            f"macro AUROC of the image alone is {alone}, of the columns alone {columns}.{doubt}"
        )
    if auroc["low"] is None:
        told.append("The test set is too small for an interval, so that no figure here says much.")
    else:
        what = "which includes .50: it is not shown to be better than chance"
        if auroc["low"] > 0.5:
            what = "so it tells malignant from benign better than chance"
        elif auroc["high"] < 0.5:
            what = "which is below .50: it calls benign what is malignant more often than the other way round"
        told.append(
            f"Of a random malignant and a random benign image it finds the malignant one more suspicious in "
            f"{auroc['value']:.0%} of the pairs (AUROC {format_interval(auroc)}), {what}."
        )
    told.append(
        f"At its operating point, locked on validation patients to catch {result['settings']['sensitivity']:.0%} of "
        f"the malignant images, it calls {_of_hundred(test['sensitivity'])} of 100 malignant images malignant and "
        f"{_of_hundred(test['specificity'])} of 100 benign images benign."
    )
    if "ppv_at_prevalence" in test and "npv_at_prevalence" in test:
        told.append(
            f"Where {result['settings']['prevalence']:.0%} of the nodules are malignant, "
            f"{_of_hundred(test['ppv_at_prevalence'])} of 100 images that it calls malignant would be, and "
            f"{_of_hundred(test['npv_at_prevalence'])} of 100 that it calls benign would be benign."
        )
    if "abstention" in test:
        told.append(
            f"These are its answers without the abstention band; with it {_of_hundred(test['abstention']['share'])} of "
            "100 images get no decision."
        )
    if kinds.of(result) != BINARY:
        kappa = (
            f", kappa {'with quadratic weights ' if result['ordered'] else ''}{format_interval(test['kappa'])}"
            if "kappa" in test
            else ""
        )
        told.append(
            f"Here malignant means the classes {', '.join(_malignant(kinds.of(result)))}. Told apart one by one, each "
            f"of the {len(result['classes'])} classes against all others, the mean AUROC is "
            f"{format_interval(test['macro_auroc'])}{kappa}."
        )
    told.append(
        f"Its accuracy at the most probable class is {test['accuracy']:.1%}; always answering the majority class gives "
        f"{test['majority']:.1%}."
    )
    return told


def _malignant(classes: Classes) -> list[str]:
    return [name for name, positive in zip(classes.names, classes.positive, strict=True) if positive]


def warnings(result: dict[str, Any]) -> list[str]:
    """List the reasons not to trust the metrics of an evaluation, for the first page of the report."""
    best, domain = result["models"][0], result["serving_domain"]
    test = best["test"][domain]
    told = []
    for audited in (result["audits"], *result["other_audits"]):
        where = f"On {tables.DOMAIN_NAMES[audited['domain']]} "
        if "shortcut" in audited["findings"]:
            told.append(f"{where}{audited['findings']['shortcut']}.")
        elif not audited["kept"]:
            why = gate.why_not_judged(audited) or "nothing to hold it against"
            told.append(f"{where}it is not known whether the evidence is in the nodule: {why}.")
    if blind := _blind(result["audits"]["shortcut"]):
        told.append(f"Without a look at the nodule the classes can be told apart by {blind}.")
    if "leakage" in result["audits"]["findings"]:
        told.append(_sentence(result["audits"]["findings"]["leakage"]))
    if test["auroc"]["low"] is None or test["auroc"]["low"] <= 0.5:
        told.append("On this test set the model is not shown to be better than chance.")
    if test["accuracy"] <= test["majority"]:
        told.append(
            "Its accuracy is not above that of always answering the majority class, so that accuracy is no evidence."
        )
    malignant = sum(test["patient_level"]["confusion"][1])
    asked = result["settings"]["sensitivity"]
    if (needed := gate.patients_needed(asked)) is None or malignant < needed:
        told.append(f"The test set has {malignant} malignant patients, and {gate.told_needed(asked)}.")
    if beside := result["clinical"]:
        unused = "" if beside["used"] else " (the model does not use it)"
        told += [f"clinical.csv: {finding}{unused}." for finding in beside["leaks"]["findings"]]
    if best["weights"] == "none":
        told.append("The model started from random weights; pre-trained weights are the first thing to add.")
    return told


def _told_changes(news: dict[str, Any] | None) -> str:
    if news is None or news["since"] is None:
        return ""
    new, changed, removed = (sum(news[name].values()) for name in ("new", "changed", "removed"))
    return (
        f"since model version {news['since']} was made, {new} scans are new, {changed} have another class or other "
        f"regions, {removed} are no longer in use and {news['kept']} are as they were"
    )


def _blind(shortcut: dict[str, Any]) -> str:
    """Name the shortcuts without any pixel that distinguish the classes better than chance, with their AUROC."""
    above = {
        name: shortcut[name]
        for name in ("scan_area_geometry", "patient_number", "acquisition_order")
        if name in shortcut and shortcut[name]["low"] is not None and shortcut[name]["low"] > 0.5
    }
    return " and by ".join(f"{audits.describe(name)} (AUROC {format_interval(auroc)})" for name, auroc in above.items())


def _short_reasons(decision: dict[str, Any]) -> list[str]:
    """List the gate's reasons without repeating the warnings above them."""
    failed = [one for one in decision["criteria"] if not (one["passed"] or one["waived"])]
    if not failed:
        reasons: list[str] = decision["reasons"]
        return reasons
    return [
        f"{_sentence(one['name'])[:-1]}: {'see above' if one['name'].endswith('audit') else one['found']}; "
        f"asked: {one['asked']}"
        for one in failed
    ]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _p(value: float | None) -> str:
    return "n/a" if value is None else "< .001" if value < 0.001 else f"{value:.3f}"


def _of_hundred(figure: dict[str, Any]) -> str:
    """Format a share as a number out of 100, with its interval."""
    if figure["low"] is None:
        return f"{figure['value'] * 100:.0f}"
    return f"{figure['value'] * 100:.0f} [{figure['low'] * 100:.0f} to {figure['high'] * 100:.0f}]"
