"""Adds what is known of the descriptors to the result of an evaluation."""

from pathlib import Path
from typing import Any

from thyroid.evaluate.artefact import Export
from thyroid.evaluate.descriptors import lock, plots
from thyroid.evaluate.descriptors.lock import Locked
from thyroid.evaluate.descriptors.measure import measure
from thyroid.evaluate.scored import ScoredModel
from thyroid.records.evaluation import Measured


def add(measured: Measured, winner: ScoredModel, locked: Locked | None, exported: Export, pictures: Path) -> Measured:
    """Measure the findings in every form of the winner and draw them, or say why labels were not used.

    Args:
        measured: What is measured so far.
        winner: The winner, scored on the test set.
        locked: Its findings, locked before; None if there are none.
        exported: Export of its network.
        pictures: Folder of the plots.
    """
    if locked is None:
        skipped: dict[str, Any] = {}
        if winner.evaluation.options.descriptors:
            skipped = {"descriptors_skipped": lock.why_not(winner)}
        return measured.model_copy(update=skipped)
    found = measure(winner, locked, exported.features())
    plots.draw(found, pictures)
    return measured.model_copy(update={"descriptors": found.record})
