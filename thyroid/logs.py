"""Logs of the servers: one JSON object a line on standard output, without anything that a request holds."""

import json
import logging
import sys
import time


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        told = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)), "level": record.levelname}
        return json.dumps(told | {"message": record.getMessage()} | getattr(record, "fields", {}), ensure_ascii=False)


def configure() -> None:
    """Our lines, and of everybody else warnings and worse."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Lines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("thyroid").setLevel(logging.INFO)


def place(error: BaseException) -> str:
    """File and line where an error was raised; its message may come from the request, so it is left out."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return "" if at is None else f"{at.tb_frame.f_code.co_filename}:{at.tb_lineno}"
