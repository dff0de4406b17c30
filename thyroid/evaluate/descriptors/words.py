"""Says in words and in tables which descriptors a model tells: for the report, the model card and the log."""

from thyroid import tirads
from thyroid.evaluate.descriptors.lock import CAUGHT, ENOUGH, LOWEST_AUROC
from thyroid.interval import format_interval
from thyroid.records.model import DescriptorsRecord, FindingRecord, FindingTest, TiradsRecord

NAMES = {
    "cystic": "cystic",
    "spongiform": "spongiform",
    "mixed": "mixed cystic and solid",
    "solid": "solid",
    "anechoic": "anechoic",
    "hyperechoic": "hyperechoic",
    "isoechoic": "isoechoic",
    "hypoechoic": "hypoechoic",
    "very_hypoechoic": "very hypoechoic",
    "wider": "wider than tall",
    "taller": "taller than wide",
    "smooth": "smooth",
    "ill_defined": "ill defined",
    "lobulated": "lobulated or irregular",
    "extrathyroidal": "extrathyroidal extension",
    "none": "none",
    "comet_tail": "large comet tail",
    "macro": "macrocalcification",
    "rim": "rim calcification",
    "punctate": "punctate foci",
}
"""Every value in words."""

_DECK = {
    "hypoechoic": "Hypoechoic",
    "anechoic_or_cystic": "Anechoic or cystic",
    "rim_calcification": "Rim calcification",
    "irregular_borders": "Irregular borders",
    "microcalcifications": "Microcalcifications",
    "comet_tails": "Comet tails",
}
_WHY = {
    "too_few": "too few patients",
    "gives_class_away": "gives the class away",
    "auroc": "not shown to be told",
    "surroundings": "evidence outside the nodule",
}
EXPLANATION = (
    "Each finding is a calibrated logistic regression on the features that training left frozen, with at least "
    f"{ENOUGH} development patients with the value and as many without it. The development AUROC is out of fold by "
    f"patient, and decides: a finding is given out if its lower bound is above {LOWEST_AUROC:g}, its column does not "
    "give the class away, and at most half of the distance from .5 is kept without the nodule. Test patients decide "
    "nothing. The thresholds were locked before a test image was read: present from the largest sum of sensitivity and "
    f"specificity on; excluded where at most {1 - CAUGHT:.0%} of the images with the value are; sure where at most "
    f"{1 - CAUGHT:.0%} of those without it are. In brackets behind the calibration error: what as many perfectly "
    "calibrated probabilities would score, which is not 0 in small sets."
)
"""How to read the table of `rows`."""


SHORTCUTS = {
    "scan_area_geometry": "Size of frame and scan area",
    "patient_number": "Patient number",
    "box_size": "Size of the box",
    "grey_levels": "Grey levels",
}
"""Numbers by which a finding is told without the network, in words."""


def name(descriptor: str, value: str) -> str:
    """Return a finding in words, such as "margin: lobulated or irregular"."""
    return f"{'echogenic foci' if descriptor == tirads.FOCI else descriptor}: {NAMES[value]}"


def lead(found: DescriptorsRecord) -> list[str]:
    """Say in plain sentences what the model tells, what it does not, and what that means for TI-RADS."""
    given = found.given
    columns = ", ".join(
        column if column == descriptor else f"{column} ({descriptor})" for descriptor, column in found.columns.items()
    )
    sentences = [
        f"Labels of {found.images} development images of {found.patients} patients were used, from the columns "
        f"{columns}."
    ]
    if not given:
        return [*sentences, "The model gives out none of the descriptors: these data do not show that it can tell any."]
    told = ", ".join(name(one.descriptor, one.value) for one in given)
    sentences.append(f"The model gives out {len(given)} of {len(found.findings)} findings: {told}.")
    if found.assumed_absent:
        absent = [name(descriptor, one) for descriptor, values in found.assumed_absent.items() for one in values]
        sentences.append(
            f"No development image is labelled with {', '.join(absent)}: TI-RADS assumes that none of these is there."
        )
    return [*sentences, *([] if found.tirads is None else _tirads(found.tirads))]


def _tirads(found: TiradsRecord) -> list[str]:
    """Say how often the points are right, and what happens where they disagree with the decision."""
    sentences = [
        "Points and level of ACR TI-RADS (Tessler 2017, 10.1016/j.jacr.2017.01.046) are an interval over the values "
        "that cannot be excluded. They stand beside the probability, never instead of it."
    ]
    if found.covered is not None and found.mean_width is not None:
        sentences.append(
            f"The points of the labels lie within it on {found.covered} of the test images that have a word for each "
            f"descriptor; it is {found.mean_width:.1f} points wide on average."
        )
    wrong, otherwise = (format_interval(one) for one in (found.wrong_if_disagree, found.wrong_if_agree))
    sentences.append(
        f"From {found.cut} points on they count as suspicious, a limit that development patients chose. They disagree "
        f"with the decision on {found.disagree} of {found.compared} test patients. The share of wrong decisions is "
        f"{wrong} there, and {otherwise} elsewhere."
    )
    if found.doubts:
        return [
            *sentences,
            "On patients that the network did not learn from, more decisions were wrong where the two disagree. The "
            "model makes no decision there (reason: descriptors_disagree).",
        ]
    return [*sentences, f"The disagreement is shown and decides nothing: {found.why_not}."]


