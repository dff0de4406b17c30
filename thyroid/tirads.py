"""The words of ACR TI-RADS for a nodule, their points and the level that their sum means.

Source: Tessler et al., "ACR Thyroid Imaging, Reporting and Data System (TI-RADS): White Paper of the ACR TI-RADS
Committee" (J Am Coll Radiol 2017;14:587), https://doi.org/10.1016/j.jacr.2017.01.046. Research use only.

A *descriptor* is one of its five categories, such as margin; a *value* is one of a descriptor's words, such as smooth.
A nodule has one value of each descriptor, but may have several kinds of echogenic foci at once, whose points add up.
"""

import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

FOCI = "foci"
"""The descriptor of which a nodule may have several values at once."""
NONE = "none"
"""The value of `FOCI` that says that there are none."""
DESCRIPTORS: dict[str, dict[str, int]] = {
    "composition": {"cystic": 0, "spongiform": 0, "mixed": 1, "solid": 2},
    "echogenicity": {"anechoic": 0, "hyperechoic": 1, "isoechoic": 1, "hypoechoic": 2, "very_hypoechoic": 3},
    "shape": {"wider": 0, "taller": 3},
    "margin": {"smooth": 0, "ill_defined": 0, "lobulated": 2, "extrathyroidal": 3},
    FOCI: {NONE: 0, "comet_tail": 0, "macro": 1, "rim": 2, "punctate": 3},
}
"""Values of every descriptor with their points. These names are written to files, and never change.

`lobulated` is lobulated or irregular, `comet_tail` is a large comet-tail artefact, `macro` a macrocalcification, `rim`
a peripheral calcification and `punctate` punctate echogenic foci.
"""
DECK: dict[str, tuple[tuple[str, str], ...]] = {
    "hypoechoic": (("echogenicity", "hypoechoic"), ("echogenicity", "very_hypoechoic")),
    "anechoic_or_cystic": (("composition", "cystic"), ("echogenicity", "anechoic")),
    "rim_calcification": ((FOCI, "rim"),),
    "irregular_borders": (("margin", "lobulated"),),
    "microcalcifications": ((FOCI, "punctate"),),
    "comet_tails": ((FOCI, "comet_tail"),),
}
"""The six features of the deck; each is there if any of these descriptors has this value."""
SPONGIFORM = "spongiform"
"""The composition that adds no points of other descriptors."""
LEVELS = {"TR1": 0, "TR2": 2, "TR3": 3, "TR4": 4, "TR5": 7}
"""The fewest points of each level. ACR gives no level to a sum of 1, which counts as TR1 here."""
JOINT = "+"
"""What stands between several kinds of foci in one cell of a table."""

_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "composition": {
        "cystic": ("almost completely cystic", "cystic or almost completely cystic", "cyst", "낭성"),
        "spongiform": ("spongiform appearance", "해면상"),
        "mixed": (
            "mixed cystic and solid",
            "mixed cystic solid",
            "predominantly solid",
            "predominantly cystic",
            "partially cystic",
            "혼합",
        ),
        "solid": ("almost completely solid", "solid or almost completely solid", "고형"),
    },
    "echogenicity": {
        "anechoic": ("anechogenicity", "무에코"),
        "hyperechoic": ("hyperechogenicity", "hyperechogenic", "고에코"),
        "isoechoic": ("isoechogenicity", "isoechogenic", "등에코"),
        "hypoechoic": ("hypoechogenicity", "hypoechogenic", "저에코"),
        "very_hypoechoic": (
            "markedly hypoechoic",
            "marked hypoechoic",
            "marked hypoechogenicity",
            "marked hypoechogenic",
            "심한 저에코",
        ),
    },
    "shape": {
        "wider": ("wider than tall", "가로가 긴 모양"),
        "taller": ("taller than wide", "세로가 긴 모양"),
    },
    "margin": {
        "smooth": ("well defined", "well defined smooth", "평활"),
        "ill_defined": ("불분명",),
        "lobulated": (
            "lobulated or irregular",
            "irregular",
            "spiculated",
            "microlobulated",
            "macrolobulated",
            "소엽상",
            "불규칙",
            "소엽상·불규칙",
        ),
        "extrathyroidal": ("extrathyroidal extension", "extra thyroidal extension", "갑상선 외 침범"),
    },
    FOCI: {
        NONE: ("non", "no", "absent", "없음"),
        "comet_tail": (
            "comet tails",
            "large comet tail",
            "large comet tails",
            "comet tail artifact",
            "comet tail artifacts",
            "comet tail artefact",
            "comet tail artefacts",
            "large comet tail artifacts",
            "large comet tail artefacts",
            "혜성 꼬리",
        ),
        "macro": (
            "macrocalcification",
            "macrocalcifications",
            "coarse calcification",
            "coarse calcifications",
            "거대 석회화",
        ),
        "rim": (
            "rim calcification",
            "rim calcifications",
            "peripheral",
            "peripheral calcification",
            "peripheral calcifications",
            "eggshell",
            "eggshell calcification",
            "eggshell calcifications",
            "테두리 석회화",
        ),
        "punctate": (
            "punctate echogenic foci",
            "punctate foci",
            "microcalcification",
            "microcalcifications",
            "점상 고에코",
            "미세석회화",
            "미세 석회화",
        ),
    },
}
"""Further words of each value: those of ACR, of DDTI and of Korean reports."""
_COLUMNS = {
    "composition": ("구성",),
    "echogenicity": ("에코",),
    "shape": ("모양",),
    "margin": ("margins", "경계"),
    FOCI: ("echogenic foci", "calcification", "calcifications", "고에코 병소", "석회화"),
}
"""Further names of each descriptor's column."""


