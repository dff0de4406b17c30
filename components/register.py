"""The registration of the winner as a pipeline step."""

from kfp.dsl import Artifact, Input, Model, Output

from components.step import step


@step(image="ops")
def register(
    evaluation: Input[Model], registry: str, run: str, hub: str, model: Output[Model], summary: Output[Artifact]
):
    """Publish the winner as the registry's next version and write the summary."""
    from pathlib import Path

    from thyroid.registry.register import register as library

    done = library(Path(evaluation.path), registry, Path(summary.path), run, hub)
    model.metadata |= {"name": done.name, "version": done.version, "sha256": done.sha256, "folder": done.uri}
