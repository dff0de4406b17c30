"""Summarise how a run ended, successful or not, as the last lines of a pipeline.

python -m thyroid.conclude --registry DIR --state FAILED --message "train-VGG16: out of memory"
"""

from thyroid import command
from thyroid.errors import InputError
from thyroid.model.artefact import CARD, Artefact
from thyroid.registry.registry import Registry
from thyroid.storage import Location

_HINTS = {
    "oomkilled": "A step ran out of memory: lower batch_size or image_size, or raise its limit (docs/kubeflow.md).",
    "unschedulable": "No node fits a step: check the node selector, tolerations and GPUs (docs/kubeflow.md).",
    "imagepull": "An image cannot be pulled: push it, or correct the image name and pull secret (docs/kubeflow.md).",
    "evicted": (
        "A node evicted a step after its retries: start the run again. With store, training resumes where it stopped."
    ),
    "deadline": "A step took longer than its time-out: check its progress, or raise the time-out.",
}


_SUCCEEDED = ("SUCCEEDED", "COMPLETE", "CACHED")  # the word depends on the backend's version


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
    elif state not in _SUCCEEDED:
        lines.append("The log of the step that failed gives the reason, in the line that starts with error.")
    lines += [hint for word, hint in _HINTS.items() if word in message.replace(" ", "").lower()]
    try:
        registry = Registry(root)
        aliases = registry.read_aliases()
        for alias in ("champion", "candidate"):
            if alias not in aliases:
                lines.append(f"There is no {alias} yet.")
                continue
            artefact = Artefact.read(registry.find(alias, CARD))
            known, backbone = artefact.publication, artefact.record.backbone
            lines.append(f"{alias.capitalize()}: version {known.version}, {backbone}, of {known.created}.")
            if alias == "candidate" and aliases["candidate"] != aliases.get("champion"):
                lines += [f"Not released: {reason}" for reason in known.gate.reasons]
    except InputError as error:
        lines.append(str(error))
    return lines


def run(*, registry: Location, state: str = "SUCCEEDED", message: str = "") -> None:
    """Summarise how a run ended, successful or not.

    Args:
        registry: Root of the registry: a folder, or a gs:// or s3:// prefix.
        state: State of the run.
        message: Message about the failure.
    """
    print("\n".join(conclude(registry, state, message)))


main = command.main("python -m thyroid.conclude", run)
