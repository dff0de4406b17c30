"""The plot of how often a candidate behind the champion would have decided otherwise, by kind of picture."""

from pathlib import Path

from matplotlib import pyplot as plt

from thyroid import plot_style
from thyroid.records.gate import ShadowGroup, ShadowRecord
from thyroid.watch import verdict

NOVELTY = {"like": "like the training pictures", "unlike": "unlike the training pictures"}
DECISIONS = {"benign": "called benign", "malignant": "called malignant", "abstain": "left undecided"}

_NOW = "#1c2733"


def title(group: ShadowGroup) -> str:
    """Return the name of a group for people."""
    names = {"all": {"all": "all pictures"}, "source": verdict.SOURCES, "novelty": NOVELTY, "decision": DECISIONS}
    return names[group.kind].get(group.value, group.value)


def draw(record: ShadowRecord, path: Path) -> str:
    """Draw the share of changed decisions of every group with its interval.

    Args:
        record: What was compared.
        path: PNG to write.

    Returns:
        What the plot shows, in one sentence.
    """
    groups = record.groups[::-1]
    figure, axis = plt.subplots(figsize=(9.5, 0.4 * len(groups) + 1.2))
    for place, group in enumerate(groups):
        share = group.share
        if share.low is not None and share.high is not None:
            axis.plot([100 * share.low, 100 * share.high], [place, place], color=_NOW, lw=1.5)
        axis.plot(100 * share.value, place, "o", color=_NOW, ms=5)
    axis.set_yticks(range(len(groups)), [f"{title(group)} ({group.pictures:,})" for group in groups])
    axis.set_xlim(left=0)
    axis.set_xlabel("Decisions that the candidate would have changed (%), with 95 % intervals over patients")
    plot_style.save(figure, path)
    return (
        f"Share of decisions that version {record.candidate} would have changed, by kind of picture, with intervals; "
        f"of all pictures it is {100 * record.groups[0].share.value:.1f} %."
    )
