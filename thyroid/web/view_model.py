"""What the templates show of the endpoint's answers, which are checked value by value before anything is shown."""

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

from flask import g

from thyroid.data import tables
from thyroid.data.filenames import CLASSES
from thyroid.imaging.geometry import Box
from thyroid.web import checks, descriptors, words
from thyroid.web.checks import UNDOCUMENTED
from thyroid.web.upload import View

log = logging.getLogger("thyroid.web")

_DECISIONS = ("benign", "malignant", "abstain")
_REASONS = (
    "unlike_training",
    "abstention_band",
    "box_unsure",
    "box_not_confirmed",
    "descriptors_disagree",
    "views_disagree",
)
"""Reasons of abstention that the page has words for. Others are "other"."""
_PROPOSALS = 3
"""Number of proposals that are shown."""
_FIGURES = {"auroc": "{:.2f}", "sensitivity": "{:.0%}", "specificity": "{:.0%}"}
"""Metrics that are shown, and how."""
_BOXES = ("given", "automatic", "frame")


def describe_model(facts: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what the page shows of model.json; None if that is missing or of another form.

    Metrics that it lacks are None.
    """
    if facts is None:
        return None
    try:
        domain = str(facts["serving_domain"])
        keras = facts["forms"].get("keras", {}).get("test", {}).get(domain, {})
        # For forms other than Keras, the evaluation keeps only the metrics of the serving domain.
        test = keras if facts["form"] == "keras" else facts["forms"][facts["form"]].get("test", {})
        audits = facts.get("audits", {})
        return {
            "version": int(facts["version"]),
            "backbone": str(facts["backbone"]),
            "date": str(facts.get("created", ""))[:10],
            "digest": str(facts["data_digest"])[:12],
            "scans": facts.get("scans"),
            "domain": domain if domain in tables.DOMAINS else None,
            "margin": float(facts["margin"]),
            "threshold": checks.share(facts["threshold"]),
            "band": [checks.share(end) for end in facts["band"]] if "band" in facts else None,
            **{name: _interval(test.get(name), form) for name, form in _FIGURES.items()},
            "missed": _missed(test.get("sensitivity")),
            "false": _missed(test.get("specificity")),
            "images": test.get("n"),
            "patients": keras.get("patients"),
            "synthetic": facts.get("synthetic", 0),
            "locator": _locator(facts),
            "novelty": _interval((facts.get("novelty") or {}).get("passed"), "{:.0%}"),
            "descriptors": descriptors.describe_model(facts.get("descriptors")),
            "columns": [_column(column) for column in facts.get("clinical", {}).get("fields", [])],
            "not_released": [str(reason) for reason in facts["not_released"]],
            "findings": sorted(audits.get("findings", {})),
            "kept": max(map(float, audits.get("kept", {}).values()), default=None),
            "recalibrated_for": facts.get("recalibrated_for"),
            "sites": _sites(facts.get("validations", [])),
        }
    except UNDOCUMENTED:
        log.error("the endpoint's facts are of another form", extra={"fields": {"request_id": g.request_id}})
        return None


def _locator(facts: dict[str, Any]) -> dict[str, Any] | None:
    """Return what is known of the boxes that the model proposes; None if it proposes none."""
    locator, boxes = facts.get("locator"), facts.get("automatic_boxes")
    if locator is None:
        return None
    fit = _interval(locator["test"]["iou50"], "{:.0%}")
    return {"fit": fit, "confirm": boxes is None or boxes["released"] is not True}


def _column(column: dict[str, Any]) -> dict[str, Any]:
    """Return a clinical column for the form."""
    name, number = str(column["name"]), column["kind"] == "number"
    if number:
        low, high = (f"{float(column[bound]):g}" for bound in ("minimum", "maximum"))
        return {"name": name, "categories": None, "low": low, "high": high}
    return {"name": name, "categories": [str(category) for category in column["categories"]]}


def _columns(clinical: dict[str, Any] | None) -> dict[str, list[str]] | None:
    """Return the clinical columns that the answer was made with and without, and notes on odd values."""
    return clinical and {name: [str(text) for text in clinical[name]] for name in ("used", "missing", "notes")}


def _sites(validations: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Return the newest validation of every site and kind of boxes, newest first; None if they cannot be read."""
    if validations is None:
        return None
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in reversed(validations):
        site = _site(entry)
        known = found.setdefault((site["name"].casefold(), site["boxes"]), site)
        known["earlier"] += known is not site
    return list(found.values())


def _site(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a validation. Each of its rows is a metric, internal, external, and their difference."""
    if entry["boxes"] not in _BOXES:
        raise ValueError("no such boxes")
    figures = {name: entry["figures"][name] for name in _FIGURES if name in entry["figures"]}
    rows = [
        (
            name,
            *(_parts(beside[side], _FIGURES[name]) for side in ("internal", "external")),
            _difference(beside["difference"], shares=name != "auroc"),
        )
        for name, beside in figures.items()
    ]
    if any(difference and not (internal and external) for _, internal, external, difference in rows):
        raise ValueError("a difference of what was not measured")
    difference = figures.get("auroc", {}).get("difference")
    return {
        "name": " ".join(str(entry["site"]).split()),
        "boxes": entry["boxes"],
        "date": str(entry["created"])[:10],
        **{name: int(entry[name]) for name in ("images", "patients", "malignant_patients", "synthetic")},
        "earlier": 0,
        "fell": bool(difference) and difference["high"] < 0,
        "rows": rows,
    }


def _difference(metric: dict[str, Any] | None, *, shares: bool) -> tuple[str, str] | None:
    """Return a difference and its bounds with their signs, in percentage points if it is one of shares."""
    if not metric:
        return None
    form, scale = ("{:+.0f}", 100) if shares else ("{:+.2f}", 1)
    texts = []
    for name in ("value", "low", "high"):
        if not math.isfinite(float(metric[name])):
            raise ValueError("not a difference")
        texts.append(form.format(metric[name] * scale).replace("-", "\N{MINUS SIGN}"))
    return texts[0], f"({texts[1]}, {texts[2]})"


def _interval(metric: dict[str, Any] | None, form: str) -> str | None:
    parts = _parts(metric, form)
    return parts and " ".join(parts)


def _parts(metric: dict[str, Any] | None, form: str) -> tuple[str, str] | None:
    """Return a metric and its bounds, "(–)" where it has none; None if it was not measured."""
    if not metric:
        return None
    value, bounds = form.format(checks.share(metric["value"])), "–"
    if metric["low"] is not None and metric["high"] is not None:
        low, high = (form.format(checks.share(metric[name])) for name in ("low", "high"))
        bounds = f"{low.removesuffix('%')}–{high}"
    return value.replace("%", "\N{NO-BREAK SPACE}%"), f"({bounds})".replace("%", "\N{NO-BREAK SPACE}%")


def _missed(metric: dict[str, Any] | None) -> int | None:
    """Return how many of a hundred are missed."""
    return round((1 - checks.share(metric["value"])) * 100) if metric else None


def describe_reading(answer: dict[str, Any], views: Sequence[View]) -> dict[str, Any]:
    """Return the endpoint's answer to `:explain` as the page shows it.

    Args:
        answer: The answer, with one explanation for each view and one patient.
        views: The pictures that were sent.

    Raises:
        ArithmeticError, AttributeError, KeyError, IndexError, TypeError, ValueError: The answer does not have its
            documented form (`checks.UNDOCUMENTED`).
    """
    explanations = answer["explanations"]
    first, patient = explanations[0], answer["patients"][0]
    threshold = checks.share(patient["threshold"])
    decisions = [_decision(explanation) for explanation in explanations]
    left_out = _left_out(patient, len(views))
    counted = [one for number, one in enumerate(decisions) if number not in left_out]
    return {
        "patient": _decision(patient),
        "threshold": threshold,
        "version": int(first["model_version"]),
        "backbone": str(first["model"]),
        "not_released": [str(reason) for reason in first.get("not_released", [])],
        "columns": _columns(first.get("clinical")),
        "above": sum(decision["probability"] >= threshold for decision in counted),
        "counted": len(counted),
        "left_out": left_out,
        "differ": descriptors.differing(patient),
        "time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "views": [
            decision | _view(view, explanation)
            for view, explanation, decision in zip(views, explanations, decisions, strict=True)
        ],
    }


def _view(view: View, explanation: dict[str, Any]) -> dict[str, Any]:
    """Return what the page shows of one picture besides its decision."""
    crop, heat_map = explanation["crop"], explanation["heat_map"]
    share = heat_map["share_inside_roi"]
    source = crop.get("source")  # absent in the answers of earlier releases
    automatic = source == "auto"
    answered = "auto" if automatic else None if view.roi is None else "accepted" if view.accepted else "own"
    return {
        "view": view,
        "answered": None if crop.get("domain") == "normal" else answered,
        "box": _box(crop["box"], view) if automatic else view.roi,
        "fits": checks.share(crop["probability"]) if automatic else None,
        "unsure": automatic and crop.get("unsure") is True,
        "others": _proposals(crop, view)[1:] if automatic else [],
        "taken_as_crop": "note" in crop if source is None else source == "whole" and crop.get("domain") != "normal",
        "no_area": crop.get("scan_area_found") is False,
        "square": [int(value) for value in crop["square"]],
        "heat": checks.png(heat_map["layer_png"]["b64"]),
        "inside": None if share is None else checks.share(share),
        "typical": _typical(explanation),
        "descriptors": descriptors.describe_view(explanation),
    }


def _typical(explanation: dict[str, Any]) -> float | None:
    """Return the share of the training pictures that are at least as typical as a picture.

    It is None for a picture that is unlike them, and where the model cannot tell.
    """
    if "novelty" not in explanation or "unlike_training" in _reasons(explanation):
        return None
    return checks.share(explanation["novelty"] / 100)


def describe_boxes(answer: dict[str, Any] | None, view: View) -> dict[str, Any]:
    """Return the boxes that the model proposes for a picture, for the script.

    Args:
        answer: What the endpoint's `:locate` says about it; None if the model has no locator.
        view: The picture that was sent.

    Returns:
        `source` ("none" without a locator), `unsure`, and `proposals`, the best one first: `box` (x, y, width, height
        in pixels of the picture) and `share`, the probability that it fits a nodule as people read it. There are
        proposals only if `source` is "auto".

    Raises:
        ArithmeticError, AttributeError, KeyError, IndexError, TypeError, ValueError: As for `describe_reading`.
    """
    if answer is None or answer["source"] != "auto":
        return {"source": "none" if answer is None else str(answer["source"]), "unsure": False, "proposals": []}
    proposals = [{"box": one["box"], "share": words.share(one["share"])} for one in _proposals(answer, view)]
    return {"source": "auto", "unsure": answer.get("unsure") is True, "proposals": proposals}


def _proposals(answer: dict[str, Any], view: View) -> list[dict[str, Any]]:
    """Return the proposals for a picture, the best one first; it is the box that is answered for."""
    found = [{"box": _box(one["box"], view), "share": checks.share(one["probability"])} for one in answer["proposals"]]
    if not found or found[0]["box"] != _box(answer["box"], view):
        raise ValueError("the box is not the best proposal")
    return found[:_PROPOSALS]


def _box(box: Any, view: View) -> Box:
    """Return a box of the endpoint, after a check that it lies in the picture."""
    if type(box) is not list or len(box) != 4 or any(type(side) is not int for side in box):
        raise ValueError("not a box")
    x, y, width, height = box
    if min(x, y) < 0 or min(width, height) < 1 or x + width > view.width or y + height > view.height:
        raise ValueError("not in the picture")
    return x, y, width, height


def _left_out(patient: dict[str, Any], count: int) -> dict[int, str]:
    """Return why views do not count towards the patient, by their place among `count` views."""
    found = {one["image"]: _reason(one["reason"]) for one in patient.get("left_out") or []}
    if any(type(place) is not int or not 0 <= place < count for place in found):
        raise ValueError("no such view")
    return dict(sorted(found.items()))


def _reasons(answer: dict[str, Any]) -> list[str]:
    """Return why there is no decision; empty if there is one."""
    if answer["decision"] != "abstain":
        return []
    # Earlier releases give one reason, or none, which was always the band.
    given = answer["reasons"] if "reasons" in answer else [answer.get("reason", "abstention_band")]
    return list(dict.fromkeys(_reason(reason) for reason in given)) or ["other"]


def _reason(reason: Any) -> str:
    return reason if reason in _REASONS else "other"


def _decision(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the decision for a picture or a patient."""
    if answer["decision"] not in _DECISIONS:
        raise ValueError("no decision")
    classes = [(str(name), checks.share(share)) for name, share in answer["probability"].items()]
    return {
        "probability": checks.share(answer["malignant"]),
        "decision": answer["decision"],
        "reasons": _reasons(answer),
        "tirads": descriptors.describe_tirads(answer),
        "class": str(answer["class"]),
        "classes": classes if len(classes) > len(CLASSES) else [],
    }
