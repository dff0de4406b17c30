"""What the audit of shortcuts measures: names in evaluation.json, and words for people."""

MARGINS = (0.15, 0.5)
"""Margins of crops at which the surroundings of the nodule are judged, whichever of them a run has."""

BLANKED = {
    "model_on_blanked_nodule": "the model on test images with the nodule blanked",
    "blanked_nodule": "frozen features of images with the nodule blanked",
}
"""Shortcuts that are judged, on crops of the run's own margin or on full frames."""

WHOLE = {
    "model": "the model itself, test images",
    "whole_image": "frozen features of the whole image",
}
"""References on crops of the run's own margin or on full frames."""

AUTOMATIC_BOX = {
    "automatic_box_size": "width and height of the automatic box alone",
    "automatic_box_size_and_score": "width, height and score of the automatic box alone",
}
"""Shortcuts that are measured only where there is a locator."""


def at_margin(name: str, margin: float) -> str:
    """Return the name of a shortcut or reference on crops of another margin than the run's own."""
    return f"{name}_margin_{margin:g}"


def at_margins(rows: dict[str, str]) -> dict[str, str]:
    """Return the rows of crops of all `MARGINS` for rows of crops of the run's own margin."""
    return {at_margin(name, margin): f"{text}, margin {margin:g}" for margin in MARGINS for name, text in rows.items()}


SHORTCUTS = {
    **BLANKED,
    "scan_area_geometry": "size of frame and scan area alone",
    "patient_number": "patient number alone",
    "acquisition_order": "image number, version and number of views alone",
    "box_size": "width and height of the nodule's box alone",
    **AUTOMATIC_BOX,
    "grey_levels": "grey-level statistics alone",
    **at_margins(BLANKED),
}
"""What distinguishes the classes without a look at the nodule, in words, by name in evaluation.json."""

REFERENCES = WHOLE | at_margins(WHOLE)
"""References that the shortcuts are compared with."""


def describe(name: str) -> str:
    """Return what a shortcut or reference of this name is, in words."""
    return (SHORTCUTS | REFERENCES)[name]
