"""A candidate's process that gets its share of a busy machine: python -m tests.support.eager_shadow FOLDER [FORM].

The real one only gets what no other process wants, so that it would keep tests waiting that run beside others.
"""

import os
import time
from pathlib import Path
from typing import Any

from thyroid import cores
from thyroid.serve.shadow import __main__ as real

HANG = "TEST_SHADOW_HANGS"
"""Environment variable with a path. A file there makes the process hang at its next image, and is removed."""


async def _answer(*image: Any) -> dict[str, Any]:
    path = os.environ.get(HANG)
    if path is not None and Path(path).exists():
        Path(path).unlink()
        time.sleep(3600)
    return await answer(*image)


if __name__ == "__main__":
    answer, real._answer = real._answer, _answer
    real._give_way = lambda: cores.limit(1)
    real.main()