COLUMNS = (
    "Finding",
    "Patients with / without",
    "Development AUROC",
    "Kept without the nodule",
    "Given out",
    "Test AUROC",
    "Kappa",
    "Sensitivity",
    "Specificity",
    "Calibration error (if perfect)",
)
"""Headings of the table of `rows`."""


def rows(found: DescriptorsRecord) -> list[tuple[str, ...]]:
    """Return the table of all findings that were looked at: a text for each of `COLUMNS`."""
    return [_row(one) for one in found.findings]


def _row(one: FindingRecord) -> tuple[str, ...]:
    test = one.test
    tested = [None] * 4 if test is None else [test.auroc, test.kappa, test.sensitivity, test.specificity]
    return (
        name(one.descriptor, one.value),
        f"{one.patients_with} / {one.patients_without}",
        format_interval(one.development),
        _kept(one),
        "yes" if one.why is None else f"no: {_WHY[one.why]}",
        *(format_interval(metric) for metric in tested),
        _calibration(test),
    )


def _calibration(test: FindingTest | None) -> str:
    if test is None or test.ece is None:
        return "n/a"
    return f"{test.ece:.3f} ({test.ece_if_calibrated:.3f})"


def _kept(one: FindingRecord) -> str:
    if one.kept is None:
        return "not measured" if one.blanked is None else "n/a"
    return f"{max(0.0, one.kept):.0%}"


def withheld(found: DescriptorsRecord) -> list[str]:
    """Say of every finding that is withheld why."""
    return [f"{name(one.descriptor, one.value)}: {one.detail}." for one in found.findings if not one.given]


def not_audited(found: DescriptorsRecord) -> list[str]:
    """Say which findings are given out although it is not known whether their evidence is in the nodule."""
    names = [name(one.descriptor, one.value) for one in found.given if one.blanked is None]
    if not names:
        return []
    return [f"It is not known whether the evidence is in the nodule, since no region is known: {', '.join(names)}."]


def shortcuts(found: DescriptorsRecord) -> list[tuple[str, ...]]:
    """Return the table of what tells a finding without the nodule: finding, blanked, and each of `SHORTCUTS`."""
    return [
        (
            name(one.descriptor, one.value),
            format_interval(one.blanked),
            *(format_interval(one.shortcuts.get(key)) for key in SHORTCUTS),
        )
        for one in found.findings
        if one.development is not None
    ]


def deck(found: DescriptorsRecord) -> list[tuple[str, str]]:
    """Return the six features of the deck, and what becomes of each."""
    known = {(one.descriptor, one.value): one for one in found.findings}
    return [(_DECK[feature], _verdict([known.get(one) for one in values])) for feature, values in tirads.DECK.items()]


def _verdict(found: list[FindingRecord | None]) -> str:
    """Say what becomes of a feature that is there if any of these findings is; None for one without a label."""
    texts = []
    for one in found:
        if one is None:
            continue
        what = NAMES[one.value]
        auroc = None if one.test is None else one.test.auroc
        texts.append(
            f"{what}: told (test AUROC {format_interval(auroc)})" if one.given else f"{what}: not told ({one.detail})"
        )
    return "; ".join(texts) or "no label"


def kappas(found: DescriptorsRecord) -> list[str]:
    """Say how well the told word of a descriptor agrees with its label."""
    return [
        f"Kappa of the labelled and the told word of {descriptor} on test images: {kappa}."
        for descriptor, kappa in found.word_kappa.items()
    ]


def warnings(found: DescriptorsRecord) -> list[str]:
    """Return reasons not to trust the labels or the findings, for the first page of the report."""
    columns = {one.descriptor: one.detail for one in found.findings if one.why == "gives_class_away"}
    return [
        *(f"Labels of descriptors: {detail} (no finding of it is given out)." for detail in columns.values()),
        *(
            f"{name(one.descriptor, one.value)}: {one.detail} (the finding is withheld)."
            for one in found.findings
            if one.why == "surroundings"
        ),
    ]


def log_line(found: DescriptorsRecord) -> str:
    """Return what the model tells in one line."""
    told = ", ".join(name(one.descriptor, one.value) for one in found.given)
    return (
        f"Descriptors: {len(found.given)} of {len(found.findings)} findings are given out{': ' if told else ''}{told}"
    )
