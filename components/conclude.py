"""The exit handler as a pipeline step. It runs whether or not the other steps succeeded."""

import json
import os
import re

from kfp.dsl import HTML, Output, PipelineTaskFinalStatus

from components.step import step

FAILED_STEP = "THYROID_FAILED_STEP"
"""Variable with the name of the step that failed, where the pipeline runs on this machine; empty if none did."""
_STEP = re.compile("(ingest|crop|train|locate|evaluate|register|deploy|rest)(-[0-9]+)?")
_MOST = 8 * 2**20  # bytes of a run's description, most of which is the pipeline
_SECONDS = 5.0


@step(image="ops")
def conclude(registry: str, status: PipelineTaskFinalStatus, page: Output[HTML]):
    """Report how the run ended and which models there are now."""
    from components.pages import text_page
    from thyroid import notify
    from thyroid.registry.conclude import announce
    from thyroid.registry.conclude import conclude as run

    message, run_id = status.error_message or "", notify.present_run()
    # the status names only the group of the steps
    if here := os.environ.get(FAILED_STEP):
        message = f"{here}: failed"
    elif status.state == "FAILED" and (there := _failed_step(run_id)):
        message = f"{there}: {message or 'failed'}"
    lines = run(registry, status.state, message)
    print("\n".join(lines))
    text_page(page.path, f"Run: {status.state}", lines)
    announce(registry, run_id, status.state, message)


def _failed_step(run_id: str) -> str:
    """Ask Kubeflow Pipelines which step failed.

    It can be asked without an account only from its own namespace, whose pods have its address in their environment.

    Returns:
        The step's name, without its backbone; empty if that is not known.
    """
    import urllib3

    host, port = (os.environ.get(f"ML_PIPELINE_SERVICE_{name}") for name in ("HOST", "PORT_HTTP"))
    if not host or not port:
        return ""
    try:
        with urllib3.PoolManager() as pool:
            answer = pool.request(
                "GET",
                f"http://{host}:{port}/apis/v2beta1/runs/{run_id}",
                timeout=_SECONDS,
                retries=False,
                preload_content=False,
            )
            tasks = json.loads(answer.read(_MOST))["run_details"]["task_details"]
            failed = [_STEP.fullmatch(task["display_name"]) for task in tasks if task["state"] == "FAILED"]
    except (urllib3.exceptions.HTTPError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return next((found[1] for found in failed if found), "")
