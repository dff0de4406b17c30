r"""The pipelines' command line: run them on this machine, or compile them for Kubeflow and start them there.

python -m pipelines run --scans DIR --rois rois.csv --output DIR
python -m pipelines sweep --scans DIR --rois rois.csv --backbones VGG16 --output DIR
python -m pipelines compile --output thyroid.yaml
python -m pipelines submit --host http://localhost:8080 --set scans=/data/scans --set registry=/data/registry
python -m pipelines schedule --host http://localhost:8080 --cron "0 30 2 * * *" \
    --set scans=/data/scans --set registry=/data/registry
python -m pipelines listen --host http://localhost:8080 --state gs://bucket/listen --event-token-file token \
    --set scans=gs://bucket/scans --set registry=gs://bucket/registry --set store=gs://bucket/store --claim ""
"""

import sys
from collections.abc import Sequence

from thyroid import command, errors

COMMANDS = {
    "run": ("pipelines.run:run", "Run the whole pipeline on this machine, without a cluster."),
    "sweep": ("pipelines.search:sweep", "Search the settings of one backbone's training on this machine."),
    "compile": ("pipelines.compile:compile", "Write the pipelines for the Kubeflow UI."),
    "submit": ("pipelines.kubeflow.submit:submit", "Start a run on Kubeflow and watch it."),
    "schedule": ("pipelines.kubeflow.schedule:schedule", "Start runs on Kubeflow at the times of a cron expression."),
    "listen": ("pipelines.events.listen:listen", "Start runs on Kubeflow when scans have arrived."),
}
"""For each command, its function, which is imported when it is called, and its line in the list of commands."""


@errors.command
def main(argv: Sequence[str] | None = None, program: str = "python -m pipelines") -> None:
    """Run the command that the arguments name; `errors.command` turns an error of the user into exit code 2.

    Args:
        argv: Arguments without the program's name; None for those of the process.
        program: How the command is started.

    Raises:
        InputError: An argument, or a file that it names, cannot be used.
    """
    app = command.app(program, __doc__)
    arguments = sys.argv[1:] if argv is None else argv
    for name, (function, text) in COMMANDS.items():
        # the list of commands imports none of them; the help of one command is its docstring
        app.command(function, name=name, help=None if name in arguments[:1] else text)
    command.call(app, arguments)


if __name__ == "__main__":
    sys.exit(main())
