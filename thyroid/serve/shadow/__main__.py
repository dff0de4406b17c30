"""The candidate's process: python -m thyroid.serve.shadow FOLDER [FORM]. The endpoint starts it.

It reads an image's fields as a line of JSON and then its bytes from standard input, and writes a line of JSON to
standard output. It takes only what other processes leave of the processor, and stays within a limit of memory.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from thyroid import cores, errors
from thyroid.errors import InputError
from thyroid.registry.registry import MODEL_NAME
from thyroid.serve import limits

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h
_FIRST_TO_GO = 1000
"""Value of oom_score_adj with which the system ends this process before any other when memory is short."""


def main() -> None:
    """Answer to images until standard input is closed."""
    folder, form = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of a library must not mix with the answers
    _end_with_the_endpoint()
    _give_way()
    _within_limits()
    with contextlib.suppress(KeyboardInterrupt):  # the endpoint ends this process
        asyncio.run(_serve(folder, form, answers))


def _end_with_the_endpoint() -> None:
    """Have the system kill this process when the endpoint is killed; one that is halted notices no closed pipe."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _give_way() -> None:
    """Run on one core at most, and only while no other process wants it. This holds for all threads from now on."""
    cores.limit(1)
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _within_limits() -> None:
    """Make this process the one that suffers if it takes too much memory, or if the machine has too little of it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (limits.SHADOW_MEMORY, limits.SHADOW_MEMORY))
    with contextlib.suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text(str(_FIRST_TO_GO))


async def _serve(folder: Path, form: str | None, answers: BinaryIO) -> None:
    sys.argv = sys.argv[:1]  # kserve parses the command line when it is imported
    from thyroid.serve.model import ThyroidModel

    model = ThyroidModel(MODEL_NAME, folder, form=form)
    try:
        model.load()
    except InputError as error:
        _write(answers, {"reason": errors.one_line(error)})
        return
    _write(answers, {"version": model.publication.version, "form": model.chosen})
    # Nothing else runs on this loop while the process waits for the next image.
    while header := sys.stdin.buffer.readline():
        fields = json.loads(header)
        image = sys.stdin.buffer.read(fields["bytes"])
        _write(answers, await _answer(model, fields, image))


async def _answer(model: Any, fields: dict[str, Any], image: bytes) -> dict[str, Any]:
    """Return the fields of `Shadowed` that are the candidate's own, or why it cannot judge the image.

    Args:
        model: The candidate, a `ThyroidModel`.
        fields: The image's fields.
        image: The image's bytes.
    """
    from thyroid.serve.payload import Instance

    shape, roi = fields["shape"], fields["roi"]
    instance = Instance(
        field="image",
        image=image if shape is None else np.frombuffer(image, np.uint8).reshape(shape),
        roi=None if roi is None else (roi[0], roi[1], roi[2], roi[3]),
        frame=fields["frame"],
        clinical=fields["clinical"],
        domain=fields["domain"],
    )
    try:
        scored = await model.score(instance)
    except MemoryError:
        raise
    except Exception as error:  # the image is wrong for this model, which the champion may not mind
        return {"failed": type(error).__name__}
    return {
        "version": model.publication.version,
        "form": model.chosen,
        "probability": scored.decision["malignant"],
        "decision": scored.decision["decision"],
        "reasons": scored.decision.get("reasons", []),
        "novelty": scored.novelty,
        "distance": scored.distance,
    }


def _write(answers: BinaryIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
