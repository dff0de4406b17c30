"""The training of one backbone as a pipeline step."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from components.step import step


@step(image="train")
def train(
    images: Input[Dataset],
    fingerprint: str,
    backbone: str,
    weights: str,
    image_size: int,
    epochs: int,
    batch_size: int,
    recipe: str,
    settings: str,
    folds: int,
    store: str,
    registry: str,
    champion: int,
    seed: int,
    model: Output[Model],
    metrics: Output[Metrics],
    history: Output[HTML],
):
    """Train one backbone on every domain of the data version."""
    from pathlib import Path

    from components.pages import picture_page
    from thyroid import storage
    from thyroid.data.version import DataVersion
    from thyroid.train.options import TrainOptions
    from thyroid.train.train import train as run

    data = DataVersion.read(Path(images.path))
    data.require_fingerprint(fingerprint)
    options = TrainOptions(
        weights=weights,
        image_size=image_size,
        epochs=epochs,
        batch_size=batch_size,
        recipe=recipe,
        settings=settings,
        folds=folds,
        work=storage.below(store, "work") if store else "",
        registry=registry if champion else "",
        champion=champion,  # 0 where there is no registry to start from, so that it means none here
        seed=seed,
    )
    for domain in data.domains:
        done = run(data.folder, Path(model.path) / domain, backbone, domain, options)
        metrics.log_metric(f"validation_auroc_{domain}", done.record.validation.auroc)
        metrics.log_metric(f"seconds_{domain}", done.record.seconds)
    picture_page(history.path, f"Training {backbone}", *sorted(Path(model.path).glob("*/history.png")))
    model.metadata["backbone"] = backbone
