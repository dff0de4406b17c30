"""Says in words and in tables what automatic boxes cost: for the report, the model card and the log."""

from thyroid.evaluate import gate
from thyroid.interval import Interval, format_interval
from thyroid.records.evaluation import Measured
from thyroid.records.locate import AutomaticBoxes, BoxPerformance, LocatorRecord

FIT = (
    "A box fits a nodule from an IoU of .5 on, which also counts for the average precision. Small, middle and large "
    "are thirds of the frames by the side of their largest nodule."
)
"""How to read the table of `figures`."""
HIT = "IoU of at least .5"
"""When a box fits a nodule, in words."""
NO_NODULE = (
    "The locator proposes a box on every image. It cannot tell whether there is a nodule at all, because every frame "
    "that it learnt from has one."
)
"""What must not be read into a box."""
GIVEN_ONLY = (
    "The endpoint proposes a box and gives the probabilities, but it makes no decision until a person has drawn or "
    "confirmed the box."
)
"""What happens where a model may not decide on automatic boxes."""

_FIGURES = {
    "centre": "Centre of the best box in a nodule",
    "iou50": "Best box fits a nodule",
    "mean_iou": "Mean IoU of the best box",
    "recall_at_3": "Nodules that one of 3 proposals fits",
    "ap50": "Average precision of proposals",
    "surest_half": "Best box fits, surest half of frames",
    "auroc": "AUROC of the probability for a fit",
}
SAME_ORDER, SIMILAR_ORDER = 0.8, 0.5
"""Rank correlations of the scores with given and with automatic boxes from which their orders are called so.

The second one is the goal that the locator was built for on DDTI.
"""


def columns(locator: LocatorRecord) -> list[tuple[str, BoxPerformance]]:
    """Return the measurements of a locator and, after each, those of the median box, with their headings."""
    return [
        ("Cross-fitted", locator.cross_fitted),
        ("Median box", locator.cross_fitted_median_box),
        ("Test", locator.test),
        ("Median box", locator.test_median_box),
    ]


def figures(locator: LocatorRecord) -> list[tuple[str, list[str]]]:
    """Return the table of how well boxes fit: a title, and a text for each of `columns`."""
    measured = [one for _, one in columns(locator)]
    rows = [(title, [_cell(getattr(one, name)) for one in measured]) for name, title in _FIGURES.items()]
    calibration = ["" if one.ece is None else f"{one.ece:.3f}" for one in measured]
    sizes = [{row.size: row for row in one.by_size} for one in measured]
    by_size = [
        (f"Best box fits, {size} nodules", [_cell(row.iou50) if (row := one.get(size)) else "" for one in sizes])
        for size in dict.fromkeys(size for one in sizes for size in one)
    ]
    return [*rows, ("Calibration error of the probability", calibration), *by_size]


def costs(boxes: AutomaticBoxes) -> list[tuple[str, str, str]]:
    """Return the table of what automatic boxes cost: a title, all frames, and the frames whose box is sure."""
    return [
        ("Test frames", f"{boxes.frames} of {boxes.patients} patients", f"{boxes.sure_frames}"),
        ("AUROC with given boxes", str(boxes.given), format_interval(boxes.sure_given)),
        ("AUROC with automatic boxes", str(boxes.automatic), format_interval(boxes.sure_automatic)),
        ("... difference, paired", str(boxes.difference), ""),
        ("Rank correlation of both scores (Spearman)", str(boxes.rank_correlation), ""),
        (
            "Decisions that change at the operating point",
            _of(boxes.flips, boxes.frames),
            _of(boxes.sure_flips, boxes.sure_frames),
        ),
    ]


def conclusion(locator: LocatorRecord, boxes: AutomaticBoxes | None, serving_domain: str = "cropped") -> list[str]:
    """Say what automatic boxes cost in plain sentences, whether the model may decide on them first.

    Args:
        locator: The locator.
        boxes: What its boxes cost the winner; None for a winner on which none were tried.
        serving_domain: Domain in which the winner is served.
    """
    if boxes is None:
        return [_untried(serving_domain), _fit(locator), NO_NODULE]
    return [verdict(boxes), _loss(boxes), _order(boxes), _abstaining(boxes), _fit(locator), NO_NODULE]


def _untried(serving_domain: str) -> str:
    """Say why automatic boxes were not tried on the winner."""
    if serving_domain == "normal":
        return "The winner judges full frames: it needs no box and has no locator."
    return (
        "The winner learnt from full frames and is served crops. Automatic boxes were not tried on it, and it has no "
        "locator: a person has to mark the nodule."
    )


def verdict(boxes: AutomaticBoxes) -> str:
    """Say whether the model may decide on automatic boxes."""
    if boxes.released:
        return (
            f"The model may decide on automatic boxes: the lower bound of the difference of the AUROCs is not below "
            f"-{boxes.allowed:.2f}. Where a box is unsure, a person is asked for it."
        )
    return f"The model may decide on given boxes only: {boxes.reason}. {GIVEN_ONLY}"


def lead(result: Measured) -> list[str]:
    """Say what automatic boxes cost in one sentence for the summary; nothing where none were tried on the winner."""
    boxes = result.automatic_boxes
    if boxes is None:
        return []
    may = "it may decide on such boxes" if boxes.released else "it may decide on given boxes only"
    return [
        f"Where nobody draws a box, its AUROC is {boxes.automatic} instead of {boxes.given} on {boxes.frames} test "
        f"frames with a marked nodule, {boxes.flips} of its decisions there change, and {may}."
    ]


