"""Checks of the values in the endpoint's answers, before anything of them is shown."""

import base64
from typing import Any

from thyroid.imaging import images

UNDOCUMENTED = (ArithmeticError, AttributeError, KeyError, IndexError, TypeError, ValueError)
"""Errors that are raised when an answer does not have its documented form."""


def share(value: Any) -> float:
    """Return a number from 0 to 1. A boolean, a text or NaN raises ValueError."""
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ValueError("not a share")
    return float(value)


def png(encoded: str) -> str:
    """Return a picture from the endpoint for an <img>, after a check that it is a PNG."""
    picture = base64.b64decode(encoded, validate=True)
    if images.kind(picture) != "PNG":
        raise ValueError("not a PNG")
    return images.data_uri(picture)
