"""Untrusted DICOM files, read in a separate process: whatever a file does to that process, it cannot do to the server.

picture = dicom_guard.read(data, frame=None, end=time.monotonic() + 30)

The process starts with the first file (some .6 seconds, 100 MB). It reads one file at a time within limits of processor
time and memory. It is killed when the caller's time is over, and ends by itself when it has been idle for a while. It
answers with raw pixels and JSON, never with objects, so that a decoder that is taken over cannot take over the server.
"""

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from thyroid.imaging.dicom_picture import DicomError, Picture

SECONDS: float = 10
"""Processor time per file; the largest accepted file needs two seconds."""
MEMORY = 400_000_000
"""Bytes that a file may take on top of what the process has at its start; the largest accepted file needs 300 MB."""
IDLE = 20.0
"""Seconds without a file after which the process ends and frees its memory."""
_START = 30.0
"""Seconds within which the process must have started."""


def read(data: bytes, frame: int | None, end: float) -> Picture:
    """Read a file as `dicom.read` does, but in the separate process.

    Args:
        data: Bytes of the whole file.
        frame: Number of the frame, from 1; None for the middle one.
        end: Deadline by `time.monotonic`. Other files may be read first.

    Returns:
        The picture; its patient is always "".

    Raises:
        DicomError: See `dicom.read`; or the file needs more processor time or memory than one file may take.
        TimeoutError: The deadline has passed.
    """
    return _READER.read(data, frame, end)


class _EndedError(Exception):
    """The process ended before it answered; the argument is its exit status."""


class _Reader:
    """The separate process, if it is running."""

    def __init__(self) -> None:
        """Start without a process; the first file starts it."""
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
                return self._ask(data, frame, end)  # it had just ended because it was idle
        except _EndedError:
            if time.monotonic() >= end:
                raise TimeoutError from None
            raise DicomError(
                "damaged",
                f"DICOM that asks for more than {SECONDS:g} seconds of processor time or {MEMORY:,} bytes of memory",
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
        except (OSError, EOFError, ValueError):  # the process is not there, or no longer there
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
            with contextlib.suppress(OSError):  # about data that was not written yet
                self._process.__exit__(None, None, None)
            self._process = None


def _started() -> "subprocess.Popen[bytes]":
    """Start a new process and wait until it is ready.

    OpenCV and NumPy start no threads in it, which would take memory and processors.
    """
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


def _work(seconds: float, memory: int, idle: float) -> None:
    """Run the process: files come from standard input, answers go to standard output."""
    from thyroid.imaging import dicom

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of a library must not mix with the answers
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # the process writes no file
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + memory, used + memory))
    files = sys.stdin.buffer
    answers.write(b"ready\n")
    answers.flush()
    while select.select([files], [], [], idle)[0] and (head := files.readline()):
        asked = json.loads(head)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal kills; RLIMIT_CPU counts whole seconds only
        answer, pixels = _answer(dicom.read, files.read(asked["bytes"]), asked["frame"])
        answers.write(json.dumps(answer).encode() + b"\n" + pixels)
        answers.flush()


def _answer(reader: Any, data: bytes, frame: int | None) -> tuple[dict[str, Any], bytes]:
    try:
        picture = reader(data, frame)
    except DicomError as error:
        return {"code": error.code, "message": str(error)}, b""
    height, width = picture.pixels.shape[:2]
    header = {"height": height, "width": width, "frame": picture.frame, "frames": picture.frames}
    return header | {"instance": picture.instance, "regions": picture.regions}, picture.pixels.tobytes()


if __name__ == "__main__":
    from thyroid.imaging import dicom_guard  # under its own name, so that there is only one DicomError

    dicom_guard._work(float(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
