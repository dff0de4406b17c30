"""The figures of several sites: what each site's counts say, over the sites, and of all patients together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from scipy.stats import beta, norm

from thyroid.interval import LEVEL, Interval
from thyroid.records.share import (
    LeftOut,
    PooledFigure,
    PooledGroup,
    RandomEffects,
    SharedGroup,
    SideCounts,
    SiteRecord,
    Steps,
)
from thyroid.validate.share import areas
from thyroid.validate.share.effects import Array, Effects

FIGURES = {
    "sensitivity": "Sensitivity at the locked threshold",
    "specificity": "Specificity at the locked threshold",
    "auroc": "AUROC",
    "observed_to_expected": "Observed to expected",
    "intercept": "Calibration in the large",
    "slope": "Calibration slope",
}
"""Every figure, and its name for people."""

_ALPHA = 1 - LEVEL
_QUANTILE = float(norm.ppf((1 + LEVEL) / 2))
_ROUNDED = 0.005  # of a sum of probabilities


@dataclass(frozen=True, eq=False)
class _Rate:
    """Hits among the patients of one side, by site; fewest and most where the number is withheld."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    patients: NDArray[np.int64]

    @classmethod
    def of(cls, sides: Sequence[SideCounts], benign: bool) -> "_Rate":
        called = np.array([side.called for side in sides])
        patients = np.array([side.patients for side in sides])
        hits = (patients[:, None] - called)[:, ::-1] if benign else called
        return cls(hits[:, 0], hits[:, 1], patients)

    def effects(self, hits: NDArray[np.int64]) -> Effects:
        """Return the logits of the rates. Where all or none are hits, a half is added on both sides (Haldane 1956)."""
        edge = np.where((hits == 0) | (hits == self.patients), 0.5, 0.0)
        yes, no = hits + edge, self.patients - hits + edge
        return Effects(np.log(yes / no), 1 / yes + 1 / no, "logit")


def pooled(records: Sequence[SiteRecord]) -> dict[str, PooledFigure]:
    """Return every figure that at least one site gives, by its name in `FIGURES`."""
    found: dict[str, PooledFigure] = {}
    for name, benign in (("sensitivity", False), ("specificity", True)):
        sides = [(record.site, record.benign if benign else record.malignant) for record in records]
        known = {site: side for site, side in sides if side is not None}
        if known:
            found[name] = _rate(known, benign, [site for site, side in sides if side is None])
    if any(record.auroc is not None for record in records):
        found["auroc"] = _auroc(records)
    if any(record.calibration for record in records):
        found["observed_to_expected"] = _observed_to_expected(records)
    for name in ("intercept", "slope"):
        of_site = {record.site: getattr(record, name) for record in records}
        fits = {site: fit for site, fit in of_site.items() if fit is not None}
        if fits:
            effects = Effects(
                np.array([fit.value for fit in fits.values()]),
                np.array([fit.error for fit in fits.values()]) ** 2,
                "identity",
            )
            without = [site for site in of_site if site not in fits]
            found[name] = _figure(effects, _own(list(fits), effects), without)
    return found


def _own(sites: Sequence[str], effects: Effects) -> dict[str, Interval]:
    """Return each site's figure with the interval of a normal distribution on the scale of the pooling."""
    pairs = zip(sites, effects.value, np.sqrt(effects.variance), strict=True)
    return {site: effects.interval(float(value), _QUANTILE * float(error)) for site, value, error in pairs}


def _figure(
    effects: Effects,
    sites: dict[str, Interval],
    without: list[str],
    *,
    joined: Interval | None = None,
    bounds: list[float] | None = None,
) -> PooledFigure:
    return PooledFigure(
        scale=effects.scale,
        sites=sites,
        withheld=[],
        cases={"exact": effects.pooled() if len(sites) > 1 else _alone(*sites.values())},
        leave_one_out={"exact": effects.leave_one_out(list(sites))},
        joined=joined,
        joined_bounds=bounds,
        without=without,
    )


def _rate(sides: dict[str, SideCounts], benign: bool, without: list[str]) -> PooledFigure:
    """Return sensitivity or specificity."""
    rate, sites = _Rate.of(list(sides.values()), benign), list(sides)
    hidden = rate.low < rate.high
    runs = {"worst": rate.low, "best": rate.high} if hidden.any() else {"exact": rate.low}
    cases, leave_one_out = {}, dict[str, list[LeftOut]]()
    for case, hits in runs.items():
        effects = rate.effects(hits)
        cases[case], leave_one_out[case] = effects.pooled(), effects.leave_one_out(sites)
    low, high = exact(rate.low, rate.patients)[0], exact(rate.high, rate.patients)[1]
    middle = (rate.low + rate.high) / 2 / rate.patients
    if len(sites) == 1:  # its own interval is the exact one
        cases = {case: _alone(_exact_of_one(hits, rate.patients)) for case, hits in runs.items()}
    total = rate.patients.sum(keepdims=True)
    bounds = [rate.low.sum(keepdims=True), rate.high.sum(keepdims=True)]
    shares = [float(bound[0] / total[0]) for bound in bounds]
    return PooledFigure(
        scale="logit",
        sites={
            site: Interval(float(m), float(a), float(b)) for site, m, a, b in zip(sites, middle, low, high, strict=True)
        },
        withheld=[site for site, is_hidden in zip(sites, hidden, strict=True) if is_hidden],
        cases=cases,
        leave_one_out=leave_one_out,
        joined=Interval(sum(shares) / 2, float(exact(bounds[0], total)[0][0]), float(exact(bounds[1], total)[1][0])),
        joined_bounds=shares,
        without=without,
    )


def _exact_of_one(hits: NDArray[np.int64], patients: NDArray[np.int64]) -> Interval:
    low, high = exact(hits, patients)
    return Interval(float(hits[0] / patients[0]), float(low[0]), float(high[0]))