def warnings(result: Measured) -> list[str]:
    """List the reasons not to trust automatic boxes."""
    boxes, locator, texts = result.automatic_boxes, result.locator, []
    if boxes is not None and not boxes.released:
        texts.append(f"The model may decide on given boxes only: {boxes.reason}.")
    if boxes is not None and boxes.rank_correlation.value < SIMILAR_ORDER:
        texts.append(
            "With automatic boxes the model puts the test frames in another order than with given ones (rank "
            f"correlation {boxes.rank_correlation}), so that its answer for a frame depends on the box."
        )
    if locator is not None and locator.cross_fitted.iou50.value <= locator.cross_fitted_median_box.iou50.value:
        texts.append("The locator's boxes fit the nodules no better than one box of median place and size would.")
    return texts


def log_line(result: Measured) -> str | None:
    """Return one line on the hit rate and the cost of automatic boxes; None if the evaluation was given none."""
    if result.without_locator is not None:
        return f"Automatic boxes: none were tried ({result.without_locator})"
    if result.locator is None:
        return None
    hits = f"Automatic boxes: {HIT} in {result.locator.test.iou50} of the test frames"
    boxes = result.automatic_boxes
    if boxes is None:
        why = "judges full frames and needs none" if result.serving_domain == "normal" else "was not tried with them"
        return f"{hits}; the winner {why}"
    released = "the model may decide on them" if boxes.released else "released for given boxes only"
    return (
        f"{hits}; AUROC {boxes.automatic}, with given boxes {boxes.given}, difference {boxes.difference}; "
        f"{boxes.flips} of {boxes.frames} decisions change; {released}"
    )


def numbers(result: Measured) -> dict[str, float]:
    """Return what automatic boxes cost as metrics of a Kubeflow step, by name; nothing where it was not measured."""
    boxes = result.automatic_boxes
    if boxes is None:
        return {}
    found = {"automatic_boxes_released": float(boxes.released)}
    for name, metric in (("auroc", boxes.automatic), ("difference", boxes.difference)):
        bounds = {"value": metric.value, "low": metric.low, "high": metric.high}
        found |= {f"automatic_boxes_{name}_{key}": value for key, value in bounds.items() if value is not None}
    return found


def _fit(locator: LocatorRecord) -> str:
    return (
        f"On test frames the locator's best box fits a marked nodule ({HIT}) in {_percent(locator.test.iou50)} of "
        f"{locator.test.frames} frames; one box of median place and size, which needs no locator, would fit in "
        f"{_percent(locator.test_median_box.iou50)}."
    )


def _loss(boxes: AutomaticBoxes) -> str:
    """Say whether a loss of AUROC is shown, and how roughly it is known where that is worse than the gate's margin."""
    low, high = boxes.difference.low, boxes.difference.high
    measured = f"the AUROC is {boxes.automatic} with automatic and {boxes.given} with given boxes"
    if low is None or high is None:
        return f"On {boxes.frames} test frames {measured}. There are too few patients to say whether that is a loss."
    shown = "neither a loss nor a gain is shown, and neither is excluded"
    if high < 0:
        shown = "automatic boxes cost AUROC"
    elif low > 0:
        shown = "automatic boxes did better than given ones here, which nobody should count on"
    found = f"On the same {boxes.frames} test frames {measured}, a difference of {boxes.difference}: {shown}."
    half = (high - low) / 2
    if half <= gate.MARGIN:
        return found
    return f"{found} These are small numbers: {boxes.patients} patients give the difference only to about ±{half:.2f}."


def _order(boxes: AutomaticBoxes) -> str:
    """Say how much of the order of the scores is left, and how many decisions change."""
    value = boxes.rank_correlation.value
    order = "a different order"
    if value >= SAME_ORDER:
        order = "nearly the same order"
    elif value >= SIMILAR_ORDER:
        order = "a similar order"
    return (
        f"The two scores put the frames in {order} (rank correlation {boxes.rank_correlation}), and the decision at "
        f"the operating point changes in {_of(boxes.flips, boxes.frames)}."
    )


def _abstaining(boxes: AutomaticBoxes) -> str:
    """Say what it buys to leave frames undecided whose box is unsure."""
    unsure = boxes.frames - boxes.sure_frames
    if not unsure:
        return "No box is unsure."
    if boxes.sure_automatic is None:
        left = "The other frames are of one class only, so that they have no AUROC"
    else:
        left = (
            f"On the other {boxes.sure_frames} the AUROC is {boxes.sure_automatic} with automatic and "
            f"{format_interval(boxes.sure_given)} with given boxes"
        )
    return (
        f"The box is unsure in {_of(unsure, boxes.frames)}; there the model abstains whatever its score. {left}, "
        f"and the decision changes in {_of(boxes.sure_flips, boxes.sure_frames)}."
    )


def _cell(metric: Interval | None) -> str:
    return "" if metric is None else str(metric)


def _of(count: int, total: int) -> str:
    return f"{count} of {total} frames" + (f" ({count / total:.0%})" if total else "")


def _percent(share: Interval) -> str:
    bounds = "" if share.low is None or share.high is None else f" [{share.low:.0%} to {share.high:.0%}]"
    return f"{share.value:.0%}{bounds}"
