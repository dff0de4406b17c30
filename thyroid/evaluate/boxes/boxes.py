"""Automatic boxes in an evaluation: what is recorded of them, and what is drawn."""

from pathlib import Path
from typing import Any

import pandas as pd

from thyroid.evaluate.boxes import cost, plots
from thyroid.evaluate.boxes.located import AUTOMATIC, AutomaticBoxes
from thyroid.evaluate.scored import ScoredModel
from thyroid.records.evaluation import Measured

CROPPED = "cropped"


def usable(winner: ScoredModel) -> AutomaticBoxes | None:
    """Return the boxes if the winner needs them: it was trained on crops and serves them. None otherwise."""
    evaluation = winner.evaluation
    needs = winner.training.train_domain == evaluation.serving_domain == CROPPED
    return evaluation.located if needs and AUTOMATIC in evaluation.domains else None


def measure(winner: ScoredModel) -> dict[str, Any]:
    """Return the fields of `Measured` that say what automatic boxes cost the winner. Only those that apply are there.

    Args:
        winner: The winner, scored on the test set.
    """
    evaluation = winner.evaluation
    if evaluation.located is None:
        return {}
    if evaluation.located.problem is not None:
        return {"without_locator": evaluation.located.problem}
    found: dict[str, Any] = {"locator": evaluation.located.record.locator}
    if (located := usable(winner)) is not None:
        frames = _frames(winner, located)
        found["automatic_boxes"] = cost.measure(frames, winner.point, evaluation.options.seed)
    return found


def seconds(winner: ScoredModel) -> dict[str, float]:
    """Return the seconds that the locator's training took, by the step's name; nothing where there was none."""
    located = winner.evaluation.located
    return {} if located is None or located.record.locator is None else {"locate": located.record.seconds}


def _frames(winner: ScoredModel, located: AutomaticBoxes) -> pd.DataFrame:
    return cost.pair(winner.tested(CROPPED), winner.tested(AUTOMATIC), located.boxes)


def draw(winner: ScoredModel, result: Measured, folder: Path) -> None:
    """Draw the scores with given and with automatic boxes, and copy the locator's pictures.

    Args:
        winner: The winner, scored on the test set.
        result: Result of the evaluation.
        folder: Folder of the plots.
    """
    if result.locator is not None and winner.evaluation.located is not None:
        winner.evaluation.located.copy_pictures(folder)
    if (located := usable(winner)) is not None:
        frames = _frames(winner, located)
        pairs = frames.assign(flipped=cost.flips(frames, winner.point))
        plots.scores(pairs, winner.point, folder / "boxes-scores.png")


def pack(winner: ScoredModel, result: Measured, artefact: Path) -> dict[str, Any]:
    """Copy the locator into the artefact, and return the fields of model.json that describe it.

    A model that needs no boxes, or has none, is packed without them.

    Args:
        winner: The winner, scored on the test set.
        result: Result of the evaluation.
        artefact: Folder of the artefact.
    """
    located = usable(winner)
    if located is None or result.locator is None or result.automatic_boxes is None:
        return {}
    located.copy_locator(artefact)
    return {"locator": result.locator.to_dict(), "automatic_boxes": result.automatic_boxes.to_dict()}
