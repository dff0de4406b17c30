"""Errors that a user can act on, and the one place that turns them into one line."""

import functools
import sys
from collections.abc import Callable, Sequence


class InputError(Exception):
    """Something the user gave cannot be used. The message names the file or field and says what to do."""


def command(main: Callable[[Sequence[str] | None], None]) -> Callable[..., int]:
    """Wrap a `main(argv)` so that user errors become one line on stderr and exit code 2, never a traceback.

    `OSError` counts as one: an unwritable output, a full disk and a vanished file are all the user's to mend.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        try:
            main(argv)
        except (InputError, OSError) as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130
        return 0

    return wrapped


def one_line(error: Exception) -> str:
    """`error` as one line; an `OSError` with its file and its reason in words."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())
