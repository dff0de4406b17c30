"""A metric with its confidence interval."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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

    @classmethod
    def from_dict(cls, metric: Mapping[str, Any]) -> "Interval":
        """Return the interval of a metric as summary.json holds it: value (auroc for validation), low and high."""
        value = metric["value"] if "value" in metric else metric["auroc"]
        return cls(value, metric["low"], metric["high"])

    def __str__(self) -> str:
        """Return the value with its bounds to three decimals, such as "0.912 [0.874, 0.945]"."""
        if self.low is None or self.high is None:
            return f"{self.value:.3f} [n/a]"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def format_interval(metric: Mapping[str, Any] | None) -> str:
    """Return a metric of summary.json with its interval as text, or "n/a" if there is none."""
    return str(Interval.from_dict(metric)) if metric else "n/a"
