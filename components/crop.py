"""Crop as a pipeline step."""

from kfp.dsl import HTML, Dataset, Input, Output, OutputPath

from components.step import step


def margin_and_jitter(margin: float, jitter: float, recipe: str, settings: str) -> tuple[float, float]:
    """Return the margin and the jitter that the images are made with.

    Args:
        margin: Margin as it was given; -1 for that of the settings.
        jitter: Jitter as it was given.
        recipe: Recipe of the training.
        settings: settings.json of a sweep; empty for none.
    """
    from thyroid.train.settings import crop_margin, resolve

    # the deck's recipe does not use disturbed crops
    return crop_margin(margin, settings), 0.0 if resolve(recipe, settings)[0] == "deck" else jitter


@step(image="data")
def crop(
    data: Input[Dataset],
    fingerprint: str,
    domains: str,
    recipe: str,
    settings: str,
    margin: float,
    jitter: float,
    store: str,
    images: Output[Dataset],
    version: OutputPath(str),  # type: ignore[valid-type]
    sheet: Output[HTML],
):
    """Blank the scanner frame (domain `normal`) and cut out the regions (domain `cropped`)."""
    from pathlib import Path

    from components.pages import picture_page
    from thyroid.crop import CropOptions
    from thyroid.crop import crop as run
    from thyroid.data.version import DataVersion

    DataVersion.read(Path(data.path)).require_fingerprint(fingerprint)
    wanted = [name for name in domains.split(",") if name]
    options = CropOptions(wanted, store, *margin_and_jitter(margin, jitter, recipe, settings))
    done = run(Path(data.path), Path(images.path), options)
    images.metadata["digest"] = done.facts.digest
    Path(version).write_text(DataVersion.read(done.folder).fingerprint)
    images.metadata["domains"] = ",".join(done.facts.domains or ())
    picture_page(sheet.path, "Crops", done.folder / "crops.png")
