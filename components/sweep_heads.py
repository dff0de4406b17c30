"""One worker of the first stage of a search as a pipeline step."""

from kfp.dsl import Artifact, Input, OutputPath

from components.step import step


@step(image="train")
def sweep_heads(
    study: Input[Artifact],
    worker: int,
    trials: int,
    cores: int,
    finished: OutputPath(int),  # type: ignore[valid-type]
):
    """Try head settings on cached features, in parallel with other workers, until the study has its trials."""
    from pathlib import Path

    from thyroid.sweep.search import search_heads

    print(f"worker {worker}", flush=True)
    done = search_heads(Path(study.path).read_text(), trials, cores=cores)
    Path(finished).write_text(str(done))
