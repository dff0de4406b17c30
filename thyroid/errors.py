"""Errors that a user can act on, and the one place that turns them into a single line."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

from thyroid import logs

P = ParamSpec("P")


class InputError(Exception):
    """Input from the user that cannot be used.

    The message names the file or field and says what to do.
    """


def command(main: Callable[P, None]) -> Callable[P, int]:
    """Wrap a `main(argv)` so that user errors become one line on stderr and exit code 2, never a traceback.

    `OSError` counts as a user error: the user can fix an unwritable output, a full disk or a vanished file. An
    interrupt from the keyboard gives exit code 130, success gives 0.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        logs.to_stdout()
        try:
            main(*args, **kwargs)
        except (InputError, OSError) as error:
            sys.stderr.write(f"error: {one_line(error)}\n")
            return 2
        except KeyboardInterrupt:
            return 130
        return 0

    return wrapped


def one_line(error: Exception) -> str:
    """Return an error's message as one line; an `OSError` gives its file and its reason in words."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())
