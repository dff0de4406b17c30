"""Other processes of tests. They start without what this one has used: the client of S3 does not survive a fork."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.pool import Pool
from multiprocessing.process import BaseProcess
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.registry.test_registry"])  # which imports most of the library


def pool(processes: int) -> Pool:
    """Return a pool of processes with the present environment variables."""
    return _CONTEXT.Pool(processes, _set, [dict(os.environ)])


def process(target: Callable[..., object], *arguments: Any) -> BaseProcess:
    """Return a process with the present environment variables, which calls a function of a module."""
    return _CONTEXT.Process(target=_call, args=(dict(os.environ), target, arguments))


def _set(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _call(variables: dict[str, str], target: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    _set(variables)
    target(*arguments)
