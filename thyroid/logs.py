"""Logs of the servers: one JSON object per line on standard output, without any content of a request."""

import json
import logging
import sys
import time


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)), "level": record.levelname}
        return json.dumps(fields | {"message": record.getMessage()} | getattr(record, "fields", {}), ensure_ascii=False)


class _Plain(logging.Handler):
    """Writes messages as they are to what standard output is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stdout.write(f"{record.getMessage()}\n")
        sys.stdout.flush()


def to_stdout() -> None:
    """Show what the library logs as plain lines on standard output, as commands and pipeline steps do."""
    log = logging.getLogger("thyroid")
    if not any(isinstance(handler, _Plain) for handler in log.handlers):
        log.addHandler(_Plain())
    log.setLevel(logging.INFO)


def configure() -> None:
    """Write logs to standard output as JSON lines: `thyroid` from INFO on, all other loggers from WARNING on."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Lines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    log = logging.getLogger("thyroid")
    log.setLevel(logging.INFO)
    for plain in [handler for handler in log.handlers if isinstance(handler, _Plain)]:
        log.removeHandler(plain)


def place(error: BaseException) -> str:
    """Return the file and line where an error was raised, as `file:line`; "" if it has no traceback.

    The error's message is left out because it may quote the request.
    """
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return "" if at is None else f"{at.tb_frame.f_code.co_filename}:{at.tb_lineno}"
