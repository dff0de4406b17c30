"""Reads the settings of a training, and resolves its recipe.

`python -m thyroid.sweep` searches for such settings and writes them to settings.json, which a training accepts. The
file is plain JSON and can also be written by hand. A setting that it leaves out keeps its default.
"""

import json
from typing import Any

from thyroid import storage
from thyroid.errors import InputError
from thyroid.records.settings import FOUND, MARGIN, Settings

UNSET = -1.0
"""Margin of a run that leaves the choice to its settings file, or else to the default."""


def is_file(recipe: str) -> bool:
    """Return whether `recipe` is the path of a settings file and not the name of a recipe."""
    return recipe.lower().endswith(".json")


def read(location: storage.Location) -> Settings:
    """Read the settings in a file, which may be in a bucket.

    Raises:
        InputError: There is no such file, it is not a JSON object, or a field is unknown or cannot be used.
    """
    content = _content(location)
    content.pop(FOUND, None)
    return Settings.parse(content, f"settings {location}")


def _content(location: storage.Location) -> dict[str, Any]:
    path = storage.file(location)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise InputError(f"settings {location}: no such file") from None
    except ValueError as error:
        raise InputError(f"settings {location}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"settings {location}: expected an object of settings, found {type(content).__name__}")
    return content


def named_margin(location: storage.Location) -> float | None:
    """Return the margin that a settings file names, or None if it names none or there is no file.

    Args:
        location: Settings file, which may be in a bucket; empty for none.

    Raises:
        InputError: As for `read`.
    """
    if not location:
        return None
    margin = read(location).margin
    return margin if "margin" in _content(location) else None


def crop_margin(margin: float, location: storage.Location = "") -> float:
    """Return the margin that a run crops with.

    Args:
        margin: The run's own parameter: a share of a region's sides, 0 to 2, or `UNSET`.
        location: Settings file of the run, which may be in a bucket; empty for none.

    Returns:
        `margin` if it is set, else the one that the settings file names, else the default.

    Raises:
        InputError: The margin is out of range, or the settings file names another one; or as for `read`.
    """
    named = named_margin(location)
    if margin == UNSET:
        return MARGIN if named is None else named
    if not 0 <= margin <= 2:
        raise InputError(f"margin {margin:g}: must be between 0 and 2, or {UNSET:g} for the default")
    if named is not None and margin != named:
        raise InputError(f"margin {margin:g}: settings {location} names {named:g}; leave out one of the two")
    return margin


def refuse_file(recipe: str) -> None:
    """Check that a recipe is a name and not the path of a settings file.

    Raises:
        InputError: It is a path.
    """
    if is_file(recipe):
        raise InputError(f"recipe {recipe!r} is a file; give it as settings instead")


def resolve(recipe: str, settings: storage.Location = "") -> tuple[str, Settings]:
    """Return the name of the recipe that is trained, and its settings.

    Args:
        recipe: Name of a recipe.
        settings: Settings file of a sweep, which may be in a bucket. Its recipe replaces `recipe`. If empty, the
            settings are the defaults.

    Raises:
        InputError: The recipe is a path, or as for `read`.
    """
    refuse_file(recipe)
    if not settings:
        return recipe, Settings()
    found = read(settings)
    return found.recipe, found
