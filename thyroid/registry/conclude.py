"""Summarise how a run ended, successful or not, as the last lines of a pipeline.

python -m thyroid.conclude --registry DIR --state FAILED --message "train-VGG16: out of memory"
"""

import argparse
from collections.abc import Sequence

from thyroid import errors
from thyroid.errors import InputError
from thyroid.model import artefacts
from thyroid.registry import registry
from thyroid.storage import Location

_HINTS = {
    "oomkilled": "A step ran out of memory: lower batch_size or image_size, or raise its limit (docs/kubeflow.md).",
    "unschedulable": "No node fits a step: look at node selector, tolerations and GPUs (docs/kubeflow.md).",
    "imagepull": "An image is not to be had: push it, or mend the image name and pull secret (docs/kubeflow.md).",
    "evicted": (
        "A node evicted a step after its retries: start the run again. With store, training resumes where it was."
    ),
    "deadline": "A step took longer than its time-out: look at its progress, or raise the time-out.",
}


_GOOD = ("SUCCEEDED", "COMPLETE", "CACHED")  # the word depends on the backend's version


def conclude(root: Location, state: str, message: str) -> list[str]:
    """Return lines for people: how the run ended, what to do if it failed, and which models are registered.

    Args:
        root: Root of the registry.
        state: State of the run: SUCCEEDED, COMPLETE or CACHED, FAILED, CANCELLED.
        message: Message about the failure from the backend; empty if nothing failed or nothing is known.

    Returns:
        The lines. A registry that cannot be read is reported as one of them.
    """
    lines = [f"The run ended: {state}."]
    if message:
        lines.append(message)
    elif state not in _GOOD:
        lines.append("The step that failed says why in its log: the line that starts with error.")
    lines += [hint for word, hint in _HINTS.items() if word in message.replace(" ", "").lower()]
    try:
        aliases = registry.read_aliases(root)
        for alias in ("champion", "candidate"):
            if alias not in aliases:
                lines.append(f"There is no {alias} yet.")
                continue
            folder = registry.find(root, alias, artefacts.CARD)
            facts = artefacts.facts(folder, ("version", "backbone", "created", "gate"))
            lines.append(
                f"{alias.capitalize()}: version {facts['version']}, {facts['backbone']}, of {facts['created']}."
            )
            if alias == "candidate" and aliases["candidate"] != aliases.get("champion"):
                lines += [f"Not released: {reason}" for reason in facts["gate"]["reasons"]]
    except InputError as error:
        lines.append(str(error))
    return lines


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    """Print the summary of a run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m thyroid.conclude", description=__doc__.split("\n")[0])
    parser.add_argument("--registry", dest="root", required=True, help="root of the registry, or gs://")
    parser.add_argument("--state", default="SUCCEEDED", help="of the run")
    parser.add_argument("--message", default="", help="of what failed")
    print("\n".join(conclude(**vars(parser.parse_args(argv)))))