def _folded(text: str) -> str:
    """Return a text in NFC and lower case; hyphens, underscores and blanks are one blank."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().replace("-", " ").replace("_", " ").split())


_VALUE = {
    descriptor: {_folded(word): value for value in values for word in (value, *_WORDS[descriptor][value])}
    for descriptor, values in DESCRIPTORS.items()
}
_DESCRIPTOR = {_folded(name): descriptor for descriptor in DESCRIPTORS for name in (descriptor, *_COLUMNS[descriptor])}


@dataclass(frozen=True)
class Points:
    """The points that a nodule may have.

    Attributes:
        low: The fewest, 0 to 17.
        high: The most, `low` to 17.
    """

    low: int
    high: int

    @property
    def levels(self) -> tuple[str, str]:
        """The lowest and the highest level, each TR1 to TR5."""
        return level(self.low), level(self.high)


def kinds(descriptor: str) -> tuple[str, ...]:
    """Return the values of a descriptor in the order of `DESCRIPTORS`; of `FOCI` the kinds, without `NONE`."""
    return tuple(value for value in DESCRIPTORS[descriptor] if (descriptor, value) != (FOCI, NONE))


def parse(descriptor: str, word: str) -> frozenset[str] | None:
    """Return the values that a cell of a table names.

    Case, hyphens, underscores and blanks do not matter, nor does the Unicode form. Several kinds of `FOCI` are joined
    by "+" or ";".

    Args:
        descriptor: One of `DESCRIPTORS`.
        word: The cell's text.

    Returns:
        One value, or one or more kinds of `FOCI`; None if a word is unknown or empty, if there are several words of
        another descriptor, or if `NONE` stands beside a kind.
    """
    parts = word.replace(";", JOINT).split(JOINT) if descriptor == FOCI else [word]
    found = {_VALUE[descriptor].get(_folded(part)) for part in parts}
    values = frozenset(value for value in found if value is not None)
    return None if len(values) != len(found) or (NONE in values and len(values) > 1) else values


def cell(descriptor: str, values: Iterable[str]) -> str:
    """Return values as a cell of a table in the order of `DESCRIPTORS`, which `parse` reads: "macro+punctate"."""
    return JOINT.join(sorted(values, key=list(DESCRIPTORS[descriptor]).index))


def column(name: str) -> str | None:
    """Return the descriptor that a column of a table with this name holds; None if the name is unknown."""
    return _DESCRIPTOR.get(_folded(name))


def level(points: int) -> str:
    """Return the level of a sum of points, TR1 to TR5."""
    return [name for name, fewest in LEVELS.items() if points >= fewest][-1]


def points(possible: Mapping[str, Collection[str]], sure: Collection[str] = ()) -> Points:
    """Return the fewest and the most points of a nodule whose descriptors are not all certain.

    A spongiform nodule has no points, whatever its other descriptors are.

    Args:
        possible: By descriptor, the values that cannot be excluded. A descriptor that is missing may have any. Of
            `FOCI`, the kinds that cannot be excluded, which may be none.
        sure: The kinds of `FOCI` that are there for certain.

    Raises:
        ValueError: A descriptor other than `FOCI` has no possible value.
    """
    known = {descriptor: possible.get(descriptor, kinds(descriptor)) for descriptor in DESCRIPTORS}
    if empty := [descriptor for descriptor in DESCRIPTORS if descriptor != FOCI and not known[descriptor]]:
        raise ValueError(f"{empty[0]} has no possible value")
    others = [value for value in known["composition"] if value != SPONGIFORM]
    if not others:
        return Points(0, 0)
    worth = {name: [DESCRIPTORS[name][value] for value in known[name]] for name in DESCRIPTORS if name != FOCI}
    worth["composition"] = [DESCRIPTORS["composition"][value] for value in others]
    foci = DESCRIPTORS[FOCI]
    low = sum(map(min, worth.values())) + sum(foci[kind] for kind in set(sure))
    high = sum(map(max, worth.values())) + sum(foci[kind] for kind in {*known[FOCI], *sure})
    return Points(0 if SPONGIFORM in known["composition"] else low, high)
