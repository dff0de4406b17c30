"""`@step(image=...)`: one typed function is a step's interface, its container component and the container's work.

Where pipelines are compiled or run locally, the decorator makes a real container component. Its command is
`python3 -m components STEP --executor-input ...`, so the YAML holds no source code. Inside the container
(`_KFP_RUNTIME=true`, set by `components/__main__.py` before kfp is imported) the decorator returns the function itself,
and kfp's own executor calls it. `image` names a dependency set, an extra in pyproject.toml with a lock in images/.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

VERSION = "dev"


def image_name(image: str) -> str:
    """Return the name and tag of the image that holds a dependency set.

    The environment variables THYROID_IMAGES (registry and prefix) and THYROID_TAG override the defaults.
    """
    prefix = os.environ.get("THYROID_IMAGES", "localhost/thyroid")
    return f"{prefix}-{image}:{os.environ.get('THYROID_TAG', VERSION)}"


def step(image: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that turns a function into a component.

    The function has kfp's type annotations. It returns scalars through `OutputPath`.

    Args:
        image: Dependency set of the step; see `image_name`.
    """

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        if os.environ.get("_KFP_RUNTIME") == "true":
            return function
        from kfp import dsl

        @functools.wraps(function)
        def specification(*arguments: Any, **keywords: Any) -> dsl.ContainerSpec:
            return dsl.ContainerSpec(
                image=image_name(image),
                command=["python3", "-m", "components"],
                # SubprocessRunner accepts a component as a Python component only if its command contains the text
                # kfp.dsl.executor_main. This is an internal check of kfp 2.17, which is the reason for the pin and for
                # tests/components/test_step.py.
                args=[function.__name__, "--executor-input", "{{$}}", "--abi", "kfp.dsl.executor_main"],
            )

        component: Callable[..., Any] = dsl.container_component(specification)
        return component

    return wrap
