"""`@step(image=...)`: one typed function is a step's interface, its container component and the container's work.

Where pipelines are compiled or run locally, the decorator makes a true container component whose command is
`python3 -m components STEP --executor-input ...`, so the YAML holds no source code. Inside the container
(`_KFP_RUNTIME=true`, set by `components/__main__.py` before kfp is imported) it returns the function itself, and kfp's
own executor calls it. `image` names a dependency set: an extra in pyproject.toml, a target in images/.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

VERSION = "dev"


def image_name(image: str) -> str:
    """The image that holds a dependency set: THYROID_IMAGES (registry and prefix) and THYROID_TAG override the default."""
    prefix = os.environ.get("THYROID_IMAGES", "localhost/thyroid")
    return f"{prefix}-{image}:{os.environ.get('THYROID_TAG', VERSION)}"


def step(image: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a component of a function with kfp's type annotations; scalars leave through `OutputPath`."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        if os.environ.get("_KFP_RUNTIME") == "true":
            return function
        from kfp import dsl

        @functools.wraps(function)
        def specification(*arguments: Any, **keywords: Any) -> dsl.ContainerSpec:
            return dsl.ContainerSpec(
                image=image_name(image),
                command=["python3", "-m", "components"],
                # SubprocessRunner takes a component for a Python one only if the text kfp.dsl.executor_main stands in
                # its command (kfp 2.17, an internal check: hence the pin and tests/test_step.py).
                args=[function.__name__, "--executor-input", "{{$}}", "--abi", "kfp.dsl.executor_main"],
            )

        return dsl.container_component(specification)

    return wrap
