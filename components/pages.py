"""Small HTML artifacts for the Kubeflow UI."""

import html
from collections.abc import Sequence
from pathlib import Path

from thyroid import RESEARCH_USE_ONLY


def picture_page(path: str, title: str, *pictures: Path) -> None:
    """Write a page that shows PNG files, which it carries inside."""
    from thyroid.imaging import images

    shown = "".join(
        f"<img alt='{title}' style='max-width:100%' src='{images.data_uri(picture.read_bytes())}'>"
        for picture in pictures
    )
    _page(path, title, shown)


def text_page(path: str, title: str, lines: Sequence[str]) -> None:
    """Write a page of plain lines."""
    _page(path, title, "".join(f"<p>{html.escape(line)}</p>" for line in lines))


def _page(path: str, title: str, body: str) -> None:
    Path(path).write_text(
        f"<!doctype html><meta charset='utf-8'><title>{title}</title><h1>{title}</h1><p>{RESEARCH_USE_ONLY}</p>{body}"
    )
