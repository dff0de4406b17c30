"""The classes: their order, which of them count as malignant, and whether they are grades.

Every scan has a class, and every class has a side: benign ("B") or malignant ("M"). The side decides how a scan is
called, audited and released. With the two classes B and M, class and side are the same.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from thyroid.data.filenames import CLASSES, POSITIVE
from thyroid.errors import InputError
from thyroid.records.data import ClassFields

DEFAULT = "B|M"
EXPECTED = (
    "expected the benign classes, a |, and the malignant ones, such as B|M, 2<3|4a<4b<4c<5 for grades in their order, "
    "or cyst,adenoma|papillary,follicular for kinds without an order"
)


@dataclass(frozen=True)
class Classes:
    """The classes of a data version and of what is trained on it.

    Attributes:
        names: Names of the classes, in the order of every probability vector.
        positive: For each class, whether it counts as malignant (or suspicious enough to act).
        ordered: Whether the classes are grades, each more suspicious than the one before.
    """

    names: tuple[str, ...]
    positive: tuple[bool, ...]
    ordered: bool = True

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.names)

    @property
    def columns(self) -> list[str]:
        """Columns of a table of predictions, in the order of `names`."""
        return [f"probability_{name}" for name in self.names]

    def side(self, name: str) -> str:
        """Return the side of a class: "B" or "M"."""
        return CLASSES[int(self.positive[self.names.index(name)])]

    def index(self, name: ArrayLike | pd.Series) -> NDArray[np.intp]:
        """Return the indices in `names` of class names [n]."""
        index = {class_name: number for number, class_name in enumerate(self.names)}
        return np.array([index[class_name] for class_name in np.asarray(name, object)], np.intp)

    def one_hot(self, name: ArrayLike | pd.Series) -> NDArray[np.float32]:
        """Return class names [n] one-hot encoded, float32 [n, classes]."""
        return np.eye(len(self), dtype=np.float32)[self.index(name)]

    def malignant(self, probability: ArrayLike) -> NDArray[np.float64]:
        """Return the probability of malignant [n], the sum over the positive classes of probabilities [n, classes]."""
        total = np.asarray(probability, float)[:, list(self.positive)].sum(axis=1)
        malignant: NDArray[np.float64] = np.minimum(total, 1)  # rounding can push the sum above 1
        return malignant

    def read(self, text: str) -> str | None:
        """Return the class that a cell of a table means, or None.

        Case, Unicode form, surrounding blanks and a trailing ".0" are ignored, since spreadsheets turn 2 into 2.0.
        """
        return next((name for name in self.names if _plain(name) == _plain(text)), None)

    @classmethod
    def from_record(cls, record: ClassFields) -> "Classes":
        """Return the classes of a data.json, train.json or model.json."""
        return cls(tuple(record.classes), tuple(record.positive), record.ordered)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Classes":
        """Return the classes from their JSON fields, as `to_dict` returns them."""
        return cls(tuple(fields["classes"]), tuple(fields["positive"]), fields["ordered"])

    def to_dict(self) -> dict[str, Any]:
        """Return the classes as JSON fields."""
        return {"classes": list(self.names), "positive": list(self.positive), "ordered": self.ordered}

    def __str__(self) -> str:
        """Return the text that `parse` reads, such as "2<3|4a<4b<4c<5"."""
        mark = "<" if self.ordered else ","
        sides = (
            mark.join(n for n, p in zip(self.names, self.positive, strict=True) if p is side) for side in (False, True)
        )
        return "|".join(sides)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip().casefold().removesuffix(".0")


BINARY = Classes(CLASSES, (False, True))
"""The classes that file names carry: B and M."""


def parse(text: str) -> Classes:
    """Parse the classes that a user names, such as "2<3|4a<4b<4c<5".

    Raises:
        InputError: The text does not have this form, a class is named twice, B or M is used for anything but the two
            sides, or a name cannot be used.
    """
    sides = text.split("|")
    parts = [[_tidy(name) for name in re.split("[<,]", side)] for side in sides]
    names = [name for part in parts for name in part]
    if len(sides) != 2 or not all(names) or ("<" in text and "," in text):
        raise InputError(f"classes {text!r}: {EXPECTED}")
    plain = [_plain(name) for name in names]
    if plain == [_plain(name) for name in CLASSES]:
        return BINARY
    if len(set(plain)) < len(names):
        raise InputError(f"classes {text!r}: one of the names occurs twice")
    if {"b", "m"} & set(plain):
        raise InputError(f"classes {text!r}: B and M are reserved for the two sides of the |; choose other names")
    if "patients" in plain:
        raise InputError(f"classes {text!r}: the name patients is reserved for their number; choose another name")
    if bad := [name for name in names if len(name) > 40 or not name.isprintable()]:
        raise InputError(f"classes {text!r}: {bad[0]!r} is not a name of at most 40 printable characters")
    positive = tuple(side == POSITIVE for side, part in enumerate(parts) for _ in part)
    return Classes(tuple(names), positive, "," not in text)


def _tidy(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()
