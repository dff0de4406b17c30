"""Says in words how well a model notices that an image is unlike those it learnt from: for the report and the card."""

from thyroid.evaluate.novelty import foreign
from thyroid.records.model import NoveltyRecord

GOAL = 0.95
"""Share of the test patients that the limit should pass, and of foreign pictures that it should catch."""


def lead(found: NoveltyRecord) -> list[str]:
    """Say in plain sentences what the limit does, what it passes, what it stops and what it does not."""
    stopped = [one.kind for one in found.foreign if one.caught >= GOAL]
    return [
        "The model compares every picture with those it learnt from. Where the picture is less like them than the "
        "limit allows, the model still shows its probability, but makes no decision (reason: unlike_training).",
        f"The limit was locked on {found.validation_patients} validation patients before a test image was read. "
        f"The share of test patients all of whose pictures pass it is {found.passed}."
        + " The others would be left without a decision although their pictures are of the same kind."
        * (found.passed.value < 1),
        *[f"It stops at least {GOAL:.0%} of the foreign pictures of these kinds: {', '.join(stopped)}."]
        * bool(stopped),
        _missed(found),
    ]


def _missed(found: NoveltyRecord) -> str:
    """Say what the limit lets through, by the share of each kind that it catches."""
    missed = [f"{one.kind} ({one.caught:.0%} caught)" for one in found.foreign if one.caught < GOAL]
    beyond = (
        "It looks at texture, brightness and colour, and knows nothing of anatomy: a picture within the limit may "
        "still be a wrong one, such as that of another organ or one that is turned."
    )
    return f"It does not reliably stop: {', '.join(missed)}. {beyond}" if missed else beyond


def warnings(found: NoveltyRecord) -> list[str]:
    """Return a warning for the first page of the report if the limit stops too many test patients."""
    if found.passed.value >= GOAL:
        return []
    return [
        f"The limit of novelty stops pictures of {1 - found.passed.value:.0%} of the test patients, although they are "
        f"from the same hospital as the training images (share that passes: {found.passed})."
    ]


def rows(found: NoveltyRecord) -> list[tuple[str, str, str, str]]:
    """Return the table of kinds: name, number of images, AUROC with its interval, and share caught."""
    return [
        (one.kind[0].upper() + one.kind[1:], f"{one.images}", f"{one.auroc}", f"{one.caught:.0%}")
        for one in found.foreign
    ]


EXPLANATION = (
    "Foreign pictures were made for this measurement alone, and nothing was fitted on them. There are at most "
    f"{foreign.COUNT} of each kind. AUROC: how often a foreign picture is farther from the training images than a test "
    "picture. Caught: share beyond the limit. Intervals resample patients and pictures."
)
"""How to read the table of `rows`."""
