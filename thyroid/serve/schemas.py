"""The requests and answers of the endpoint as pydantic models, from which `openapi` makes its JSON schemas.

They document and test: a request is checked by `payload`, which is faster and names the field, and an answer is built
by `answers`. Fields are only ever added.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from thyroid.serve.descriptors.schemas import Descriptor, Descriptors, File, Share, Tirads
from thyroid.serve.limits import MAX_INSTANCES

Text = Annotated[str, Field(max_length=128)]
Pixel = Annotated[int, Field(ge=0, le=1_000_000)]
Reason = Literal[
    "unlike_training",
    "box_unsure",
    "box_not_confirmed",
    "abstention_band",
    "descriptors_disagree",
    "views_disagree",
]
Source = Literal["given", "auto", "whole"]
Output = Literal[
    "probability",
    "decision",
    "box",
    "box_probability",
    "source",
    "proposals",
    "reasons",
    "novelty",
    "descriptors",
    "tirads_points",
]
Box = Annotated[list[int], Field(min_length=4, max_length=4)]


class Instance(BaseModel):
    """One image of a V1 request."""

    image: File = Field(description="A JPEG, PNG or DICOM file. Its bytes decide which.")
    roi: Annotated[list[Pixel], Field(min_length=4, max_length=4)] | None = Field(
        None, description="The nodule as x, y, width and height in pixels of the image. Both sides are at least 1."
    )
    domain: Literal["frame", "crop"] | None = Field(
        None,
        description="What the image is: a full frame, in which the model's locator finds the nodule, or a crop of the "
        "nodule. If it is absent, the endpoint tells. Has no effect with `roi`, or on a model without a locator.",
    )
    patient: Text | int | None = Field(None, description="The views of one patient are averaged in `patients`.")
    frame: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None, description="Frame of a DICOM file, counted from 1. The middle one if it is absent."
    )
    clinical: Annotated[dict[str, Any], Field(max_length=200)] | None = Field(
        None,
        description="Values of clinical columns, for a model that uses any (`clinical.fields` of its facts). "
        "Every column may be absent.",
    )


class PredictRequest(BaseModel):
    """The body of `:predict`, `:explain` and `:locate`."""

    instances: list[Instance] = Field(description="The images.", min_length=1, max_length=MAX_INSTANCES)


class Decision(BaseModel):
    """Probabilities and the decision at the operating point."""

    probability: dict[str, Share] = Field(description="The calibrated probability of each class.")
    malignant: Share = Field(description="The probability of the malignant classes together.")
    class_: str = Field(alias="class", description="The most probable class of the side that the threshold decides.")
    above_threshold: list[str] = Field(
        description="The classes whose probability is at least their own threshold, each against all others."
    )
    threshold: float = Field(description="The threshold for `malignant`, which was locked on validation patients.")
    decision: Literal["benign", "malignant", "abstain"] = Field(description="The decision at the threshold.")
    reason: Reason | None = Field(None, description="The first of `reasons`. Absent unless `decision` is `abstain`.")
    reasons: list[Reason] | None = Field(
        None,
        description="Why there is no decision, in this order: the image is unlike the training images; the locator's "
        "box is unsure; the model may not decide on a box that nobody confirmed; the probability is in the abstention "
        "band; the descriptors disagree with the decision, in a model where this was shown to matter; the views of the "
        "patient disagree. Absent unless `decision` is `abstain`.",
    )
    tirads: Tirads | None = Field(
        None,
        description="The points of ACR TI-RADS by what the image, or any view of the patient that counts, shows. "
        "Absent if the model tells no descriptors, or cannot for these images.",
    )


class Proposal(BaseModel):
    """A box that may hold a nodule."""

    box: Box = Field(description="The box as x, y, width and height in pixels of the image.")
    probability: Share = Field(description="The calibrated probability that it fits a nodule (IoU of at least .5).")


class Crop(BaseModel):
    """What was done to the image before the network saw it."""

    domain: Literal["normal", "cropped"] = Field(description="Whether the network sees full frames or crops.")
    box: list[int] | None = Field(
        None,
        description="What the answer is for, as x, y, width and height in pixels of the image: the scan area (normal), "
        "or the region, which is the whole image if `source` is `whole` (cropped).",
    )
    source: Source | None = Field(
        None,
        description="Where the region comes from: from `roi`, from the model's locator, or the whole image is taken "
        "for a crop. Absent for models of full frames.",
    )
    probability: Share | None = Field(
        None,
        description="The calibrated probability that `box` fits a nodule (IoU of at least .5). It says nothing about "
        "whether there is one. Absent unless `source` is `auto`.",
    )
    unsure: bool | None = Field(
        None,
        description="Whether `probability` is below the limit that was locked on validation patients: please draw the "
        "box. Absent unless `source` is `auto`.",
    )
    proposals: list[Proposal] | None = Field(
        None,
        description="Boxes that the locator proposes, the best one first, which is `box`. Absent unless `source` is "
        "`auto`.",
        min_length=1,
        max_length=3,
    )
    margin: float | None = Field(
        None, description="The margin around the region on each side, as a share of its size. Absent without a region."
    )
    scan_area_found: bool | None = Field(
        None,
        description="Whether the scan area was found; otherwise the whole frame is used. Absent for given regions, and "
        "for crops.",
    )
    note: str | None = Field(None, description="A remark for people. Absent if there is none.")
    frame: int | None = Field(None, description="The frame of a DICOM file. Absent for other files.")
    frames: int | None = Field(None, description="The number of frames of a DICOM file. Absent for other files.")
    square: list[int] = Field(
        description="The part of the image that the network saw: x, y and side in pixels of the image. It may reach "
        "outside the image.",
        min_length=3,
        max_length=3,
    )


class Milliseconds(BaseModel):
    """The time of each stage in milliseconds."""

    prepare: float = Field(description="Decoding and cropping.")
    locate: float | None = Field(
        None, description="Waiting for the locator, and its inference. Absent unless it was asked."
    )
    engine: float = Field(description="Waiting for the network, and its inference.")
    total: float = Field(description="From the parsing of the request to the answer of the network.")


class ClinicalColumns(BaseModel):
    """The clinical columns of the model in this answer."""

    used: list[str] = Field(description="The columns with a value.")
    missing: list[str] = Field(description="The columns without a value.")
    notes: list[str] = Field(description="Remarks on values that the training never saw.")


class Prediction(Decision):
    """The answer for one image."""

    novelty: float | None = Field(
        None,
        ge=0,
        le=100,
        description="The percentage of the training images that are at most as far from the others as this image. "
        "Absent if the model cannot tell whether an image is unlike its training images (`novelty` of its facts is "
        "null).",
    )
    novelty_distance: float | None = Field(
        None,
        ge=0,
        description="How far the image is from the training images, divided by the limit that was locked on validation "
        "patients: above 1 it is unlike them, and there is no decision. Absent as `novelty` is.",
    )
    descriptors: Descriptors | None = Field(
        None, description="What the image shows by its descriptors. Absent if the model tells none, or cannot here."
    )
    crop: Crop = Field(description="What was done to the image before the network saw it.")
    model: str = Field(description="The backbone.")
    model_version: int = Field(description="The version in the registry.")
    data_digest: str = Field(description="The digest of the data that the model was trained on.")
    form: str = Field(description="The form of the model that answered, such as `openvino-f32`.")
    milliseconds: Milliseconds = Field(description="The time of each stage in milliseconds.")
    notice: str = Field(description="Research use only.")
    clinical: ClinicalColumns | None = Field(
        None, description="The clinical columns in this answer. Absent if the model uses none."
    )
    not_released: list[str] | None = Field(
        None, description="Why the model may not be relied on. Absent for a released model."
    )


class HeatMap(BaseModel):
    """Where the network saw evidence of malignancy."""

    method: str = Field(description="How the map was made.")
    map: list[list[Share]] = Field(description="Evidence of malignancy, by rows of the network's last map.")
    size: int = Field(description="The side of the network's input, of both pictures and of `roi`, in pixels.")
    overlay_png: File = Field(description="A PNG of the network's input with the map over it.")
    layer_png: File = Field(description="A PNG of the map alone, transparent where there is little evidence.")
    roi: list[int] | None = Field(
        description="The nodule as x, y, width and height in pixels of the network's input. Null if it is not known."
    )
    share_inside_roi: Share | None = Field(
        description="The share of the evidence inside `roi`. Null if there is no `roi` or no evidence."
    )


class Explanation(Prediction):
    """The answer for one image, with its heat map."""

    heat_map: HeatMap = Field(description="Where the network saw evidence of malignancy.")


class LeftOut(BaseModel):
    """A view that does not count towards its patient."""

    image: int = Field(description="The place of the image in the request, counted from 0.", ge=0)
    reason: Reason = Field(description="Why it does not count.")


class Patient(Decision):
    """The average of the views of one patient, and the decision for it."""

    patient: str = Field(description="The patient as the request names it.")
    images: int = Field(description="The number of views.")
    views_differ: list[Descriptor] | None = Field(
        None,
        description="The descriptors for which the views that count leave one value each, but not the same. Absent if "
        "there are none.",
    )
    left_out: list[LeftOut] | None = Field(
        None,
        description="Views that do not count. If none counts, the average is that of all, for information, and there "
        "is no decision. Absent if all count.",
    )


class PredictAnswer(BaseModel):
    """The answer to `:predict`."""

    predictions: list[Prediction] = Field(description="One answer for each image, in the order of the request.")
    patients: list[Patient] | None = Field(
        None, description="One answer for each patient. Absent if the request names none."
    )


class ExplainAnswer(BaseModel):
    """The answer to `:explain`."""

    explanations: list[Explanation] = Field(description="One answer for each image, in the order of the request.")
    patients: list[Patient] | None = Field(
        None, description="One answer for each patient. Absent if the request names none."
    )


class LocatedBox(BaseModel):
    """The box for one image."""

    source: Source = Field(
        description="Where the box comes from: from `roi`, from the model's locator, or the image is taken for a crop."
    )
    box: Box = Field(description="The box as x, y, width and height in pixels of the image.")
    probability: Share | None = Field(
        None,
        description="The calibrated probability that the box fits a nodule (IoU of at least .5). It says nothing about "
        "whether there is one. Absent unless `source` is `auto`.",
    )
    unsure: bool | None = Field(None, description="Whether the box is unsure. Absent unless `source` is `auto`.")
    proposals: list[Proposal] | None = Field(
        None,
        description="All proposals, the best one first, which is `box`. Absent unless `source` is `auto`.",
        min_length=1,
        max_length=3,
    )
    note: str | None = Field(None, description="A remark for people. Absent if there is none.")
    scan_area_found: bool | None = Field(
        None, description="Whether the scan area was found. Absent unless `source` is `auto`."
    )
    frame: int | None = Field(None, description="The frame of a DICOM file. Absent for other files.")
    frames: int | None = Field(None, description="The number of frames of a DICOM file. Absent for other files.")
    notice: str = Field(description="Research use only.")


class LocateAnswer(BaseModel):
    """The answer to `:locate`."""

    boxes: list[LocatedBox] = Field(description="One box for each image, in the order of the request.")


class InferInput(BaseModel):
    """An input of a V2 request."""

    name: Literal["image", "roi", "patient", "frame", "clinical", "domain"] = Field(
        description="The meaning of the tensor."
    )
    shape: list[Annotated[int, Field(ge=1, le=100_000)]] = Field(
        description="The first side is the number of images.", min_length=1, max_length=4
    )
    datatype: Literal["BYTES", "UINT8", "INT32", "INT64"] = Field(
        description="`image` is BYTES [n] (encoded files) or UINT8 [n, height, width, 3], `roi` INT32 or INT64 [n, 4], "
        "`frame` INT32 or INT64 [n], `patient` BYTES [n], `clinical` BYTES [n] (JSON objects), "
        "`domain` BYTES [n] (`frame`, `crop` or an empty text)."
    )
    data: list[Any] = Field(description="The values. Encoded files are base64.")


class InferRequest(BaseModel):
    """The body of `infer`."""

    id: str = Field("", description="Is repeated in the answer.")
    inputs: list[InferInput] = Field(description="The inputs.", min_length=1, max_length=6)


class InferOutput(BaseModel):
    """An output of a V2 answer."""

    name: Output = Field(
        description="`probability` is FP32 [n, classes], calibrated; `decision` is BYTES [n]. A model with a locator "
        "also has `box`, INT32 [n, 4]; `box_probability`, FP32 [n], which is -1 unless `source` is `auto`; "
        "`source`, BYTES [n]: `given`, `auto` or `whole`; and `proposals`, FP32 [n, 3, 5]: box and probability of "
        "each, the best first, -1 where there are fewer. A model that can tell whether an image is unlike its training "
        "images has `novelty`, FP32 [n], 0 to 100. A model that tells descriptors has `descriptors`, FP32 [n, "
        "findings]: the probability of each, in the order of the parameter `findings`; and `tirads_points`, INT32 "
        "[n, 2]: the fewest and the most points; both are -1 where they cannot be told. A model with any of these has "
        "`reasons`, BYTES [n]: the reasons of abstention, with commas."
    )
    shape: list[int] = Field(description="The first side is the number of images.")
    datatype: Literal["FP32", "INT32", "BYTES"] = Field(description="The type of the values.")
    data: list[float] | list[str] = Field(description="The values, by rows.")
    parameters: dict[str, Any] | None = Field(None, description="Parameters of the protocol.")


class InferParameters(BaseModel):
    """Who answered a V2 request, and how it was decided."""

    threshold: str = Field(description="The threshold for the malignant classes together, as a decimal number.")
    data_digest: str = Field(description="The digest of the data that the model was trained on.")
    form: str = Field(description="The form of the model that answered, such as `openvino-f32`.")
    released: bool = Field(description="Whether the model is released.")
    notice: str = Field(description="Research use only.")


class InferAnswer(BaseModel):
    """The answer to `infer`."""

    id: str = Field(description="The id of the request.")
    model_name: str = Field(description="The name under which the model is served.")
    model_version: str = Field(description="The version in the registry.")
    parameters: InferParameters = Field(description="Who answered, and how it was decided.")
    outputs: list[InferOutput] = Field(description="The outputs.")


class Error(BaseModel):
    """The answer to a request that is refused."""

    error: str = Field(description="What is wrong. It names the field and says what to do.")
    code: str = Field(description="The reason in one word, for machines.")
