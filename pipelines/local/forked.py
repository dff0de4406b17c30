"""A step's process on this machine, forked from a process that has already imported the libraries.

Importing them would take every step several seconds.
"""

import io
import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection

_CONTEXT = multiprocessing.get_context("forkserver")
# These modules may be imported before a fork, since they do not look for a GPU. The first one tells kfp that this is a
# step, so it has to be imported before kfp.
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
    """Start importing the libraries in a separate process, which ends with this one."""
    forkserver.ensure_running()


class Forked:
    """A process that runs `python3 -m components` in its own process group.

    Args:
        arguments: Arguments of the command.
        environment: Environment variables of the process, which inherits no others.

    Attributes:
        pid: Id of the process and of its group.
        output: Lines of stdout and stderr.
    """

    def __init__(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        """Fork the process and start the step."""
        reader, writer = multiprocessing.Pipe(duplex=False)
        self._process = _CONTEXT.Process(target=_run, args=(arguments, environment, writer))
        self._process.start()
        writer.close()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.output = os.fdopen(os.dup(reader.fileno()), errors="replace")
        reader.close()

    def wait(self) -> int:
        """Wait for the process to end.

        Returns:
            The exit code, or the negative number of the signal that ended it.
        """
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def _run(arguments: Sequence[str], environment: dict[str, str], output: Connection) -> None:
    from components.__main__ import main

    multiprocessing.set_start_method(None, force=True)  # a step starts its workers as it would without the fork
    os.setsid()
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.clear()  # the fork inherits the environment of the fork server
    os.environ.update(environment | {"_KFP_RUNTIME": "true"})
    sys.exit(main(arguments))
