"""Nights in processes of their own, which share nothing with the test but the bucket."""

import multiprocessing
import os
import signal
from pathlib import Path

from thyroid.data import plots
from thyroid.data.store.in_bucket import BucketFiles
from thyroid.errors import InputError
from thyroid.ingest import ingest
from thyroid.ingest.options import IngestOptions

SPAWN = multiprocessing.get_context("spawn")  # the client of S3 does not work in a fork


def elsewhere(options: IngestOptions, output: Path, cache: Path) -> None:
    """Ingest on another node, with a cache of its own."""
    os.environ["XDG_CACHE_HOME"] = str(cache)
    plots.data_statistics = lambda scans, regions, path, classes: path.touch()  # type: ignore[assignment,misc]
    ingest.ingest(options, output)


def stopped(options: IngestOptions, output: Path, cache: Path, how: str) -> None:
    """Ingest, and be killed or fail when everything is uploaded and only the index is not written yet."""

    def swap(self: BucketFiles, files: object) -> None:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise InputError("no")

    BucketFiles._swap = swap  # type: ignore[method-assign]
    elsewhere(options, output, cache)
