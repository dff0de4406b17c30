"""Let live pictures decide on a candidate that holds every criterion on the stored test images.

The outcomes of live pictures are not known yet. What can be known is whether the two models differ on them no more than
on the stored test images, whose outcomes are known: if they do, these images do not say what the candidate will do. A
patient counts once, with one picture, so that the patients of a group are independent, and Fisher's exact test (1935,
10.2307/2342435) compares them with the stored ones. All these tests together refuse a candidate by chance with a
probability of at most `LEVEL` (Bonferroni). Live pictures decide once: as soon as there are enough, whatever they say.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact

from thyroid.data.filenames import SCORE
from thyroid.evaluate.champion import Champion
from thyroid.evaluate.gate import Candidate
from thyroid.model.operating_point import decide as decide_all
from thyroid.records.gate import (
    Criterion,
    GateRecord,
    ShadowDecision,
    ShadowGroup,
    ShadowRecord,
    ShadowTerms,
    StoredFlips,
)

WAITING = "waiting"
LEVEL = 0.05
"""Largest probability that a candidate is refused although it differs from the champion as on the stored images."""
PATIENTS = 30
"""Smallest number of live patients of a subgroup that is judged."""
ENOUGH = 72
"""Smallest number of live patients that decide. The interval of fewer reaches `ABSTENTIONS` even if nothing changes, so
that they could only refuse."""
ABSTENTIONS = 0.05
"""Largest rise of the share of pictures that are left undecided. It is the margin of the AUROC: an abstention is a
picture on which the model is lost."""

_WHOLE = "all"


def wait(
    decision: GateRecord, candidate: Candidate, band: tuple[float, float] | None, champion: Champion, pictures: int
) -> GateRecord:
    """Have a candidate that the gate would release wait for live pictures.

    Args:
        decision: What the gate decided on the stored test images.
        candidate: The candidate.
        band: Its band of abstention; None for none.
        champion: The champion on the same images.
        pictures: Number of live pictures that must be judged; 0 if they do not decide.

    Returns:
        The decision, which is "waiting" if it was to release the candidate and there is a champion to answer behind.
    """
    if decision.decision != "promoted" or not pictures or champion.scores is None or champion.threshold is None:
        return decision
    own = decide_all(candidate.test[SCORE], candidate.threshold, band)
    called = decide_all(champion.scores, champion.threshold, champion.band)
    flipped = (own != called) & (own != "abstain") & (called != "abstain")
    test = candidate.test.assign(called=called, flipped=flipped).sort_values("sha256")
    groups = {_WHOLE: test} | {name: test[test["called"] == name] for name in ("benign", "malignant")}
    stored = [_stored(name, rows) for name, rows in groups.items()]
    reason = f"every criterion holds on the stored test images; {pictures:,} live pictures behind champion "
    return decision.model_copy(
        update={
            "decision": WAITING,
            "reasons": [f"{reason}{champion.version} decide", *decision.reasons[1:]],
            "shadow": ShadowTerms(pictures=pictures, stored=stored),
        }
    )


def decide(waiting: GateRecord, found: ShadowRecord) -> ShadowDecision | None:
    """Decide on a candidate by what it made of live pictures.

    Args:
        waiting: Its gate's decision to wait.
        found: What it made of them.

    Returns:
        The decision; None if there are too few pictures or patients yet, or if the pictures are of another champion
        than the one that the candidate was compared with on the stored test images.
    """
    terms = waiting.shadow
    if terms is None or found.champion != waiting.champion:
        return None
    if found.pictures < terms.pictures or found.patients < ENOUGH:
        return None
    criteria = [_flips(terms, found.groups), *_abstentions(found.groups)]
    failed = [one for one in criteria if not one.passed]
    reasons = [f"{one.name}: {one.found}; required: {one.asked}" for one in failed]
    return ShadowDecision(
        decision="refused" if failed else "accepted",
        reasons=[found.summary, *(reasons or ["every criterion holds on live pictures, too"])],
        criteria=criteria,
    )


def _stored(name: str, rows: pd.DataFrame) -> StoredFlips:
    one = rows.drop_duplicates("patient")  # the smallest hash of an image is as good as a draw
    return StoredFlips.parse({"champion": name, "patients": len(one), "flipped": int(one["flipped"].sum())}, "gate")


def _flips(terms: ShadowTerms, groups: Sequence[ShadowGroup]) -> Criterion:
    """Return the criterion that the models disagree no more than on the stored test images, in any large group."""
    tested = list(_pairs(terms, groups))
    level = LEVEL / len(tested)  # all pictures are one of the groups
    more = [_more(group, stored) for group, stored, p in tested if p <= level]
    return _criterion(
        "calls of the two models",
        f"in no group of at least {PATIENTS} patients more often benign for one model and malignant for the other than "
        f"on the stored test images (Fisher's exact test, one-sided, {LEVEL:g} over all groups)",
        "; ".join(more) if more else f"holds in all {len(tested)}",
        not more,
    )


def _pairs(terms: ShadowTerms, groups: Sequence[ShadowGroup]) -> Iterator[tuple[ShadowGroup, StoredFlips, float]]:
    """Yield every group that is judged, the stored patients it is compared with, and the p-value."""
    stored = {one.champion: one for one in terms.stored}
    for group in groups:
        name = group.value if group.kind == "decision" else _WHOLE
        if group.patients < PATIENTS or name not in stored:  # nobody flips what the champion left undecided
            continue
        other = stored[name]
        counts = [
            [group.flipped_patients, group.patients - group.flipped_patients],
            [other.flipped, other.patients - other.flipped],
        ]
        yield group, other, float(fisher_exact(np.array(counts), alternative="greater").pvalue)


def _more(group: ShadowGroup, stored: StoredFlips) -> str:
    return (
        f"{group.flipped_patients} of {group.patients} patients ({_name(group)}), against {stored.flipped} of "
        f"{stored.patients} stored ones"
    )


def _name(group: ShadowGroup) -> str:
    return "all pictures" if group.kind == "all" else f"{group.kind} {group.value}"


def _abstentions(groups: Sequence[ShadowGroup]) -> Iterator[Criterion]:
    """Yield the criteria of what is left undecided: over all pictures, and in the large groups.

    Groups are small, and among many groups some rise by chance. A rise in one therefore counts only if it exceeds the
    margin and the whole interval is above 0.
    """
    for group in groups:
        if group.kind == "all":
            rise = group.abstained
            yield _criterion(
                "abstentions",
                f"upper bound of the rise below {ABSTENTIONS:.2f}",
                str(rise),
                rise.high is not None and rise.high < ABSTENTIONS,
            )
    large = [group for group in groups if group.kind in ("source", "novelty") and group.patients >= PATIENTS]
    risen = [
        f"{_name(group)} ({group.abstained})"
        for group in large
        if group.abstained.value > ABSTENTIONS and group.abstained.low is not None and group.abstained.low > 0
    ]
    yield _criterion(
        "abstentions by group",
        f"in no group of at least {PATIENTS} patients a rise of more than {ABSTENTIONS:.2f} with the whole interval "
        "above 0",
        "; ".join(risen) if risen else f"holds in all {len(large)}",
        not risen,
    )


def _criterion(name: str, asked: str, found: str, passed: bool) -> Criterion:
    return Criterion(name=name, asked=asked, found=found, passed=passed, waived=False)
