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


def bar(iterable: Any, total: int | None, description: str, unit: str) -> tqdm:
    """`iterable` with a progress bar, which is not shown for what takes less than `SHORT_SECONDS`."""
    return tqdm(
        iterable,
        total=total,
        desc=description,
        unit=unit,
        mininterval=_interval(),
        delay=SHORT_SECONDS,
        disable=_silent,
    )


def epochs(description: str) -> Any:
    """A Keras callback with one bar over all epochs."""
    from tqdm.keras import TqdmCallback  # imports TensorFlow, which ingest and crop do without

    return TqdmCallback(verbose=0, desc=description, mininterval=_interval(), disable=_silent)


def _interval() -> float:
    return 0.1 if sys.stderr.isatty() else LOG_SECONDS
