"""Whether what arrives after the release is still like what the model was tested on.

The reference is one image per patient of the validation and the test part (`UsualAnswers` of model.json). The log gives
one image per patient in a window of nights: the one with the smallest keyed hash, which is as good as a draw. A mean
over several images would vary less, and a clinic that sends one image per patient would differ from a reference of
patients with four. Both are samples of finite size, and every comparison is one of two samples: that of Smirnov (1948,
10.1214/aoms/1177730256) for values, and Fisher's exact test (1935, 10.2307/2342435) for shares.

Somebody who looks every night finds something in the end. A comparison therefore raises an alarm only if its p-value is
at most `YEARLY` divided by the number of all comparisons of a year: nights, windows and properties together. This
correction (Bonferroni) holds however much the comparisons depend on each other, and neighbouring nights share most of
their decisions and all of them share the reference. A difference below `SMALLEST` raises no alarm, however sure it is.

What this cannot see or tell apart:

- The model was chosen, and its operating point fitted, on validation patients. Their answers are a little better than
  those of new patients; such a difference is far below `SMALLEST`.
- If requests name no patient, each request counts as one, and a patient who is sent repeatedly counts repeatedly; more
  false alarms are then possible.
- More cancers among the patients change the probabilities, too. An alarm says that something changed and not that the
  model became worse.
- If the disease's appearance changes and the answers do not, only outcomes show it.
"""

import datetime
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import fisher_exact, ks_2samp

from thyroid.records.model import PROPERTIES, UsualAnswers
from thyroid.records.watch import DriftRecord, DriftRow

WINDOWS = (1, 7, 30)
"""Lengths of the windows in nights: a sudden change of much, and a slow one of little."""
YEARLY = 0.05
"""Largest probability of a false alarm in a year."""
SMALLEST = 0.2
"""Smallest difference of two distribution functions, or of two shares, that raises an alarm."""
SHARES = ("abstain", "malignant")
"""Decisions whose share is compared."""

_YEAR = 365
_DIGITS = 6
"""Decimals that are compared, as many as model.json has: equal values, such as a scanner's width over height, must stay
equal."""

Array = NDArray[np.float64]


def compare(decisions: pd.DataFrame, usual: Mapping[str, UsualAnswers], night: datetime.date) -> DriftRecord:
    """Compare the decisions of one version with the answers that are usual for it, on every night up to `night`.

    A night is a day in UTC. The result depends on nothing but the arguments: whoever looks twice gets the same answer
    and spends none of the yearly false alarms.

    Args:
        decisions: Decisions of the version as `thyroid.watch.log.read` returns them. Those after `night` do not count.
        usual: `usual_answers` of the version's model.json; empty for a model of an older release.
        night: The last night to look at.
    """
    table = properties(decisions)
    table = table[table["night"] <= night.toordinal()]
    found = [
        _Source.of(name, table[table["source"] == name], usual[name])
        for name in sorted({*table["source"]} & set(usual))
    ]
    compared = sum(len(_known(one)) + len(SHARES) for one in usual.values())
    level = YEARLY / (_YEAR * len(WINDOWS) * max(compared, 1))
    first = min((int(one.night[0]) for one in found), default=night.toordinal() + 1)
    alarms = [one for one in range(first, night.toordinal()) if any(source.alarms(one, level) for source in found)]
    rows = [row for source in found for row in source.rows(night.toordinal(), level)]
    if alarm := any(row.alarm for row in rows):
        alarms.append(night.toordinal())
    return DriftRecord(
        night=night.isoformat(),
        nights=int(table["night"].nunique()),
        level=level,
        yearly=YEARLY,
        smallest=SMALLEST,
        rows=sorted(rows, key=lambda row: (not row.alarm, -row.difference)),
        alarm=alarm,
        first_alarm=_iso(_run(alarms)) if alarm else None,
        alarms=[_iso(one) for one in alarms],
        skipped=_skipped(table, usual, rows, level),
    )


def properties(decisions: pd.DataFrame) -> pd.DataFrame:
    """Return what is compared of every decision, in the order of its time.

    Args:
        decisions: As for `compare`.

    Returns:
        Columns source, unit, image, night (ordinal of the day in UTC, int64), those of `PROPERTIES` and of `SHARES`
        (float64; a share is 0 or 1, and what an image does not have is NaN).
    """
    ordered = decisions.sort_values("time", kind="stable").reset_index(drop=True)
    sides = np.array(ordered["box"].tolist(), float).reshape(-1, 4)[:, 2:]
    width, height = ordered["width"].to_numpy(float), ordered["height"].to_numpy(float)
    first = pd.Timestamp(0, tz="UTC").toordinal()
    days = (ordered["time"] - pd.Timestamp(0, tz="UTC")).dt.days
    return pd.DataFrame(
        {
            "source": ordered["source"],
            "unit": ordered["unit"],
            "image": ordered["image"],
            "night": days.to_numpy("int64") + first,
            **{name: ordered[name].to_numpy(float) for name in ("probability", "distance", "box_probability")},
            "width": width,
            "height": height,
            "aspect": width / height,
            "box_share": sides.prod(axis=1) / (width * height),
            **{name: (ordered["decision"] == name).to_numpy(float) for name in SHARES},
        }
    )


@dataclass(frozen=True, eq=False)
class _Difference:
    """A property of the window: its value by patient, sorted [n], and how far it is from the reference."""

    name: str
    values: Array
    size: float