def _alone(own: Interval) -> RandomEffects:
    """Return the figure of a single site: its own, with its own interval."""
    return RandomEffects(sites=1, pooled=own, tau2=None, i2=None, prediction=None)


def exact(hits: NDArray[np.int64], patients: NDArray[np.int64]) -> tuple[Array, Array]:
    """Return the exact binomial intervals of Clopper & Pearson 1934: low and high bounds [n]."""
    with np.errstate(invalid="ignore"):
        low = np.where(hits == 0, 0.0, beta.ppf(_ALPHA / 2, hits, patients - hits + 1))
        high = np.where(hits == patients, 1.0, beta.ppf(1 - _ALPHA / 2, hits + 1, patients - hits))
    return low, high


def area_effect(area: float, variance: float, malignant: int, benign: int) -> tuple[float, float]:
    """Return the logit of an AUROC and its variance, by the delta method (Debray et al. 2017, 10.1136/bmj.i6460).

    Where the classes are separated perfectly, half a patient of the smaller class is put on the wrong side, and the
    variance is that of Newcombe 2006 (10.1002/sim.2324, method 5). Half a pair would leave a variance that says
    nothing, since pairs are not independent.

    Args:
        area: AUROC from 0 to 1.
        variance: Its variance; 0 where it cannot be estimated.
        malignant: Number of malignant patients.
        benign: Number of benign patients.
    """
    if variance <= 0 or not 0 < area < 1:
        fewer, half = min(malignant, benign), (malignant + benign) / 2 - 1
        area = (area * fewer + 0.5) / (fewer + 1)
        spread = 1 + half * (1 - area) / (2 - area) + half * area / (1 + area)
        variance = area * (1 - area) * spread / (malignant * benign)
    return float(logit(area)), variance / (area * (1 - area)) ** 2


def _auroc(records: Sequence[SiteRecord]) -> PooledFigure:
    """Return the AUROC, pooled as logit."""
    found, sites = [], dict[str, Interval]()
    for record in records:
        if record.auroc is None or record.malignant is None or record.benign is None:
            continue
        area = record.auroc
        found.append(area_effect(area.value, area.variance, record.malignant.patients, record.benign.patients))
        sites[record.site] = Interval(area.value, area.low, area.high)
    value, variance = np.array(found).T
    histograms: list[list[Steps]] = [
        [steps for steps in each if steps is not None]
        for each in zip(*((record.malignant_steps, record.benign_steps) for record in records), strict=True)
    ]
    without = [record.site for record in records if record.site not in sites]
    effects = Effects(value, variance, "logit")
    return _figure(effects, sites, without, bounds=list(areas.bounds(*histograms)))


def _observed_to_expected(records: Sequence[SiteRecord]) -> PooledFigure:
    """Return observed to expected, pooled as logarithm, with the variance (1 - O/N) / O (Debray et al. 2017)."""
    known = [record for record in records if record.calibration]
    counts = np.array(
        [
            [sum(getattr(one, name) for one in record.calibration) for name in ("malignant", "patients", "probability")]
            for record in known
        ]
    )
    observed, patients, expected = (np.maximum(column, _ROUNDED) for column in counts.T)
    effects = Effects(np.log(observed / expected), (1 - observed / patients) / observed, "log")
    off = _ROUNDED * sum(len(record.calibration) for record in known)
    total, everybody, sum_of_all = observed.sum(), patients.sum(), expected.sum()
    joined = Effects(
        np.array([np.log(total / sum_of_all)]), np.array([(1 - total / everybody) / total]), "log"
    ).pooled()
    bounds = [float(total / (sum_of_all + off)), float(total / max(sum_of_all - off, _ROUNDED))]
    without = [record.site for record in records if not record.calibration]
    own = _own([record.site for record in known], effects)
    return _figure(effects, own, without, joined=joined.pooled, bounds=bounds)


def subgroups(records: Sequence[SiteRecord]) -> list[PooledGroup]:
    """Return the subgroups of all sites together: those that have the same column and name."""
    found: dict[tuple[str, str], list[SharedGroup]] = {}
    for record in records:
        if record.malignant is None or record.benign is None:
            continue
        for column in record.subgroups:
            malignant = _narrowed([group.malignant for group in column.groups], record.malignant)
            benign = _narrowed([group.benign for group in column.groups], record.benign)
            for group, *sides in zip(column.groups, malignant, benign, strict=True):
                counts = SharedGroup(group=group.group, malignant=sides[0], benign=sides[1])
                found.setdefault((column.column, group.group), []).append(counts)
    return [
        PooledGroup(
            column=column,
            group=name,
            sites=len(groups),
            malignant=sum(group.malignant.patients for group in groups),
            benign=sum(group.benign.patients for group in groups),
            sensitivity=_range([group.malignant for group in groups], benign=False),
            specificity=_range([group.benign for group in groups], benign=True),
        )
        for (column, name), groups in sorted(found.items())
    ]


def _narrowed(groups: Sequence[SideCounts], total: SideCounts) -> list[SideCounts]:
    """Return the groups of a column with what follows for the called patients of each from those of all others."""
    low, high = (sum(group.called[bound] for group in groups) for bound in (0, 1))
    return [
        SideCounts(
            patients=group.patients,
            called=[
                max(group.called[0], total.called[0] - (high - group.called[1])),
                min(group.called[1], total.called[1] - (low - group.called[0])),
            ],
        )
        for group in groups
    ]


def _range(sides: Sequence[SideCounts], benign: bool) -> list[float] | None:
    rate = _Rate.of(sides, benign)
    total = int(rate.patients.sum())
    return [float(hits.sum() / total) for hits in (rate.low, rate.high)] if total else None
