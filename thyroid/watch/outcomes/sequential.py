"""Looks at a share of right decisions every night: a confidence sequence, and a CUSUM that raises the alarm.

An ordinary interval or test that is repeated every night is wrong some night almost surely. These two are made to be
looked at all the time.

The limit of false alarms holds for outcomes in a fixed order. One that becomes known late takes the place of its date
and moves those after it: every night then looks at a slightly different path, and false alarms are more frequent.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import betaln, xlog1py, xlogy

from thyroid.interval import LEVEL

FALSE_ALARM = 0.035
"""Largest probability of a false alarm in a year, of sensitivity and specificity together, where outcomes become
known in the order of their dates. Those that become known late change the past, which costs more false alarms; this
leaves room for them below 5 % (docs/results.md)."""
HIGHEST = 0.99
"""Highest share that a model is held to: from 1, a single miss would be an alarm."""
LOWEST = 0.01
"""Lowest share that an alarm is tuned to detect."""

_FLAT = 0.5  # parameters of the mixture (Krichevsky & Trofimov 1981): narrowest where shares are near 0 or 1
_STEPS = 10  # the smaller of the two scores in units: finer ones gain nothing
_TINY = 1e-12
_STILL = 1e-11
_ROUNDS = 20_000


def confidence_sequence(right: int, trials: int) -> tuple[float, float]:
    """Return the bounds of a share that hold at all times together with 95 %, however often they are looked at.

    They hold the shares against which the beta-binomial mixture of likelihood ratios has not reached 20, by Ville's
    inequality (Robbins 1970, 10.1214/aoms/1177696786; Howard et al. 2021, 10.1214/20-AOS1991; Waudby-Smith & Ramdas
    2024, 10.1093/jrsssb/qkad009). The mixture is Beta(1/2, 1/2). They presuppose that the share stays the same; while
    it changes, they lag behind.

    Args:
        right: Number of right decisions, 0 to `trials`.
        trials: Number of decisions.
    """
    wrong = trials - right
    mixture = float(betaln(right + _FLAT, wrong + _FLAT) - betaln(_FLAT, _FLAT)) + math.log(1 - LEVEL)

    def beyond(share: float) -> float:
        return mixture - float(xlogy(right, share) + xlog1py(wrong, -share))

    share = right / trials if trials else 0.5
    low = brentq(beyond, _TINY, share) if right and beyond(_TINY) > 0 else 0.0
    high = brentq(beyond, share, 1 - _TINY) if wrong and beyond(1 - _TINY) > 0 else 1.0
    return float(low), float(high)


@dataclass(frozen=True)
class Chart:
    """A CUSUM of log-likelihood ratios of right and wrong decisions.

    The sum is that of Page (1954, 10.1093/biomet/41.1-2.100), for Bernoulli trials that of Reynolds & Stoumbos (1999,
    10.1080/00224065.1999.11979900).

    Every right decision lowers the sum, though not below 0, and every wrong one raises it. The scores are whole numbers
    of `unit`, so that the sum is a Markov chain with few states (Brook & Evans 1972, 10.1093/biomet/59.3.539). All
    probabilities are computed from it and none is simulated.

    Attributes:
        expected: Share of right decisions that the model is held to, `fallen` to 1 exclusive.
        fallen: Share that the chart is tuned to detect, above 0.
        right: Score of a right decision in units; it is subtracted.
        wrong: Score of a wrong decision in units.
        unit: Log-likelihood ratio of a unit.
        threshold: Sum in units from which there is an alarm.
    """

    expected: float
    fallen: float
    right: int
    wrong: int
    unit: float
    threshold: int

    @classmethod
    def tuned(cls, expected: float, fallen: float, outcomes: int, chance: float = FALSE_ALARM / 2) -> Self:
        """Return the chart with the lowest threshold that keeps false alarms rare.

        However long there was no alarm before, a false one within the next `outcomes` decisions has at most the
        probability `chance`: the sum starts where it is in the long run without an alarm (the quasi-stationary
        distribution), which is higher than the 0 of the first year. The sum therefore needs no restart after a year.

        Args:
            expected: As for the class.
            fallen: As for the class.
            outcomes: Number of decisions with an outcome in a year.
            chance: Largest probability of a false alarm in a year.
        """
        gain, loss = math.log(expected / fallen), math.log((1 - fallen) / (1 - expected))
        unit = min(gain, loss) / _STEPS
        right, wrong = round(gain / unit), round(loss / unit)
        low, high = 0, wrong  # at `low` the chance is too large, at `high` it may be
        while _yearly(right, wrong, high, expected, outcomes) > chance:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            if _yearly(right, wrong, middle, expected, outcomes) > chance:
                low = middle
            else:
                high = middle
        return cls(expected, fallen, right, wrong, unit, high)

    def path(self, right: ArrayLike) -> NDArray[np.int64]:
        """Return the sum in units after every decision, int64 [n].

        Args:
            right: bool [n], True for a right decision, in the order of the outcomes.
        """
        steps = np.cumsum(np.where(np.asarray(right, bool), -self.right, self.wrong))
        floor = np.minimum.accumulate(np.minimum(steps, 0))
        return (steps - floor).astype(np.int64)

    def alarmed(self, share: float, outcomes: int) -> NDArray[np.float64]:
        """Return the probability of an alarm within the first n decisions, for n = 0 to `outcomes`, float64 [n + 1].

        Args:
            share: True share of right decisions, 0 to 1.
            outcomes: Largest number of decisions.
        """
        sums, silent = np.zeros(self.threshold), np.ones(outcomes + 1)
        sums[0] = 1.0
        for number in range(1, outcomes + 1):
            sums = _after(sums, self.right, self.wrong, share)
            silent[number] = sums.sum()
        return 1 - silent

    def detection(self, chance: float, most: int = 20_000) -> int | None:
        """Return within how many decisions a fall to `fallen` is detected with this probability; None beyond `most`.

        It is counted from a sum of 0, where detection takes longest.
        """
        sums = np.zeros(self.threshold)
        sums[0] = 1.0
        for number in range(1, most + 1):
            sums = _after(sums, self.right, self.wrong, self.fallen)
            if 1 - sums.sum() >= chance:
                return number
        return None


def _after(sums: NDArray[np.float64], right: int, wrong: int, share: float) -> NDArray[np.float64]:
    """Return the probability of every sum below the threshold [threshold] after another decision."""
    after = np.zeros(len(sums))
    lowered = min(right, len(sums) - 1)
    after[: len(sums) - lowered] = share * sums[lowered:]
    after[0] += share * sums[:lowered].sum()
    if wrong < len(sums):
        after[wrong:] += (1 - share) * sums[: len(sums) - wrong]
    return after


def _yearly(right: int, wrong: int, threshold: int, share: float, outcomes: int) -> float:
    """Return the probability of an alarm within `outcomes` decisions from the quasi-stationary distribution.

    From there, every decision is silent with the same probability: the largest eigenvalue of the chain.
    """
    sums, silent = np.zeros(threshold), 1.0
    sums[0] = 1.0
    for _ in range(_ROUNDS):
        after = _after(sums, right, wrong, share)
        silent = float(after.sum())
        after /= silent
        moved, sums = float(np.abs(after - sums).sum()), after
        if moved < _STILL:
            break
    return -math.expm1(outcomes * math.log(min(silent, 1.0)))
