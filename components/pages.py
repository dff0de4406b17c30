"""Small HTML artifacts for the Kubeflow UI."""

import html
from collections.abc import Sequence
from pathlib import Path

from thyroid import RESEARCH_USE_ONLY


def picture_page(path: str, title: str, *pictures: Path) -> None:
    """Write a page with embedded PNG files.

    Args:
        path: File to write.
        title: Title and heading, and the alternative text of every picture. It is not escaped.
        *pictures: PNG files.
    """
    from thyroid.imaging import images

    shown = "".join(
        f"<img alt='{title}' style='max-width:100%' src='{images.data_uri(picture.read_bytes())}'>"
        for picture in pictures
    )
    _page(path, title, shown)


def text_page(path: str, title: str, lines: Sequence[str]) -> None:
    """Write a page with one paragraph per line. The lines are escaped."""
    _page(path, title, "".join(f"<p>{html.escape(line)}</p>" for line in lines))


def _page(path: str, title: str, body: str) -> None:
    Path(path).write_text(
        f"<!doctype html><meta charset='utf-8'><title>{title}</title><h1>{title}</h1><p>{RESEARCH_USE_ONLY}</p>{body}"
    )
