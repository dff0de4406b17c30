"""Whether the alarm of the outcomes stays silent while a model holds, and how soon it notices a fall. All is simulated.

    python bench/watch_outcomes.py [--years 2000]

`silent_years_of_outcomes_vs_95_percent`: share of simulated years without a false alarm of sensitivity or specificity
over .95, the worse of the first year and of the fifth. A year has 200 malignant and 1,800 benign outcomes, and the
model is held to the sensitivity .95 and the specificity .80, which it has. Beside it stands how many of these years an
ordinary test of every night leaves silent.
`sequence_holds_vs_95_percent`: share of releases, of 1,000 outcomes each, during all of which the confidence sequence
holds the true share, over .95.
`cancers_until_alarm_vs_150`: 150 over the number of malignant outcomes within which a fall of the sensitivity from .95
to .85 is detected with 80 %. It is computed, and 2,000 falls are simulated beside it.
"""

import argparse
import functools
import json

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from thyroid import metrics
from thyroid.watch.outcomes.sequential import Chart, confidence_sequence

CANCERS, BENIGN = 200, 1800
"""Outcomes of a year."""
SENSITIVITY, SPECIFICITY, FALL = 0.95, 0.8, 0.1
LATER = 5
"""Number of the year after the release that is looked at beside the first."""
DELAY = 30
"""Mean days from a pathology until its outcome is known, where outcomes are late."""
RELEASES, LONG = 2000, 1000
"""Simulated releases for the confidence sequence, and their outcomes."""
BUDGET = 150
FALLS = ((0.95, 0.9), (0.95, 0.85), (0.95, 0.8), (0.9, 0.8), (0.8, 0.7))
"""Falls of the sensitivity whose detection is tabulated."""


def alarms(chart: Chart, yearly: int, years: int, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return whether there is an alarm in the first year, and one in the year `LATER`, each bool [years].

    For the later year, releases with an alarm before it are drawn again: the alarm has been seen by then.
    """
    rng = np.random.default_rng(seed)
    first, later = np.zeros(years, bool), np.zeros(years, bool)
    for place in range(years):
        year = 0
        while year < LATER - 1:
            beyond = chart.path(rng.random(LATER * yearly) < chart.expected) >= chart.threshold
            year = int(beyond.argmax()) // yearly if beyond.any() else LATER
        later[place] = year == LATER - 1
        first[place] = (chart.path(rng.random(yearly) < chart.expected) >= chart.threshold).any()
    return first, later


def nightly(share: float, yearly: int, years: int, seed: int) -> NDArray[np.bool_]:
    """Return whether an exact binomial test at 2.5 %, repeated at every outcome of a year, is ever significant."""
    hits = np.cumsum(np.random.default_rng(seed).random((years, yearly)) < share, axis=1)
    significant = binom.cdf(hits, np.arange(1, yearly + 1), share) <= 0.025
    ever: NDArray[np.bool_] = significant.any(axis=1)
    return ever


def until_alarm(chart: Chart, runs: int, seed: int) -> NDArray[np.float64]:
    """Return the number of outcomes from a fall to the alarm, infinite beyond `LONG`, float64 [runs]."""
    rng = np.random.default_rng(seed)
    beyond = [chart.path(rng.random(LONG) < chart.fallen) >= chart.threshold for _ in range(runs)]
    return np.array([one.argmax() + 1.0 if one.any() else np.inf for one in beyond])


def late(chart: Chart, yearly: int, years: int, seed: int) -> NDArray[np.bool_]:
    """Return whether a year has a false alarm on any third night if outcomes become known `DELAY` days late on average.

    On every night the outcomes that are known by then are put into the order of their dates.
    """
    rng, ever = np.random.default_rng(seed), np.zeros(years, bool)
    for year in range(years):
        day, right = np.sort(rng.uniform(0, 365, yearly)), rng.random(yearly) < chart.expected
        known = day + rng.exponential(DELAY, yearly)
        ever[year] = any(
            (chart.path(right[known <= night]) >= chart.threshold).any() for night in range(3, 366 + 3 * DELAY, 3)
        )
    return ever


def holds(share: float, seed: int) -> float:
    """Return the share of releases during all of which the confidence sequence holds the true share."""
    rng, bounds = np.random.default_rng(seed), functools.cache(confidence_sequence)
    held = 0
    for _ in range(RELEASES):
        hits = np.cumsum(rng.random(LONG) < share).tolist()
        held += all(low <= share <= high for low, high in (bounds(hit, count) for count, hit in enumerate(hits, 1)))
    return held / RELEASES


def measure_outcomes(years: int) -> dict[str, float]:
    """Print the figures of the outcomes, and return their ratios."""
    sensitivity = Chart.tuned(SENSITIVITY, SENSITIVITY - FALL, CANCERS)
    specificity = Chart.tuned(SPECIFICITY, SPECIFICITY - FALL, BENIGN)
    of_cancers, of_benign = alarms(sensitivity, CANCERS, years, 0), alarms(specificity, BENIGN, years, 1)
    silent = []
    for name, one, other in zip(("first", "fifth"), of_cancers, of_benign, strict=True):
        false = int((one | other).sum())
        low, high = metrics.clopper_pearson(false, years)
        print(
            f"{name} year: {false / years:.1%} [{low:.1%}, {high:.1%}] of {years} years have a false alarm "
            f"({one.mean():.1%} of sensitivity, {other.mean():.1%} of specificity)",
            flush=True,
        )
        silent.append(1 - false / years)
    some = years // 4
    behind = late(sensitivity, CANCERS, some, 5) | late(specificity, BENIGN, some, 6)
    low, high = metrics.clopper_pearson(int(behind.sum()), some)
    print(
        f"outcomes {DELAY} days late on average, put into the order of their dates: {behind.mean():.1%} "
        f"[{low:.1%}, {high:.1%}] of {some} years have a false alarm",
        flush=True,
    )
    ordinary = nightly(SENSITIVITY, CANCERS, years, 2) | nightly(SPECIFICITY, BENIGN, years, 3)
    print(f"an ordinary test at the same level, looked at after every outcome: {ordinary.mean():.1%}")
    for expected, fallen in FALLS:
        chart = Chart.tuned(expected, fallen, CANCERS)
        within = {chance: chart.detection(chance) for chance in (0.5, 0.8, 0.9)}
        print(
            f"from {expected:g} to {fallen:g}: detected within {within[0.5]} malignant outcomes in half of such falls, "
            f"within {within[0.8]} in 80 % and within {within[0.9]} in 90 %"
        )
    falls = np.quantile(until_alarm(sensitivity, years, 4), (0.5, 0.8), method="higher")
    print(f"{years} simulated falls from .95 to .85: half within {falls[0]:g}, 80 % within {falls[1]:g}", flush=True)
    held = min(holds(share, seed) for seed, share in enumerate((SENSITIVITY, SPECIFICITY)))
    print(f"the confidence sequence holds the true share at every one of {LONG} outcomes in {held:.1%} of releases")
    return {
        "silent_years_of_outcomes_vs_95_percent": round(min(silent) / 0.95, 3),
        "sequence_holds_vs_95_percent": round(held / 0.95, 3),
        "cancers_until_alarm_vs_150": round(BUDGET / (sensitivity.detection(0.8) or np.inf), 2),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=int, default=2000)
    ratios = measure_outcomes(parser.parse_args().years)
    print("Research use only.")
    print(json.dumps({"bench": "watch_outcomes", "ratios": ratios}))


if __name__ == "__main__":
    main()
