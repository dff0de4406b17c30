"""One worker of the second stage of a search as a pipeline step."""

from kfp.dsl import Artifact, Dataset, Input, OutputPath

from components.step import step


@step(image="train")
def sweep_images(
    ranked: Input[Artifact],
    images: Input[Dataset],
    data: Input[Dataset],
    weights: str,
    worker: int,
    trials: int,
    cores: int,
    finished: OutputPath(int),  # type: ignore[valid-type]
):
    """Try crop margin, image size, augmentation and unfrozen depth, in parallel, until the study has its trials."""
    from pathlib import Path

    from thyroid.sweep.images import Sources
    from thyroid.sweep.search import search_images

    print(f"worker {worker}", flush=True)
    found = Path(ranked.path).read_text()
    done = search_images(found, Sources(Path(images.path), Path(data.path), weights), trials, cores=cores)
    Path(finished).write_text(str(done))
