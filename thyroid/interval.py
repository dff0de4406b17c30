"""A metric with its confidence interval."""

from dataclasses import dataclass

LEVEL = 0.95
"""Confidence level of all intervals."""


@dataclass(frozen=True)
class Interval:
    """A metric with its 95 % confidence interval, as every record holds it.

    Attributes:
        value: The metric.
        low: Lower bound; null where the data cannot give an interval, as with a single patient.
        high: Upper bound; null where the data cannot give an interval.
    """

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """Return the value with its bounds to three decimals, such as "0.912 [0.874, 0.945]"."""
        if self.low is None or self.high is None:
            return f"{self.value:.3f} [n/a]"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def format_interval(metric: Interval | None) -> str:
    """Return a metric with its interval as text, or "n/a" if there is none."""
    return "n/a" if metric is None else str(metric)
