"""Crop as a pipeline step."""

from kfp.dsl import HTML, Dataset, Input, Output, OutputPath

from components.step import step


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
    from thyroid.train.settings import crop_margin, resolve

    DataVersion.read(Path(data.path)).require_fingerprint(fingerprint)
    if resolve(recipe, settings)[0] == "deck":
        jitter = 0.0  # the deck's recipe does not use these crops
    wanted = [name for name in domains.split(",") if name]
    options = CropOptions(wanted, store, crop_margin(margin, settings), jitter)
    done = run(Path(data.path), Path(images.path), options)
    images.metadata["digest"] = done.facts.digest
    Path(version).write_text(DataVersion.read(done.folder).fingerprint)
    images.metadata["domains"] = ",".join(done.facts.domains or ())
    picture_page(sheet.path, "Crops", done.folder / "crops.png")