@dataclass(frozen=True, eq=False)
class _Source:
    """The decisions on one kind of source in the order of time, with their reference.

    Attributes:
        name: The source.
        night: Ordinal of the night [n].
        unit: Code of the patient [n].
        image: Rank of the image's keyed hash [n].
        values: Values [n, properties and shares]; NaN where an image has none.
        usual: Sorted values of the reference by property.
        shares: Shares of the reference.
        patients: Number of its patients.
    """

    name: str
    night: NDArray[np.int64]
    unit: NDArray[np.intp]
    image: NDArray[np.intp]
    values: Array
    usual: dict[str, Array]
    shares: dict[str, float]
    patients: int

    @classmethod
    def of(cls, name: str, rows: pd.DataFrame, usual: UsualAnswers) -> "_Source":
        known = {one: np.sort(np.round(usual.values[one], _DIGITS)) for one in _known(usual)}
        unit, image = (np.unique(rows[one].to_numpy(str), return_inverse=True)[1] for one in ("unit", "image"))
        values = rows[[*known, *SHARES]].to_numpy(float)
        return cls(name, rows["night"].to_numpy("int64"), unit, image, values, known, usual.shares, usual.patients)

    def alarms(self, night: int, level: float) -> bool:
        """Return whether a comparison raises an alarm on a night."""
        return any(
            self._p(one) <= level
            for nights in WINDOWS
            for one in sorted(self._differences(night, nights), key=lambda one: -one.size)
            if one.size >= SMALLEST  # the p-value costs more than all the rest
        )

    def rows(self, night: int, level: float) -> Iterator[DriftRow]:
        """Yield all comparisons of a night."""
        for nights in WINDOWS:
            for one in self._differences(night, nights):
                p, share = self._p(one), one.name in SHARES
                yield DriftRow(
                    source=self.name,
                    property=one.name,
                    nights=nights,
                    n=len(one.values),
                    reference_n=self.patients if share else len(self.usual[one.name]),
                    value=float(one.values.mean() if share else np.median(one.values)),
                    reference=self.shares[one.name] if share else float(np.median(self.usual[one.name])),
                    difference=one.size,
                    p=p,
                    alarm=p <= level and one.size >= SMALLEST,
                )

    def _differences(self, night: int, nights: int) -> Iterator[_Difference]:
        start, end = np.searchsorted(self.night, [night - nights + 1, night + 1])
        if start == end:
            return
        order = np.lexsort((self.image[start:end], self.unit[start:end]))
        drawn = start + order[np.flatnonzero(np.diff(self.unit[start:end][order], prepend=-1))]
        for name, column in zip([*self.usual, *SHARES], self.values[drawn].T, strict=True):
            values = np.sort(np.round(column[np.isfinite(column)], _DIGITS))
            if not len(values):
                continue
            if name in SHARES:
                yield _Difference(name, values, abs(float(values.mean()) - self.shares[name]))
            else:
                yield _Difference(name, values, distance(values, self.usual[name]))

    def _p(self, one: _Difference) -> float:
        """Return the p-value of a comparison."""
        if one.name not in SHARES:
            with warnings.catch_warnings():  # where the exact p-value overflows, many patients make the other one right
                warnings.filterwarnings("ignore", "ks_2samp: Exact", RuntimeWarning)
                return float(ks_2samp(one.values, self.usual[one.name]).pvalue)
        counts = [round(one.values.sum()), round(self.shares[one.name] * self.patients)]
        others = [len(one.values) - counts[0], self.patients - counts[1]]
        return float(fisher_exact([counts, others]).pvalue)


def distance(values: Array, usual: Array) -> float:
    """Return the largest distance of two empirical distribution functions, 0 to 1 (Kolmogorov-Smirnov).

    Between two values of `usual` its function is constant and the other one rises, so only these values are looked at.

    Args:
        values: Sorted values [n].
        usual: Sorted values [m] of the reference.
    """
    steps = np.arange(len(usual) + 1) / len(usual)
    below = np.searchsorted(values, usual, "left") / len(values)
    at = np.searchsorted(values, usual, "right") / len(values)
    return float(max((below - steps[:-1]).max(), (steps[1:] - at).max()))


def _known(usual: UsualAnswers) -> list[str]:
    """Return the properties of a reference that can be compared."""
    return [name for name in PROPERTIES if usual.values.get(name)]


def _run(nights: list[int]) -> int:
    """Return the first of the consecutive nights at the end of an ascending list."""
    first = nights[-1]
    for night in reversed(nights[:-1]):
        if night != first - 1:
            break
        first = night
    return first


def _iso(ordinal: int) -> str:
    return datetime.date.fromordinal(ordinal).isoformat()


def _skipped(table: pd.DataFrame, usual: Mapping[str, UsualAnswers], rows: list[DriftRow], level: float) -> str | None:
    """Say why nothing could be compared; return None if a comparison could have raised an alarm."""
    if not usual:
        return (
            "the model does not record which answers are usual for it, since it was registered by an older release or "
            "recalibrated"
        )
    if table.empty:
        return "there is no decision up to this night"
    if not rows and not (seen := set(table["source"])) & set(usual):
        return (
            f"the model was tested with other sources ({', '.join(sorted(usual))}) than were judged since "
            f"({', '.join(sorted(seen))})"
        )
    if not rows:
        return f"there is no decision in the last {max(WINDOWS)} nights"
    if not any(_reachable(row.n, row.reference_n, level) for row in rows):
        n, reference_n = max(row.n for row in rows), max(row.reference_n for row in rows)
        return (
            f"{n} patients since and {reference_n} held-out patients of the model are too few: even the largest "
            "difference could be chance"
        )
    return None


def _reachable(n: int, reference_n: int, level: float) -> bool:
    """Return whether two samples of these sizes can have so small a p-value: that of no overlap at all."""
    return 2 / math.comb(n + reference_n, n) <= level
