"""Whether the watch stays silent while nothing changes, and how soon it notices a change. Everything is simulated.

    python bench/watch.py [--years 200]

The ratios of the outcomes are described in `watch_outcomes.py`; those of drift are:

`silent_years_vs_95_percent`: share of simulated years of one scanner without a single alarm of drift over .95, the
worse of two references (60 and 300 held-out patients). Patients have one to four images, which are like each other.
`nights_to_alarm_vs_7`: seven nights over the median number of nights until an alarm, after the probabilities of
malignant have risen so that they tell new patients from those before with an AUROC of .75 (300 held-out patients).
`year_seconds_vs_2`: two seconds over those in which a year of 30 patients a night is compared, on every night.
"""

import argparse
import datetime
import json
import math
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm
from watch_outcomes import measure_outcomes

from thyroid import metrics
from thyroid.records.model import PROPERTIES, UsualAnswers
from thyroid.watch import drift

YEAR, PATIENTS = 365, 12
"""Nights of a simulated year, and patients of a night."""
REFERENCES = (60, 300)
"""Numbers of held-out patients of the models."""
AUROC = 0.75
"""AUROC with which a shifted property tells the patients after the shift from those before."""
SETTLED, LONGEST = 30, 60
"""Nights before the shift, and after it."""
SECONDS = 2
FIRST = datetime.date(2026, 1, 1)
_LIKENESS = 0.6
"""Correlation of two images of a patient."""
_BAND = (0.35, 0.4)


def simulated(
    nights: int, patients: int, seed: int, *, images: Sequence[int] = (1, 2, 3, 4), shift: float = 0.0, since: int = 0
) -> pd.DataFrame:
    """Return decisions of new patients every night, with the columns that `drift.compare` reads.

    Args:
        nights: Number of nights.
        patients: Number of patients of a night.
        seed: Seed.
        images: Numbers of images that a patient may have, equally often.
        shift: By how many standard deviations of an image the logits of the probabilities are higher.
        since: Night from which they are, from 0.
    """
    rng = np.random.default_rng(seed)
    count = rng.choice(images, nights * patients)
    unit = np.repeat(np.arange(len(count)), count)
    night = unit // patients

    def values() -> NDArray[np.float64]:
        of_patient = rng.normal(size=len(count))[unit]
        return math.sqrt(_LIKENESS) * of_patient + math.sqrt(1 - _LIKENESS) * rng.normal(size=len(unit))

    probability = expit(1.5 * (values() + shift * (night >= since)) - 1.2)
    decision = np.where(probability < _BAND[0], "benign", np.where(probability < _BAND[1], "abstain", "malignant"))
    scanner = rng.integers(0, 3, len(count))[unit]  # three presets of one scanner
    side = 60 + 30 * np.exp(0.4 * values())
    return pd.DataFrame(
        {
            "time": pd.Timestamp(FIRST, tz="UTC") + pd.to_timedelta(night, unit="D"),
            "unit": unit.astype(str),
            "image": rng.permutation(len(unit)).astype(str),
            "source": "auto",
            "probability": probability,
            "distance": 0.6 * np.exp(0.2 * values()),
            "box_probability": expit(values() + 2),
            "width": np.array([640, 800, 1024])[scanner],
            "height": np.array([480, 600, 768])[scanner],
            "box": np.stack([np.zeros(len(side)), np.zeros(len(side)), side, 0.7 * side], 1).round().tolist(),
            "decision": decision,
        }
    )


def reference(patients: int, seed: int) -> dict[str, UsualAnswers]:
    """Return the usual answers of a model with so many held-out patients, from the same distributions."""
    table = drift.properties(simulated(1, patients, seed))
    drawn = table.drop_duplicates("unit")
    found = UsualAnswers(
        patients=patients,
        images=len(table),
        values={name: sorted(drawn[name]) for name in PROPERTIES},
        decisions={},
        shares={name: float(drawn[name].mean()) for name in drift.SHARES},
    )
    return {"auto": found}


def silent(years: int, patients: int, images: Sequence[int] = (1, 2, 3, 4)) -> float:
    """Return the share of years without an alarm for a model with so many held-out patients.

    Args:
        years: Number of years, each with a new reference.
        patients: Number of held-out patients.
        images: Numbers of images of a patient in the log.
    """
    last = FIRST + datetime.timedelta(YEAR - 1)
    alarms = 0
    for year in range(years):
        log = simulated(YEAR, PATIENTS, 2 * year, images=images)
        alarms += bool(drift.compare(log, reference(patients, 2 * year + 1), last).alarms)
    return 1 - alarms / years


def nights_to_alarm(runs: int, patients: int) -> NDArray[np.float64]:
    """Return the nights from the shift to the first alarm [runs], infinite where there is none within `LONGEST`."""
    shift = math.sqrt(2) * float(norm.ppf(AUROC))
    last = FIRST + datetime.timedelta(SETTLED + LONGEST - 1)
    began = FIRST + datetime.timedelta(SETTLED)
    found = []
    for run in range(runs):
        log = simulated(SETTLED + LONGEST, PATIENTS, 2 * run, shift=shift, since=SETTLED)
        alarms = drift.compare(log, reference(patients, 2 * run + 1), last).alarms
        after = [datetime.date.fromisoformat(night) - began for night in alarms]
        found.append(min((one.days + 1 for one in after if one.days >= 0), default=math.inf))
    return np.array(found)


def year_seconds() -> float:
    """Return the seconds in which a year of 30 patients a night is compared."""
    log, usual = simulated(YEAR, 30, 0), reference(300, 1)
    began = time.perf_counter()
    drift.compare(log, usual, FIRST + datetime.timedelta(YEAR - 1))
    return time.perf_counter() - began


def measure_drift(years: int) -> dict[str, float]:
    """Print the figures of drift, and return their ratios."""
    quiet, median = {}, {}
    for patients in REFERENCES:
        quiet[patients] = silent(years, patients)
        low, high = metrics.clopper_pearson(round(quiet[patients] * years), years)
        nights = nights_to_alarm(years, patients)
        median[patients] = float(np.median(nights))
        print(
            f"{patients} held-out patients: {quiet[patients]:.1%} [{low:.1%}, {high:.1%}] of {years} years are silent; "
            f"a shift of AUROC {AUROC} raises an alarm after {median[patients]:g} nights "
            f"(nine of ten within {np.quantile(nights, 0.9, method='higher'):g}, {np.isinf(nights).mean():.0%} not "
            f"within {LONGEST}) of {PATIENTS} patients",
            flush=True,
        )
    alone = silent(years, REFERENCES[-1], images=(1,))
    print(f"with one image a patient, where the held-out patients have one to four: {alone:.1%} of years are silent")
    seconds = year_seconds()
    print(f"a year of 30 patients a night is compared in {seconds:.1f} s")
    return {
        "silent_years_vs_95_percent": round(min(quiet.values()) / 0.95, 3),
        "nights_to_alarm_vs_7": round(7 / median[REFERENCES[-1]], 2),
        "year_seconds_vs_2": round(SECONDS / seconds, 2),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=int, default=200)
    given = parser.parse_args()
    ratios = measure_drift(given.years) | measure_outcomes(10 * given.years)  # which takes far less for a year
    print("Research use only.")
    print(json.dumps({"bench": "watch", "ratios": ratios}))


if __name__ == "__main__":
    main()
