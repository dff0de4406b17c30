"""Reads the settings of a training, and resolves its recipe.

`python -m thyroid.sweep` searches for such settings and writes them to settings.json, which a training accepts. The
file is plain JSON and can also be written by hand. A setting that it leaves out keeps its default.
"""

import json

from thyroid import storage
from thyroid.errors import InputError
from thyroid.records.settings import FOUND, Settings


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
    return Settings.parse(content, f"settings {location}")


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
