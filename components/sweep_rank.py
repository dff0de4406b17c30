"""The ranking between the two stages of a search as a pipeline step."""

from kfp.dsl import Artifact, Input, Output

from components.step import step


@step(image="train")
def sweep_rank(
    study: Input[Artifact],
    finished: list,  # type: ignore[type-arg]  # of list[int], kfp would make another type
    ranked: Output[Artifact],
):
    """Choose the heads that the second stage starts from."""
    from pathlib import Path

    from thyroid.sweep.search import rank

    found = Path(study.path).read_text()
    rank(found)
    Path(ranked.path).write_text(found)
