"""The metrics for Prometheus at /metrics. Labels never hold a patient or a name that a client chose."""

from typing import Any

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)

STAGE = Histogram("thyroid_stage_seconds", "Seconds of an image by stage", ["stage"], buckets=_SECONDS)
PREPARE, LOCATE, ENGINE = STAGE.labels("prepare"), STAGE.labels("locate"), STAGE.labels("engine")
REQUEST = Histogram("thyroid_request_seconds", "Seconds of a request", ["route", "status"], buckets=_SECONDS)
QUEUE = Gauge("thyroid_queue_images", "Images that are waiting or being looked at")
PROBABILITY = Histogram(
    "thyroid_probability", "Probability of malignant", ["version"], buckets=[n / 20 for n in range(1, 21)]
)
DECISIONS = Counter("thyroid_decisions", "Decisions at the operating point", ["version", "decision"])
SCAN_AREA = Counter("thyroid_scan_area", "Frames by whether the scan area was found", ["found"])
CROPS = Counter("thyroid_crops", "Crops by where their region comes from: given, auto, or whole", ["version", "source"])
NOVELTY = Histogram(
    "thyroid_novelty_distance",
    "Distance from the training images, divided by the model's limit",
    ["version"],
    buckets=(0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2, 4),
)
UNLIKE = Counter("thyroid_unlike", "Images unlike the training images", ["version"])
CONTRADICTED = Counter(
    "thyroid_descriptors_disagree",
    "Images whose TI-RADS points disagree with the decision by threshold",
    ["version"],
)
UNSURE = Counter("thyroid_unsure_boxes", "Boxes of the locator that were unsure", ["version"])
REJECTED = Counter("thyroid_rejected", "Requests that were not answered, by reason code", ["code"])
MODEL = Gauge("thyroid_model_info", "Models that are served", ["name", "version", "form", "backbone"])
"""The value is 1 for a model that is served, and 0 for one that was replaced."""

SHADOW = Counter(
    "thyroid_shadow_images",
    "Images of the champion by what the candidate behind it made of them: the same decision, a changed one, none "
    "because it was too late (dropped), or an error (failed)",
    ["result"],
)
SHADOW_CHANGED = Counter("thyroid_shadow_changed", "Decisions that the candidate would have changed", ["from", "to"])
SHADOW_MODEL = Gauge("thyroid_shadow_info", "Candidates that answer behind the champion", ["version", "form"])
"""The value is 1 for a candidate whose process answers, and 0 for one that ended."""
SHADOW_MEMORY = Gauge("thyroid_shadow_memory_bytes", "Resident memory of the candidate's processes; 0 without one")
SHADOW_LEFT_OFF = Gauge("thyroid_shadow_left_off", "Whether the candidate was left off after too many failures")


def count(version: str, crop: dict[str, Any], decision: dict[str, Any], distance: float | None) -> None:
    """Count the answer to one image.

    Args:
        version: Version of the model.
        crop: What was done to the image, as the answer says it.
        decision: The decision, as the answer says it.
        distance: Distance from the training images, divided by the model's limit; None if the model has no reference.
    """
    PROBABILITY.labels(version).observe(decision["malignant"])
    DECISIONS.labels(version, decision["decision"]).inc()
    if distance is not None:
        NOVELTY.labels(version).observe(distance)
        UNLIKE.labels(version).inc(distance > 1)
    if "tirads" in decision:
        CONTRADICTED.labels(version).inc(decision["tirads"]["agrees"] is False)
    if "source" in crop:
        CROPS.labels(version, crop["source"]).inc()
    if crop.get("unsure"):
        UNSURE.labels(version).inc()
    if "scan_area_found" in crop:
        SCAN_AREA.labels(str(crop["scan_area_found"]).lower()).inc()
