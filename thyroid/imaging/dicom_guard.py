"""DICOM files of strangers, read in a process of its own: what a file makes it do, it does not do to the server.

picture = dicom_guard.read(data, frame=None, end=time.monotonic() + 30)

The process starts with the first file (some .6 seconds, 100 MB), reads one file at a time within limits of processor time and
memory, is killed when the caller's time is over, and ends by itself when nobody has asked for a while. It answers with raw
pixels and JSON, never with objects, so that a decoder that is taken over cannot take over who asks.
"""

import contextlib
import json
import math
import os
import resource
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from thyroid.imaging.dicom_picture import DicomError, Picture

SECONDS = 10
"""Processor time of a file; the largest that is taken needs two."""
MEMORY = 400_000_000
"""Bytes that a file may take beside what the process has when it starts; the largest that is taken needs 300 MB."""
IDLE = 20.0
"""Seconds without a file after which the process ends, and its memory is free again."""
_START = 30.0
"""Seconds within which it must have started."""


def read(data: bytes, frame: int | None, end: float) -> Picture:
    """As `dicom.read`, by the process.

    Args:
        data: the whole file.
        frame: from 1; None for the middle one.
        end: until when, by `time.monotonic`; others may be before it.

    Raises:
        DicomError: see `dicom.read`, or the file asks for more processor time or memory than there is for one.
        TimeoutError: the time is over.
    """
    return _READER.read(data, frame, end)


class _EndedError(Exception):
    """The process ended before it answered; its exit status."""


class _Reader:
    """The process, if there is one now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, data: bytes, frame: int | None, end: float) -> Picture:
        if not self._lock.acquire(timeout=max(0.0, end - time.monotonic())):
            raise TimeoutError
        try:
            try:
                return self._ask(data, frame, end)
            except _EndedError as ended:
                if ended.args != (0,):
                    raise
                return self._ask(data, frame, end)  # it had just gone for want of work
        except _EndedError:
            if time.monotonic() >= end:
                raise TimeoutError from None
            raise DicomError(
                "damaged",
                f"DICOM that asks for more than {SECONDS} seconds of processor time or {MEMORY:,} bytes of memory",
            ) from None
        finally:
            self._lock.release()

    def _ask(self, data: bytes, frame: int | None, end: float) -> Picture:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        process = self._process = self._process or _started()
        timer = threading.Timer(max(0.0, end - time.monotonic()), process.kill)
        timer.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps({"bytes": len(data), "frame": frame}).encode() + b"\n")
            process.stdin.write(data)
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            if "code" in answer:
                raise DicomError(answer["code"], answer["message"])
            pixels = np.empty((answer["height"], answer["width"], 3), np.uint8)
            if process.stdout.readinto(pixels.data.cast("B")) != pixels.nbytes:  # type: ignore[attr-defined]
                raise EOFError
            return Picture(pixels, answer["frame"], answer["frames"], answer["instance"], "", answer["regions"])
        except DicomError:
            raise
        except (OSError, EOFError, ValueError):  # nobody there, or nobody any more
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
            self._end()
            raise _EndedError(process.returncode) from None
        except BaseException:
            self._end()
            raise
        finally:
            timer.cancel()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(OSError):  # of what was not written yet
                self._process.__exit__(None, None, None)
            self._process = None


def _started() -> "subprocess.Popen[bytes]":
    """A new process that is ready; OpenCV and NumPy start no threads in it, which would take memory and processors."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", __name__, *map(str, (SECONDS, MEMORY, IDLE))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    timer = threading.Timer(_START, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the process that reads DICOM files does not start (exit status {process.wait()})")
        return process
    finally:
        timer.cancel()


_READER = _Reader()


def _work(seconds: int, memory: int, idle: float) -> None:
    """The process: files from standard input, answers on standard output."""
    from thyroid.imaging import dicom

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it writes no file
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + memory, used + memory))
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    files = sys.stdin.buffer
    answers.write(b"ready\n")
    answers.flush()
    while select.select([files], [], [], idle)[0] and (head := files.readline()):
        asked = json.loads(head)
        spent = math.ceil(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (spent + seconds, most))
        answer, pixels = _answer(dicom.read, files.read(asked["bytes"]), asked["frame"])
        answers.write(json.dumps(answer).encode() + b"\n" + pixels)
        answers.flush()


def _answer(reader: Any, data: bytes, frame: int | None) -> tuple[dict[str, Any], bytes]:
    try:
        picture = reader(data, frame)
    except DicomError as error:
        return {"code": error.code, "message": str(error)}, b""
    height, width = picture.pixels.shape[:2]
    told = {"height": height, "width": width, "frame": picture.frame, "frames": picture.frames}
    return told | {"instance": picture.instance, "regions": picture.regions}, picture.pixels.tobytes()


if __name__ == "__main__":
    from thyroid.imaging import dicom_guard  # under its own name, so that there is one DicomError

    dicom_guard._work(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
