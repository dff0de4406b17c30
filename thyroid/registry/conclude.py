"""Summarise how a run ended, successful or not, as the last lines of a pipeline.

python -m thyroid.conclude --registry DIR --state FAILED --message "train-VGG16: out of memory"
"""

from thyroid import command, notify, storage
from thyroid.errors import InputError
from thyroid.model.artefact import CARD, Artefact
from thyroid.model.backbones import BACKBONES
from thyroid.notify import words
from thyroid.notify.notification import Event
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


_STEPS = {
    *("ingest", "crop", "train", "locate", "evaluate", "register", "deploy", "rest"),
    *(f"train-{backbone}" for backbone in BACKBONES),
}
"""Names of steps that a notification may repeat."""
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
    lines += _hints(message)
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
                waits = aliases.get("waiting") == known.version
                lines += [f"{'Waits' if waits else 'Not released'}: {reason}" for reason in known.gate.reasons]
    except InputError as error:
        lines.append(str(error))
    return lines


def announce(root: Location, run: str, state: str, message: str) -> None:
    """Tell the receivers of notifications how a run ended, once for each run.

    Of the message they are told which step failed and what can be done about it; the rest may hold names of files.

    Args:
        root: Root of the registry.
        run: Id of the run.
        state: State of the run, as for `conclude`.
        message: Message about the failure, which starts with the name of the step that failed if that is known.
    """
    event: Event = "run.failed"
    if state in _SUCCEEDED:
        event = "run.succeeded"
    elif state.startswith("CANCEL"):
        event = "run.cancelled"
    champion, link = None, ""
    try:
        registry = Registry(root)
        champion = registry.champion()
        if (newest := registry.read_aliases().get("candidate", champion)) is not None:
            link = storage.below(registry.address(newest), "report.html")
    except (InputError, OSError):
        pass  # `conclude` says so
    failed = event == "run.failed"
    step = message.partition(":")[0].strip()
    news = words.run_ended(
        run,
        event,
        step=step if failed and step in _STEPS else "",
        hints=_hints(message) if failed else (),
        champion=champion,
        link=link if event == "run.succeeded" else "",
    )
    notify.tell(news, root)


def _hints(message: str) -> list[str]:
    return [hint for word, hint in _HINTS.items() if word in message.replace(" ", "").lower()]


def run(*, registry: Location, state: str = "SUCCEEDED", message: str = "", run_id: str = "") -> None:
    """Summarise how a run ended, successful or not.

    Args:
        registry: Root of the registry: a folder, or a gs:// or s3:// prefix.
        state: State of the run.
        message: Message about the failure.
        run_id: Id of the run, for the notifications about it; empty to send none.
    """
    print("\n".join(conclude(registry, state, message)))
    if run_id:
        announce(registry, run_id, state, message)


main = command.main("python -m thyroid.conclude", run)
