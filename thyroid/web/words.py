"""The texts of an application in every language: words/en.json and words/ko.json, which have the same keys."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

LANGUAGES = ("en", "ko")
"""The languages of the page. The first is used if the browser asks for none of them."""
PAGE = Path(__file__).parent
"""Folder of the page, which holds its words, templates and static files."""


@cache
def load(language: str, folders: tuple[Path, ...] = (PAGE,)) -> Mapping[str, str]:
    """Return the texts of a language by key. A text may hold `{fields}`.

    Args:
        language: One of `LANGUAGES`.
        folders: Folders of applications; where several have a text, the first one's counts.
    """
    texts: dict[str, str] = {}
    for folder in reversed(folders):
        texts |= json.loads((folder / "words" / f"{language}.json").read_text(encoding="utf-8"))
    return texts


class Words:
    """The texts of one language: `words("error_many", count=30, views=12)`."""

    def __init__(self, language: str, folders: tuple[Path, ...] = (PAGE,)) -> None:
        """Load the texts of one of `LANGUAGES`, as `load` does."""
        self.language = language
        self._texts = load(language, folders)

    def __call__(self, key: str, **values: object) -> str:
        """Return the text of `key` with `values` in its fields."""
        return self._texts[key].format(**values) if values else self._texts[key]

    def starting(self, *prefixes: str) -> dict[str, str]:
        """Return the texts whose keys start with one of `prefixes`, for the browser."""
        return {key: text for key, text in self._texts.items() if key.startswith(prefixes)}


def share(value: float) -> str:
    """Format a share from 0 to 1 as people read it, such as 73 %.

    It gets a decimal where a whole percent would hide the difference, such as 4.1 %.
    """
    percent = value * 100
    return (
        f"{percent:.1f}\N{NO-BREAK SPACE}%"
        if 0 < percent < 10 or 90 < percent < 100
        else f"{percent:.0f}\N{NO-BREAK SPACE}%"
    )
