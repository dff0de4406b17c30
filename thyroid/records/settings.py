"""settings.json: the settings of a training, which a sweep finds or a person writes."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from thyroid import atomic
from thyroid.errors import InputError
from thyroid.records.record import Record

log = logging.getLogger(__name__)

FROZEN, TWO_PHASE = "frozen", "two-phase"
MARGIN = 0.5
"""Default share of a region's own width (height) by which it is widened on each side.

A classifier that is given automatic boxes needs more context than the 0.15 of DDTI's own crops. This is the only place
of the default: `imaging.geometry.MARGIN` and every step's options take it from here.
"""
FOUND = "found"
"""Field of the file that records where the settings come from. It has no effect."""

ClassWeight = Literal["balanced", "sqrt", "none"]
CLASS_WEIGHTS: tuple[ClassWeight, ...] = get_args(ClassWeight)

_KINDS = {"number": "a number", "integer": "a whole number", "string": "text"}


class Settings(Record):
    """The settings of one training. A setting that is left out has its default, and a record holds all of them."""

    model_config = ConfigDict(strict=True)

    head_rate: float = Field(default=5e-3, ge=1e-6, le=1)
    """Adam's learning rate for the dense head on frozen features."""
    head_penalty: float = Field(default=1e-2, ge=0, le=100)
    """L2 penalty of the head's kernel."""
    class_weight: ClassWeight = "balanced"
    """Weight of a class in the loss: balanced (the inverse of its share), sqrt (the root of that) or none (1)."""
    label_smoothing: float = Field(default=0.05, ge=0, le=0.9)
    """Label smoothing in both phases."""
    tap: str = ""
    """Layer at which the body ends; empty for its last one."""
    margin: float = Field(default=MARGIN, ge=0, le=2)
    """Share of its own width (height) by which a region is widened on each side."""
    image_size: int = Field(default=0, ge=0, le=4096)
    """Side of the model's input in pixels; 0 for the training's own argument."""
    augmentation: float = Field(default=1.0, ge=0, le=1.5)
    """Strength of the augmentation, as a multiple of the slide deck's ranges. Flips are unaffected, except that 0 turns
    them off."""
    unfrozen: int = Field(default=1, ge=0, le=20)
    """Number of last blocks of the body that learn in the second phase; 0 leaves that phase out."""
    rate: float = Field(default=2e-5, ge=1e-9, le=1)
    """Learning rate of the second phase."""
    backbone: str = ""
    """Backbone to which the layer `tap` belongs; empty for any."""

    @model_validator(mode="wrap")
    @classmethod
    def _check(cls, content: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Fill in the defaults, and check every setting.

        Raises:
            InputError: A value cannot be used. The message names the setting.
        """
        if isinstance(content, Mapping):
            content = {name: field.default for name, field in cls.model_fields.items()} | dict(content)
        try:
            return handler(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise InputError(cls._explain(first["type"], ".".join(map(str, first["loc"])), first["input"])) from None

    @classmethod
    def _explain(cls, kind: str, name: str, value: Any) -> str:
        """Explain an error of pydantic in words."""
        if name not in cls.model_fields:
            return f"field {name!r} is unknown; there are {', '.join(cls.model_fields)}"
        schema = cls.model_json_schema()["properties"][name]
        if kind in {"greater_than_equal", "less_than_equal"}:
            return f"setting {name}: {value} is not between {schema['minimum']:g} and {schema['maximum']:g}"
        if "enum" in schema and isinstance(value, str):
            return f"setting {name}: {value!r} is unknown; choose from {', '.join(schema['enum'])}"
        return f"setting {name}: {value!r} is not {_KINDS[schema['type']]}"

    @property
    def recipe(self) -> str:
        """Return the recipe that the settings belong to."""
        return TWO_PHASE if self.unfrozen else FROZEN

    def replace(self, **changes: Any) -> "Settings":
        """Return the settings with some of them changed.

        Raises:
            InputError: A value cannot be used.
        """
        return Settings(**(self.to_dict() | changes))

    def of(self, backbone: str) -> "Settings":
        """Return the settings as `backbone` can use them, without a tap that is a layer of another backbone."""
        if self.tap and self.backbone and self.backbone != backbone:
            log.info(f"{backbone}: the settings' tap {self.tap} is a layer of {self.backbone}; the last layer is used")
            return self.replace(tap="")
        return self

    def describe(self) -> str:
        """Describe in words what differs from the defaults."""
        default = Settings(image_size=self.image_size, backbone=self.backbone).to_dict()
        return ", ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in self.to_dict().items() if value != default[name]
        )

    def write(self, path: Path, **found: Any) -> None:
        """Write settings.json.

        Args:
            path: File to write.
            **found: Where the settings come from, for the field `FOUND`.
        """
        atomic.write_json(path, self.to_dict() | ({FOUND: found} if found else {}))
