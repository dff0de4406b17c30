"""Defines the settings of a training and their defaults.

`python -m thyroid.sweep` searches for such settings and writes them to settings.json, which a training accepts. The
file is plain JSON and can also be written by hand. A setting that it leaves out keeps its default.
"""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from thyroid import atomic, storage
from thyroid.errors import InputError
from thyroid.imaging import geometry

log = logging.getLogger(__name__)

FROZEN, TWO_PHASE = "frozen", "two-phase"
CLASS_WEIGHTS = ("balanced", "sqrt", "none")
FOUND = "found"
"""Field of the file that records where the settings come from. It has no effect."""


_LIMITS: Mapping[str, tuple[float, float]] = {
    "head_rate": (1e-6, 1.0),
    "head_penalty": (0.0, 100.0),
    "label_smoothing": (0.0, 0.9),
    "margin": (0.0, 2.0),
    "image_size": (0, 4096),
    "augmentation": (0.0, 1.5),
    "unfrozen": (0, 20),
    "rate": (1e-9, 1.0),
}


@dataclass(frozen=True)
class Settings:
    """Holds the settings of one training.

    Attributes:
        head_rate: Adam's learning rate for the dense head.
        head_penalty: L2 penalty of the head's kernel.
        class_weight: Weight of a class in the loss: balanced (the inverse of its share), sqrt (the root of that) or
            none (1).
        label_smoothing: Label smoothing in both phases.
        tap: Layer at which the body ends. Empty for its last layer.
        margin: Share of its own width (height) by which a region is widened on each side.
        image_size: Side of the model's input in pixels. 0 for the training's own argument.
        augmentation: Strength of the augmentation, as a multiple of the slide deck's ranges. Flips are unaffected,
            except that 0 turns them off.
        unfrozen: Number of last blocks of the body that learn in the second phase. 0 leaves that phase out.
        rate: Learning rate of the second phase.
        backbone: Backbone to which the layer `tap` belongs. Empty for any.

    Raises:
        InputError: A value cannot be used. The message names the field.
    """

    head_rate: float = 5e-3
    head_penalty: float = 1e-2
    class_weight: str = "balanced"
    label_smoothing: float = 0.05
    tap: str = ""
    margin: float = geometry.MARGIN
    image_size: int = 0
    augmentation: float = 1.0
    unfrozen: int = 1
    rate: float = 2e-5
    backbone: str = ""

    def __post_init__(self) -> None:
        """Check type and range of every field, and turn whole numbers into floats where a field is a float."""
        for field in fields(self):
            value, kind = getattr(self, field.name), field.type
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, field.name, value := float(value))
            if not isinstance(value, kind) or isinstance(value, bool):  # type: ignore[arg-type]
                raise InputError(f"setting {field.name}: {value!r} is not {_KINDS[kind]}")
            least, most = _LIMITS.get(field.name, (-math.inf, math.inf))
            if not isinstance(value, str) and not least <= value <= most:
                raise InputError(f"setting {field.name}: {value} is not between {least:g} and {most:g}")
        if self.class_weight not in CLASS_WEIGHTS:
            raise InputError(
                f"setting class_weight: {self.class_weight!r} is unknown; choose from {', '.join(CLASS_WEIGHTS)}"
            )

    @property
    def recipe(self) -> str:
        """Return the recipe that the settings belong to."""
        return TWO_PHASE if self.unfrozen else FROZEN

    def of(self, backbone: str) -> "Settings":
        """Return the settings as `backbone` can use them, without a tap that is a layer of another backbone."""
        if self.tap and self.backbone and self.backbone != backbone:
            log.info(f"{backbone}: the settings' tap {self.tap} is a layer of {self.backbone}; the last layer is used")
            return replace(self, tap="")
        return self

    def describe(self) -> str:
        """Describe in words what differs from the defaults."""
        default = Settings(image_size=self.image_size, backbone=self.backbone)
        return ", ".join(
            f"{field.name.replace('_', ' ')} {getattr(self, field.name)}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(default, field.name)
        )

    def write(self, path: Path, **found: Any) -> None:
        """Write settings.json.

        Args:
            path: File to write.
            **found: Where the settings come from, for the field `FOUND`.
        """
        atomic.write_json(path, asdict(self) | ({FOUND: found} if found else {}))


_KINDS: Mapping[Any, str] = {float: "a number", int: "a whole number", str: "text"}


def is_file(recipe: str) -> bool:
    """Return whether `recipe` is the path of a settings file and not the name of a recipe."""
    return recipe.lower().endswith(".json")


def read(location: storage.Location) -> Settings:
    """Read the settings in a file, which may be on gs://.

    Raises:
        InputError: There is no such file, it is not a JSON object, or a field is unknown or cannot be used.
    """
    path = storage.file(location)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise InputError(f"settings {location}: no such file") from None
    except ValueError as error:
        raise InputError(f"settings {location}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"settings {location}: expected an object of settings, found {type(content).__name__}")
    content.pop(FOUND, None)
    known = [field.name for field in fields(Settings)]
    if unknown := [name for name in content if name not in known]:
        raise InputError(f"settings {location}: field {unknown[0]!r} is unknown; there are {', '.join(known)}")
    try:
        return Settings(**content)
    except InputError as error:
        raise InputError(f"settings {location}: {error}") from None


def refuse_file(recipe: str) -> None:
    """Check that a recipe is a name and not the path of a settings file.

    Raises:
        InputError: It is a path.
    """
    if is_file(recipe):
        raise InputError(f"recipe {recipe!r} is a file, not a recipe's name: give it as settings instead")


def resolve(recipe: str, settings: storage.Location = "") -> tuple[str, Settings]:
    """Return the name of the recipe that is trained, and its settings.

    Args:
        recipe: Name of a recipe.
        settings: Settings file of a sweep, which may be on gs://. Its recipe replaces `recipe`. If empty, the settings
            are the defaults.

    Raises:
        InputError: The recipe is a path, or as for `read`.
    """
    refuse_file(recipe)
    if not settings:
        return recipe, Settings()
    found = read(settings)
    return found.recipe, found
