"""A step's process on this machine: a fork of one that has imported what steps need, which takes each of them seconds."""

import io
import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection

_CONTEXT = multiprocessing.get_context("forkserver")
# What may be forked: it looks for no GPU. The first tells kfp that this is a step, which has to come before kfp.
_CONTEXT.set_forkserver_preload(
    [
        "components.__main__",
        "thyroid.model.framework",
        "cv2",
        "matplotlib.pyplot",
        "pandas",
        "scipy.stats",
        "sklearn.linear_model",
        "sklearn.metrics",
    ]
)


def prepare() -> None:
    """Begin to import, in a process of its own, which ends with this one."""
    forkserver.ensure_running()


class Forked:
    """`python3 -m components` with arguments, in a process group of its own.

    Attributes:
        pid: also the number of the group.
        output: lines of stdout and stderr.
    """

    def __init__(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        reader, writer = multiprocessing.Pipe(duplex=False)
        self._process = _CONTEXT.Process(target=_run, args=(arguments, environment, writer))
        self._process.start()
        writer.close()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.output = os.fdopen(os.dup(reader.fileno()), errors="replace")
        reader.close()

    def wait(self) -> int:
        """Its exit code, negative for the signal that ended it."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def _run(arguments: Sequence[str], environment: dict[str, str], output: Connection) -> None:
    from components.__main__ import main

    multiprocessing.set_start_method(None, force=True)  # workers of a step start as they do where it is not forked
    os.setsid()
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.clear()  # that of whoever started the process that was forked
    os.environ.update(environment | {"_KFP_RUNTIME": "true"})
    sys.exit(main(arguments))
