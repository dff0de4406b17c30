"""The parts of an answer about sonographic descriptors as pydantic models, and the types that `serve.schemas` shares.

Fields are only ever added.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

Share = Annotated[float, Field(ge=0, le=1)]
Descriptor = Literal["composition", "echogenicity", "shape", "margin", "foci"]
Level = Literal["TR1", "TR2", "TR3", "TR4", "TR5"]
_Pair = Field(min_length=2, max_length=2)


class File(BaseModel):
    """A file inside of JSON."""

    b64: str = Field(description="The bytes of the file in base64.", json_schema_extra={"format": "byte"})


class FindingMap(BaseModel):
    """Where the network saw evidence of a finding."""

    map: list[list[Share]] = Field(
        description="Evidence of the finding, by rows of the map that the features are the mean of."
    )
    layer_png: File = Field(
        description="A PNG of the map, transparent where there is little evidence, with at most 112 pixels on a side."
    )
    share_inside_roi: Share | None = Field(
        description="The share of the evidence inside `roi` of the answer's `heat_map`. Null if there is no `roi`, "
        "or no evidence."
    )


class Finding(BaseModel):
    """One value of a descriptor, such as a lobulated margin."""

    descriptor: Descriptor = Field(description="The descriptor of ACR TI-RADS; `foci` are echogenic foci.")
    value: str = Field(description="The value.")
    probability: Share = Field(description="The calibrated probability that the nodule has it.")
    threshold: Share = Field(description="The probability from which it counts as present.")
    present: bool = Field(description="Whether it counts as present.")
    uncertain: bool = Field(
        description="Whether it can neither be excluded nor is certain, by limits at 95 % sensitivity and 95 % "
        "specificity that were locked before the test."
    )
    heat_map: FindingMap | None = Field(
        None, description="Where the network saw evidence of it. Only in the answer to `:explain`."
    )


class Descriptors(BaseModel):
    """What the image shows by the descriptors of ACR TI-RADS (Tessler et al. 2017)."""

    findings: list[Finding] = Field(
        description="The findings that the model gives out. `descriptors` of its facts says why others are withheld.",
        min_length=1,
    )
    told: dict[Descriptor, list[str]] = Field(
        description="The values that are possible, by descriptor. For `foci`, the kinds that are present, beside which "
        "others may be possible, or `none`. A descriptor is absent if it cannot be told."
    )
    assumed_absent: dict[Descriptor, list[str]] | None = Field(
        None,
        description="Values that no image of the training and validation patients was labelled with, by descriptor; "
        "they are taken to be absent. Absent if there are none.",
    )


class Tirads(BaseModel):
    """The points of ACR TI-RADS that are possible. They stand beside the probability, never instead of it."""

    points: Annotated[list[int], _Pair] = Field(description="The fewest and the most points.")
    levels: Annotated[list[Level], _Pair] = Field(description="The levels of these points.")
    agrees: bool | None = Field(
        description="Whether some of the points go with the decision at the threshold. Null if the probability is in "
        "the abstention band, or if the evaluation had nothing to compare the points with."
    )
