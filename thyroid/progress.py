"""Progress of long work: a live bar on a terminal, a line every few seconds in a log."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 10.0
SHORT_SECONDS = 1.0
_silent = False


@contextmanager
def silent() -> Iterator[None]:
    """No bars within the block: one over the whole of it says more."""
    global _silent
    _silent = True
    try:
        yield
    finally:
        _silent = False


class _Lines:
    """A log that a bar writes to: every state that it counts on a line of its own, without carriage returns and blanks."""

    last = ""

    def write(self, text: str) -> None:
        state = text.strip()
        if (counted := state.partition(" in ")[0]) and counted != self.last:
            sys.stderr.write(f"{state}\n")
            self.last = counted

    def flush(self) -> None:
        sys.stderr.flush()


def bar(iterable: Any, total: int | None, description: str, unit: str) -> tqdm:
    """`iterable` with a progress bar, which is not shown for what takes less than `SHORT_SECONDS`."""
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
