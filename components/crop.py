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
    from thyroid.train.settings import resolve

    DataVersion.read(Path(data.path)).require_fingerprint(fingerprint)
    margin = resolve(recipe, settings)[1].margin
    options = CropOptions([name for name in domains.split(",") if name], store, margin)
    done = run(Path(data.path), Path(images.path), options)
    images.metadata["digest"] = done.facts.digest
    Path(version).write_text(DataVersion.read(done.folder).fingerprint)
    images.metadata["domains"] = ",".join(done.facts.domains or ())
    picture_page(sheet.path, "Crops", done.folder / "crops.png")
