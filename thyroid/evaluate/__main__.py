"""Command of the evaluation step, see `evaluate.evaluate`.

python -m thyroid.evaluate --data DIR --models DIR DIR --output DIR
"""

from pathlib import Path
from typing import Annotated

from thyroid import command
from thyroid.command import AT_LEAST_ONE, FLAT
from thyroid.evaluate.evaluate import evaluate
from thyroid.evaluate.options import EvaluateOptions


def run(
    *,
    data: Path,
    models: Annotated[list[Path], AT_LEAST_ONE],
    output: Path,
    options: Annotated[EvaluateOptions, FLAT] = EvaluateOptions(),
) -> None:
    """Compare trained models, choose the winner, and decide whether it is released.

    Args:
        data: Data version of thyroid.crop.
        models: Folders of thyroid.train.
        output: Folder for the report and the artefact.
        options: How models are evaluated.
    """
    evaluate(data, models, output, options)


main = command.main("python -m thyroid.evaluate", run)

if __name__ == "__main__":
    raise SystemExit(main())
