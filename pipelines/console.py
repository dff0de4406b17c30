"""The command `thyroid`: every command of the project by one name, imported only when it is called."""

import importlib
import sys
from collections.abc import Callable, Sequence

from pipelines.__main__ import COMMANDS as PIPELINES
from thyroid import command, errors

MODULES = {
    "ingest": ("thyroid.ingest.__main__", "Read, check and split the scans."),
    "crop": ("thyroid.crop", "Make the images of both domains."),
    "train": ("thyroid.train.__main__", "Train one backbone."),
    "locate": ("thyroid.locate.__main__", "Train a locator, and propose boxes for every frame."),
    "evaluate": ("thyroid.evaluate.__main__", "Compare the trained models and decide whether the winner is released."),
    "register": ("thyroid.register", "Publish the winner in the registry."),
    "registry": ("thyroid.registry.__main__", "List, show, promote, roll back and clean up registered models."),
    "deploy": ("thyroid.deploy.__main__", "Serve a registered model with KServe."),
    "serve": ("thyroid.serve.__main__", "Serve a registered model over HTTP and gRPC on this machine."),
    "page": ("thyroid.web.__main__", "Serve the page for people, which asks an endpoint."),
    "label": ("thyroid.label.__main__", "Serve the labelling bench, where rois.csv and labels.csv come from."),
    "exchange": ("thyroid.exchange", "Import readings as COCO or the XML of DDTI, and export them."),
    "suspects": ("thyroid.suspects", "List the scans whose labels look wrong."),
    "validate": ("thyroid.validate.__main__", "Try a registered model on the scans of another hospital."),
    "pool": ("thyroid.pool", "Pool what several hospitals shared about one model."),
    "watch": ("thyroid.watch.__main__", "Watch a released model: drift, and decisions beside their outcomes."),
    "retention": ("thyroid.retention", "Delete old data versions and models, or erase a patient."),
    "notify": ("thyroid.notify.__main__", "Send a test message to the receivers of notifications."),
    "conclude": ("thyroid.conclude", "Report how a run ended and which models there are."),
    "search": ("thyroid.sweep.__main__", "Search settings on a data version, one stage at a time."),
    "phantom": ("thyroid.phantom", "Draw synthetic sample scans."),
    "dicom": ("thyroid.dicom", "List which pseudonym is which DICOM file."),
    "diagnose": ("thyroid.diagnose", "Find out why a model collapsed."),
}
"""For each command, the module whose `main` it calls, and its line in the list of commands."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, with the other arguments.

    Args:
        argv: Arguments without the program's name; None for those of the process.

    Returns:
        Exit code of the command; 2 if it is unknown.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name in PIPELINES:
        return _main_of("pipelines.__main__")(arguments, "thyroid")
    if name in MODULES:
        return _main_of(MODULES[name][0])(arguments[1:], f"thyroid {name}")
    return _without_command(arguments)


def _main_of(module: str) -> Callable[[Sequence[str], str], int]:
    main: Callable[[Sequence[str], str], int] = importlib.import_module(module).main
    return main


@errors.command
def _without_command(argv: Sequence[str] | None = None) -> None:
    """Print the list of commands, or refuse a command that does not exist."""
    app = command.app("thyroid", "Ultrasound scans to a served thyroid nodule classifier. Research use only.")
    for name, (function, text) in PIPELINES.items():
        app.command(function, name=name, help=text)
    for name, (module, text) in MODULES.items():
        app.command(f"{module}:main", name=name, help=text)
    command.call(app, argv)
