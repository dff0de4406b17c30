"""What the page says, in every language it speaks: words/en.json and words/ko.json, the same keys in each."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

LANGUAGES = ("en", "ko")
"""The first is spoken where the browser asks for none of them."""


@cache
def load(language: str) -> Mapping[str, str]:
    """Key to text; a text may hold {fields}."""
    return json.loads((Path(__file__).parent / "words" / f"{language}.json").read_text(encoding="utf-8"))


class Words:
    """The texts of one language: `words("error_many", count=30, views=12)`."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._texts = load(language)

    def __call__(self, key: str, **values: object) -> str:
        return self._texts[key].format(**values) if values else self._texts[key]

    def starting(self, *prefixes: str) -> dict[str, str]:
        """The texts whose keys start so, for the browser."""
        return {key: text for key, text in self._texts.items() if key.startswith(prefixes)}


def share(value: float) -> str:
    """A share as people read it: 73 %, and with a decimal where a whole percent would hide the difference: 4.1 %."""
    percent = value * 100
    return (
        f"{percent:.1f}\N{NO-BREAK SPACE}%"
        if 0 < percent < 10 or 90 < percent < 100
        else f"{percent:.0f}\N{NO-BREAK SPACE}%"
    )
