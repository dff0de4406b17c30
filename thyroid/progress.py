"""Progress of long work: a live bar on a terminal, a line every few seconds in a log."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Never, TypeVar, overload

from tqdm import tqdm

LOG_SECONDS = 10.0
SHORT_SECONDS = 1.0
T = TypeVar("T")
_silent = False


@contextmanager
def silent() -> Iterator[None]:
    """Hide all bars within the block, where one bar over the whole block says more."""
    global _silent
    _silent = True
    try:
        yield
    finally:
        _silent = False


class _Lines:
    """A file for tqdm that logs every new count on its own line, without carriage returns and blanks."""

    last = ""

    def write(self, text: str) -> None:
        state = text.strip()
        if (counted := state.partition(" in ")[0]) and counted != self.last:
            sys.stderr.write(f"{state}\n")
            self.last = counted

    def flush(self) -> None:
        sys.stderr.flush()


@overload
def bar(iterable: None, total: int | None, description: str, unit: str) -> "tqdm[Never]": ...
@overload
def bar(iterable: Iterable[T], total: int | None, description: str, unit: str) -> "tqdm[T]": ...
def bar(iterable: Iterable[Any] | None, total: int | None, description: str, unit: str) -> "tqdm[Any]":
    """Return `iterable` with a progress bar, which is hidden if the work takes less than `SHORT_SECONDS`.

    Args:
        iterable: Iterable to show the progress of; None for a bar that is updated by hand.
        total: Number of items; None if it is unknown.
        description: Text in front of the bar.
        unit: Name of one item, in the singular.
    """
    live = sys.stderr.isatty()
    return tqdm(
        iterable,
        total=total,
        desc=description,
        unit=unit,
        mininterval=0.1 if live else LOG_SECONDS,
        delay=SHORT_SECONDS,
        disable=_silent,
        file=None if live else _Lines(),
        bar_format=None if live else "{desc}: {n_fmt} of {total_fmt} {unit}s in {elapsed}, {remaining} left",
    )
