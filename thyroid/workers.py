"""Processes that end with the process that started them, however it ends."""

import os
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection, parent_process

from thyroid import cores


def pool() -> ProcessPoolExecutor:
    """Return a pool with one worker process per core, each of which runs `watch`.

    Without `watch`, the workers of a killed process would wait for work for ever and hold the locks that they
    inherited.
    """
    return ProcessPoolExecutor(cores.available(), initializer=watch)


def watch() -> None:
    """End this process as soon as the process that started it ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def end_with_input() -> None:
    """End this process when its standard input is closed, as it is when the process that started it ends."""
    threading.Thread(target=_end_with_input, daemon=True).start()


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
