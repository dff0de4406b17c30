"""Processes that work for this one and end with it, however it ends."""

import os
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection, parent_process

from thyroid import cores


def pool() -> ProcessPoolExecutor:
    """One process a core.

    Without the watch, those of a killed process would wait for work for ever, and hold on to the locks that they inherited.
    """
    return ProcessPoolExecutor(cores.available(), initializer=watch)


def watch() -> None:
    """End this process as soon as the one that started it ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
