"""Crop as a pipeline step."""

from kfp.dsl import HTML, Dataset, Input, Output

from components.step import step


@step(image="data")
def crop(data: Input[Dataset], domains: str, images: Output[Dataset], sheet: Output[HTML]):
    """Blank the scanner frame and cut the regions: the normal and the cropped domain."""
    from pathlib import Path

    from components.pages import picture_page
    from thyroid.crop import crop as run

    done = run(Path(data.path), Path(images.path), domains=[d for d in domains.split(",") if d])
    images.metadata["digest"] = done.facts["digest"]
    images.metadata["domains"] = ",".join(done.facts["domains"])
    picture_page(sheet.path, "Crops", done.folder / "crops.png")
